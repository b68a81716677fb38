// Packed files that are cut, damaged, newer, or made by somebody who means harm: each is refused by
// a sentence that names what is wrong. Hostile files have checksums that fit.
#include <algorithm>
#include <csignal>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/tile/sparse.h"
#include "serve/file/packed_file.h"
#include "serve/file/packed_writer.h"
#include "serve/file/rows.h"
#include "serve/testing/files.h"

namespace scant::serve {
namespace {

using Image = std::vector<std::byte>;

constexpr uint64_t kSeed = 20261130;
constexpr size_t kRuns = 2;
constexpr size_t kTensors = 3;

// Two runs: "embedding" (bf16 20 x 64), "dense" (q4 20 x 64) and "sparse" (sparse q8 20 x 64).
Image small_file() {
  const testing::Folder folder;
  auto writer = std::move(PackedWriter::create(folder.at("a"))).value();
  const auto rows = testing::rows(TensorKind::f32, {20, 64}, kSeed);
  const auto add = [&](const char* name, TensorKind kind, uint32_t place) {
    EXPECT_TRUE(
        writer
            ->begin_tensor(
                {.name = name, .kind = kind, .dims = {20, 64}, .place = place, .density = 0.5})
            .ok());
    EXPECT_TRUE(writer->add_rows(TensorKind::f32, rows).ok());
    EXPECT_TRUE(writer->end_tensor().ok());
  };
  EXPECT_TRUE(writer->begin_run().ok());
  add("embedding", TensorKind::bf16, 2);
  EXPECT_TRUE(writer->begin_run().ok());
  add("dense", TensorKind::q4, 1);
  add("sparse", TensorKind::sparse_q8, 0);
  EXPECT_TRUE(writer->add_part(PartKind::provenance, "", testing::bytes_of("tool scant\n")).ok());
  EXPECT_TRUE(writer->add_part(PartKind::file, "config.json", testing::bytes_of("{}")).ok());
  EXPECT_TRUE(writer->add_part(PartKind::tokenizer, "", testing::bytes_of("{}")).ok());
  EXPECT_TRUE(writer->finish(testing::small_description()).ok());
  return testing::read_file(folder.at("a"));
}

PackedHeader header_of(const Image& image) {
  return read_packed_header(image, image.size()).value();
}

// Puts all checksums right: pages, parts as they stand, index, header.
void seal(Image& image) {
  const auto index_at = base::load_little<uint64_t>(image.data() + 16);
  const auto index_bytes = base::load_little<uint64_t>(image.data() + 24);
  const auto pages = base::load_little<uint32_t>(image.data() + 44);
  const size_t crcs = index_at + kRuns * kRunBytes + kTensors * kTensorRowBytes + 4 * kPartRowBytes;
  for (size_t page = 0; page < pages; ++page)
    base::store_little(image.data() + crcs + 4 * page,
                       base::crc32c(Bytes(image).subspan((page + 1) * kPageBytes, kPageBytes)));
  base::store_little(image.data() + 56, base::crc32c(Bytes(image).subspan(index_at, index_bytes)));
  base::store_little(image.data() + 60, base::crc32c(Bytes(image).first(60)));
}

std::string refusal(const Image& image, ErrorCode code = ErrorCode::corrupt) {
  const testing::Folder folder;
  testing::write_file(folder.at("a"), image);
  const auto file = PackedFile::open(folder.at("a"));
  if (file.ok()) return "";
  EXPECT_EQ(file.error().code, code) << file.error().message;
  EXPECT_EQ(file.error().message.find(folder.at("a")), 0U) << "the file is named";
  return file.error().message.substr(folder.at("a").size() + 2);
}

size_t tensor_row(const Image& image, size_t tensor) {
  return header_of(image).index_at + kRuns * kRunBytes + tensor * kTensorRowBytes;
}

TEST(PackedRefusal, AWholeFileIsRead) {
  Image image = small_file();
  EXPECT_EQ(refusal(image), "");
  const Image before = image;
  seal(image);
  EXPECT_EQ(image, before) << "seal() writes what the writer writes";
}

TEST(PackedRefusal, EveryCutIsNoticed) {
  const Image image = small_file();
  for (const size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65536},
                            image.size() / 2, image.size() - 1}) {
    const Image cut(image.begin(), image.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_NE(refusal(cut), "") << size;
  }
  Image longer = image;
  longer.push_back(std::byte{0});
  EXPECT_NE(refusal(longer), "");
  const Image cut(image.begin(), image.end() - 1);
  EXPECT_EQ(refusal(cut), "packed file: the file has " + std::to_string(image.size() - 1) +
                              " bytes of " + std::to_string(image.size()) + ": cut off");
}

TEST(PackedRefusal, ANewerVersionIsNamed) {
  Image image = small_file();
  image[4] = std::byte{7};
  EXPECT_EQ(refusal(image, ErrorCode::unsupported),
            "packed file is of version 7; this scant reads up to 1: upgrade scant");
}

// Every byte matters: a flipped bit is found when the file is opened, or when tensors are checked.
TEST(PackedRefusal, EveryFlippedBitIsFound) {
  const Image image = small_file();
  const testing::Folder folder;
  size_t in_pages = 0;
  // All of the header and behind the pages, and a sample of the rest.
  const size_t index_at = header_of(image).index_at;
  for (size_t at = 0; at < image.size(); at += at < 64 || at >= index_at ? 1 : 997) {
    Image damaged = image;
    damaged[at] ^= std::byte{0x10};
    testing::write_file(folder.at("a"), damaged);
    const auto file = PackedFile::open(folder.at("a"));
    if (!file.ok()) continue;
    ASSERT_GE(at, kPageBytes);
    ASSERT_LT(at, index_at);
    ++in_pages;
    std::string found;
    for (const Tensor& tensor : file.value().tensors()) {
      const auto checked = file.value().check(tensor);
      if (!checked.ok()) found = checked.error().message;
    }
    EXPECT_NE(found.find("the checksum of page " + std::to_string(at / kPageBytes) +
                         " does not fit; tensor '"),
              std::string::npos)
        << found;
  }
  EXPECT_GT(in_pages, 50U);
}

struct Hostile {
  const char* what;
  std::function<void(Image&)> change;
  const char* says;
};

template <typename T>
std::function<void(Image&)> in_row(size_t tensor, size_t at, T value) {
  return [=](Image& image) {
    base::store_little(image.data() + tensor_row(image, tensor) + at, value);
  };
}
template <typename T>
std::function<void(Image&)> in_header(size_t at, T value) {
  return [=](Image& image) { base::store_little(image.data() + at, value); };
}
std::function<void(Image&)> in_index(size_t at, uint32_t value) {
  return [=](Image& image) {
    base::store_little(image.data() + header_of(image).index_at + at, value);
  };
}

TEST(PackedRefusal, HostileHeadersAndIndexes) {
  constexpr size_t kParts = kRuns * kRunBytes + kTensors * kTensorRowBytes;
  const std::vector<Hostile> all{
      {"runs", in_header(32, uint32_t{1} << 31), "more runs, tensors or parts"},
      {"tensors", in_header(36, UINT32_MAX), "more runs, tensors or parts"},
      {"parts", in_header(40, uint32_t{65}), "more runs, tensors or parts"},
      {"pages", in_header(44, UINT32_MAX), "does not lie where it has to"},
      {"index at 0", in_header(16, uint64_t{0}), "does not lie where it has to"},
      {"index beyond", in_header(24, UINT64_MAX), "does not lie where it has to"},
      {"fewer tensors", in_header(36, uint32_t{2}), "beyond the tensors"},
      {"reserved", in_header(48, uint64_t{1}), "reserved bytes"},
      {"a run of none", in_index(0, 0), "runs do not add up"},
      {"a run of too many", in_index(8, 4), "runs do not add up"},
      {"a run elsewhere", in_index(12, 1), "a run does not begin"},
      {"overlap", in_row(2, 0, uint64_t{2} << 16), "tensor 2 does not stand behind"},
      {"offset beyond", in_row(1, 0, UINT64_MAX - 63), "tensor 1 does not stand behind"},
      {"too long", in_row(0, 8, UINT64_MAX), "tensor 0 is longer than the file"},
      {"too short", in_row(0, 8, uint64_t{64}), "tensor 0 has not as many bytes"},
      {"dense with entries", in_row(1, 56, uint64_t{5}), "tensor 1 has not as many bytes"},
      {"a dimension of 0", in_row(0, 16, uint64_t{0}), "tensor 0 has dimensions of 0"},
      {"overflowing dims", in_row(0, 16, uint64_t{1} << 62), "tensor 0 has dimensions of 0"},
      {"an unused dimension", in_row(0, 32, uint64_t{1}), "that is not used"},
      {"no kind", in_row(0, 48, uint8_t{99}), "tensor 0 is of unknown kind 99"},
      {"five dims", in_row(0, 49, uint8_t{5}), "tensor 0 has 5 dimensions"},
      {"no dims", in_row(0, 49, uint8_t{0}), "tensor 0 has dimensions of 0"},
      {"an empty name", in_row(0, 50, uint16_t{0}), "has no proper name"},
      {"a long name", in_row(0, 50, uint16_t{999}), "no proper name"},
      {"place", in_row(0, 52, uint32_t{3}), "tensor 0 has a place beyond"},
      {"sparse entries", in_row(2, 56, uint64_t{641}), "keeps other values"},
      {"too many entries", in_row(2, 56, UINT64_MAX), "tensor 2 has not as many bytes"},
      {"part kind", in_index(kParts + 12, 9), "a part of unknown kind 9"},
      {"a part too long", in_index(kParts + 4, 1), "a part of more than 1 GiB"},
      {"parts end elsewhere", in_index(kParts, 3), "parts do not end"},
  };
  for (const Hostile& hostile : all) {
    Image image = small_file();
    hostile.change(image);
    // Where the header's counts lie, the old place of the index is sealed, then the header.
    if (base::load_little<uint64_t>(image.data() + 16) == header_of(small_file()).index_at &&
        base::load_little<uint64_t>(image.data() + 24) == header_of(small_file()).index_bytes &&
        base::load_little<uint32_t>(image.data() + 44) < 100) {
      seal(image);
    } else {
      base::store_little(image.data() + 60, base::crc32c(Bytes(image).first(60)));
    }
    const std::string says = refusal(image);
    EXPECT_NE(says.find(hostile.says), std::string::npos) << hostile.what << ": " << says;
  }
}

TEST(PackedRefusal, HostileNames) {
  const Image original = small_file();
  const auto put = [&](const std::string& from, const std::string& to) {
    Image image = original;
    const auto names = testing::bytes_of(from);
    const auto at = std::search(image.begin() + static_cast<ptrdiff_t>(header_of(image).index_at),
                                image.end(), names.begin(), names.end());
    EXPECT_NE(at, image.end());
    std::memcpy(&*at, to.data(), to.size());
    seal(image);
    return refusal(image);
  };
  EXPECT_NE(put("config.json", "../../../etc").find("a file whose name is none"),
            std::string::npos);
  EXPECT_NE(put("config.json", std::string("config\0json", 11)).find("a file whose name is none"),
            std::string::npos);
  EXPECT_NE(put("dense", "den\ne").find("no proper name"), std::string::npos);
  Image twice = original;
  in_row(0, 50, uint16_t{7})(twice);
  in_row(1, 50, uint16_t{7})(twice);
  const auto names = testing::bytes_of("embeddingdense");
  const auto at = std::search(twice.begin(), twice.end(), names.begin(), names.end());
  ASSERT_NE(at, twice.end());
  std::memcpy(&*at, "a nameXa nameX", names.size());
  seal(twice);
  EXPECT_EQ(refusal(twice), "packed file: two tensors are named 'a nameX'");
}

TEST(PackedRefusal, NamesAreText) {
  for (const char* const name : {"a", "w\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "~"})
    EXPECT_TRUE(is_tensor_name(name)) << name;
  for (const char* const name :
       {"", "a\n", "\x7F", "\x80", "\xC3", "a\xC3(", "\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80",
        "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF8\x88\x80\x80\x80", "\xE2\x82", "\xFF"})
    EXPECT_FALSE(is_tensor_name(name)) << name;
  EXPECT_TRUE(is_tensor_name(std::string(255, 'a')));
  EXPECT_FALSE(is_tensor_name(std::string(256, 'a')));
}

TEST(PackedRefusal, HostileSparseTablesDoNotLeadAstray) {
  const Image original = small_file();
  const auto file_at = base::load_little<uint64_t>(original.data() + tensor_row(original, 2));
  const auto bytes = base::load_little<uint64_t>(original.data() + tensor_row(original, 2) + 8);
  const size_t table = file_at + bytes - codec::sparse_table_bytes(codec::ValueKind::q8, 20);
  struct Change {
    size_t at;
    uint64_t value;
    const char* says;
  };
  for (const Change& change : {Change{table, 64, "strips do not fill it"},
                               Change{table + 8, UINT64_MAX, "strip 0 does not lie in it"},
                               Change{table + 8, 64, "strip 0 is shorter than its bits"},
                               Change{table + 16, UINT64_MAX, "strips do not fill it"},
                               Change{table + 64, 2000, "strip 0 has a base out of range"},
                               Change{file_at, UINT64_MAX, "strip 0 has not as many bytes"}}) {
    Image image = original;
    base::store_little(image.data() + change.at, change.value);
    seal(image);
    const std::string says = refusal(image);
    EXPECT_NE(says.find("tensor 'sparse'"), std::string::npos) << says;
    EXPECT_NE(says.find(change.says), std::string::npos) << says;
  }
}

TEST(PackedRefusal, AForgedDescription) {
  const Image original = small_file();
  const PackedHeader header = header_of(original);
  const size_t at = header.index_at + header.index_bytes;  // the first part
  const auto put = [&](size_t offset, uint32_t value) {
    Image image = original;
    base::store_little(image.data() + at + offset, value);
    const size_t row = header.index_at + kRuns * kRunBytes + kTensors * kTensorRowBytes;
    base::store_little(image.data() + row + 8,
                       base::crc32c(Bytes(image).subspan(at, kDescriptionBytes)));
    seal(image);
    return refusal(image);
  };
  EXPECT_EQ(put(0, 9), "the description has family 9");
  EXPECT_EQ(put(16, 0), "the description has kv_heads of 0");
  EXPECT_EQ(put(12, UINT32_MAX), "the description has heads of 4294967295");
  EXPECT_EQ(put(40, 31), "the description has a rope_size of 31");
  EXPECT_EQ(put(52, 128), "the description has unknown flags");
  EXPECT_EQ(put(60, 0x7FF00000), "the description has a norm_epsilon out of range");
  EXPECT_EQ(put(100, 100), "the description has a bos outside of the vocabulary");
  EXPECT_EQ(put(104, 9), "the description has 9 eos");
  EXPECT_EQ(put(140, 1), "the description has bytes that are not 0 where nothing is used");
}

TEST(PackedRefusal, FilesThatAreNone) {
  const testing::Folder folder;
  EXPECT_EQ(PackedFile::open(folder.at("nothing")).error().sys_errno, ENOENT);
  EXPECT_EQ(PackedFile::open(folder.at("")).error().sys_errno, EISDIR);
  EXPECT_EQ(refusal(testing::bytes_of("GGUF")), "packed file: shorter than a header");
  EXPECT_EQ(refusal(Image(100)), "packed file: does not begin with SCPK");
}

TEST(PackedRefusal, AFullDiskLeavesNothing) {
  const testing::Folder folder;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit less{.rlim_cur = 3 * 65536, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &less), 0);
  {
    auto writer = std::move(PackedWriter::create(folder.at("a"))).value();
    ASSERT_TRUE(writer->begin_run().ok());
    ASSERT_TRUE(writer->begin_tensor({.name = "w", .dims = {1024, 1024}}).ok());
    const Image rows(1024 * 1024);
    Result<void> added;
    for (int i = 0; i < 4 && added.ok(); ++i) added = writer->add_rows(TensorKind::f32, rows);
    ASSERT_FALSE(added.ok());
    EXPECT_EQ(added.error().code, ErrorCode::resource);
    EXPECT_EQ(added.error().message, folder.at("a") + ": cannot be written");
    EXPECT_EQ(folder.files(), 1U) << "its part alone";
  }
  EXPECT_EQ(folder.files(), 0U);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
}

TEST(PackedRefusal, TheFileAppearsWholeAndOnlyThen) {
  const testing::Folder folder;
  testing::write_file(folder.at("a"), testing::bytes_of("old"));
  testing::write_file(folder.at("a.part"), testing::bytes_of("what a killed writer left"));
  {
    auto writer = std::move(PackedWriter::create(folder.at("a"))).value();
    EXPECT_EQ(PackedWriter::create(folder.at("a")).error().message,
              folder.at("a") + ".part: another process writes it");
    ASSERT_TRUE(writer->begin_run().ok());
    ASSERT_TRUE(writer->begin_tensor({.name = "w", .dims = {1}}).ok());
    ASSERT_TRUE(writer->add_rows(TensorKind::f32, Image(4)).ok());
    ASSERT_TRUE(writer->end_tensor().ok());
    ASSERT_TRUE(writer->add_part(PartKind::provenance, "", {}).ok());
    EXPECT_EQ(testing::read_file(folder.at("a")), testing::bytes_of("old"));
    ASSERT_TRUE(writer->finish(testing::small_description()).ok());
  }
  EXPECT_EQ(folder.files(), 1U);
  EXPECT_TRUE(PackedFile::open(folder.at("a")).ok());
}

}  // namespace
}  // namespace scant::serve
