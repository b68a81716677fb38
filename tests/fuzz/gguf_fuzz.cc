// GGUF files. What is read can be written, and read again is the same; every tensor lies in the
// file and can be widened; an error names what is wrong. Input: the file.
#include <vector>

#include "fuzz_input.h"
#include "memory_file.h"
#include "serve/file/gguf.h"
#include "serve/file/rows.h"

using namespace scant;

namespace {

constexpr uint64_t kWidenedMax = 4096;  // values

void check_tensor(const serve::Tensor& tensor, Bytes file) {
  SCANT_CHECK(tensor.bytes.size() == *serve::tensor_bytes(tensor.kind, tensor.shape));
  SCANT_CHECK(tensor.at + tensor.bytes.size() <= file.size());
  if (tensor.shape.columns > kWidenedMax) return;
  std::vector<std::byte> row(*serve::row_bytes(serve::TensorKind::f32, tensor.shape.columns));
  SCANT_CHECK(serve::read_rows(tensor, tensor.shape.rows - 1, 1, serve::TensorKind::f32, row).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Bytes bytes(reinterpret_cast<const std::byte*>(data), size);
  const fuzz::MemoryFile memory(bytes);
  const auto opened = serve::GgufFile::open(memory.path());
  if (!opened) {
    SCANT_CHECK(!opened.error().message.empty());
    return 0;
  }
  const serve::GgufFile& file = opened.value();
  SCANT_CHECK(fuzz::equal(serve::write_gguf_pairs(file.pairs()), file.pair_bytes()));
  uint64_t used = 0;
  const auto again = serve::read_gguf_pairs(file.pair_bytes(), file.pairs().size(), used);
  SCANT_CHECK(again.ok() && used == file.pair_bytes().size());
  for (const serve::Tensor& tensor : file.tensors()) check_tensor(tensor, file.file().bytes());
  return 0;
}
