// Framing over a stream socket. Checksums are computed on pieces that have just been, or are about
// to be, copied by the kernel, so they read from cache.
#include "net/tcp/connection.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/check.h"
#include "base/crc.h"

namespace scant::net {
namespace {

constexpr size_t kBufferBytes = 64 * 1024;  // many small frames in one call
constexpr size_t kPieceBytes =
    256 * 1024;  // stays in a second-level cache between copy and checksum
constexpr size_t kQueuedBytesMax = 768 * 1024;  // enough to keep a socket full between two polls
constexpr size_t kVectorsMax = 64;              // 32 frames in one call
constexpr size_t kWakeBytesMin = 8 * 1024;      // for less, two calls cost more than a wake
constexpr size_t kWakeBytesMax = 128 * 1024;    // what follows is copied while the rest comes

Content content_of(FrameType type) {
  const bool alive = type == FrameType::heartbeat || type == FrameType::goodbye;
  return alive ? Content::keep_alive : Content::frames;
}

}  // namespace

Result<std::unique_ptr<Connection>> Connection::create(Fd fd, int family, uint32_t job,
                                                       bool shares) {
  Result<base::Buffer> buffer = base::Buffer::allocate(kBufferBytes);
  if (!buffer) return buffer.error();
  return std::unique_ptr<Connection>(
      new Connection(std::move(fd), family, job, shares, std::move(buffer).value()));
}

Connection::Connection(Fd fd, int family, uint32_t job, bool shares, base::Buffer buffer)
    : fd_(std::move(fd)),
      family_(family),
      crosses_wire_(family != AF_UNIX),
      kind_(family == AF_UNIX ? PathKind::unix_socket : PathKind::tcp),
      job_(job),
      shares_(shares && family == AF_UNIX),
      buffer_(std::move(buffer)) {}

void Connection::enqueue(FrameHeader header, Bytes payload, uint64_t token) {
  SCANT_CHECK(payload.size() <= kFramePayloadBytesMax, "a frame's payload is too long");
  header.job = job_;
  header.sequence = next_out_++;
  header.length = static_cast<uint32_t>(payload.size());
  if (crosses_wire_) {
    header.payload_crc = payload.empty() ? 0 : base::crc32c(payload);
  } else {
    header.payload_crc = place_in_shared_memory(payload);
    if (header.payload_crc != 0) payload = {};
  }
  queue_.push_back(Out{encode(header), payload, token, content_of(header.type), 0});
  if (queue_.back().content == Content::frames) frames_counter(Direction::sent, kind_).add();
  queued_bytes_ += queue_.back().bytes();
}

// A frame that waits for the socket means that no block was free: what comes after it may find one.
bool Connection::full() const {
  return queued_bytes_ >= (outgoing_ ? kSharedPayloadBytesMin : kQueuedBytesMax);
}

// The number of a block, from 1, as it stands in the header; 0: the payload goes through the
// socket.
uint32_t Connection::place_in_shared_memory(Bytes payload) {
  if (!shares_ || payload.size() < kSharedPayloadBytesMin) return 0;
  if (!outgoing_) {
    auto made = SharedBlocks::make();
    shares_ = made.ok();
    if (made) outgoing_ = std::move(made).value();
    return 0;  // not before the peer has mapped it
  }
  const auto block = outgoing_->write(payload);
  if (!block) return 0;
  bytes_counter(Direction::sent, PathKind::shared_memory, Content::frames).add(payload.size());
  return *block + 1;
}

// Takes the descriptor of new shared memory along.
ssize_t Connection::send_vectors(iovec* vectors, size_t count) {
  msghdr message{};
  message.msg_iov = vectors;
  message.msg_iovlen = count;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  const bool offers = outgoing_ && outgoing_->segment().open();
  if (offers) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* item = CMSG_FIRSTHDR(&message);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(sizeof(int));
    const int fd = outgoing_->segment().get();
    std::memcpy(CMSG_DATA(item), &fd, sizeof(fd));
  }
  const ssize_t n = sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (offers && n > 0) outgoing_->segment().close();
  return n;
}

// One shared memory is taken for a connection, at most; without it everything comes through the
// socket.
ssize_t Connection::receive_vectors(iovec* vectors, size_t count) {
  msghdr message{};
  message.msg_iov = vectors;
  message.msg_iovlen = count;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control;
  if (!crosses_wire_) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
  }
  ssize_t n = 0;
  do {
    n = recvmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0 || crosses_wire_) return n;
  for (cmsghdr* item = CMSG_FIRSTHDR(&message); item != nullptr;
       item = CMSG_NXTHDR(&message, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
    // The padding of `control` has room for a second descriptor, which must not stay open.
    const size_t fds = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < fds; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(item) + i * sizeof(fd), sizeof(fd));
      auto mapped = SharedBlocks::map(Fd(fd));
      if (mapped && !incoming_) incoming_ = std::move(mapped).value();
    }
  }
  return n;
}

Result<size_t> Connection::flush(size_t budget, std::vector<uint64_t>& sent) {
  size_t total = 0;
  while (!queue_.empty() && !blocked_ && total < budget) {
    std::array<iovec, kVectorsMax> vectors;
    size_t count = 0;
    size_t asked = 0;
    for (const Out& out : queue_) {
      if (count + 2 > kVectorsMax || asked >= kPieceBytes) break;
      const size_t header_done = std::min(out.written, out.header.size());
      if (header_done < out.header.size()) {
        vectors[count++] = {const_cast<std::byte*>(out.header.data()) + header_done,
                            out.header.size() - header_done};
      }
      const size_t payload_done = out.written - header_done;
      if (payload_done < out.payload.size()) {
        vectors[count++] = {const_cast<std::byte*>(out.payload.data()) + payload_done,
                            out.payload.size() - payload_done};
      }
      asked += out.bytes() - out.written;
    }
    const ssize_t n = send_vectors(vectors.data(), count);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) {
        blocked_ = true;
        break;
      }
      return Error{ErrorCode::peer_lost, errno, kNoRank, "cannot send"};
    }
    advance(static_cast<size_t>(n), sent);
    total += static_cast<size_t>(n);
    if (static_cast<size_t>(n) < asked) blocked_ = true;
  }
  return total;
}

void Connection::advance(size_t written, std::vector<uint64_t>& sent) {
  queued_bytes_ -= written;
  while (written > 0) {
    Out& out = queue_.front();
    const size_t step = std::min(written, out.bytes() - out.written);
    out.written += step;
    written -= step;
    bytes_counter(Direction::sent, kind_, out.content).add(step);
    if (out.written < out.bytes()) return;
    if (out.token != 0) sent.push_back(out.token);
    queue_.pop_front();
  }
}

void Connection::drop_queue(std::vector<uint64_t>& sent) {
  for (const Out& out : queue_) {
    if (out.token != 0) sent.push_back(out.token);
  }
  queue_.clear();
  queued_bytes_ = 0;
}

// One call: the rest of the payload goes to its target, what follows into the buffer.
Result<size_t> Connection::receive(size_t budget, bool& drained, bool& ended) {
  std::array<iovec, 2> vectors;
  size_t count = 0;
  const size_t missing = in_payload_ ? header_.length - received_ : 0;
  const size_t direct =
      target_.empty() ? 0 : std::min({missing, kPieceBytes, std::max<size_t>(budget, 1)});
  if (direct > 0) vectors[count++] = {target_.data() + received_, direct};
  if (direct == missing || target_.empty()) vectors[count++] = {buffer_.data(), buffer_.size()};
  SCANT_CHECK(count > 0 && buffer_begin_ == buffer_end_);
  const size_t asked = direct + (count == 2 || direct == 0 ? buffer_.size() : 0);
  const ssize_t n = receive_vectors(vectors.data(), count);
  if (n < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      drained = true;
      return size_t{0};
    }
    return Error{ErrorCode::peer_lost, errno, kNoRank, "cannot receive"};
  }
  ended = n == 0;
  const auto got = static_cast<size_t>(n);
  drained = got < asked;
  const size_t to_target = std::min(got, direct);
  if (to_target > 0) {
    if (crosses_wire_) crc_ = base::crc32c(Bytes(target_.data() + received_, to_target), crc_);
    received_ += to_target;
    bytes_counter(Direction::received, kind_, Content::frames).add(to_target);
  }
  buffer_begin_ = 0;
  buffer_end_ = got - to_target;
  return got;
}

Result<Connection::Progress> Connection::read(Rank peer, TransportSink& sink, size_t budget) {
  Progress progress;
  bool drained = false;
  while (progress.bytes < budget && !drained && !progress.ended) {
    // A partial header stays in front of what comes next.
    if (!in_payload_ && buffer_begin_ != buffer_end_) {
      const size_t kept = buffer_end_ - buffer_begin_;
      std::memmove(buffer_.data(), buffer_.data() + buffer_begin_, kept);
      iovec rest{buffer_.data() + kept, buffer_.size() - kept};
      const ssize_t n = receive_vectors(&rest, 1);
      buffer_begin_ = 0;
      buffer_end_ = kept;
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      if (n < 0) return Error{ErrorCode::peer_lost, errno, kNoRank, "cannot receive"};
      progress.ended = n == 0;
      drained = static_cast<size_t>(n) < buffer_.size() - kept;
      buffer_end_ += static_cast<size_t>(n);
      progress.bytes += static_cast<size_t>(n);
    } else {
      const auto got = receive(budget - progress.bytes, drained, progress.ended);
      if (!got) return got.error();
      progress.bytes += got.value();
    }
    const auto parsed = parse(peer, sink, progress);
    if (!parsed) return parsed.error();
  }
  choose_wake();
  return progress;
}

// On a slow link a payload comes packet by packet, and each would wake this thread to no end.
void Connection::choose_wake() {
  if (!crosses_wire_) return;
  const size_t missing = in_payload_ ? header_.length - received_ : 0;
  const size_t wanted = missing >= kWakeBytesMin ? std::min(missing, kWakeBytesMax) : 1;
  if (wanted == wakes_at_) return;
  const int value = static_cast<int>(wanted);
  // A kernel that cannot do it wakes at every packet.
  if (setsockopt(fd_.get(), SOL_SOCKET, SO_RCVLOWAT, &value, sizeof(value)) == 0)
    wakes_at_ = wanted;
}

Result<void> Connection::parse(Rank peer, TransportSink& sink, Progress& progress) {
  for (;;) {
    if (in_payload_) {
      const size_t step = std::min(buffer_end_ - buffer_begin_, header_.length - received_);
      take_payload(Bytes(buffer_.data() + buffer_begin_, step));
      buffer_begin_ += step;
      if (received_ < header_.length) return {};
      auto ended = end_frame(peer, sink, progress);
      if (!ended) return ended;
    }
    if (buffer_end_ - buffer_begin_ < kFrameHeaderBytes) return {};
    auto begun = begin_frame(peer, sink, progress);
    if (!begun) return begun;
  }
}

Result<void> Connection::begin_frame(Rank peer, TransportSink& sink, Progress& progress) {
  const auto decoded = decode(Bytes(buffer_.data() + buffer_begin_, kFrameHeaderBytes));
  if (!decoded) return broken(decoded.error().message);
  header_ = decoded.value();
  buffer_begin_ += kFrameHeaderBytes;
  bytes_counter(Direction::received, kind_, content_of(header_.type)).add(kFrameHeaderBytes);
  if (header_.job != job_) return broken("frame of another job");
  if (header_.sequence != next_in_) {
    return broken("frame " + std::to_string(header_.sequence) + " where " +
                  std::to_string(next_in_) + " was due");
  }
  ++next_in_;
  if (header_.type == FrameType::heartbeat || header_.type == FrameType::goodbye) {
    if (header_.length != 0) return broken("a heartbeat or goodbye with a payload");
    goodbye_ = goodbye_ || header_.type == FrameType::goodbye;
    return {};
  }
  received_ = 0;
  crc_ = 0;
  if (header_.length == 0) {
    ++progress.frames;
    frames_counter(Direction::received, kind_).add();
    sink.on_frame(peer, header_, {});
    return {};
  }
  if (!crosses_wire_ && header_.payload_crc != 0) return take_shared(peer, sink, progress);
  target_ = sink.on_header(peer, header_);
  SCANT_CHECK(target_.empty() || target_.size() == header_.length,
              "the sink's memory has another size");
  in_payload_ = true;
  return {};
}

Result<void> Connection::take_shared(Rank peer, TransportSink& sink, Progress& progress) {
  const uint32_t block = header_.payload_crc - 1;
  if (!incoming_ || block >= kSharedBlocks || header_.length > kSharedBlockBytes) {
    return broken("frame " + std::to_string(header_.sequence) +
                  " names shared memory that is not there");
  }
  const Bytes payload = incoming_->read(block, header_.length);
  const FrameHeader header = header_;
  bytes_counter(Direction::received, PathKind::shared_memory, Content::frames).add(payload.size());
  ++progress.frames;
  if (sink.take(peer, header, payload)) {
    incoming_->free(block);
    frames_counter(Direction::received, kind_).add();
    return {};
  }
  const MutableBytes target = sink.on_header(peer, header);
  SCANT_CHECK(target.empty() || target.size() == header.length,
              "the sink's memory has another size");
  if (!target.empty()) std::memcpy(target.data(), payload.data(), payload.size());
  incoming_->free(block);
  if (target.empty()) return {};
  frames_counter(Direction::received, kind_).add();
  sink.on_frame(peer, header, target);
  return {};
}

void Connection::take_payload(Bytes bytes) {
  if (bytes.empty()) return;
  if (!target_.empty()) {
    std::memcpy(target_.data() + received_, bytes.data(), bytes.size());
    if (crosses_wire_) crc_ = base::crc32c(bytes, crc_);
  }
  received_ += bytes.size();
  bytes_counter(Direction::received, kind_, Content::frames).add(bytes.size());
}

Error Connection::broken(const std::string& what) {
  corrupt_ = true;
  corrupt_counter().add();
  return Error{ErrorCode::corrupt, 0, kNoRank, what};
}

Result<void> Connection::end_frame(Rank peer, TransportSink& sink, Progress& progress) {
  in_payload_ = false;
  const MutableBytes payload = std::exchange(target_, {});
  if (payload.empty()) return {};
  if (crosses_wire_ && crc_ != header_.payload_crc)
    return broken("payload checksum of frame " + std::to_string(header_.sequence));
  ++progress.frames;
  frames_counter(Direction::received, kind_).add();
  sink.on_frame(peer, header_, payload);
  return {};
}

}  // namespace scant::net
