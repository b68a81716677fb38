#include "plan/agreement_lane.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "base/check.h"

namespace scant::plan {
namespace {

using gradient::Operation;

// What the callback of an operation gets.
struct UnderWay {
  Work work;
  gradient::Done done;
};

void on_work_done(void* context) {
  const std::unique_ptr<UnderWay> one(static_cast<UnderWay*>(context));
  one->done({.result = one->work.wait()});
}

Work begin(Communicator& communicator, Operation& of, const CallOptions& options) {
  switch (of.kind) {
    case Operation::Kind::all_reduce:
      return communicator.all_reduce(of.span, of.span, of.dtype, of.op, options);
    case Operation::Kind::swap:
      return communicator.exchange(std::move(of.sent), std::move(of.room), of.received, options);
    case Operation::Kind::gather:
      return communicator.gather(of.sent.front(), std::move(of.room), of.dtype, of.root, options);
    case Operation::Kind::broadcast:
      return communicator.broadcast(of.span, of.dtype, of.root, options);
    case Operation::Kind::all_gather:
      break;
  }
  return communicator.all_gather(of.sent.front(), std::move(of.room), of.dtype, options);
}

}  // namespace

AgreementLane::AgreementLane(Communicator& communicator, gradient::Members members, GroupId group)
    : communicator_(communicator), members_(std::move(members)), group_(group) {}

AgreementLane::~AgreementLane() { cancel(members_, {}); }

Result<std::unique_ptr<AgreementLane>> AgreementLane::create(Communicator& communicator,
                                                             std::vector<Rank> members,
                                                             std::string_view key) {
  if (members.empty()) {
    members.resize(static_cast<size_t>(communicator.size()));
    std::iota(members.begin(), members.end(), 0);
  }
  const Result<GroupId> group = communicator.make_group(members, key);
  if (!group) return group.error();
  const auto self = std::ranges::find(members, communicator.rank());
  SCANT_CHECK(self != members.end(), "a group is made by its members");
  const auto place = static_cast<Rank>(self - members.begin());
  return std::unique_ptr<AgreementLane>(new AgreementLane(
      communicator, {.epoch = communicator.epoch(), .stations = std::move(members), .self = place},
      group.value()));
}

Time AgreementLane::now() const { return std::chrono::steady_clock::now(); }

void AgreementLane::submit(const gradient::Members&, Operation operation, gradient::Done done) {
  const CallOptions options{
      .group = group_, .timeout = operation.timeout, .priority = operation.delivery.priority};
  auto one = std::make_unique<UnderWay>();
  one->done = std::move(done);
  one->work = begin(communicator_, operation, options);
  UnderWay* const context = one.release();  // on_work_done()'s from now on
  Work(context->work).on_done(&on_work_done, context);
}

void AgreementLane::cancel(const gradient::Members&, gradient::Lane) {
  if (std::exchange(released_, true)) return;
  static_cast<void>(communicator_.release_group(group_));
}

}  // namespace scant::plan
