#include "serve/model/decoder.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <new>

#include "base/check.h"
#include "base/worker_pool.h"
#include "serve/file/rows.h"
#include "serve/kernels/multiply.h"
#include "serve/model/activation_sums.h"
#include "serve/model/attention.h"
#include "serve/model/kv_memory.h"
#include "serve/model/rope.h"
#include "serve/model/step_kernels.h"

namespace scant::serve {
namespace {

using Floats = base::AlignedVector<float>;

// Less than this goes to one worker: waking another takes longer.
constexpr size_t kValuesOfAChunk = 16384;
constexpr uint64_t kPairsOfALoop = uint64_t{1} << 19;  // multiply-adds of attention

// Loops of a step follow each other sooner. Waking a thread that sleeps takes 12 to 30.
constexpr Duration kSpin = std::chrono::microseconds(50);

// Grows to the largest step, and stays.
float* room_for(Floats& floats, size_t count) {
  if (floats.size() < count) {
    floats.clear();  // nothing is copied
    floats.resize(count);
  }
  return floats.data();
}

struct Token {
  uint32_t token = 0;
  uint32_t position = 0;
  uint32_t page = 0;
};

}  // namespace

struct Decoder::State {
  State(const Model& of, KvMemory kv, KernelChoice choice)
      : model(of),
        d(of.description()),
        shape(d),
        rope(d, of.ends().rope_divisors),
        memory(std::move(kv)),
        products(*choice.products),
        kernels(*choice.step),
        row_kernels(*choice.rows),
        head_values(size_t{d.heads} * d.head_size),
        kv_values(size_t{d.kv_heads} * d.head_size) {}

  // body(row) for all rows, each on one worker.
  template <typename Body>
  void for_rows(size_t rows, size_t values_of_row, const Body& body) {
    const size_t together = std::max<size_t>(1, kValuesOfAChunk / values_of_row);
    const auto chunk = [&](size_t index, size_t) {
      const size_t end = std::min(rows, (index + 1) * together);
      for (size_t row = index * together; row < end; ++row) body(row);
    };
    pool.for_each((rows + together - 1) / together, std::ref(chunk));
  }

  void take(std::span<const Piece> pieces);
  void take_items(std::span<const Piece> pieces, bool outputs_alone);
  void grow();
  void embed();
  void norm(const float* x, const float* weight, const float* bias, float* out) const;
  [[nodiscard]] const Tensor& matrix(const Tensor& own) const;
  void product(std::initializer_list<MatrixProduct> list, const float* values, size_t rows,
               size_t columns);
  void add_to_x(const Tensor& matrix, const float* bias, size_t rows, const float* norm_weight,
                const float* norm_bias);
  void store(const Layer& layer, uint32_t index);
  void attend(uint32_t layer);
  void keep_outputs();
  size_t part_outputs();
  void attention(const Layer& layer, uint32_t index);
  void feed_forward(const Layer& layer, size_t rows, const float* norm_weight,
                    const float* norm_bias);
  std::span<const float> run(std::span<const Piece> pieces);

  const Model& model;
  const Description& d;
  AttentionShape shape;
  Rope rope;
  KvMemory memory;
  const KernelTarget& products;
  const StepKernels& kernels;
  const codec::Kernels& row_kernels;
  base::WorkerPool pool;
  Activations activations;
  const size_t head_values;  // of a token's query
  const size_t kv_values;    // of its key, and of its value
  std::vector<AttentionRoom> rooms;
  Work work;
  // Only while a model is looked at.
  ActivationSums* sums = nullptr;
  std::map<const Tensor*, const Tensor*> substitutes;

  // Of the step.
  std::vector<Token> tokens;
  std::vector<size_t> wanted;   // rows of `tokens` that have outputs
  std::vector<bool> as_vector;  // of `wanted`
  size_t vector_rows = 0;
  std::vector<AttentionTokens> items;
  uint64_t pairs = 0;  // multiply-adds of a layer's attention, of the keys that are seen
  Floats x;            // what goes from layer to layer
  Floats normed;
  Floats qkv;
  Floats attended;
  Floats hidden;  // gate and up
  Floats delta;   // what a product adds to x
  Floats cosines;
  Floats sines;
  Floats logits;
  Floats vectors;
};

void Decoder::State::take(std::span<const Piece> pieces) {
  tokens.clear();
  wanted.clear();
  as_vector.clear();
  vector_rows = 0;
  for (const Piece& piece : pieces) {
    SCANT_CHECK(piece.outputs <= piece.tokens.size() && piece.tokens.size() <= d.context &&
                piece.position <= d.context - piece.tokens.size());
    SCANT_CHECK(piece.pages.size() * kPageTokens >= piece.position + piece.tokens.size());
    for (uint32_t i = 0; i < piece.tokens.size(); ++i) {
      const uint32_t position = piece.position + i;
      SCANT_CHECK(piece.tokens[i] < d.vocabulary);
      if (i + piece.outputs >= piece.tokens.size()) {
        wanted.push_back(tokens.size());
        as_vector.push_back(piece.vectors);
        vector_rows += piece.vectors ? 1 : 0;
      }
      tokens.push_back({piece.tokens[i], position, piece.pages[position / kPageTokens]});
    }
    for (uint32_t i = 0; i * kPageTokens < piece.position + piece.tokens.size(); ++i)
      SCANT_CHECK(piece.pages[i] < memory.pages());
  }
}

// What is attended for: all tokens, or those with outputs, whose results then follow without gaps.
void Decoder::State::take_items(std::span<const Piece> pieces, bool outputs_alone) {
  items.clear();
  pairs = 0;
  const size_t stride = head_values + 2 * kv_values;
  size_t row = 0;
  size_t out_row = 0;
  for (const Piece& piece : pieces) {
    const size_t skipped = outputs_alone ? piece.tokens.size() - piece.outputs : 0;
    for (size_t i = skipped; i < piece.tokens.size();) {
      const auto position = piece.position + static_cast<uint32_t>(i);
      const size_t now = std::min(piece.tokens.size() - i, shape.tokens_at_a_time());
      items.push_back({.pages = piece.pages,
                       .position = position,
                       .tokens = static_cast<uint32_t>(now),
                       .queries = qkv.data() + (row + i) * stride,
                       .query_stride = stride,
                       .out = attended.data() + out_row * head_values,
                       .out_stride = head_values});
      for (uint32_t j = 0; j < now; ++j) {
        const uint32_t seen = position + j + 1 - shape.first_seen(position + j);
        pairs += 2 * uint64_t{seen} * head_values;
      }
      i += now;
      out_row += now;
    }
    row += piece.tokens.size();
  }
}

void Decoder::State::grow() {
  const size_t rows = tokens.size();
  room_for(x, rows * d.width);
  room_for(normed, rows * d.width);
  room_for(delta, rows * d.width);
  room_for(qkv, rows * (head_values + 2 * kv_values));
  room_for(attended, rows * head_values);
  room_for(hidden, 2 * rows * d.ffn);
  room_for(cosines, rows * rope.pairs());
  room_for(sines, rows * rope.pairs());
  room_for(logits, (wanted.size() - vector_rows) * d.vocabulary);
  room_for(vectors, vector_rows * d.width);
}

void Decoder::State::norm(const float* from, const float* weight, const float* bias,
                          float* out) const {
  const auto epsilon = static_cast<float>(d.norm_epsilon);
  if (d.norm == Norm::rms) {
    kernels.rms_norm(from, weight, epsilon, d.width, out);
  } else {
    kernels.layer_norm(from, weight, bias, epsilon, d.width, out);
  }
}

const Tensor& Decoder::State::matrix(const Tensor& own) const {
  const auto found = substitutes.find(&own);
  return found == substitutes.end() ? own : *found->second;
}

void Decoder::State::product(std::initializer_list<MatrixProduct> list, const float* values,
                             size_t rows, size_t columns) {
  activations.set(values, rows, columns);
  if (substitutes.empty()) {
    multiply(products, {list.begin(), list.size()}, activations, pool);
  } else {
    std::vector<MatrixProduct> others(list);
    for (MatrixProduct& one : others) one.weights = &matrix(*one.weights);
    multiply(products, others, activations, pool);
  }
  for (const MatrixProduct& one : list) {
    work.products += rows * one.weights->shape.elements();
    if (sums != nullptr) sums->read(*one.weights, values, rows);
  }
}

// x += delta + bias, then its norm. `matrix` made delta.
void Decoder::State::add_to_x(const Tensor& matrix, const float* bias, size_t rows,
                              const float* norm_weight, const float* norm_bias) {
  for_rows(rows, d.width, [&](size_t row) {
    float* const to = x.data() + row * d.width;
    kernels.add(delta.data() + row * d.width, d.width, to);
    if (bias != nullptr) kernels.add(bias, d.width, to);
    norm(to, norm_weight, norm_bias, normed.data() + row * d.width);
  });
  if (sums != nullptr) sums->add(matrix, delta.data(), x.data(), rows * d.width);
}

void Decoder::State::embed() {
  const Layer& first = model.layers()[0];
  for_rows(tokens.size(), d.width, [&](size_t row) {
    const Token& token = tokens[row];
    float* const to = x.data() + row * d.width;
    read_row(matrix(*model.ends().embedding), token.token, to, row_kernels);
    if (model.ends().positions != nullptr) {
      read_row(*model.ends().positions, token.position, delta.data() + row * d.width, row_kernels);
      kernels.add(delta.data() + row * d.width, d.width, to);
    }
    rope.angles(token.position, cosines.data() + row * rope.pairs(),
                sines.data() + row * rope.pairs());
    norm(to, first.attention_norm, first.attention_norm_bias, normed.data() + row * d.width);
  });
}

// Biases, norms of heads and rope; then keys and values go to their pages.
void Decoder::State::store(const Layer& layer, uint32_t index) {
  const size_t n = d.head_size;
  const auto epsilon = static_cast<float>(d.norm_epsilon);
  const auto rotate =
      d.position == Position::rope_halves ? kernels.rotate_halves : kernels.rotate_neighbours;
  const size_t stride = head_values + 2 * kv_values;
  for_rows(tokens.size(), stride, [&](size_t row) {
    float* const query = qkv.data() + row * stride;
    float* const key = query + head_values;
    float* const value = key + kv_values;
    if (layer.query_bias != nullptr) {
      kernels.add(layer.query_bias, head_values, query);
      kernels.add(layer.key_bias, kv_values, key);
      kernels.add(layer.value_bias, kv_values, value);
    }
    for (size_t head = 0; head < size_t{d.heads} + d.kv_heads; ++head) {
      float* const at = query + head * n;
      const float* const weight = head < d.heads ? layer.query_norm : layer.key_norm;
      if (weight != nullptr) kernels.rms_norm(at, weight, epsilon, n, at);
      if (rope.pairs() > 0)
        rotate(cosines.data() + row * rope.pairs(), sines.data() + row * rope.pairs(), rope.pairs(),
               at);
    }
    const Token& token = tokens[row];
    for (uint32_t head = 0; head < d.kv_heads; ++head)
      memory.store(token.page, token.position % kPageTokens, index, head, key + head * n,
                   value + head * n);
  });
}

void Decoder::State::attend(uint32_t layer) {
  const size_t count = items.size() * shape.kv_heads;
  const auto one = [&](size_t index, size_t worker) {
    const AttentionTokens& item = items[items.size() - 1 - index / shape.kv_heads];  // long first
    serve::attend(shape, memory, kernels, layer, static_cast<uint32_t>(index % shape.kv_heads),
                  item, rooms[worker]);
  };
  if (pairs < kPairsOfALoop) {
    for (size_t i = 0; i < count; ++i) one(i, 0);
  } else {
    pool.for_each(count, std::ref(one));
  }
  work.seen += pairs;
}

void Decoder::State::attention(const Layer& layer, uint32_t index) {
  const size_t rows = tokens.size();
  const size_t stride = head_values + 2 * kv_values;
  if (layer.qkv != nullptr) {
    product({{layer.qkv, qkv.data(), stride}}, normed.data(), rows, d.width);
  } else {
    product({{layer.query, qkv.data(), stride},
             {layer.key, qkv.data() + head_values, stride},
             {layer.value, qkv.data() + head_values + kv_values, stride}},
            normed.data(), rows, d.width);
  }
  store(layer, index);
}

// Of x, only the rows with outputs stay.
void Decoder::State::keep_outputs() {
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] != i)
      std::copy_n(x.data() + wanted[i] * d.width, d.width, x.data() + i * d.width);
  }
}

// Of the normed rows, vectors go to their place, and the others move together. Returns how many
// these are.
size_t Decoder::State::part_outputs() {
  size_t rows = 0;
  size_t vector_row = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const float* const from = normed.data() + i * d.width;
    if (as_vector[i]) {
      std::copy_n(from, d.width, vectors.data() + vector_row++ * d.width);
    } else {
      if (rows != i) std::copy_n(from, d.width, normed.data() + rows * d.width);
      ++rows;
    }
  }
  return rows;
}

void Decoder::State::feed_forward(const Layer& layer, size_t rows, const float* norm_weight,
                                  const float* norm_bias) {
  const bool gated = layer.gate != nullptr;
  float* const gate = hidden.data();
  float* const up = gate + (gated ? rows * d.ffn : 0);
  if (gated) {
    product({{layer.gate, gate, d.ffn}, {layer.up, up, d.ffn}}, normed.data(), rows, d.width);
  } else {
    product({{layer.up, up, d.ffn}}, normed.data(), rows, d.width);
  }
  const auto activate = d.activation == Activation::silu        ? kernels.silu
                        : d.activation == Activation::gelu_tanh ? kernels.gelu_tanh
                                                                : kernels.gelu;
  for_rows(rows, d.ffn, [&](size_t row) {
    float* const at = gate + row * d.ffn;
    if (layer.up_bias != nullptr) kernels.add(layer.up_bias, d.ffn, up + row * d.ffn);
    if (layer.gate_bias != nullptr) kernels.add(layer.gate_bias, d.ffn, at);
    activate(at, gated ? up + row * d.ffn : nullptr, d.ffn, at);
  });
  product({{layer.down, delta.data(), d.width}}, gate, rows, d.ffn);
  add_to_x(*layer.down, layer.down_bias, rows, norm_weight, norm_bias);
}

std::span<const float> Decoder::State::run(std::span<const Piece> pieces) {
  take(pieces);
  grow();
  if (tokens.empty()) return {};
  take_items(pieces, false);
  embed();
  const auto& layers = model.layers();
  const Ends& ends = model.ends();
  size_t rows = tokens.size();
  for (uint32_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const bool last = i + 1 == layers.size();
    attention(layer, i);
    if (last) {  // from here on only tokens with outputs matter
      if (wanted.empty()) return {};
      take_items(pieces, true);
      keep_outputs();
      rows = wanted.size();
    }
    attend(i);
    product({{layer.output, delta.data(), d.width}}, attended.data(), rows, head_values);
    add_to_x(*layer.output, layer.output_bias, rows, layer.ffn_norm, layer.ffn_norm_bias);
    feed_forward(layer, rows, last ? ends.norm : layers[i + 1].attention_norm,
                 last ? ends.norm_bias : layers[i + 1].attention_norm_bias);
  }
  rows = part_outputs();
  if (rows == 0) return {};
  product({{ends.head, logits.data(), d.vocabulary}}, normed.data(), rows, d.width);
  return {logits.data(), rows * d.vocabulary};
}

Decoder::Decoder(std::unique_ptr<State> state) : state_(std::move(state)) {}
Decoder::~Decoder() = default;

Result<std::unique_ptr<Decoder>> Decoder::create(const Model& model, KvKind kind, uint32_t pages,
                                                 size_t threads, KernelChoice choice) {
  auto memory = KvMemory::create(model.description(), kind, pages);
  if (!memory) return memory.error();
  try {
    auto state = std::make_unique<State>(model, std::move(memory).value(), choice);
    if (auto started = state->pool.start(threads, kSpin); !started) return started.error();
    for (size_t i = 0; i < threads; ++i) state->rooms.emplace_back(state->shape);
    return std::unique_ptr<Decoder>(new Decoder(std::move(state)));
  } catch (const std::bad_alloc&) {
    return Error{.code = ErrorCode::resource, .message = "no memory for a decoder"};
  }
}

Result<std::span<const float>> Decoder::run(std::span<const Piece> pieces) {
  try {
    return state_->run(pieces);
  } catch (const std::bad_alloc&) {
    return Error{.code = ErrorCode::resource, .message = "no memory for a step"};
  }
}

void Decoder::watch(ActivationSums* sums) { state_->sums = sums; }

bool Decoder::substitute(const std::vector<std::string>& names, const Model& other) {
  State& s = *state_;
  s.substitutes.clear();
  for (const std::string& name : names) {
    const Tensor* const own = s.model.find_matrix(name);
    const Tensor* const another = other.find_matrix(name);
    if (own == nullptr || another == nullptr || own->shape != another->shape) return false;
    s.substitutes.emplace(own, another);
  }
  return true;
}

std::span<const float> Decoder::vectors() const {
  return {state_->vectors.data(), state_->vector_rows * state_->d.width};
}

void Decoder::use_threads(size_t threads) { state_->pool.use(threads); }

void Decoder::copy_page(uint32_t from, uint32_t to) { state_->memory.copy_page(from, to); }

uint64_t Decoder::memory_bytes() const {
  const State& s = *state_;
  uint64_t bytes = s.memory.bytes();
  for (const AttentionRoom& room : s.rooms) bytes += room.bytes();
  for (const Floats* floats : {&s.x, &s.normed, &s.qkv, &s.attended, &s.hidden, &s.delta,
                               &s.cosines, &s.sines, &s.logits, &s.vectors})
    bytes += sizeof(float) * floats->capacity();
  return bytes;
}

Work Decoder::work() const {
  Work all = state_->work;
  for (const AttentionRoom& room : state_->rooms) all.attention += room.work();
  return all;
}

}  // namespace scant::serve
