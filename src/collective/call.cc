// Names of operations and the checks that one rank can make of its own call.
#include "collective/call.h"

#include <algorithm>
#include <functional>
#include <string>

#include "collective/reduce/reduce.h"

namespace scant::collective {

const char* name(OpKind kind) {
  switch (kind) {
    case OpKind::all_reduce:
      return "all_reduce";
    case OpKind::reduce:
      return "reduce";
    case OpKind::reduce_scatter:
      return "reduce_scatter";
    case OpKind::all_gather:
      return "all_gather";
    case OpKind::broadcast:
      return "broadcast";
    case OpKind::gather:
      return "gather";
    case OpKind::scatter:
      return "scatter";
    case OpKind::all_to_all:
      return "all_to_all";
    case OpKind::send:
      return "send";
    case OpKind::recv:
      return "recv";
    case OpKind::barrier:
      return "barrier";
    case OpKind::exchange:
      return "exchange";
  }
  return "unknown";
}

const char* name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::direct:
      return "direct";
    case Algorithm::halving_doubling:
      return "halving_doubling";
    case Algorithm::recursive_doubling:
      return "recursive_doubling";
    case Algorithm::tree:
      return "tree";
    case Algorithm::ring:
      return "ring";
  }
  return "unknown";
}

namespace {

// Collects the first thing that is wrong with a call.
class Validator {
 public:
  Validator(const Call& call, Rank rank, int size)
      : call_(call), rank_(rank), parts_(static_cast<size_t>(size)), is_root_(call.root == rank) {}

  Result<void> run() {
    check_reduction();
    check_root();
    check_shapes();
    check_elements();
    if (problem_.empty()) check_overlap();
    if (problem_.empty()) return {};
    return Error{
        ErrorCode::invalid_argument, 0, kNoRank,
        std::string(name(call_.kind)) + " on rank " + std::to_string(rank_) + ": " + problem_};
  }

 private:
  void fail(const std::string& problem) {
    if (problem_.empty()) problem_ = problem;
  }

  void check_reduction() {
    const bool reduces = call_.kind == OpKind::all_reduce || call_.kind == OpKind::reduce ||
                         call_.kind == OpKind::reduce_scatter;
    if (reduces && !reduce_defined(call_.dtype, call_.reduce)) {
      fail(std::string("op ") + name(call_.reduce) + " is not defined for dtype " +
           name(call_.dtype));
    }
  }

  void check_root() {
    const bool any_source = call_.kind == OpKind::recv && call_.root == kAnySource;
    const bool pair = call_.kind == OpKind::send || call_.kind == OpKind::recv;
    if (any_source) return;
    const char* argument = pair ? "peer" : "root";
    if (call_.root < 0 || call_.root >= static_cast<Rank>(parts_)) {
      fail(std::string(argument) + " " + std::to_string(call_.root) +
           " is out of range for a group of " + std::to_string(parts_));
    } else if (pair && is_root_) {
      fail("peer " + std::to_string(call_.root) + " is this rank itself");
    }
  }

  void want(const char* argument, size_t have, size_t expected) {
    if (have == expected) return;
    fail(std::string(argument) + " has " + std::to_string(have) + " parts, needs " +
         std::to_string(expected));
  }

  void want_equal(const char* left, size_t left_bytes, const char* right, size_t right_bytes) {
    if (left_bytes == right_bytes) return;
    fail(std::string(left) + " has " + std::to_string(left_bytes) + " bytes, " + right + " has " +
         std::to_string(right_bytes));
  }

  void check_shapes() {
    const size_t in = call_.inputs.size();
    const size_t out = call_.outputs.size();
    switch (call_.kind) {
      case OpKind::all_reduce:
        shape(in, 1, out, 1);
        break;
      case OpKind::reduce:
        shape(in, 1, out, is_root_ ? 1 : out > 1 ? 1 : out);
        break;
      case OpKind::reduce_scatter:
        shape(in, parts_, out, 1);
        break;
      case OpKind::all_gather:
        shape(in, 1, out, parts_);
        break;
      case OpKind::broadcast:
        shape(in, 0, out, 1);
        break;
      case OpKind::gather:
        shape(in, 1, out, is_root_ ? parts_ : 0);
        break;
      case OpKind::scatter:
        shape(in, is_root_ ? parts_ : 0, out, 1);
        break;
      case OpKind::all_to_all:
        shape(in, parts_, out, parts_);
        break;
      case OpKind::exchange:
        shape(in, parts_, out, parts_);
        want("received", call_.received.size(), parts_);
        break;
      case OpKind::send:
        shape(in, 1, out, 0);
        break;
      case OpKind::recv:
        shape(in, 0, out, 1);
        break;
      case OpKind::barrier:
        shape(in, 0, out, 0);
        break;
    }
    if (problem_.empty()) check_own_part();
  }

  void shape(size_t in, size_t in_expected, size_t out, size_t out_expected) {
    want("input", in, in_expected);
    want("output", out, out_expected);
  }

  void check_own_part() {
    const auto own = static_cast<size_t>(rank_);
    const auto in = [this](size_t i) { return call_.inputs[i].size(); };
    const auto out = [this](size_t i) { return call_.outputs[i].size(); };
    switch (call_.kind) {
      case OpKind::all_reduce:
        want_equal("input", in(0), "output", out(0));
        break;
      case OpKind::reduce:
        if (is_root_) want_equal("input", in(0), "output", out(0));
        break;
      case OpKind::reduce_scatter:
        want_equal("this rank's input part", in(own), "output", out(0));
        break;
      case OpKind::all_gather:
        want_equal("input", in(0), "this rank's output part", out(own));
        break;
      case OpKind::gather:
        if (is_root_) want_equal("input", in(0), "this rank's output part", out(own));
        break;
      case OpKind::scatter:
        if (is_root_) want_equal("this rank's input part", in(own), "output", out(0));
        break;
      case OpKind::all_to_all:
        want_equal("this rank's input part", in(own), "its output part", out(own));
        break;
      case OpKind::exchange:
        check_capacity();
        break;
      default:
        break;
    }
  }

  void check_capacity() {
    const auto own = static_cast<size_t>(rank_);
    const uint64_t capacity = exchange_capacity(call_, rank_);
    const auto text = [](const char* side, size_t part, size_t bytes) {
      return std::string(side) + " part " + std::to_string(part) + " has " + std::to_string(bytes) +
             " bytes, ";
    };
    for (size_t i = 0; i < parts_; ++i) {
      const size_t in = call_.inputs[i].size();
      const size_t out = call_.outputs[i].size();
      if (i != own && out != capacity) {
        fail(text("output", i, out) + "another has " + std::to_string(capacity) +
             ": all have the capacity");
      }
      if (in > capacity) fail(text("input", i, in) + "the capacity is " + std::to_string(capacity));
      if (i == own && in > out)
        fail(text("input", i, in) + "its output part has " + std::to_string(out));
    }
  }

  void check_elements() {
    if (!is_dtype(static_cast<int>(call_.dtype)))
      return fail("dtype " + std::to_string(static_cast<int>(call_.dtype)) + " is not known");
    const size_t element = size_bytes(call_.dtype);
    const auto check = [&](const char* argument, size_t bytes) {
      if (bytes % element != 0) {
        fail(std::string(argument) + " of " + std::to_string(bytes) +
             " bytes is not a whole number of " + name(call_.dtype) + " elements");
      }
    };
    for (const Bytes part : call_.inputs) check("input", part.size());
    for (const MutableBytes part : call_.outputs) check("output", part.size());
  }

  // Outputs may share memory with nothing, except that this rank's own output may be its own input.
  void check_overlap() {
    struct Stretch {
      const std::byte* begin;
      const std::byte* end;
      bool output;
      size_t part;
    };
    std::vector<Stretch> outputs;
    for (size_t i = 0; i < call_.outputs.size(); ++i) {
      const MutableBytes part = call_.outputs[i];
      if (!part.empty()) outputs.push_back({part.data(), part.data() + part.size(), true, i});
    }
    if (outputs.empty()) return;
    std::vector<Stretch> all = outputs;
    const auto own = static_cast<size_t>(rank_);
    for (size_t i = 0; i < call_.inputs.size(); ++i) {
      const Bytes part = call_.inputs[i];
      const bool is_own = call_.inputs.size() == 1 || i == own;
      const size_t place = call_.outputs.size() == 1 ? 0 : own;
      const bool in_place =
          is_own && place < call_.outputs.size() && part.data() == call_.outputs[place].data() &&
          (part.size() == call_.outputs[place].size() || call_.kind == OpKind::exchange);
      if (!part.empty() && !in_place)
        all.push_back({part.data(), part.data() + part.size(), false, i});
    }
    const std::less<const std::byte*> before;
    std::sort(all.begin(), all.end(),
              [&](const Stretch& x, const Stretch& y) { return before(x.begin, y.begin); });
    const auto text = [](const Stretch& s) {
      return std::string(s.output ? "output" : "input") + " part " + std::to_string(s.part);
    };
    // The furthest reach so far of any stretch, and of outputs: an overlap with an input matters
    // only to an output.
    const Stretch* furthest = nullptr;
    const Stretch* furthest_output = nullptr;
    for (const Stretch& now : all) {
      const Stretch* earlier = now.output ? furthest : furthest_output;
      if (earlier != nullptr && before(now.begin, earlier->end))
        return fail(text(*earlier) + " and " + text(now) + " overlap in memory");
      if (furthest == nullptr || before(furthest->end, now.end)) furthest = &now;
      if (now.output && (furthest_output == nullptr || before(furthest_output->end, now.end)))
        furthest_output = &now;
    }
  }

  const Call& call_;
  Rank rank_;
  size_t parts_;
  bool is_root_;
  std::string problem_;
};

}  // namespace

uint64_t exchange_capacity(const Call& call, Rank group_rank) {
  const size_t other = group_rank == 0 && call.outputs.size() > 1 ? 1 : 0;
  return call.outputs[other].size();
}

Result<void> validate(const Call& call, Rank group_rank, int group_size) {
  return Validator(call, group_rank, group_size).run();
}

}  // namespace scant::collective
