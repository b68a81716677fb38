#include "serve/model/model.h"

#include <cmath>
#include <new>
#include <string_view>
#include <unordered_map>

#include "base/fault.h"
#include "serve/file/rows.h"

namespace scant::serve {
namespace {

std::string by(codec::Shape shape) {
  return std::to_string(shape.rows) + " × " + std::to_string(shape.columns);
}

bool is_plain_f32(const Tensor& tensor) {
  return tensor.kind == TensorKind::f32 &&
         reinterpret_cast<uintptr_t>(tensor.bytes.data()) % alignof(float) == 0;
}

}  // namespace

// Finds tensors by their names, checks them, and keeps the first fault.
class Model::Binder {
 public:
  explicit Binder(Model& model) : model_(model) {
    const auto& tensors = std::visit(
        [](const auto& file) -> const auto& { return file.tensors(); }, model.file_);
    for (const Tensor& tensor : tensors) tensors_.emplace(tensor.name, &tensor);
  }

  [[nodiscard]] bool has(const std::string& name) const { return tensors_.contains(name); }
  [[nodiscard]] const std::optional<Error>& fault() const { return fault_; }

  const Tensor* matrix(const std::string& name, uint64_t rows, uint64_t columns) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return refuse("the tensor '" + name + "' is missing");
    const Tensor& tensor = *found->second;
    const codec::Shape wanted{.rows = rows, .columns = columns};
    if (tensor.shape.rows != rows || tensor.shape.columns != columns)
      return refuse("tensor '" + name + "' is " + by(tensor.shape) + ", and the description asks " +
                    "for " + by(wanted));
    if (!row_by_row(tensor.kind)) {
      if (const auto fault = strips_fault(tensor))
        return refuse("tensor '" + name + "': " + *fault);
    }
    return &tensor;
  }

  const float* vector(const std::string& name, uint64_t values) {
    const Tensor* const tensor = matrix(name, 1, values);
    if (tensor == nullptr) return nullptr;
    const float* floats = reinterpret_cast<const float*>(tensor->bytes.data());
    if (!is_plain_f32(*tensor)) {
      auto& wide = model_.widened_.emplace_back(values);
      read_row(*tensor, 0, wide.data());
      floats = wide.data();
    }
    for (uint64_t i = 0; i < values; ++i) {
      if (!std::isfinite(floats[i])) {
        refuse("tensor '" + name + "': value " + std::to_string(i) + " is not finite");
        return nullptr;
      }
    }
    return floats;
  }
  const float* vector_if(bool wanted, const std::string& name, uint64_t values) {
    return wanted ? vector(name, values) : nullptr;
  }

  void layer(const std::string& at, Layer& layer);
  void ends(Ends& ends);

 private:
  const Tensor* refuse(const std::string& what) {
    if (!fault_) fault_ = base::corrupt(path() + ": " + what);
    return nullptr;
  }
  [[nodiscard]] std::string path() const {
    return std::visit([](const auto& file) { return file.file().path(); }, model_.file_);
  }
  void attention(const std::string& at, Layer& layer);

  Model& model_;
  std::unordered_map<std::string_view, const Tensor*> tensors_;
  std::optional<Error> fault_;
};

void Model::Binder::attention(const std::string& at, Layer& layer) {
  const Description& d = model_.description_;
  const uint64_t heads = uint64_t{d.heads} * d.head_size;
  const uint64_t kv = uint64_t{d.kv_heads} * d.head_size;
  const bool biased = (d.flags & kQkvBias) != 0;
  if (has(at + "attn_qkv.weight")) {
    layer.qkv = matrix(at + "attn_qkv.weight", heads + 2 * kv, d.width);
    layer.query_bias = vector_if(biased, at + "attn_qkv.bias", heads + 2 * kv);
    if (layer.query_bias != nullptr) {
      layer.key_bias = layer.query_bias + heads;
      layer.value_bias = layer.key_bias + kv;
    }
  } else {
    layer.query = matrix(at + "attn_q.weight", heads, d.width);
    layer.key = matrix(at + "attn_k.weight", kv, d.width);
    layer.value = matrix(at + "attn_v.weight", kv, d.width);
    layer.query_bias = vector_if(biased, at + "attn_q.bias", heads);
    layer.key_bias = vector_if(biased, at + "attn_k.bias", kv);
    layer.value_bias = vector_if(biased, at + "attn_v.bias", kv);
  }
  const bool normed = (d.flags & kQkNorm) != 0;
  layer.query_norm = vector_if(normed, at + "attn_q_norm.weight", d.head_size);
  layer.key_norm = vector_if(normed, at + "attn_k_norm.weight", d.head_size);
  layer.output = matrix(at + "attn_output.weight", d.width, heads);
  layer.output_bias = vector_if((d.flags & kOutputBias) != 0, at + "attn_output.bias", d.width);
}

void Model::Binder::layer(const std::string& at, Layer& layer) {
  const Description& d = model_.description_;
  const bool centred = d.norm == Norm::layer;
  const bool biased = (d.flags & kFfnBias) != 0;
  layer.attention_norm = vector(at + "attn_norm.weight", d.width);
  layer.attention_norm_bias = vector_if(centred, at + "attn_norm.bias", d.width);
  attention(at, layer);
  layer.ffn_norm = vector(at + "ffn_norm.weight", d.width);
  layer.ffn_norm_bias = vector_if(centred, at + "ffn_norm.bias", d.width);
  if ((d.flags & kGatedFfn) != 0) {
    layer.gate = matrix(at + "ffn_gate.weight", d.ffn, d.width);
    layer.gate_bias = vector_if(biased, at + "ffn_gate.bias", d.ffn);
  }
  layer.up = matrix(at + "ffn_up.weight", d.ffn, d.width);
  layer.up_bias = vector_if(biased, at + "ffn_up.bias", d.ffn);
  layer.down = matrix(at + "ffn_down.weight", d.width, d.ffn);
  layer.down_bias = vector_if(biased, at + "ffn_down.bias", d.width);
}

void Model::Binder::ends(Ends& ends) {
  const Description& d = model_.description_;
  ends.embedding = matrix("token_embd.weight", d.vocabulary, d.width);
  if (d.position == Position::learned)
    ends.positions = matrix("position_embd.weight", d.context, d.width);
  ends.norm = vector("output_norm.weight", d.width);
  ends.norm_bias = vector_if(d.norm == Norm::layer, "output_norm.bias", d.width);
  ends.head = (d.flags & kTiedEmbedding) != 0 ? ends.embedding
                                              : matrix("output.weight", d.vocabulary, d.width);
  if (d.rope_scaling != RopeScaling::tensor) return;
  ends.rope_divisors = vector("rope_freqs.weight", d.rope_size / 2);
  for (uint32_t i = 0; ends.rope_divisors != nullptr && i < d.rope_size / 2; ++i) {
    if (ends.rope_divisors[i] < 1e-3f || ends.rope_divisors[i] > 1e6f)  // as rope_factor
      refuse("tensor 'rope_freqs.weight': value " + std::to_string(i) + " is out of range");
  }
}

Result<std::unique_ptr<Model>> Model::bind(File file, Description description) {
  try {
    std::unique_ptr<Model> model(new Model(std::move(file), std::move(description)));
    Binder binder(*model);
    binder.ends(model->ends_);
    for (uint32_t i = 0; i < model->description_.layers && !binder.fault(); ++i)
      binder.layer("blk." + std::to_string(i) + ".", model->layers_.emplace_back());
    if (binder.fault()) return *binder.fault();
    return model;
  } catch (const std::bad_alloc&) {
    return Error{.code = ErrorCode::resource, .message = "no memory to open the model"};
  }
}

Result<std::unique_ptr<Model>> Model::open(PackedFile file) {
  Description description = file.description();
  return bind(std::move(file), std::move(description));
}

Result<std::unique_ptr<Model>> Model::open(GgufFile file, Description description) {
  if (const auto fault = description_fault(description))
    return base::corrupt(file.file().path() + ": the description has " + *fault);
  return bind(std::move(file), std::move(description));
}

const Tensor* Model::find_matrix(std::string_view name) const {
  for (const Layer& layer : layers_) {
    for (const Tensor* const one : {layer.qkv, layer.query, layer.key, layer.value, layer.output,
                                    layer.gate, layer.up, layer.down})
      if (one != nullptr && one->name == name) return one;
  }
  for (const Tensor* const one : {ends_.embedding, ends_.head})
    if (one->name == name) return one;
  return nullptr;
}

}  // namespace scant::serve
