// A model that is open, which decoders and engines share.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "serve/model/decoder.h"

namespace scant::python {

class OpenModel {
 public:
  explicit OpenModel(std::unique_ptr<serve::Model> model) : model_(std::move(model)) {}
  [[nodiscard]] const serve::Model& get() const { return *model_; }

 private:
  std::unique_ptr<serve::Model> model_;
};

// Refuses names that there are not.
[[nodiscard]] serve::KvKind kv_kind_of(const std::string& name);

}  // namespace scant::python
