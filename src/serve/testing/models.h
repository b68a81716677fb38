// Small models with random weights, written as packed files.
#pragma once

#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <string>
#include <vector>

#include "base/rng.h"
#include "serve/file/packed_writer.h"
#include "serve/model/model.h"
#include "serve/testing/files.h"

namespace scant::serve::testing {

using Dims = std::map<std::string, std::vector<uint64_t>>;

// The tensors that a model of the llama family needs, or of GPT-2 (one matrix of query, key and
// value, norms with biases).
inline Dims tensors_of(const Description& d) {
  Dims dims;
  const uint64_t heads = uint64_t{d.heads} * d.head_size;
  const uint64_t kv = uint64_t{d.kv_heads} * d.head_size;
  const bool centred = d.norm == Norm::layer;
  const auto norm = [&](const std::string& name) {
    dims[name + ".weight"] = {d.width};
    if (centred) dims[name + ".bias"] = {d.width};
  };
  const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t columns, bool bias) {
    dims[name + ".weight"] = {rows, columns};
    if (bias) dims[name + ".bias"] = {rows};
  };
  const bool qkv_bias = (d.flags & kQkvBias) != 0;
  const bool ffn_bias = (d.flags & kFfnBias) != 0;
  dims["token_embd.weight"] = {d.vocabulary, d.width};
  if (d.position == Position::learned) dims["position_embd.weight"] = {d.context, d.width};
  if (d.rope_scaling == RopeScaling::tensor) dims["rope_freqs.weight"] = {d.rope_size / 2};
  if ((d.flags & kTiedEmbedding) == 0) dims["output.weight"] = {d.vocabulary, d.width};
  norm("output_norm");
  for (uint32_t i = 0; i < d.layers; ++i) {
    const std::string at = "blk." + std::to_string(i) + ".";
    norm(at + "attn_norm");
    norm(at + "ffn_norm");
    if (d.family == Family::gpt2) {
      matrix(at + "attn_qkv", heads + 2 * kv, d.width, qkv_bias);
    } else {
      matrix(at + "attn_q", heads, d.width, qkv_bias);
      matrix(at + "attn_k", kv, d.width, qkv_bias);
      matrix(at + "attn_v", kv, d.width, qkv_bias);
    }
    if ((d.flags & kQkNorm) != 0) {
      dims[at + "attn_q_norm.weight"] = {d.head_size};
      dims[at + "attn_k_norm.weight"] = {d.head_size};
    }
    matrix(at + "attn_output", d.width, heads, (d.flags & kOutputBias) != 0);
    if ((d.flags & kGatedFfn) != 0) matrix(at + "ffn_gate", d.ffn, d.width, ffn_bias);
    matrix(at + "ffn_up", d.ffn, d.width, ffn_bias);
    matrix(at + "ffn_down", d.width, d.ffn, ffn_bias);
  }
  return dims;
}

struct MadeModel {
  TensorKind matrices = TensorKind::f32;
  TensorKind vectors = TensorKind::f32;
  uint64_t seed = 1;
  // May change the tensors, and then the values of each.
  std::function<void(Dims&)> dims = [](Dims&) {};
  std::function<void(const std::string&, std::vector<float>&)> values = [](const std::string&,
                                                                           std::vector<float>&) {};
};

inline void write_model(const std::string& path, const Description& d, const MadeModel& made) {
  Dims all = tensors_of(d);
  made.dims(all);
  auto created = PackedWriter::create(path);
  ASSERT_TRUE(created.ok());
  PackedWriter& writer = *created.value();
  ASSERT_TRUE(writer.begin_run().ok());
  base::Rng rng(made.seed, 0);
  uint32_t place = 0;
  for (const auto& [name, dims] : all) {
    const codec::Shape shape = *matrix_shape(dims);
    std::vector<float> values(shape.elements());
    const float about = name.ends_with("norm.weight") || name == "rope_freqs.weight" ? 1.0f : 0.0f;
    for (float& one : values) one = about + 0.4f * static_cast<float>(rng.uniform() - 0.5);
    made.values(name, values);
    const TensorKind kind = dims.size() == 1 ? made.vectors : made.matrices;
    ASSERT_TRUE(
        writer.begin_tensor({.name = name, .kind = kind, .dims = dims, .place = place++}).ok());
    const auto added = writer.add_rows(TensorKind::f32, std::as_bytes(std::span(values)));
    ASSERT_TRUE(added.ok()) << added.error().to_string();
    ASSERT_TRUE(writer.end_tensor().ok());
  }
  ASSERT_TRUE(writer.add_part(PartKind::provenance, "", bytes_of("tool scant 0\n")).ok());
  const auto finished = writer.finish(d);
  ASSERT_TRUE(finished.ok()) << finished.error().to_string();
}

inline Result<std::unique_ptr<Model>> open_model(const std::string& path) {
  auto file = PackedFile::open(path);
  if (!file) return file.error();
  return Model::open(std::move(file).value());
}

}  // namespace scant::serve::testing
