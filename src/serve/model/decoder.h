// Runs a model over a ragged list of tokens: pieces of prompts and single tokens of answers side by
// side, without padding. Keys and values lie in pages that the caller hands out. docs/serve.md,
// "Models". One owner thread; the pool's workers share the work.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "serve/kv/page.h"
#include "serve/model/kernel_choice.h"
#include "serve/model/model.h"

namespace scant::serve {

class ActivationSums;

// How keys and values are kept.
enum class KvKind : uint8_t { f32, bf16, q8 };
// Bytes of a page: the keys and values of 16 tokens, of all layers.
[[nodiscard]] uint64_t kv_page_bytes(const Description& description, KvKind kind);

// Tokens of one sequence that a step runs.
struct Piece {
  std::span<const uint32_t> tokens;
  uint32_t position = 0;            // of the first of them; what lies before has been run
  std::span<const uint32_t> pages;  // page i holds positions 16 * i to 16 * i + 15
  uint32_t outputs = 0;             // so many of the last tokens have an output
  bool vectors = false;             // outputs are vectors; else logits
};

// Multiply-adds since the decoder was made. `attention` has also those with keys that a token does
// not see, in the page of one that it sees; `seen` has not.
struct Work {
  uint64_t products = 0;
  uint64_t attention = 0;
  uint64_t seen = 0;
};

class Decoder {
 public:
  // The model outlives it. ErrorCode::resource: no memory for the pages.
  [[nodiscard]] static Result<std::unique_ptr<Decoder>> create(
      const Model& model, KvKind kind, uint32_t pages, size_t threads,
      KernelChoice choice = best_kernels());
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // The logits of all outputs that are logits, piece by piece, `vocabulary` floats each, until the
  // next call. Tokens are below `vocabulary`, positions below `context`. ErrorCode::resource: no
  // memory; keys and values of these pieces' tokens are then undefined.
  [[nodiscard]] Result<std::span<const float>> run(std::span<const Piece> pieces);
  // Of the last run, what the last norm gave for the outputs that are vectors, piece by piece,
  // `width` floats each, until the next call.
  [[nodiscard]] std::span<const float> vectors() const;
  // So many of the threads share the next steps; `threads` of create() at most.
  void use_threads(size_t threads);
  // Page `to` becomes a copy of page `from`.
  void copy_page(uint32_t from, uint32_t to);
  // From now on every step adds to `sums`, which outlives the decoder; null: no more.
  void watch(ActivationSums* sums);
  // From now on the matrices of these names are another model's, which outlives the decoder, and no
  // others. False: one of the models has no such matrix, or has it in another shape.
  bool substitute(const std::vector<std::string>& names, const Model& other);
  [[nodiscard]] uint64_t memory_bytes() const;
  [[nodiscard]] Work work() const;

 private:
  struct State;
  explicit Decoder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace scant::serve
