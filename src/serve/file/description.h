// The hyper-parameters of a decoder, as a value. A family of models is a set of such values, not a
// class. docs/packed.md, "Description".
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::serve {

enum class Family : uint32_t { llama = 1, mistral = 2, qwen2 = 3, qwen3 = 4, gpt2 = 5 };
enum class Norm : uint8_t { rms = 1, layer = 2 };
enum class Activation : uint8_t { silu = 1, gelu_tanh = 2, gelu = 3 };
enum class Position : uint8_t { rope_halves = 1, rope_neighbours = 2, learned = 3 };
enum class RopeScaling : uint8_t { none = 0, linear = 1, llama3 = 2, tensor = 3 };

inline constexpr uint32_t kTiedEmbedding = 1;
inline constexpr uint32_t kQkvBias = 2;
inline constexpr uint32_t kOutputBias = 4;
inline constexpr uint32_t kFfnBias = 8;
inline constexpr uint32_t kQkNorm = 16;
inline constexpr uint32_t kGatedFfn = 32;
inline constexpr uint32_t kAddsBos = 64;
inline constexpr uint32_t kFlagsAll = 127;

inline constexpr uint32_t kNoToken = UINT32_MAX;
inline constexpr size_t kEosMax = 8;
inline constexpr size_t kDescriptionBytes = 144;

struct Description {
  Family family = Family::llama;
  uint32_t layers = 0;
  uint32_t width = 0;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_size = 0;
  uint32_t ffn = 0;
  uint32_t vocabulary = 0;
  uint32_t context = 0;
  uint32_t window = 0;
  uint32_t rope_size = 0;
  Norm norm = Norm::rms;
  Activation activation = Activation::silu;
  Position position = Position::rope_halves;
  RopeScaling rope_scaling = RopeScaling::none;
  uint32_t flags = 0;
  double norm_epsilon = 0;
  double rope_base = 0;
  double rope_factor = 0;
  double rope_low = 0;
  double rope_high = 0;
  uint32_t rope_context = 0;
  uint32_t bos = kNoToken;
  std::vector<uint32_t> eos{};
  friend bool operator==(const Description&, const Description&) = default;
};

[[nodiscard]] std::array<std::byte, kDescriptionBytes> write_description(
    const Description& description);
[[nodiscard]] Result<Description> read_description(Bytes bytes);
// What no decoder can have; nothing if there is no fault.
[[nodiscard]] std::optional<std::string> description_fault(const Description& description);

}  // namespace scant::serve
