// Packed files: what is written is read, in every kind, and takes the formula's bytes; what is cut,
// damaged, newer or hostile is refused by name, and nothing is read beyond it.
#include "serve/file/packed_file.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <sstream>
#include <sys/resource.h>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/quantise/rounding.h"
#include "codec/tile/sparse.h"
#include "codec/tile/tile.h"
#include "serve/file/packed_writer.h"
#include "serve/file/rows.h"
#include "serve/testing/files.h"

namespace scant::serve {
namespace {

using testing::bytes_of;

constexpr uint64_t kSeed = 20261130;

std::unique_ptr<PackedWriter> writer_at(const std::string& path) {
  auto writer = PackedWriter::create(path);
  EXPECT_TRUE(writer.ok()) << writer.error().to_string();
  return std::move(writer).value();
}

uint64_t add(PackedWriter& writer, PackedTensor tensor, TensorKind from, Bytes rows,
             size_t rows_at_once) {
  const uint64_t columns = tensor.dims.back();
  EXPECT_TRUE(writer.begin_tensor(std::move(tensor)).ok());
  const size_t piece = rows_at_once * *row_bytes(from, columns);
  for (size_t at = 0; at < rows.size(); at += piece) {
    const auto added = writer.add_rows(from, rows.subspan(at, std::min(piece, rows.size() - at)));
    EXPECT_TRUE(added.ok()) << added.error().to_string();
  }
  const auto bytes = writer.end_tensor();
  EXPECT_TRUE(bytes.ok()) << bytes.error().to_string();
  return bytes.value();
}

void finish(PackedWriter& writer) {
  ASSERT_TRUE(writer.add_part(PartKind::provenance, "", bytes_of("tool scant 0\n")).ok());
  const auto done = writer.finish(testing::small_description());
  ASSERT_TRUE(done.ok()) << done.error().to_string();
}

PackedFile open(const std::string& path) {
  auto file = PackedFile::open(path);
  EXPECT_TRUE(file.ok()) << file.error().to_string();
  return std::move(file).value();
}

std::vector<std::byte> read(const Tensor& tensor, TensorKind as) {
  std::vector<std::byte> out(tensor.shape.rows * *row_bytes(as, tensor.shape.columns));
  const auto done = read_rows(tensor, 0, tensor.shape.rows, as, out);
  EXPECT_TRUE(done.ok()) << done.error().to_string();
  return out;
}

// ---- kinds -----------------------------------------------------------------------------------

TEST(PackedFile, RowsOfEveryKindComeBackAsTheyWere) {
  const testing::Folder folder;
  const auto writer = writer_at(folder.at("a"));
  std::vector<std::vector<std::byte>> all;
  std::vector<TensorKind> kinds;
  ASSERT_TRUE(writer->begin_run().ok());
  for (const TensorKind kind : tensor_kinds()) {
    if (!row_by_row(kind)) continue;
    kinds.push_back(kind);
    all.push_back(testing::rows(kind, {19, 96}, kSeed));
    add(*writer, {.name = name(kind), .kind = kind, .dims = {19, 96}}, kind, all.back(), 5);
  }
  finish(*writer);
  const PackedFile file = open(folder.at("a"));
  ASSERT_EQ(file.tensors().size(), kinds.size());
  for (size_t i = 0; i < kinds.size(); ++i) {
    const Tensor& tensor = file.tensors()[i];
    EXPECT_EQ(tensor.at % 64, 0U);
    EXPECT_TRUE(file.check(tensor).ok());
    EXPECT_TRUE(std::ranges::equal(tensor.bytes, all[i])) << name(kinds[i]);
    EXPECT_EQ(read(tensor, kinds[i]), all[i]);
    std::vector<std::byte> middle(3 * *row_bytes(kinds[i], 96));
    ASSERT_TRUE(read_rows(tensor, 15, 3, kinds[i], middle).ok());
    EXPECT_TRUE(std::equal(middle.begin(), middle.end(),
                           all[i].begin() + static_cast<ptrdiff_t>(15 * *row_bytes(kinds[i], 96))));
  }
}

uint64_t expected_bytes(TensorKind kind, uint64_t rows, uint64_t columns, uint64_t kept_of_row) {
  const auto up = [](uint64_t n) { return (n + 63) / 64 * 64; };
  const uint64_t strips = (rows + 15) / 16;
  const uint64_t tiles = (columns + 63) / 64;
  switch (kind) {
    case TensorKind::f32:
      return 4 * rows * columns;
    case TensorKind::bf16:
    case TensorKind::f16:
      return 2 * rows * columns;
    case TensorKind::bf16_tiles:
      return strips * tiles * 2048;
    case TensorKind::sparse_bf16:
    case TensorKind::sparse_q8: {
      const uint64_t width = kind == TensorKind::sparse_q8 ? 1 : 2;
      uint64_t bytes = up(8 * (strips + 1)) + (width == 1 ? up(2 * strips) : 0);
      for (uint64_t s = 0; s < strips; ++s) {
        const uint64_t here = std::min<uint64_t>(16, rows - 16 * s);
        bytes += 128 * tiles + (width == 1 ? up(16 * tiles) : 0) + up(width * here * kept_of_row);
      }
      return bytes;
    }
    default: {
      const uint64_t bits = codec::bits(strip_values(kind));
      return up(2 * strips) + strips * (up(16 * tiles) + tiles * 128 * bits);
    }
  }
}

TEST(PackedFile, BytesAreTheFormulas) {
  for (const auto& [rows, columns] :
       std::vector<std::pair<uint64_t, uint64_t>>{{1, 1}, {16, 64}, {17, 65}, {50, 576}}) {
    const testing::Folder folder;
    const auto writer = writer_at(folder.at("a"));
    ASSERT_TRUE(writer->begin_run().ok());
    const auto values = testing::rows(TensorKind::f32, {rows, columns}, kSeed);
    const uint64_t kept = (columns + 1) / 2;
    uint64_t expected = 0;
    for (const TensorKind kind : tensor_kinds()) {
      if (row_by_row(kind) && kind > TensorKind::f16) continue;
      if (kind == TensorKind::sparse_q4) continue;  // rounds each group up: in sparse_test.cc
      const uint64_t bytes =
          add(*writer,
              {.name = name(kind),
               .kind = kind,
               .dims = {rows, columns},
               .density = static_cast<double>(kept) / static_cast<double>(columns)},
              TensorKind::f32, values, 7);
      EXPECT_EQ(bytes, expected_bytes(kind, rows, columns, kept)) << name(kind);
      expected = (expected + 63) / 64 * 64 + bytes;
    }
    finish(*writer);
    const PackedFile file = open(folder.at("a"));
    for (const Tensor& tensor : file.tensors()) {
      EXPECT_TRUE(file.check(tensor).ok());
      EXPECT_EQ(tensor.entries, sparse(tensor.kind) ? kept * rows : 0U);
    }
    uint64_t names = 0;
    for (const Tensor& tensor : file.tensors()) names += tensor.name.size();
    const uint64_t pages = (expected + kPageBytes - 1) / kPageBytes;
    EXPECT_EQ(file.file().bytes().size(), (1 + pages) * kPageBytes + 8 +
                                              64 * file.tensors().size() + 2 * 16 + 4 * pages +
                                              names + 13 + kDescriptionBytes);
  }
}

TEST(PackedFile, CodesAndTilesGiveWhatTheCodecGives) {
  const testing::Folder folder;
  const auto writer = writer_at(folder.at("a"));
  ASSERT_TRUE(writer->begin_run().ok());
  const auto given = testing::rows(TensorKind::f32, {21, 130}, kSeed);
  for (const TensorKind kind :
       {TensorKind::bf16_tiles, TensorKind::q8, TensorKind::q4, TensorKind::q3, TensorKind::q2})
    add(*writer, {.name = name(kind), .kind = kind, .dims = {21, 130}}, TensorKind::f32, given, 4);
  finish(*writer);
  const PackedFile file = open(folder.at("a"));
  std::vector<float> values(21 * 130);
  std::memcpy(values.data(), given.data(), given.size());
  for (const Tensor& tensor : file.tensors()) {
    std::vector<float> expected;
    for (size_t row = 0; row < 21; row += 16) {
      const size_t rows = std::min<size_t>(16, 21 - row);
      std::vector<float> part(values.begin() + static_cast<ptrdiff_t>(row * 130),
                              values.begin() + static_cast<ptrdiff_t>((row + rows) * 130));
      if (tensor.kind == TensorKind::bf16_tiles) {
        for (float& one : part) one = codec::bf16_widen(codec::bf16_nearest(one));
      } else {
        const codec::ValueKind kind = strip_values(tensor.kind);
        std::vector<std::byte> strip(codec::strip_bytes(kind, 130));
        const uint16_t base = codec::pack_strip(kind, part.data(), rows, 130, strip);
        codec::unpack_strip(kind, strip, base, 0, rows, 130, part.data());
      }
      expected.insert(expected.end(), part.begin(), part.end());
    }
    const auto found = read(tensor, TensorKind::f32);
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size()), 0) << name(tensor.kind);
  }
}

TEST(PackedFile, SixteenBitsGoThroughTilesUnchanged) {
  const testing::Folder folder;
  const auto writer = writer_at(folder.at("a"));
  ASSERT_TRUE(writer->begin_run().ok());
  std::vector<std::byte> given(2 * 33 * 70);
  for (size_t i = 0; i < given.size() / 2; ++i)
    base::store_little(given.data() + 2 * i, static_cast<uint16_t>(i * 29 + 0x7F70));  // with NaN
  add(*writer, {.name = "t", .kind = TensorKind::bf16_tiles, .dims = {33, 70}}, TensorKind::bf16,
      given, 3);
  finish(*writer);
  const PackedFile file = open(folder.at("a"));
  EXPECT_EQ(read(file.tensors()[0], TensorKind::bf16), given);
}

TEST(PackedFile, RefusesValuesThatHaveNoCode) {
  for (const TensorKind kind : {TensorKind::q4, TensorKind::sparse_bf16}) {
    const testing::Folder folder;
    {
      const auto writer = writer_at(folder.at("a"));
      ASSERT_TRUE(writer->begin_run().ok());
      ASSERT_TRUE(writer->begin_tensor({.name = "w", .kind = kind, .dims = {20, 3}}).ok());
      std::vector<std::byte> rows(4 * 60);
      base::store_little(rows.data() + 4 * 58, std::numeric_limits<float>::quiet_NaN());
      const auto refused = writer->add_rows(TensorKind::f32, rows);
      ASSERT_FALSE(refused.ok());
      EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
      EXPECT_NE(refused.error().message.find("tensor 'w': row 19, column 1 is NaN"),
                std::string::npos)
          << refused.error().message;
    }
    EXPECT_EQ(folder.files(), 0U) << "nothing is left";
  }
}

TEST(PackedFile, ShapesUpToTheLimit) {
  EXPECT_EQ(matrix_shape({3, 4, 5})->rows, 12U);
  EXPECT_EQ(matrix_shape({7})->columns, 7U);
  EXPECT_TRUE(matrix_shape({kElementsMax - 1}));
  EXPECT_TRUE(matrix_shape({3, kElementsMax / 3}));
  EXPECT_FALSE(matrix_shape({kElementsMax}));
  EXPECT_FALSE(matrix_shape({uint64_t{1} << 20, uint64_t{1} << 20}));
  EXPECT_FALSE(matrix_shape({UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}));
  EXPECT_FALSE(matrix_shape({}));
}

TEST(PackedFile, RowsThatAreNotThereAreRefused) {
  const testing::Folder folder;
  const auto writer = writer_at(folder.at("a"));
  ASSERT_TRUE(writer->begin_run().ok());
  const auto given = testing::rows(TensorKind::q8_0, {4, 32}, kSeed);
  add(*writer, {.name = "w", .kind = TensorKind::q8_0, .dims = {4, 32}}, TensorKind::q8_0, given,
      4);
  finish(*writer);
  const PackedFile file = open(folder.at("a"));
  const Tensor& tensor = *file.find("w");
  EXPECT_EQ(file.find("v"), nullptr);
  std::vector<std::byte> out(4 * 32);
  const auto says = [&](uint64_t first, uint64_t rows, TensorKind as) {
    const auto read = read_rows(tensor, first, rows, as, out);
    return read.ok() ? std::string() : read.error().message;
  };
  EXPECT_EQ(says(3, 1, TensorKind::f32), "");
  EXPECT_EQ(says(3, 2, TensorKind::f32), "tensor 'w': there are no rows 3 to 5 of 4");
  EXPECT_NE(says(UINT64_MAX, 2, TensorKind::f32), "");
  EXPECT_EQ(says(0, 1, TensorKind::q4), "tensor 'w': Q8_0 cannot be read as q4");
  EXPECT_EQ(says(0, 2, TensorKind::f32), "tensor 'w': memory of another size than the rows");
}

TEST(PackedFile, WriterRefusesWhatCannotBe) {
  const testing::Folder folder;
  const auto writer = writer_at(folder.at("a"));
  ASSERT_TRUE(writer->begin_run().ok());
  const auto begin = [&](PackedTensor tensor) {
    const auto begun = writer->begin_tensor(std::move(tensor));
    return begun.ok() ? std::string() : begun.error().message;
  };
  EXPECT_NE(begin({.name = "", .dims = {1}}), "");
  EXPECT_NE(begin({.name = "a\nb", .dims = {1}}), "");
  EXPECT_NE(begin({.name = "w", .dims = {}}), "");
  EXPECT_NE(begin({.name = "w", .dims = {2, 0}}), "");
  EXPECT_NE(begin({.name = "w", .dims = {1, 1, 1, 1, 1}}), "");
  EXPECT_NE(begin({.name = "w", .dims = {uint64_t{1} << 39, 4}}), "");
  EXPECT_NE(begin({.name = "w", .kind = TensorKind::q4_0, .dims = {2, 48}}), "");
  EXPECT_EQ(begin({.name = "w", .dims = {2, 3}}), "");
  const std::vector<std::byte> rows(4 * 6);
  EXPECT_FALSE(writer->add_rows(TensorKind::f32, Bytes(rows).first(8)).ok());
  ASSERT_TRUE(writer->add_rows(TensorKind::f32, Bytes(rows).first(12)).ok());
  EXPECT_FALSE(writer->add_rows(TensorKind::bf16, Bytes(rows).first(6)).ok()) << "two kinds";
  EXPECT_FALSE(writer->end_tensor().ok()) << "a row is missing";
  EXPECT_FALSE(writer->add_rows(TensorKind::f32, rows).ok()) << "too many";
  ASSERT_TRUE(writer->add_rows(TensorKind::f32, Bytes(rows).first(12)).ok());
  ASSERT_TRUE(writer->end_tensor().ok());
  EXPECT_NE(begin({.name = "w", .dims = {1}}), "") << "twice";
  EXPECT_FALSE(writer->add_part(PartKind::file, "../x", {}).ok());
  EXPECT_FALSE(writer->add_part(PartKind::tokenizer, "x", {}).ok());
  Description wrong = testing::small_description();
  wrong.heads = 3;
  wrong.kv_heads = 2;
  EXPECT_FALSE(writer->finish(wrong).ok());
}

// ---- the document's example --------------------------------------------------------------------

TEST(PackedFile, TheDocumentsExample) {
  const testing::Folder folder;
  const auto writer = writer_at(folder.at("a"));
  ASSERT_TRUE(writer->begin_run().ok());
  std::vector<std::byte> row(4);
  base::store_little(row.data(), uint16_t{0x3F80});
  base::store_little(row.data() + 2, uint16_t{0xC000});
  add(*writer, {.name = "w", .kind = TensorKind::bf16, .dims = {1, 2}}, TensorKind::bf16, row, 1);
  finish(*writer);
  const auto written = testing::read_file(folder.at("a"));
  const auto document = testing::read_file(SCANT_DOCUMENT);
  std::string text(reinterpret_cast<const char*>(document.data()), document.size());
  const size_t begin = text.find("<!-- example: packed -->\n```\n");
  ASSERT_NE(begin, std::string::npos);
  std::istringstream lines(text.substr(text.find("```\n", begin) + 4));
  std::vector<std::byte> expected(written.size());
  size_t compared = 0;
  for (std::string line; std::getline(lines, line) && line != "```";) {
    std::istringstream words(line.substr(0, 34));  // then comes what it means
    size_t at = 0;
    words >> at;
    for (std::string word; words >> word; ++at, ++compared) {
      ASSERT_LT(at, expected.size());
      expected[at] = static_cast<std::byte>(std::stoul(word, nullptr, 16));
    }
  }
  EXPECT_GT(compared, 100U);
  for (size_t i = 0; i < written.size(); ++i)
    ASSERT_EQ(std::to_integer<int>(written[i]), std::to_integer<int>(expected[i])) << "byte " << i;
}

}  // namespace
}  // namespace scant::serve
