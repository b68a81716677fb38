// What every reader says of bytes that another version of Scant wrote.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "scant/base/result.h"

namespace scant::base {

// `what` begins the sentence: "the record"; `known` is the newest version that this build reads.
[[nodiscard]] inline Error other_version(const std::string& what, uint64_t found, uint64_t known) {
  std::string text = what + " is of version " + std::to_string(found) + "; this scant reads ";
  text += found > known ? "up to " + std::to_string(known) + ": upgrade scant"
                        : "version " + std::to_string(known);
  return Error{.code = ErrorCode::unsupported, .message = std::move(text)};
}

}  // namespace scant::base
