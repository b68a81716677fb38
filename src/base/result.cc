// Names and rendering of errors.
#include "scant/base/result.h"

#include <system_error>

namespace scant {

const char* name(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument:
      return "invalid_argument";
    case ErrorCode::mismatch:
      return "mismatch";
    case ErrorCode::peer_lost:
      return "peer_lost";
    case ErrorCode::timeout:
      return "timeout";
    case ErrorCode::refused:
      return "refused";
    case ErrorCode::corrupt:
      return "corrupt";
    case ErrorCode::resource:
      return "resource";
    case ErrorCode::io:
      return "io";
    case ErrorCode::closed:
      return "closed";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::failed:
      return "failed";
  }
  return "unknown";
}

std::string Error::to_string() const {
  std::string text = std::string(name(code)) + ": " + message;
  if (sys_errno != 0) text += ": " + std::generic_category().message(sys_errno);
  return text;
}

}  // namespace scant
