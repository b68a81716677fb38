// GGUF: what is written is read, to the byte; blocks mean what ggml says; what is cut, newer or
// hostile is refused by name.
#include "serve/file/gguf.h"

#include <cstring>
#include <functional>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "base/little_endian.h"
#include "codec/quantise/rounding.h"
#include "serve/file/rows.h"
#include "serve/testing/files.h"

namespace scant::serve {
namespace {

using Image = std::vector<std::byte>;

constexpr uint64_t kSeed = 20261130;

template <typename T>
Image little(T value) {
  Image bytes(sizeof(T));
  base::store_little(bytes.data(), value);
  return bytes;
}
Image operator+(Image a, const Image& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
Image text(const std::string& value) {
  return little(uint64_t{value.size()}) + testing::bytes_of(value);
}
Image pair(const std::string& key, GgufType type, const Image& value) {
  return text(key) + little(static_cast<uint32_t>(type)) + value;
}
Image array(GgufType type, uint64_t count, const Image& values) {
  return little(static_cast<uint32_t>(type)) + little(count) + values;
}

constexpr uint64_t kPairs = 5;
Image pairs(uint32_t alignment = 64) {
  return pair("general.architecture", GgufType::text, text("llama")) +
         pair("general.alignment", GgufType::u32, little(alignment)) +
         pair("tokenizer.ggml.tokens", GgufType::array,
              array(GgufType::text, 3, text("a") + text("") + text("ccc"))) +
         pair("floats", GgufType::array, array(GgufType::f32, 2, little(1.0F) + little(2.0F))) +
         pair("nested", GgufType::array,
              array(GgufType::array, 1, array(GgufType::boolean, 1, little(uint8_t{1}))));
}

const std::vector<GgufTensor>& announced() {
  static const std::vector<GgufTensor> all{{"a", TensorKind::f32, {3}},
                                           {"b", TensorKind::q4_1, {2, 64}},
                                           {"c", TensorKind::bf16, {2, 3, 5}},
                                           {"d", TensorKind::q8_0, {1, 32}}};
  return all;
}
Image bytes_of(const GgufTensor& tensor) {
  return testing::rows(tensor.kind, *matrix_shape(tensor.dims), kSeed);
}

Image small_file() {
  const testing::Folder folder;
  auto writer = GgufWriter::create(folder.at("a"), kPairs, pairs(), announced());
  EXPECT_TRUE(writer.ok()) << writer.error().to_string();
  for (const GgufTensor& tensor : announced()) {
    const Image bytes = bytes_of(tensor);
    EXPECT_TRUE(writer.value().append(Bytes(bytes).first(bytes.size() / 2)).ok());
    EXPECT_TRUE(writer.value().append(Bytes(bytes).subspan(bytes.size() / 2)).ok());
  }
  const auto size = writer.value().finish();
  EXPECT_TRUE(size.ok());
  Image image = testing::read_file(folder.at("a"));
  EXPECT_EQ(image.size(), size.value());
  return image;
}

std::string refusal(const Image& image, ErrorCode code = ErrorCode::corrupt) {
  const testing::Folder folder;
  testing::write_file(folder.at("a"), image);
  const auto file = GgufFile::open(folder.at("a"));
  if (file.ok()) return "";
  EXPECT_EQ(file.error().code, code) << file.error().message;
  EXPECT_EQ(file.error().message.find(folder.at("a") + ": "), 0U) << "the file is named";
  return file.error().message.substr(folder.at("a").size() + 2);
}

TEST(Gguf, WhatIsWrittenIsRead) {
  const testing::Folder folder;
  testing::write_file(folder.at("a"), small_file());
  const auto opened = GgufFile::open(folder.at("a"));
  ASSERT_TRUE(opened.ok()) << opened.error().to_string();
  const GgufFile& file = opened.value();
  EXPECT_EQ(file.version(), 3U);
  EXPECT_EQ(file.alignment(), 64U);
  ASSERT_EQ(file.pairs().size(), kPairs);
  EXPECT_EQ(file.pairs()[0].key, "general.architecture");
  EXPECT_TRUE(std::ranges::equal(file.pairs()[0].value, text("llama")));
  EXPECT_TRUE(std::ranges::equal(file.pair_bytes(), pairs()));
  EXPECT_EQ(write_gguf_pairs(file.pairs()), pairs());
  ASSERT_EQ(file.tensors().size(), announced().size());
  for (size_t i = 0; i < announced().size(); ++i) {
    const Tensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.name, announced()[i].name);
    EXPECT_EQ(tensor.kind, announced()[i].kind);
    EXPECT_EQ(tensor.dims, announced()[i].dims);
    EXPECT_EQ(tensor.place, i);
    EXPECT_EQ(tensor.at % 64, 0U);
    EXPECT_TRUE(std::ranges::equal(tensor.bytes, bytes_of(announced()[i])));
  }
}

TEST(Gguf, VersionTwoIsReadAndOthersAreNamed) {
  Image image = small_file();
  image[4] = std::byte{2};
  EXPECT_EQ(refusal(image), "");
  image[4] = std::byte{1};
  EXPECT_EQ(refusal(image, ErrorCode::unsupported),
            "GGUF is of version 1; this scant reads version 3");
  image[4] = std::byte{9};
  EXPECT_EQ(refusal(image, ErrorCode::unsupported),
            "GGUF is of version 9; this scant reads up to 3: upgrade scant");
  base::store_little(image.data() + 4, uint32_t{3} << 24);
  EXPECT_EQ(refusal(image, ErrorCode::unsupported), "GGUF: of big-endian byte order");
}

TEST(Gguf, BlocksMeanWhatGgmlSays) {
  Image block = little(codec::f16_nearest(0.5F));
  for (int i = 0; i < 16; ++i) block.push_back(static_cast<std::byte>(i | (15 - i) << 4));
  std::vector<float> out(32);
  widen_rows(TensorKind::q4_0, block, 32, out.data());
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(out[static_cast<size_t>(i)], 0.5F * static_cast<float>(i - 8));
    EXPECT_EQ(out[static_cast<size_t>(i) + 16], 0.5F * static_cast<float>(7 - i));
  }
  Image with_least = little(codec::f16_nearest(0.5F)) + little(codec::f16_nearest(-3.0F));
  with_least.insert(with_least.end(), block.begin() + 2, block.end());
  widen_rows(TensorKind::q4_1, with_least, 32, out.data());
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(out[static_cast<size_t>(i)], 0.5F * static_cast<float>(i) - 3.0F);
    EXPECT_EQ(out[static_cast<size_t>(i) + 16], 0.5F * static_cast<float>(15 - i) - 3.0F);
  }
  Image eight = little(codec::f16_nearest(0.25F));
  for (int i = 0; i < 32; ++i) eight.push_back(static_cast<std::byte>(8 * i - 128));
  widen_rows(TensorKind::q8_0, eight, 32, out.data());
  for (int i = 0; i < 32; ++i)
    EXPECT_EQ(out[static_cast<size_t>(i)], 0.25F * static_cast<float>(8 * i - 128));
}

TEST(Gguf, EveryCutIsNoticed) {
  const Image image = small_file();
  for (size_t size = 0; size + 64 < image.size(); ++size) {
    const Image cut(image.begin(), image.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_NE(refusal(cut), "") << size;
  }
}

struct Hostile {
  const char* what;
  uint64_t tensors;
  uint64_t pairs;
  Image rest;
  const char* says;
};

Image info(const std::string& name, uint32_t dims, uint64_t columns, uint32_t type, uint64_t at) {
  Image bytes = text(name) + little(dims);
  for (uint32_t i = 0; i < dims && i < 8; ++i)
    bytes = bytes + little(i == 0 ? columns : uint64_t{1});
  return bytes + little(type) + little(at);
}

TEST(Gguf, HostileFiles) {
  const Image room(4096);
  const std::vector<Hostile> all{
      {"tensors", UINT64_MAX, 0, room, "18446744073709551615 tensors"},
      {"pairs", 0, UINT64_MAX, room, "18446744073709551615 key-value pairs"},
      {"a long key", 0, 1, little(UINT64_MAX) + room, "pair 0 has no proper key"},
      {"an empty key", 0, 1, little(uint64_t{0}) + room, "pair 0 has no proper key"},
      {"no type", 0, 1, text("k") + little(uint32_t{13}) + room, "value of 'k'"},
      {"a long text", 0, 1, pair("k", GgufType::text, little(UINT64_MAX - 7)) + room,
       "value of 'k'"},
      {"a long array", 0, 1,
       pair("k", GgufType::array, array(GgufType::u64, uint64_t{1} << 61, {})) + room,
       "value of 'k'"},
      {"a long array of texts", 0, 1,
       pair("k", GgufType::array, array(GgufType::text, UINT64_MAX, {})) + room, "value of 'k'"},
      {"an array of no type", 0, 1,
       pair("k", GgufType::array, array(static_cast<GgufType>(99), 1, {})) + room, "value of 'k'"},
      {"a key twice", 0, 2,
       pair("k", GgufType::u8, little(uint8_t{1})) + pair("k", GgufType::u8, little(uint8_t{1})),
       "the key 'k' is there twice"},
      {"alignment 0", 0, 1, pair("general.alignment", GgufType::u32, little(uint32_t{0})),
       "general.alignment"},
      {"alignment 12", 0, 1, pair("general.alignment", GgufType::u32, little(uint32_t{12})),
       "general.alignment"},
      {"alignment text", 0, 1, pair("general.alignment", GgufType::text, text("32")),
       "general.alignment"},
      {"a long name", 1, 0, little(UINT64_MAX) + room, "tensor 0 has no proper name"},
      {"no dims", 1, 0, info("w", 0, 1, 0, 0) + room, "has 0 dimensions"},
      {"five dims", 1, 0, info("w", 5, 1, 0, 0) + room, "has 5 dimensions"},
      {"a dim of 0", 1, 0, info("w", 1, 0, 0, 0) + room, "a dimension of 0"},
      {"a huge dim", 1, 0, info("w", 1, uint64_t{1} << 63, 0, 0) + room, "too many elements"},
      {"half a block", 1, 0, info("w", 1, 40, 8, 0) + room, "fill no blocks"},
      {"beyond the file", 1, 0, info("w", 1, 4096, 0, 0) + room, "outside of the file"},
      {"an offset beyond", 1, 0, info("w", 1, 1, 0, UINT64_MAX - 31) + room, "outside of the file"},
      {"not aligned", 1, 0, info("w", 1, 1, 0, 4) + room, "is not aligned"},
      {"overlap", 2, 0, info("v", 1, 16, 0, 32) + info("w", 1, 16, 0, 0) + room,
       "tensors 'w' and 'v' overlap"},
      {"a name twice", 2, 0, info("w", 1, 1, 0, 0) + info("w", 1, 1, 0, 32) + room,
       "two tensors are named 'w'"}};
  for (const Hostile& hostile : all) {
    const Image image = little(kGgufMagic) + little(kGgufVersion) + little(hostile.tensors) +
                        little(hostile.pairs) + hostile.rest;
    const std::string says = refusal(image);
    EXPECT_NE(says.find(hostile.says), std::string::npos) << hostile.what << ": " << says;
  }
  Image deep;
  for (int i = 0; i < 6; ++i) deep = deep + little(uint32_t{9}) + little(uint64_t{1});
  const Image image = little(kGgufMagic) + little(kGgufVersion) + little(uint64_t{0}) +
                      little(uint64_t{1}) + pair("k", GgufType::array, deep) + room;
  EXPECT_NE(refusal(image).find("value of 'k'"), std::string::npos);
}

TEST(Gguf, KindsThatScantDoesNotReadAreNamed) {
  const auto of_type = [](uint32_t type) {
    return refusal(little(kGgufMagic) + little(kGgufVersion) + little(uint64_t{1}) +
                       little(uint64_t{0}) + info("w", 1, 256, type, 0) + Image(4096),
                   ErrorCode::unsupported);
  };
  EXPECT_EQ(of_type(14),
            "GGUF: tensor 0 'w' is of Q6_K; scant reads F32, F16, BF16, Q4_0, Q4_1 and Q8_0");
  EXPECT_NE(of_type(77).find("is of type 77"), std::string::npos);
}

TEST(Gguf, TheWriterRefusesWhatCannotBe) {
  const testing::Folder folder;
  const auto create = [&](uint64_t count, const Image& given, std::vector<GgufTensor> tensors) {
    return GgufWriter::create(folder.at("a"), count, given, std::move(tensors)).ok();
  };
  EXPECT_FALSE(create(1, Image(3), {}));
  EXPECT_FALSE(create(0, Image(3), {})) << "bytes that no pair takes";
  EXPECT_FALSE(create(0, {}, {{"w", TensorKind::q4, {32}}}));
  EXPECT_FALSE(create(0, {}, {{"w", TensorKind::q8_0, {33}}}));
  {
    auto writer = GgufWriter::create(folder.at("a"), 0, {}, {{"w", TensorKind::f32, {2}}});
    ASSERT_TRUE(writer.ok());
    EXPECT_FALSE(writer.value().append(Image(9)).ok());
    ASSERT_TRUE(writer.value().append(Image(4)).ok());
    EXPECT_FALSE(writer.value().finish().ok()) << "half of a tensor";
  }
  EXPECT_EQ(folder.files(), 0U);
}

}  // namespace
}  // namespace scant::serve
