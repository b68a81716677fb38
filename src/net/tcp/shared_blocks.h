// Memory that two ranks of one host share, so that a large payload needs no trip through the
// kernel: the sender copies it into a free block and sends only the header, the receiver reads it
// there and frees the block. One segment for each direction of a connection; its writer makes it
// when the first large payload is sent. Owner: the transport's thread of either side.
#pragma once

#include <memory>
#include <optional>

#include "net/socket.h"
#include "scant/base/types.h"

namespace scant::net {

inline constexpr size_t kSharedBlockBytes = size_t{256} << 10;  // a segment of a collective
inline constexpr uint32_t kSharedBlocks = 4;                    // 1 MiB for each direction
inline constexpr size_t kSharedPayloadBytesMin = 8 * 1024;      // below, a socket costs as little

// A mapping of control words and blocks. Words tell: whether the reader has it mapped, and for each
// block whether it is in use. Both ends trust each other as far as two ranks of a job do: a wrong
// word can spoil data between these two, and never leads outside the mapping.
class SharedBlocks {
 public:
  // The writer's side: a new sealed segment.
  static Result<SharedBlocks> make();
  // The reader's side: maps what came over the socket, if it is such a segment, and says so in it.
  static Result<SharedBlocks> map(Fd segment);

  SharedBlocks(SharedBlocks&& other) noexcept;
  SharedBlocks& operator=(SharedBlocks&& other) noexcept;
  SharedBlocks(const SharedBlocks&) = delete;
  SharedBlocks& operator=(const SharedBlocks&) = delete;
  ~SharedBlocks();

  // Writer: the descriptor to send; open until it has been sent.
  [[nodiscard]] Fd& segment() { return segment_; }
  // Writer: copies into a free block; empty when none is free or nobody reads.
  [[nodiscard]] std::optional<uint32_t> write(Bytes payload);
  // Reader: a view of the first `bytes` of a block in use.
  [[nodiscard]] Bytes read(uint32_t block, size_t bytes) const;
  void free(uint32_t block);

 private:
  struct Words;
  SharedBlocks(Fd segment, std::byte* base) : segment_(std::move(segment)), base_(base) {}
  [[nodiscard]] Words& words() const;
  [[nodiscard]] std::byte* block_at(uint32_t block) const;

  Fd segment_;
  std::byte* base_ = nullptr;
  uint32_t next_ = 0;
};

}  // namespace scant::net
