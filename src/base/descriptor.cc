#include "base/descriptor.h"

#include <unistd.h>

namespace scant::base {

void Descriptor::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

}  // namespace scant::base
