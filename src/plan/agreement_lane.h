// The exchange of agreements over a communicator: one group, for the one lane that they use. Owner
// threads: as Exchange says; `done` is called on the communicator's I/O thread.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "gradient/exchange.h"
#include "scant/communicator.h"

namespace scant::plan {

class AgreementLane final : public gradient::Exchange {
 public:
  // Every one of `members`, the communicator's ranks in order, calls it with an equal key. Empty:
  // all ranks. The communicator must outlive this object.
  static Result<std::unique_ptr<AgreementLane>> create(Communicator& communicator,
                                                       std::vector<Rank> members,
                                                       std::string_view key);
  ~AgreementLane() override;
  AgreementLane(const AgreementLane&) = delete;
  AgreementLane& operator=(const AgreementLane&) = delete;

  [[nodiscard]] Time now() const override;
  [[nodiscard]] gradient::Members members() const override { return members_; }
  void submit(const gradient::Members& among, gradient::Operation operation,
              gradient::Done done) override;
  void cancel(const gradient::Members& among, gradient::Lane lane) override;

 private:
  AgreementLane(Communicator& communicator, gradient::Members members, GroupId group);

  Communicator& communicator_;
  const gradient::Members members_;
  const GroupId group_;
  bool released_ = false;
};

}  // namespace scant::plan
