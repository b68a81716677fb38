#include "serve/file/description.h"

#include <cmath>

#include "base/bytes.h"
#include "base/fault.h"

namespace scant::serve {
namespace {

constexpr uint32_t kCountMax = 1U << 24;  // of anything: no product of two overflows 64 bits

bool in_range(double value, double least, double most) {
  return std::isfinite(value) && value >= least && value <= most;
}

std::optional<std::string> rope_fault(const Description& d) {
  const bool learned = d.position == Position::learned;
  if (learned) {
    const bool any = d.rope_size != 0 || d.rope_base != 0 || d.rope_scaling != RopeScaling::none;
    if (any) return "rope beside learned positions";
  } else {
    if (d.rope_size == 0 || d.rope_size > d.head_size || d.rope_size % 2 != 0)
      return "a rope_size of " + std::to_string(d.rope_size);
    if (!in_range(d.rope_base, 1, 1e15)) return "a rope_base out of range";
  }
  const bool linear = d.rope_scaling == RopeScaling::linear;
  const bool llama3 = d.rope_scaling == RopeScaling::llama3;
  if (linear || llama3 ? !in_range(d.rope_factor, 1e-3, 1e6) : d.rope_factor != 0)
    return "a rope_factor that the scaling has no use for, or out of range";
  const bool ranges = in_range(d.rope_low, 1e-3, 1e6) && in_range(d.rope_high, 1e-3, 1e6) &&
                      d.rope_low < d.rope_high && d.rope_context > 0;
  const bool none = d.rope_low == 0 && d.rope_high == 0 && d.rope_context == 0;
  if (llama3 ? !ranges : !none) return "ranges of llama3 scaling that do not fit it";
  return std::nullopt;
}

}  // namespace

std::optional<std::string> description_fault(const Description& d) {
  struct Count {
    const char* name;
    uint32_t value;
    uint32_t most;
  };
  const Count counts[] = {{"layers", d.layers, 1U << 14},
                          {"width", d.width, kCountMax},
                          {"heads", d.heads, 1U << 14},
                          {"kv_heads", d.kv_heads, d.heads},
                          {"head_size", d.head_size, 1U << 14},
                          {"ffn", d.ffn, kCountMax},
                          {"vocabulary", d.vocabulary, kCountMax},
                          {"context", d.context, 1U << 30}};
  for (const Count& count : counts) {
    if (count.value == 0 || count.value > count.most)
      return std::string(count.name) + " of " + std::to_string(count.value);
  }
  if (d.heads % d.kv_heads != 0) return "heads that are no multiple of kv_heads";
  if ((d.flags & ~kFlagsAll) != 0) return "unknown flags";
  if (!in_range(d.norm_epsilon, 0, 1)) return "a norm_epsilon out of range";
  if (auto fault = rope_fault(d)) return fault;
  if (d.bos != kNoToken && d.bos >= d.vocabulary) return "a bos outside of the vocabulary";
  if (d.eos.size() > kEosMax) return "more than eight eos";
  for (const uint32_t token : d.eos) {
    if (token >= d.vocabulary) return "an eos outside of the vocabulary";
  }
  return std::nullopt;
}

std::array<std::byte, kDescriptionBytes> write_description(const Description& d) {
  std::array<std::byte, kDescriptionBytes> bytes{};
  base::ByteWriter writer(bytes);
  writer.put(static_cast<uint32_t>(d.family));
  for (const uint32_t count : {d.layers, d.width, d.heads, d.kv_heads, d.head_size, d.ffn,
                               d.vocabulary, d.context, d.window, d.rope_size, 0U})
    writer.put(count);
  writer.put(static_cast<uint8_t>(d.norm));
  writer.put(static_cast<uint8_t>(d.activation));
  writer.put(static_cast<uint8_t>(d.position));
  writer.put(static_cast<uint8_t>(d.rope_scaling));
  writer.put(d.flags);
  for (const double value : {d.norm_epsilon, d.rope_base, d.rope_factor, d.rope_low, d.rope_high})
    writer.put(value);
  writer.put(d.rope_context);
  writer.put(d.bos);
  writer.put(static_cast<uint32_t>(d.eos.size()));
  for (const uint32_t token : d.eos) writer.put(token);
  return bytes;
}

Result<Description> read_description(Bytes bytes) {
  const auto corrupt = [](const std::string& what) {
    return base::corrupt("the description has " + what);
  };
  if (bytes.size() != kDescriptionBytes)
    return corrupt(std::to_string(bytes.size()) + " bytes in place of 144");
  base::ByteReader reader(bytes);
  Description d;
  const auto family = reader.get<uint32_t>();
  for (uint32_t* const count : {&d.layers, &d.width, &d.heads, &d.kv_heads, &d.head_size, &d.ffn,
                                &d.vocabulary, &d.context, &d.window, &d.rope_size})
    *count = reader.get<uint32_t>();
  const auto reserved = reader.get<uint32_t>();
  const auto norm = reader.get<uint8_t>();
  const auto activation = reader.get<uint8_t>();
  const auto position = reader.get<uint8_t>();
  const auto scaling = reader.get<uint8_t>();
  d.flags = reader.get<uint32_t>();
  for (double* const value :
       {&d.norm_epsilon, &d.rope_base, &d.rope_factor, &d.rope_low, &d.rope_high})
    *value = reader.get<double>();
  d.rope_context = reader.get<uint32_t>();
  d.bos = reader.get<uint32_t>();
  const auto eos = reader.get<uint32_t>();
  if (family < 1 || family > 5) return corrupt("family " + std::to_string(family));
  if (norm < 1 || norm > 2) return corrupt("norm " + std::to_string(norm));
  if (activation < 1 || activation > 3) return corrupt("activation " + std::to_string(activation));
  if (position < 1 || position > 3) return corrupt("position " + std::to_string(position));
  if (scaling > 3) return corrupt("rope_scaling " + std::to_string(scaling));
  if (eos > kEosMax) return corrupt(std::to_string(eos) + " eos");
  d.family = static_cast<Family>(family);
  d.norm = static_cast<Norm>(norm);
  d.activation = static_cast<Activation>(activation);
  d.position = static_cast<Position>(position);
  d.rope_scaling = static_cast<RopeScaling>(scaling);
  for (uint32_t i = 0; i < eos; ++i) d.eos.push_back(reader.get<uint32_t>());
  bool unused = reserved != 0;
  while (!reader.at_end()) unused = reader.get<uint32_t>() != 0 || unused;
  if (unused) return corrupt("bytes that are not 0 where nothing is used");
  if (const auto fault = description_fault(d)) return corrupt(*fault);
  return d;
}

}  // namespace scant::serve
