// Small models with random weights, written as packed files.
#pragma once

#include <functional>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "base/rng.h"
#include "serve/file/packed_writer.h"
#include "serve/model/model.h"
#include "serve/testing/files.h"
#include "serve/testing/tensor_list.h"

namespace scant::serve::testing {

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
