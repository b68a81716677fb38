#include "serve/file/mapped_file.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "base/aligned.h"
#include "base/descriptor.h"

namespace scant::serve {
namespace {

Error io(const std::string& path, const std::string& what, int number = errno) {
  return {.code = ErrorCode::io, .sys_errno = number, .message = path + ": " + what};
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: a pipe without a writer is refused, not waited for.
  const base::Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat found {};
  if (!file.open() || ::fstat(file.get(), &found) != 0) return io(path, "cannot be opened");
  if (!S_ISREG(found.st_mode))
    return io(path, "is no regular file", S_ISDIR(found.st_mode) ? EISDIR : EINVAL);
  const auto size = static_cast<size_t>(found.st_size);
  if (size == 0) return MappedFile(path, nullptr, 0);
  void* const data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) return io(path, "cannot be mapped");
  return MappedFile(path, static_cast<const std::byte*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(Bytes bytes) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto first = static_cast<size_t>(bytes.data() - data_);
  const size_t from = base::align_up(first, page);
  const size_t end = (first + bytes.size()) / page * page;
  // A hint: where it is refused, memory is merely given back later.
  if (from < end)
    static_cast<void>(::madvise(const_cast<std::byte*>(data_) + from, end - from, MADV_DONTNEED));
}

}  // namespace scant::serve
