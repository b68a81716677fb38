#include "base/descriptor.h"

#include <cerrno>
#include <unistd.h>

namespace scant::base {

void Descriptor::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

// Some network file systems know no fsync of folders: their names are durable by themselves.
bool sync_folder(const Descriptor& folder) { return ::fsync(folder.get()) == 0 || errno == EINVAL; }

}  // namespace scant::base
