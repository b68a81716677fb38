// Collectives between the ranks of a job. Asynchronous: every call returns a Work to wait on.
// Owner threads: any user thread may call; one I/O thread per Communicator owns sockets and
// protocol state. Limits: 65,535 ranks, 2^31 operations in one group, buffers stay valid and
// untouched until their Work is done.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"
#include "scant/collective/store.h"

namespace scant {

struct CommunicatorOptions {
  Rank rank = kNoRank;
  int size = 0;
  std::string job = "scant";  // peers of another job are refused
  // What to bind and publish: an address, an interface name, or empty to choose.
  std::string address{};  // {}: so that an initialiser without it draws no warning
  uint16_t port = 0;      // 0: any free port
  Duration connect_timeout = std::chrono::seconds(60);
  Duration operation_timeout = std::chrono::minutes(30);
  Duration peer_timeout = std::chrono::milliseconds(1500);  // silence after which a peer is lost
  int connections_per_pair = 0;   // 0: one, which measures best on most links
  bool same_host_sockets = true;  // unix sockets between ranks of one network namespace
  int io_cpu = -1;                // pin the I/O thread; -1: not pinned
  // Applied in the transport when links cannot be shaped by the kernel (scant lab without root). 0:
  // no limit.
  uint64_t rate_limit_bytes_per_second = 0;
};

// A handle on one operation. Copies refer to the same operation.
class Work {
 public:
  class State;
  Work() = default;
  explicit Work(State* state);  // takes one reference
  Work(const Work& other);
  Work(Work&& other) noexcept;
  Work& operator=(Work other) noexcept;
  ~Work();

  [[nodiscard]] bool valid() const { return state_ != nullptr; }
  [[nodiscard]] bool done() const;
  // Blocks until done; a zero timeout means the operation's own deadline. Returns the operation's
  // outcome.
  Result<void> wait(Duration timeout = Duration::zero()) const;
  // By so much after its submission the operation is done, whatever happens: its deadline, and what
  // a report of it may take.
  [[nodiscard]] Duration limit() const;
  // Calls `callback(context)` once when the operation is done: at once in the calling thread when
  // it is done already, otherwise on the I/O thread, which it must not block. One callback for each
  // operation; source() is set by then.
  void on_done(void (*callback)(void* context), void* context) const;
  // recv from any source: who sent it (group rank). kNoRank before completion and for other
  // operations.
  [[nodiscard]] Rank source() const;
  [[nodiscard]] State* state() const { return state_; }

 private:
  State* state_ = nullptr;
};

using GroupId = uint32_t;
inline constexpr GroupId kWorldGroup = 0;
inline constexpr Rank kAnySource = -2;

struct CallOptions {
  GroupId group = kWorldGroup;
  Duration timeout = Duration::zero();  // zero: the communicator's operation_timeout
  // Of this rank's operations that may send to a peer, the one of the highest priority sends first,
  // then the oldest. Only the order of transmission depends on it, neither matching nor results,
  // so ranks may differ. Many bytes of high priority can hold others back until their deadline.
  int priority = 0;
};

struct PeerInfo {
  Rank rank = kNoRank;
  std::string host;
  int64_t pid = 0;
  std::string address;
  bool alive = true;
  Duration silent_for = Duration::zero();  // since anything was heard
};

class Communicator {
 public:
  // Blocks until every rank is connected and authenticated, or names the ranks that are missing.
  static Result<std::unique_ptr<Communicator>> create(Store& store,
                                                      const CommunicatorOptions& options);
  ~Communicator();  // shutdown()
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  [[nodiscard]] Rank rank() const;
  [[nodiscard]] int size() const;
  [[nodiscard]] uint32_t epoch() const;
  [[nodiscard]] std::vector<PeerInfo> peers() const;

  // Every member calls it with the same ordered member list and the same key; no message is
  // exchanged. A rank that is not in `members` must not call it.
  Result<GroupId> make_group(const std::vector<Rank>& members, std::string_view key);
  // Frees what this rank keeps for the group; what is pending in it fails with `closed`, here and
  // on its other members. A member that is done may release it while others are not.
  Result<void> release_group(GroupId group);

  // Roots and peers are ranks within the call's group. "parts" are one buffer for each rank of the
  // group.
  Work all_reduce(Bytes input, MutableBytes output, DType dtype, ReduceOp op,
                  const CallOptions& options = {});
  Work reduce(Bytes input, MutableBytes output, DType dtype, ReduceOp op, Rank root,
              const CallOptions& options = {});
  Work reduce_scatter(std::vector<Bytes> input_parts, MutableBytes output, DType dtype, ReduceOp op,
                      const CallOptions& options = {});
  Work all_gather(Bytes input, std::vector<MutableBytes> output_parts, DType dtype,
                  const CallOptions& options = {});
  Work broadcast(MutableBytes data, DType dtype, Rank root, const CallOptions& options = {});
  Work gather(Bytes input, std::vector<MutableBytes> output_parts, DType dtype, Rank root,
              const CallOptions& options = {});  // output_parts: at the root only
  Work scatter(std::vector<Bytes> input_parts, MutableBytes output, DType dtype, Rank root,
               const CallOptions& options = {});  // input_parts: at the root only
  Work all_to_all(std::vector<Bytes> input_parts, std::vector<MutableBytes> output_parts,
                  DType dtype, const CallOptions& options = {});
  // An all_to_all of bytes whose sizes only the senders know. Every rank states the same capacity:
  // the size of its output parts, into which the others send up to so many bytes each. Ranks that
  // state different capacities get ErrorCode::mismatch; an input part above it is
  // ErrorCode::invalid_argument. received[i] is set to the bytes that came from rank i when the
  // work is done well; it has one element for each rank and stays valid until then. This rank's
  // own input part is copied to its output part, which may begin at the same address (nothing is
  // copied then) and may have any size that holds it. It costs what an all_to_all of the same bytes
  // costs: no sizes are sent beforehand, nothing is padded.
  Work exchange(std::vector<Bytes> input_parts, std::vector<MutableBytes> output_parts,
                std::span<uint64_t> received, const CallOptions& options = {});
  // Parts may differ in size in all_gather and all_to_all, gather and scatter (the "_v" forms);
  // each rank states what it expects and a sender that disagrees gives ErrorCode::mismatch on both.
  Work send(Bytes data, DType dtype, Rank peer, uint32_t tag = 0, const CallOptions& options = {});
  Work recv(MutableBytes data, DType dtype, Rank peer /* or kAnySource */, uint32_t tag = 0,
            const CallOptions& options = {});
  Work barrier(const CallOptions& options = {});

  // After a loss: the survivors agree on who is left and go on as a new epoch with dense ranks.
  // Blocks. Operations of the old epoch fail; its late traffic is dropped. Returns the old ranks of
  // the survivors.
  Result<std::vector<Rank>> shrink(Duration timeout);

  // Flushes, says goodbye, closes. Pending operations end with ErrorCode::closed. Idempotent.
  Result<void> shutdown(Duration timeout = std::chrono::seconds(5));
  // The same for a program that ends by an error: the others get ErrorCode::failed, with this rank
  // and the reason.
  Result<void> fail(std::string_view reason, Duration timeout = std::chrono::seconds(5));
  // The same as shutdown() at once, without goodbye.
  void abort(std::string_view reason);

 private:
  friend class CommunicatorFactory;  // on other transports; inside of the library
  struct Impl;
  explicit Communicator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace scant
