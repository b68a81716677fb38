// Records: every kind of value, density, choice by row and residual, over several steps; what they
// decode to, added; what an encoder saves. And each option of an encoder.
#include <gtest/gtest.h>

#include "codec/accumulate.h"
#include "codec/encoder.h"
#include "golden.h"

namespace scant::golden {
namespace {

using codec::Encoder;
using codec::EncoderOptions;
using codec::Point;
using codec::RecordBuffer;
using codec::RecordView;
using codec::Shape;
using codec::ValueKind;
using codec::Workspace;

constexpr int kSteps = 3;
constexpr uint32_t kTensor = 7;
constexpr Shape kSmall[] = {{1, 1}, {1, 63}, {3, 700}, {1, 4097}, {2, 2500}};
constexpr Shape kLarge{40, 1700};  // more than a sparse block
constexpr Family kFamiliesOfLarge[] = {Family::normal, Family::lone};

struct Gradients {
  Shape shape;
  std::vector<float> steps[kSteps];
};

std::vector<Gradients> draw_gradients() {
  std::vector<Gradients> all;
  const auto add = [&all](Shape shape, Family family) {
    Gradients one{.shape = shape, .steps = {}};
    for (uint64_t step = 0; step < kSteps; ++step)
      one.steps[step] = draw_values(family, shape.elements(), 100 * all.size() + step);
    all.push_back(std::move(one));
  };
  for (const Shape shape : kSmall)
    for (int family = 0; family < kFamilyCount; ++family) add(shape, static_cast<Family>(family));
  for (const Family family : kFamiliesOfLarge) add(kLarge, family);
  return all;
}

struct Results {
  Digest records;
  Digest decoded;
  Digest saved;
};

std::vector<std::byte> encode(Encoder& encoder, std::span<const float> gradient, Point point,
                              Workspace& workspace, Results& results) {
  RecordBuffer buffer;
  const auto report = encoder.encode(gradient, point, workspace, buffer);
  EXPECT_TRUE(report.ok()) << report.error().to_string();
  results.records.add(buffer.view());
  if (report) {
    results.records.add_number(report.value().entries);
    results.records.add_number(report.value().nonfinite);
    results.records.add_number(report.value().forced);
  }
  return {buffer.view().begin(), buffer.view().end()};
}

// All steps of one tensor, whose records are then added as if they were of several ranks.
void run(const Gradients& gradients, const EncoderOptions& options, Point point,
         Workspace& workspace, Results& results) {
  auto made = Encoder::create(kTensor, gradients.shape, options);
  ASSERT_TRUE(made.ok()) << made.error().to_string();
  std::vector<std::byte> all;
  for (const auto& gradient : gradients.steps) {
    const auto record = encode(made.value(), gradient, point, workspace, results);
    all.insert(all.end(), record.begin(), record.end());
  }
  const auto parsed = codec::parse_all(all);
  ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
  std::vector<float> sum(gradients.shape.elements());
  ASSERT_TRUE(
      codec::accumulate(parsed.value(), kTensor, gradients.shape, 0, sum, 1.0f / kSteps, workspace)
          .ok());
  results.decoded.add(std::as_bytes(std::span(sum)));
  results.saved.add(made.value().save());
}

void add_results(Lines& lines, const std::string& name, const Results& results) {
  lines.add("record/" + name + "/bytes", results.records);
  lines.add("record/" + name + "/decoded", results.decoded);
  lines.add("record/" + name + "/saved", results.saved);
}

struct NamedPoint {
  const char* name;
  double density;
  bool by_row;
};
constexpr NamedPoint kPoints[] = {{"dense", 1.0, false},
                                  {"0.3", 0.3, false},
                                  {"0.05", 0.05, false},
                                  {"0.01", 0.01, false},
                                  {"0.05_by_row", 0.05, true}};

void add_planes(Lines& lines, const std::vector<Gradients>& all, Workspace& workspace) {
  for (int kind = 0; kind < codec::kValueKindCount; ++kind) {
    const auto values = static_cast<ValueKind>(kind);
    for (const NamedPoint& point : kPoints) {
      for (int residual = 0; residual < codec::kResidualKindCount; ++residual) {
        const EncoderOptions options{.residual = static_cast<codec::ResidualKind>(residual)};
        Results results;
        for (const Gradients& one : all)
          run(one, options, {point.density, values, point.by_row}, workspace, results);
        add_results(lines,
                    std::string(codec::name(values)) + "/" + point.name + "/" +
                        codec::name(options.residual),
                    results);
      }
    }
  }
}

struct NamedOptions {
  const char* name;
  EncoderOptions options;
};
constexpr NamedOptions kOptions[] = {
    {"decay", {.decay = 0.75f}},
    {"momentum", {.momentum = 0.9f}},
    {"momentum_unmasked", {.momentum = 0.9f, .mask_momentum = false}},
    {"stochastic", {.stochastic = true, .seed = 5}},
    {"evenness", {.evenness = 0.5f}},
    {"seed", {.residual = codec::ResidualKind::bf16, .seed = 99}}};

void add_options(Lines& lines, const std::vector<Gradients>& all, Workspace& workspace) {
  for (const NamedOptions& known : kOptions) {
    for (const Point point : {Point{1.0, ValueKind::q4}, Point{0.05, ValueKind::q4},
                              Point{0.05, ValueKind::bf16, true}}) {
      Results results;
      for (const Gradients& one : all) run(one, known.options, point, workspace, results);
      add_results(lines,
                  std::string(known.name) + "/" + codec::name(point.values) +
                      (point.density == 1.0 ? "/dense"
                       : point.by_row       ? "/by_row"
                                            : "/0.05"),
                  results);
    }
  }
}

// A range of a tensor, points that change, a residual that is handed on, scaled, added to, read.
void add_changes(Lines& lines, Workspace& workspace) {
  constexpr Shape kShape{3, 5000};
  constexpr codec::Range kRange{128, 9000};
  Results results;
  auto made = Encoder::create(kTensor, kShape, {}, kRange);
  auto other = Encoder::create(kTensor, kShape, {}, codec::Range{64, 5000});
  ASSERT_TRUE(made.ok() && other.ok());
  Encoder& encoder = made.value();
  const Point points[] = {{0.05, ValueKind::q4},
                          {1.0, ValueKind::q2},
                          {0.01, ValueKind::f16},
                          {0.2, ValueKind::q8, true},
                          {1.0, ValueKind::f32}};
  uint64_t seed = 1;
  for (const Point point : points) {
    encode(encoder, draw_values(Family::heavy, kRange.elements, ++seed), point, workspace, results);
    encode(other.value(), draw_values(Family::normal, 5000, ++seed), point, workspace, results);
    results.saved.add(encoder.save());
    encoder.scale_residual(0.3f);
    ASSERT_TRUE(encoder.take_over(other.value()).ok());
    ASSERT_TRUE(encoder.add_residual(draw_values(Family::normal, kRange.elements, ++seed)).ok());
    auto restored = Encoder::restore(encoder.save());
    ASSERT_TRUE(restored.ok()) << restored.error().to_string();
    encoder = std::move(restored).value();
    std::vector<float> residual(kRange.elements);
    encoder.read_residual(residual);
    results.decoded.add(std::as_bytes(std::span(residual)));
  }
  add_results(lines, "changes", results);
}

}  // namespace

void add_records(Lines& lines) {
  Workspace workspace;
  const std::vector<Gradients> all = draw_gradients();
  add_planes(lines, all, workspace);
  add_options(lines, all, workspace);
  add_changes(lines, workspace);
}

}  // namespace scant::golden
