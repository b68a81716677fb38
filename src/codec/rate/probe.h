// What each point of the plane would cost and keep for a tensor, estimated from a sample: at most
// 65536 elements, so that a probe of a large tensor takes a fiftieth of an encode. One owner thread
// calls; nothing of the encoder changes.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "codec/encoder.h"
#include "codec/point.h"
#include "codec/workspace.h"
#include "scant/base/result.h"

namespace scant::codec {

struct CurvePoint {
  Point point;
  double bytes = 0;   // of the record, headers included; a mean over steps
  double energy = 0;  // kept, as a sum of squares; 0 where rounding adds more than is kept
};
// Ranks of which a curve says what so many directions hold.
inline constexpr std::array<uint16_t, 6> kHeldRanks = {1, 2, 4, 8, 16, 32};
struct Curve {
  double energy = 0;  // of gradient + residual
  std::vector<CurvePoint> points;
  // Of a matrix: the energy that its strongest 1, 2, 4 ... directions hold. probe() leaves zeros.
  std::array<double, kHeldRanks.size()> held{};
};

// One CurvePoint for each point, in their order. A tensor of up to 8192 elements is looked at as a
// whole. NaN and infinities count as zeros, so that all results are finite; that their blocks go as
// f32 is not counted, nor are entries that rows send because their turn has come (at most a 64th),
// nor that EncoderOptions::evenness moves entries between blocks. An error names what is wrong with
// the gradient's size or a point.
[[nodiscard]] Result<Curve> probe(const Encoder& encoder, std::span<const float> gradient,
                                  std::span<const Point> points, Workspace& workspace);

// Densities 1, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005 and 0.001, each with f32, bf16, q8, q4, q3, q2
// and q1.
[[nodiscard]] std::span<const Point> default_points();

// Bytes of the record of a range of `elements` at this point, headers included: exact for density
// 1, and 0 for density 0; between a mean over steps, as if entries were independent, with the same
// exceptions as probe(). Of a point with factors: of the rest alone.
[[nodiscard]] double expected_record_bytes(uint64_t elements, Point point);

}  // namespace scant::codec
