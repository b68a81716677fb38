#include "bindings/sync/communicator.h"

#include <map>
#include <memory>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/fork.h"
#include "bindings/base/gil.h"
#include "bindings/base/options.h"
#include "bindings/sync/executor.h"
#include "bindings/sync/store.h"
#include "bindings/sync/work.h"

namespace scant::python {
namespace {

Duration from_seconds(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

Bytes input(uintptr_t address, size_t size) {
  return {reinterpret_cast<const std::byte*>(address), size};
}
MutableBytes output(uintptr_t address, size_t size) {
  return {reinterpret_cast<std::byte*>(address), size};
}

// [(address, bytes), ...]
template <typename Span>
std::vector<Span> part_list(const nb::list& parts) {
  std::vector<Span> result;
  result.reserve(parts.size());
  for (nb::handle part : parts) {
    const auto pair = nb::cast<nb::tuple>(part);
    using Pointer = typename Span::pointer;
    result.emplace_back(reinterpret_cast<Pointer>(nb::cast<uintptr_t>(pair[0])),
                        nb::cast<size_t>(pair[1]));
  }
  return result;
}

// One buffer cut into equal parts.
template <typename Span>
std::vector<Span> equal_parts(uintptr_t address, size_t part_bytes, size_t count) {
  std::vector<Span> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    result.emplace_back(reinterpret_cast<typename Span::pointer>(address + i * part_bytes),
                        part_bytes);
  }
  return result;
}

struct How {
  DType dtype;
  CallOptions options;
};

DType dtype_from(int dtype) {
  if (!is_dtype(dtype)) {
    refuse("dtype: no such code");
  }
  return static_cast<DType>(dtype);
}

ReduceOp reduce_op(int op) {
  if (op < 0 || op >= kReduceOpCount) {
    refuse("op: no such code");
  }
  return static_cast<ReduceOp>(op);
}

CommunicatorOptions options_from(const nb::dict& fields) {
  CommunicatorOptions options;
  Options reader("Communicator", fields);
  reader.get("rank", options.rank);
  reader.get("size", options.size);
  reader.get("job", options.job);
  reader.get("address", options.address);
  reader.get("port", options.port);
  reader.get("connect_timeout", options.connect_timeout);
  reader.get("operation_timeout", options.operation_timeout);
  reader.get("peer_timeout", options.peer_timeout);
  reader.get("connections_per_pair", options.connections_per_pair);
  reader.get("same_host_sockets", options.same_host_sockets);
  reader.get("io_cpu", options.io_cpu);
  reader.get("rate_limit_bytes_per_second", options.rate_limit_bytes_per_second);
  reader.done();
  return options;
}

class PythonCommunicator {
 public:
  PythonCommunicator(nb::object store, const nb::dict& fields) {
    const CommunicatorOptions options = options_from(fields);
    PythonStore python_store(std::move(store));
    auto created = without_gil([&] { return Communicator::create(python_store, options); });
    python_store.rethrow_interrupt();
    rank_ = options.rank;
    if (!created) raise(created.error(), rank_);
    communicator_ = std::move(created).value();
    add_callback_groups();
  }
  PythonCommunicator(const PythonCommunicator&) = delete;
  PythonCommunicator& operator=(const PythonCommunicator&) = delete;
  ~PythonCommunicator() {
    if (generation_ != fork_generation()) {
      (void)communicator_.release();  // the parent's; its thread does not exist here
      return;
    }
    // The destructor joins the I/O thread.
    without_gil([this] { communicator_.reset(); });
    sweep_orphans();
  }

  [[nodiscard]] Communicator& get() const {
    if (generation_ != fork_generation()) {
      raise({.code = ErrorCode::closed,
             .message = "the communicator belongs to the process that forked this one"},
            rank_);
    }
    return *communicator_;
  }

  // Operations submitted by callbacks of futures go to a twin of the group (see
  // Executor::in_callback).
  [[nodiscard]] CallOptions options(GroupId group, double timeout_s) const {
    if (Executor::in_callback()) {
      const auto twin = callback_groups_.find(group);
      if (twin != callback_groups_.end()) group = twin->second;
    }
    return {.group = group, .timeout = from_seconds(timeout_s)};
  }
  [[nodiscard]] How how(int dtype, GroupId group, double timeout_s) const {
    return {dtype_from(dtype), options(group, timeout_s)};
  }

  // Pairs match by tag, whoever submits them.
  [[nodiscard]] static How pair_how(int dtype, GroupId group, double timeout_s) {
    return {dtype_from(dtype), {.group = group, .timeout = from_seconds(timeout_s)}};
  }

  GroupId make_group(const std::vector<Rank>& members, const std::string& key) {
    const GroupId group = unwrap(get().make_group(members, key));
    callback_groups_[group] = unwrap(communicator_->make_group(members, key + "/callbacks"));
    return group;
  }

  // An abandoned communicator, and one in a new epoch, has freed it already.
  void release_group(GroupId group) {
    const auto twin = callback_groups_.find(group);
    if (twin == callback_groups_.end()) return;
    static_cast<void>(communicator_->release_group(twin->second));
    static_cast<void>(communicator_->release_group(group));
    callback_groups_.erase(twin);
  }

  // A new epoch has new ranks and no groups but the world.
  void renumber() {
    rank_ = communicator_->rank();
    callback_groups_.clear();
    add_callback_groups();
  }

  PythonWork wrap(Work work, nb::object keep) const {
    sweep_orphans();
    return {std::move(work), rank_, std::move(keep)};
  }

  template <typename T>
  T unwrap(Result<T> result) const {
    return python::unwrap(std::move(result), rank_);
  }

 private:
  void add_callback_groups() {
    std::vector<Rank> everyone(static_cast<size_t>(communicator_->size()));
    std::iota(everyone.begin(), everyone.end(), 0);
    callback_groups_[kWorldGroup] = unwrap(communicator_->make_group(everyone, "callbacks"));
  }

  std::unique_ptr<Communicator> communicator_;
  std::map<GroupId, GroupId> callback_groups_;
  Rank rank_ = kNoRank;
  uint32_t generation_ = fork_generation();
};

using Class = nb::class_<PythonCommunicator>;

nb::list peer_list(const PythonCommunicator& self) {
  nb::list rows;
  for (const PeerInfo& peer : self.get().peers()) {
    nb::dict row;
    row["rank"] = peer.rank;
    row["host"] = peer.host;
    row["pid"] = peer.pid;
    row["address"] = peer.address;
    row["alive"] = peer.alive;
    row["silent_s"] = std::chrono::duration<double>(peer.silent_for).count();
    rows.append(row);
  }
  return rows;
}

void bind_life(Class& cls) {
  cls.def(nb::init<nb::object, const nb::dict&>(), nb::arg("store"), nb::arg("options"));
  cls.def_prop_ro("rank", [](const PythonCommunicator& self) { return self.get().rank(); });
  cls.def_prop_ro("size", [](const PythonCommunicator& self) { return self.get().size(); });
  cls.def_prop_ro("epoch", [](const PythonCommunicator& self) { return self.get().epoch(); });
  cls.def("peers", &peer_list);
  cls.def("make_group", &PythonCommunicator::make_group, nb::arg("members"), nb::arg("key"));
  cls.def("release_group", &PythonCommunicator::release_group, nb::arg("group"));
  cls.def(
      "shrink",
      [](PythonCommunicator& self, double timeout_s) {
        Communicator& native = self.get();
        auto survivors =
            self.unwrap(without_gil([&] { return native.shrink(from_seconds(timeout_s)); }));
        self.renumber();
        return survivors;
      },
      nb::arg("timeout_s"));
  cls.def(
      "shutdown",
      [](const PythonCommunicator& self, double timeout_s) {
        Communicator& native = self.get();
        auto done = without_gil([&] { return native.shutdown(from_seconds(timeout_s)); });
        sweep_orphans();
        self.unwrap(std::move(done));
      },
      nb::arg("timeout_s"));
  cls.def(
      "fail",
      [](const PythonCommunicator& self, const std::string& reason, double timeout_s) {
        Communicator& native = self.get();
        auto done = without_gil([&] { return native.fail(reason, from_seconds(timeout_s)); });
        sweep_orphans();
        self.unwrap(std::move(done));
      },
      nb::arg("reason"), nb::arg("timeout_s"));
  cls.def(
      "abort",
      [](const PythonCommunicator& self, const std::string& reason) {
        Communicator& native = self.get();
        without_gil([&] { native.abort(reason); });
        sweep_orphans();
      },
      nb::arg("reason"));
}

void bind_reductions(Class& cls) {
  cls.def("all_reduce", [](const PythonCommunicator& self, uintptr_t in, uintptr_t out,
                           size_t bytes, int dtype, int op, GroupId group, double timeout_s,
                           nb::object keep) {
    const auto [type, options] = self.how(dtype, group, timeout_s);
    return self.wrap(
        self.get().all_reduce(input(in, bytes), output(out, bytes), type, reduce_op(op), options),
        std::move(keep));
  });
  cls.def("reduce",
          [](const PythonCommunicator& self, uintptr_t in, uintptr_t out, size_t bytes, int dtype,
             int op, Rank root, GroupId group, double timeout_s, nb::object keep) {
            const auto [type, options] = self.how(dtype, group, timeout_s);
            // Address 0: this rank is not the root and gets no output.
            return self.wrap(self.get().reduce(input(in, bytes), output(out, out == 0 ? 0 : bytes),
                                               type, reduce_op(op), root, options),
                             std::move(keep));
          });
  cls.def("reduce_scatter",
          [](const PythonCommunicator& self, const nb::list& in, uintptr_t out, size_t bytes,
             int dtype, int op, GroupId group, double timeout_s, nb::object keep) {
            const auto [type, options] = self.how(dtype, group, timeout_s);
            return self.wrap(self.get().reduce_scatter(part_list<Bytes>(in), output(out, bytes),
                                                       type, reduce_op(op), options),
                             std::move(keep));
          });
  cls.def("reduce_scatter_equal",
          [](const PythonCommunicator& self, uintptr_t in, uintptr_t out, size_t part_bytes,
             size_t parts, int dtype, int op, GroupId group, double timeout_s, nb::object keep) {
            const auto [type, options] = self.how(dtype, group, timeout_s);
            return self.wrap(
                self.get().reduce_scatter(equal_parts<Bytes>(in, part_bytes, parts),
                                          output(out, part_bytes), type, reduce_op(op), options),
                std::move(keep));
          });
}

void bind_moves(Class& cls) {
  cls.def("all_gather", [](const PythonCommunicator& self, uintptr_t in, size_t bytes,
                           const nb::list& out, int dtype, GroupId group, double timeout_s,
                           nb::object keep) {
    const auto [type, options] = self.how(dtype, group, timeout_s);
    return self.wrap(
        self.get().all_gather(input(in, bytes), part_list<MutableBytes>(out), type, options),
        std::move(keep));
  });
  cls.def("all_gather_equal", [](const PythonCommunicator& self, uintptr_t in, uintptr_t out,
                                 size_t part_bytes, size_t parts, int dtype, GroupId group,
                                 double timeout_s, nb::object keep) {
    const auto [type, options] = self.how(dtype, group, timeout_s);
    return self.wrap(
        self.get().all_gather(input(in, part_bytes),
                              equal_parts<MutableBytes>(out, part_bytes, parts), type, options),
        std::move(keep));
  });
  cls.def("broadcast", [](const PythonCommunicator& self, uintptr_t data, size_t bytes, int dtype,
                          Rank root, GroupId group, double timeout_s, nb::object keep) {
    const auto [type, options] = self.how(dtype, group, timeout_s);
    return self.wrap(self.get().broadcast(output(data, bytes), type, root, options),
                     std::move(keep));
  });
  cls.def(
      "gather", [](const PythonCommunicator& self, uintptr_t in, size_t bytes, const nb::list& out,
                   int dtype, Rank root, GroupId group, double timeout_s, nb::object keep) {
        const auto [type, options] = self.how(dtype, group, timeout_s);
        return self.wrap(
            self.get().gather(input(in, bytes), part_list<MutableBytes>(out), type, root, options),
            std::move(keep));
      });
  cls.def("scatter",
          [](const PythonCommunicator& self, const nb::list& in, uintptr_t out, size_t bytes,
             int dtype, Rank root, GroupId group, double timeout_s, nb::object keep) {
            const auto [type, options] = self.how(dtype, group, timeout_s);
            return self.wrap(
                self.get().scatter(part_list<Bytes>(in), output(out, bytes), type, root, options),
                std::move(keep));
          });
  cls.def("all_to_all", [](const PythonCommunicator& self, const nb::list& in, const nb::list& out,
                           int dtype, GroupId group, double timeout_s, nb::object keep) {
    const auto [type, options] = self.how(dtype, group, timeout_s);
    return self.wrap(
        self.get().all_to_all(part_list<Bytes>(in), part_list<MutableBytes>(out), type, options),
        std::move(keep));
  });
  // `received`: the address of one 64-bit number for each rank.
  cls.def("exchange", [](const PythonCommunicator& self, const nb::list& in, const nb::list& out,
                         uintptr_t received, size_t ranks, int priority, GroupId group,
                         double timeout_s, nb::object keep) {
    CallOptions options = self.options(group, timeout_s);
    options.priority = priority;
    const std::span<uint64_t> told(reinterpret_cast<uint64_t*>(received), ranks);
    return self.wrap(
        self.get().exchange(part_list<Bytes>(in), part_list<MutableBytes>(out), told, options),
        std::move(keep));
  });
}

void bind_pairs(Class& cls) {
  cls.def("send", [](const PythonCommunicator& self, uintptr_t data, size_t bytes, int dtype,
                     Rank peer, uint32_t tag, GroupId group, double timeout_s, nb::object keep) {
    const auto [type, options] = self.pair_how(dtype, group, timeout_s);
    return self.wrap(self.get().send(input(data, bytes), type, peer, tag, options),
                     std::move(keep));
  });
  cls.def("recv", [](const PythonCommunicator& self, uintptr_t data, size_t bytes, int dtype,
                     Rank peer, uint32_t tag, GroupId group, double timeout_s, nb::object keep) {
    const auto [type, options] = self.pair_how(dtype, group, timeout_s);
    return self.wrap(self.get().recv(output(data, bytes), type, peer, tag, options),
                     std::move(keep));
  });
  cls.def("barrier", [](const PythonCommunicator& self, GroupId group, double timeout_s) {
    return self.wrap(self.get().barrier(self.options(group, timeout_s)), nb::none());
  });
}

}  // namespace

Communicator& native_communicator(nb::handle communicator) {
  return nb::cast<const PythonCommunicator&>(communicator).get();
}

void bind_communicator(nb::module_& module) {
  Class cls(module, "Communicator");
  bind_life(cls);
  bind_reductions(cls);
  bind_moves(cls);
  bind_pairs(cls);
}

}  // namespace scant::python
