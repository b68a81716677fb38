// Which tensors a description needs, and their shapes: written anew, beside the model's own list.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "serve/file/description.h"

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

}  // namespace scant::serve::testing
