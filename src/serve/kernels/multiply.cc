#include "serve/kernels/multiply.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/check.h"
#include "codec/tile/tile.h"
#include "serve/file/rows.h"
#include "serve/kernels/targets.h"

namespace scant::serve {
namespace {

// Few tokens: so many bytes of weights at a time. Less costs claims, more leaves workers idle at
// the end of a loop.
constexpr uint64_t kChunkBytes = 128 << 10;
constexpr uint64_t kChunksOfWorkerMin = 4;
// Many tokens: strips that one pass over the activations multiplies, so that these come from L1.
constexpr uint64_t kManyStrips = 8;
constexpr size_t kProductsMax = 8;

Bytes bytes_of(const Tensor& weights, uint64_t first, uint64_t count) {
  if (row_by_row(weights.kind)) {
    const uint64_t of_row = *row_bytes(weights.kind, weights.shape.columns);
    const uint64_t begin = first * codec::kTileRows;
    const uint64_t end = std::min((first + count) * codec::kTileRows, weights.shape.rows);
    return weights.bytes.subspan(begin * of_row, (end - begin) * of_row);
  }
  const Bytes one = strip_of(weights, first);
  const Bytes last = strip_of(weights, first + count - 1);
  return {one.data(), static_cast<size_t>(last.data() + last.size() - one.data())};
}

struct Chunks {
  const MatrixProduct* product = nullptr;
  const Operand* operand = nullptr;
  uint64_t strips = 0;
  uint64_t of_chunk = 0;  // strips
  uint64_t count = 0;
};

struct Call {
  const KernelTarget* target = nullptr;
  size_t tokens = 0;
  std::array<Chunks, kProductsMax> products{};
  size_t product_count = 0;
  uint64_t chunks = 0;
  std::byte* scratch = nullptr;
  size_t scratch_bytes = 0;       // of one worker
  std::atomic<uint64_t> next{0};  // chunk to take; relaxed, the pool orders the rest
};

Part part_of(const Call& call, uint64_t chunk) {
  const Chunks* chunks = call.products.data();
  while (chunk >= chunks->count) chunk -= (chunks++)->count;
  const uint64_t first = chunk * chunks->of_chunk;
  return {.weights = chunks->product->weights,
          .strip_first = first,
          .strips = std::min(chunks->of_chunk, chunks->strips - first),
          .operand = chunks->operand,
          .out = chunks->product->out,
          .stride = chunks->product->stride};
}

// A worker claims a chunk before it multiplies the one before, so that its bytes are on their way.
void work(Call& call, size_t worker) {
  call.target->begin(call.tokens);
  const auto claim = [&call] { return call.next.fetch_add(1, std::memory_order_relaxed); };
  for (uint64_t chunk = claim(); chunk < call.chunks;) {
    const uint64_t after = claim();
    Part part = part_of(call, chunk);
    if (after < call.chunks) {
      const Part following = part_of(call, after);
      part.ahead = bytes_of(*following.weights, following.strip_first, following.strips);
    }
    part.scratch = call.scratch + worker * call.scratch_bytes;
    call.target->multiply(part);
    chunk = after;
  }
  call.target->end();
}

uint64_t strips_of_chunk(const Tensor& weights, size_t tokens, size_t workers) {
  const uint64_t strips = codec::strips(weights.shape.rows);
  const uint64_t share = strips / (workers * kChunksOfWorkerMin);
  const uint64_t of_strip = std::max<uint64_t>(weights.bytes.size() / strips, 1);
  const uint64_t wanted = tokens > kPanelTokens ? kManyStrips : kChunkBytes / of_strip;
  return std::clamp<uint64_t>(wanted, 1, std::max<uint64_t>(share, 1));
}

void multiply_some(const KernelTarget& target, std::span<const MatrixProduct> products,
                   Activations& activations, base::WorkerPool& pool) {
  Call call{.target = &target, .tokens = activations.rows()};
  for (const MatrixProduct& product : products) {
    const Tensor& weights = *product.weights;
    SCANT_CHECK(weights.shape.columns == activations.columns());
    Chunks& chunks = call.products[call.product_count++];
    const Form form = target.form(weights.kind, call.tokens);
    chunks.product = &product;
    chunks.operand = &activations.operand(target, form, pool);
    chunks.strips = codec::strips(weights.shape.rows);
    chunks.of_chunk = strips_of_chunk(weights, call.tokens, pool.workers());
    chunks.count = (chunks.strips + chunks.of_chunk - 1) / chunks.of_chunk;
    call.chunks += chunks.count;
    call.scratch_bytes = std::max(call.scratch_bytes, target.scratch_bytes(weights, call.tokens));
  }
  call.scratch_bytes = base::align_up(call.scratch_bytes, 64);
  call.scratch = activations.scratch(call.scratch_bytes * pool.workers());
  pool.for_each(std::min<uint64_t>(pool.workers(), call.chunks),
                [&call](size_t, size_t worker) { work(call, worker); });
}

}  // namespace

void multiply(const KernelTarget& target, std::span<const MatrixProduct> products,
              Activations& activations, base::WorkerPool& pool) {
  if (activations.rows() == 0) return;
  for (; !products.empty(); products = products.subspan(std::min(products.size(), kProductsMax)))
    multiply_some(target, products.first(std::min(products.size(), kProductsMax)), activations,
                  pool);
}

}  // namespace scant::serve
