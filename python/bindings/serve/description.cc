#include "bindings/serve/description.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <string>

#include "bindings/base/errors.h"
#include "bindings/base/options.h"

namespace scant::python {
namespace {

// A code that is none is refused where the description is checked: 0 and those beyond are no names.
template <typename Enum, typename Code>
void get_code(Options& options, const char* key, Enum& field, Code most) {
  Code code{};
  options.need(key, code);
  if (code > most)
    refuse(std::string("description: there is no ") + key + " " + std::to_string(code));
  field = static_cast<Enum>(code);
}

}  // namespace

using serve::Description;

nb::dict dict_of(const Description& d) {
  nb::dict out;
  out["family"] = static_cast<uint32_t>(d.family);
  out["layers"] = d.layers;
  out["width"] = d.width;
  out["heads"] = d.heads;
  out["kv_heads"] = d.kv_heads;
  out["head_size"] = d.head_size;
  out["ffn"] = d.ffn;
  out["vocabulary"] = d.vocabulary;
  out["context"] = d.context;
  out["window"] = d.window;
  out["rope_size"] = d.rope_size;
  out["norm"] = static_cast<uint8_t>(d.norm);
  out["activation"] = static_cast<uint8_t>(d.activation);
  out["position"] = static_cast<uint8_t>(d.position);
  out["rope_scaling"] = static_cast<uint8_t>(d.rope_scaling);
  out["flags"] = d.flags;
  out["norm_epsilon"] = d.norm_epsilon;
  out["rope_base"] = d.rope_base;
  out["rope_factor"] = d.rope_factor;
  out["rope_low"] = d.rope_low;
  out["rope_high"] = d.rope_high;
  out["rope_context"] = d.rope_context;
  out["bos"] = d.bos;
  out["eos"] = nb::tuple(nb::cast(d.eos));
  return out;
}

Description description_of(const nb::dict& given) {
  Options options("description", given);
  Description d;
  get_code(options, "family", d.family, uint32_t{5});
  get_code(options, "norm", d.norm, uint8_t{2});
  get_code(options, "activation", d.activation, uint8_t{3});
  get_code(options, "position", d.position, uint8_t{3});
  get_code(options, "rope_scaling", d.rope_scaling, uint8_t{3});
  options.need("layers", d.layers);
  options.need("width", d.width);
  options.need("heads", d.heads);
  options.need("kv_heads", d.kv_heads);
  options.need("head_size", d.head_size);
  options.need("ffn", d.ffn);
  options.need("vocabulary", d.vocabulary);
  options.need("context", d.context);
  options.need("window", d.window);
  options.need("rope_size", d.rope_size);
  options.need("flags", d.flags);
  options.need("norm_epsilon", d.norm_epsilon);
  options.need("rope_base", d.rope_base);
  options.need("rope_factor", d.rope_factor);
  options.need("rope_low", d.rope_low);
  options.need("rope_high", d.rope_high);
  options.need("rope_context", d.rope_context);
  options.need("bos", d.bos);
  options.need("eos", d.eos);
  options.done();
  return d;
}

}  // namespace scant::python
