#include "serve/step/reading_speed.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include "base/worker_pool.h"

namespace scant::serve {
namespace {

constexpr size_t kMost = size_t{512} << 20;
constexpr size_t kPiece = size_t{1} << 20;
constexpr size_t kLanes = 32;  // words at once: enough loads under way

uint64_t fold(Bytes bytes) {
  uint64_t lanes[kLanes] = {};
  const std::byte* at = bytes.data();
  for (size_t left = bytes.size(); left >= sizeof(lanes); left -= sizeof(lanes)) {
    uint64_t words[kLanes];
    std::memcpy(words, at, sizeof(words));
    for (size_t i = 0; i < kLanes; ++i) lanes[i] ^= words[i];
    at += sizeof(lanes);
  }
  uint64_t all = 0;
  for (const uint64_t lane : lanes) all ^= lane;
  return all;
}

}  // namespace

Result<double> reading_speed(Bytes weights, size_t threads) {
  weights = weights.first(std::min(weights.size(), kMost));
  const size_t pieces = std::max<size_t>(1, weights.size() / kPiece);
  const size_t piece = weights.size() / pieces;
  base::WorkerPool pool;
  if (auto started = pool.start(threads); !started) return started.error();
  std::atomic<uint64_t> kept{0};  // so that no read can be left out; relaxed, it orders nothing
  double seconds = 0;
  for (int pass = 0; pass < 2; ++pass) {  // the first brings the file into memory
    const auto began = std::chrono::steady_clock::now();
    pool.for_each(pieces, [&](size_t i, size_t) {
      kept.fetch_xor(fold(weights.subspan(i * piece, piece)), std::memory_order_relaxed);
    });
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  }
  return static_cast<double>(pieces * piece) / std::max(seconds, 1e-9);
}

}  // namespace scant::serve
