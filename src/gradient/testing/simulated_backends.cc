// What the conformance suite runs on where it stands in virtual time.
#include "gradient/testing/exchanges.h"

namespace scant::gradient {

std::vector<Backend> backends() {
  return {{"simulated", simulated_exchanges}, {"nested", nested_exchanges}};
}

}  // namespace scant::gradient
