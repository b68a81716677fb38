// MANIFEST and INDEX. What is read can be written, and read again is the same; a file of a base
// lies in its folder; an error names the file. Input: mode, then the text.
#include <string>

#include "base/crc.h"
#include "fuzz_input.h"
#include "journal/format.h"

using namespace scant;

namespace {

constexpr uint8_t kSealed = 1;  // the last line is put right
constexpr uint8_t kIndex = 2;   // else: a manifest

std::string seal(const std::string& text) {
  const uint32_t crc = base::crc32c({reinterpret_cast<const std::byte*>(text.data()), text.size()});
  std::string hex(8, '0');
  for (size_t i = 0; i < 8; ++i) hex[i] = "0123456789abcdef"[crc >> (28 - 4 * i) & 0xF];
  return text + "crc32c " + hex + "\n";
}

template <typename T, typename Read, typename Write>
void check(const std::string& text, Read read, Write write) {
  const Result<T> found = read(text, "NAME");
  if (!found) {
    SCANT_CHECK(found.error().message.find("NAME") != std::string::npos);
    return;
  }
  const Result<T> again = read(write(found.value()), "NAME");
  SCANT_CHECK(again.ok() && again.value() == found.value());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  const Bytes rest = input.rest();
  std::string text(reinterpret_cast<const char*>(rest.data()), rest.size());
  if ((mode & kSealed) != 0) text = seal(text);
  if ((mode & kIndex) == 0) {
    check<journal::Manifest>(text, journal::read_manifest, journal::write_manifest);
    return 0;
  }
  check<journal::BaseIndex>(text, journal::read_index, journal::write_index);
  const auto index = journal::read_index(text, "NAME");
  if (!index) return 0;
  for (const journal::BaseFile& file : index.value().files) {
    SCANT_CHECK(!file.name.empty() && file.name != "." && file.name != "..");
    SCANT_CHECK(file.name.find('/') == std::string::npos);
  }
  return 0;
}
