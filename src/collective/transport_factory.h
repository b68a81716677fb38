// On what a communicator runs: any transport of its ranks, TCP unless somebody says otherwise.
// Inside of the library only, so that the public header knows no transport.
#pragma once

#include <functional>
#include <memory>

#include "net/transport.h"
#include "scant/collective/communicator.h"
#include "scant/collective/store.h"

namespace scant::collective {

// Called once, in the thread that creates the communicator; blocks until every rank is there or
// says who is missing. The transport then belongs to the communicator's I/O thread.
using TransportFactory = std::function<Result<std::unique_ptr<net::Transport>>(
    Store& store, const CommunicatorOptions& options)>;

}  // namespace scant::collective

namespace scant {

class CommunicatorFactory {
 public:
  // What Communicator::create() does, on the transport that `factory` makes.
  static Result<std::unique_ptr<Communicator>> create(Store& store,
                                                      const CommunicatorOptions& options,
                                                      const collective::TransportFactory& factory);
};

}  // namespace scant
