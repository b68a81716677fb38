// One authenticated stream between two ranks: frames out through a queue, frames in through a small
// buffer or straight into the memory that the sink names. Owner: the transport's thread.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "base/buffer.h"
#include "base/event_loop.h"
#include "net/net_counters.h"
#include "net/socket.h"
#include "net/tcp/shared_blocks.h"
#include "net/transport.h"

namespace scant::net {

class Connection {
 public:
  // `shares`: large payloads may go through memory shared with the peer; unix sockets only.
  // ErrorCode::resource when memory runs out.
  [[nodiscard]] static Result<std::unique_ptr<Connection>> create(Fd fd, int family, uint32_t job,
                                                                  bool shares);

  // Fills in job, sequence, length and checksums; `payload` stays the caller's until its token
  // comes back.
  void enqueue(FrameHeader header, Bytes payload, uint64_t token);
  [[nodiscard]] size_t queued_bytes() const { return queued_bytes_; }
  // Takes no more than keeps its path busy until the next poll.
  [[nodiscard]] bool full() const;
  // Writes until the queue is empty, the socket is full (blocked() turns true) or `budget` bytes
  // went out. Appends the tokens of frames that are no longer read. Returns the bytes written.
  Result<size_t> flush(size_t budget, std::vector<uint64_t>& sent);
  [[nodiscard]] bool blocked() const { return blocked_; }
  void set_unblocked() { blocked_ = false; }
  // Gives up the queue: every token comes back.
  void drop_queue(std::vector<uint64_t>& sent);

  struct Progress {
    size_t bytes = 0;
    size_t frames = 0;
    bool ended = false;  // the peer will send nothing more
  };
  // Reads at most about `budget` bytes and delivers whole frames.
  Result<Progress> read(Rank peer, TransportSink& sink, size_t budget);
  // In the middle of a payload, poll() reports the socket when a good part of the rest is there.
  [[nodiscard]] bool wakes_late() const { return wakes_at_ > 1; }
  [[nodiscard]] bool said_goodbye() const { return goodbye_; }
  [[nodiscard]] bool corrupt() const { return corrupt_; }  // nothing more can be read from it

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] int family() const { return family_; }
  std::optional<base::EventLoop::Watch> watch;  // the transport's note: the loop has it

 private:
  Connection(Fd fd, int family, uint32_t job, bool shares, base::Buffer buffer);

  struct Out {
    EncodedHeader header;
    Bytes payload;  // empty when it lies in shared memory
    uint64_t token = 0;
    Content content = Content::frames;
    size_t written = 0;  // of header and payload together
    [[nodiscard]] size_t bytes() const { return header.size() + payload.size(); }
  };

  [[nodiscard]] uint32_t place_in_shared_memory(Bytes payload);
  ssize_t send_vectors(struct iovec* vectors, size_t count);
  ssize_t receive_vectors(struct iovec* vectors, size_t count);
  void advance(size_t written, std::vector<uint64_t>& sent);
  Result<size_t> receive(size_t budget, bool& drained, bool& ended);
  Result<void> parse(Rank peer, TransportSink& sink, Progress& progress);
  Result<void> begin_frame(Rank peer, TransportSink& sink, Progress& progress);
  Result<void> take_shared(Rank peer, TransportSink& sink, Progress& progress);
  void take_payload(Bytes bytes);
  Result<void> end_frame(Rank peer, TransportSink& sink, Progress& progress);
  Error broken(const std::string& what);
  void choose_wake();

  Fd fd_;
  int family_;
  // Payloads of unix sockets stay in this kernel's memory and carry no checksum.
  bool crosses_wire_;
  PathKind kind_;
  uint32_t job_;
  bool shares_;
  std::optional<SharedBlocks> outgoing_;
  std::optional<SharedBlocks> incoming_;

  std::deque<Out> queue_;
  size_t queued_bytes_ = 0;
  uint64_t next_out_ = 0;
  bool blocked_ = false;

  base::Buffer buffer_;
  size_t buffer_begin_ = 0;
  size_t buffer_end_ = 0;
  uint64_t next_in_ = 0;
  size_t wakes_at_ = 1;  // bytes in the socket
  bool goodbye_ = false;
  bool corrupt_ = false;
  bool in_payload_ = false;
  FrameHeader header_;
  MutableBytes target_;  // empty: the payload is discarded
  size_t received_ = 0;
  uint32_t crc_ = 0;
};

}  // namespace scant::net
