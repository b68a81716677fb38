// Errors that are a code and a sentence. Readers and checks put the name of what they read before
// the sentence: "layout: there is no tensor".
#pragma once

#include <string>
#include <utility>

#include "scant/base/result.h"

namespace scant::base {

[[nodiscard]] inline Error invalid(std::string sentence) {
  return Error{.code = ErrorCode::invalid_argument, .message = std::move(sentence)};
}
[[nodiscard]] inline Error corrupt(std::string sentence) {
  return Error{.code = ErrorCode::corrupt, .message = std::move(sentence)};
}
[[nodiscard]] inline Error closed(std::string sentence) {
  return Error{.code = ErrorCode::closed, .message = std::move(sentence)};
}

}  // namespace scant::base
