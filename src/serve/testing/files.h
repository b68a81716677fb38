// What tests of files share: a folder that goes with the test, whole files as bytes, and values.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <string>
#include <vector>

#include "base/rng.h"
#include "scant/base/types.h"
#include "serve/file/description.h"
#include "serve/file/tensor_kind.h"

namespace scant::serve::testing {

class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "scant-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string at(const std::string& name) const { return path_ + "/" + name; }
  [[nodiscard]] size_t files() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path_), {}));
  }

 private:
  std::string path_;
};

inline std::vector<std::byte> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const auto* const first = reinterpret_cast<const std::byte*>(text.data());
  return {first, first + text.size()};
}

inline void write_file(const std::string& path, Bytes bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(file.good());
}

inline std::vector<std::byte> bytes_of(std::string_view text) {
  const auto* const first = reinterpret_cast<const std::byte*>(text.data());
  return {first, first + text.size()};
}

// Bytes of rows in a kind that is row by row: finite values of moderate size.
inline std::vector<std::byte> rows(TensorKind kind, codec::Shape shape, uint64_t seed) {
  base::Rng rng(seed, static_cast<uint64_t>(kind));
  std::vector<std::byte> bytes(*tensor_bytes(kind, shape));
  for (std::byte& one : bytes) one = static_cast<std::byte>(rng.next());
  const size_t unit = kind == TensorKind::f32 ? 4 : 2;
  const size_t step = row_bytes(kind, kGgufBlock).value() / (kind < TensorKind::q4_0 ? 32 / 1 : 1);
  for (size_t at = 0; at < bytes.size(); at += step) {
    // The upper byte of each float: an exponent in the middle.
    bytes[at + unit - 1] = (bytes[at + unit - 1] & std::byte{0x80}) | std::byte{0x2E};
    if (kind == TensorKind::q4_1)
      bytes[at + 3] = (bytes[at + 3] & std::byte{0x80}) | std::byte{0x2E};
  }
  return bytes;
}

inline Description small_description() {
  return {.layers = 1,
          .width = 64,
          .heads = 2,
          .kv_heads = 1,
          .head_size = 32,
          .ffn = 96,
          .vocabulary = 100,
          .context = 128,
          .rope_size = 32,
          .flags = kGatedFfn,
          .norm_epsilon = 1e-5,
          .rope_base = 10000,
          .bos = 1,
          .eos = {2}};
}

}  // namespace scant::serve::testing
