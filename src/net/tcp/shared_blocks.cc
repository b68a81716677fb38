// The segment: one page of words, then the blocks. Sealed against shrinking, so that no access to
// it can fail once it is mapped; its pages exist from the start, so that writing cannot fail
// either.
#include "net/tcp/shared_blocks.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <new>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

#include "base/check.h"

namespace scant::net {
namespace {

constexpr size_t kWordsBytes = 4096;
constexpr size_t kSegmentBytes = kWordsBytes + kSharedBlocks * kSharedBlockBytes;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

Error failed(const char* what) {
  return Error{ErrorCode::resource, errno, kNoRank, std::string("cannot ") + what};
}

Result<std::byte*> map_segment(const Fd& segment) {
  void* base = mmap(nullptr, kSegmentBytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.get(), 0);
  if (base == MAP_FAILED) return failed("map memory shared with a peer");
  return static_cast<std::byte*>(base);
}

}  // namespace

struct SharedBlocks::Words {
  // Set by the reader after it mapped, read by the writer before its first block.
  alignas(64) std::atomic<uint32_t> mapped;
  // Set by the writer, who tells the block's number through the socket; cleared by the reader when
  // it has read (release), seen by the writer before it writes again (acquire).
  struct alignas(64) Busy {
    std::atomic<uint32_t> word;
  };
  std::array<Busy, kSharedBlocks> busy;
};

Result<SharedBlocks> SharedBlocks::make() {
  static_assert(sizeof(Words) <= kWordsBytes && std::atomic<uint32_t>::is_always_lock_free);
  Fd segment(memfd_create("scant", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!segment.open()) return failed("make memory to share with a peer");
  if (fallocate(segment.get(), 0, 0, static_cast<off_t>(kSegmentBytes)) != 0) {
    return failed("reserve memory to share with a peer");
  }
  if (fcntl(segment.get(), F_ADD_SEALS, kSeals | F_SEAL_SEAL) != 0) {
    return failed("seal memory to share with a peer");
  }
  const auto base = map_segment(segment);
  if (!base) return base.error();
  new (base.value()) Words{};
  return SharedBlocks(std::move(segment), base.value());
}

Result<SharedBlocks> SharedBlocks::map(Fd segment) {
  struct stat found {};
  if (fstat(segment.get(), &found) != 0 || found.st_size != static_cast<off_t>(kSegmentBytes)) {
    return Error{ErrorCode::corrupt, 0, kNoRank, "shared memory of another size"};
  }
  const int seals = fcntl(segment.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSeals) != kSeals) {
    return Error{ErrorCode::corrupt, 0, kNoRank, "shared memory that could shrink"};
  }
  const auto base = map_segment(segment);
  if (!base) return base.error();
  SharedBlocks blocks(Fd{}, base.value());
  blocks.words().mapped.store(1, std::memory_order_release);
  return blocks;
}

SharedBlocks::SharedBlocks(SharedBlocks&& other) noexcept
    : segment_(std::move(other.segment_)),
      base_(std::exchange(other.base_, nullptr)),
      next_(other.next_) {}

SharedBlocks& SharedBlocks::operator=(SharedBlocks&& other) noexcept {
  std::swap(segment_, other.segment_);
  std::swap(base_, other.base_);
  std::swap(next_, other.next_);
  return *this;
}

SharedBlocks::~SharedBlocks() {
  if (base_ != nullptr) munmap(base_, kSegmentBytes);
}

SharedBlocks::Words& SharedBlocks::words() const {
  return *std::launder(reinterpret_cast<Words*>(base_));
}

std::byte* SharedBlocks::block_at(uint32_t block) const {
  SCANT_CHECK(block < kSharedBlocks, "no such block of shared memory");
  return base_ + kWordsBytes + block * kSharedBlockBytes;
}

std::optional<uint32_t> SharedBlocks::write(Bytes payload) {
  if (payload.size() > kSharedBlockBytes) return std::nullopt;
  Words& at = words();
  if (at.mapped.load(std::memory_order_acquire) == 0) return std::nullopt;
  for (uint32_t tried = 0; tried < kSharedBlocks; ++tried) {
    const uint32_t block = (next_ + tried) % kSharedBlocks;
    if (at.busy[block].word.load(std::memory_order_acquire) != 0) continue;
    at.busy[block].word.store(1, std::memory_order_relaxed);
    std::memcpy(block_at(block), payload.data(), payload.size());
    next_ = block + 1;
    return block;
  }
  return std::nullopt;
}

Bytes SharedBlocks::read(uint32_t block, size_t bytes) const {
  SCANT_CHECK(bytes <= kSharedBlockBytes, "more than a block of shared memory holds");
  return {block_at(block), bytes};
}

void SharedBlocks::free(uint32_t block) {
  SCANT_CHECK(block < kSharedBlocks, "no such block of shared memory");
  words().busy[block].word.store(0, std::memory_order_release);
}

}  // namespace scant::net
