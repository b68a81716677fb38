#include "bindings/serve/decoder.h"

#include <algorithm>
#include <memory>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/gil.h"
#include "bindings/serve/description.h"
#include "bindings/serve/model.h"
#include "serve/model/activation_sums.h"
#include "serve/model/decoder.h"

namespace scant::python {
namespace {

using serve::Decoder;
using serve::KvKind;
using serve::Model;

// (tokens, position, pages, outputs, whether these are vectors)
using Given = std::tuple<std::vector<uint32_t>, uint32_t, std::vector<uint32_t>, uint32_t, bool>;

// A decoder whose calls are checked, since the C++ one takes their truth for granted.
class CheckedDecoder {
 public:
  CheckedDecoder(const OpenModel& model, const std::string& kind, uint32_t pages, size_t threads,
                 const std::string& kernels)
      : description_(model.get().description()), pages_(pages), threads_(threads) {
    const KvKind kv = kv_kind_of(kind);
    if (threads < 1) refuse("a decoder needs one thread at least");
    const auto choice = unwrap(serve::kernels_named(kernels));
    decoder_ = unwrap(
        without_gil([&] { return Decoder::create(model.get(), kv, pages, threads, choice); }));
  }

  void run(const std::vector<Given>& given, uintptr_t address, size_t size) {
    std::vector<serve::Piece> pieces;
    uint64_t outputs = 0;
    for (const Given& one : given) {
      pieces.push_back(checked(one));
      outputs += pieces.back().vectors ? 0 : pieces.back().outputs;
    }
    if (outputs * description_.vocabulary != size)
      refuse("room for " + std::to_string(size) + " logits, and there are " +
             std::to_string(outputs * description_.vocabulary));
    const Use use(*this);
    const auto logits = unwrap(without_gil([&] { return decoder_->run(pieces); }));
    std::copy(logits.begin(), logits.end(), reinterpret_cast<float*>(address));
  }

  [[nodiscard]] nb::bytes vectors() const {
    if (used_) refuse("another thread uses this decoder");
    const auto all = decoder_->vectors();
    return nb::bytes(all.data(), all.size_bytes());
  }

  void use_threads(size_t threads) {
    if (threads < 1 || threads > threads_)
      refuse("a decoder of " + std::to_string(threads_) + " threads cannot use " +
             std::to_string(threads));
    const Use use(*this);
    decoder_->use_threads(threads);
  }

  void copy_page(uint32_t from, uint32_t to) {
    for (const uint32_t page : {from, to}) check_page(page);
    const Use use(*this);
    decoder_->copy_page(from, to);
  }

  void substitute(const std::vector<std::string>& names, const OpenModel& other) {
    if (other.get().description() != description_) refuse("a model of another description");
    if (!decoder_->substitute(names, other.get())) refuse("a matrix that is not in both models");
  }
  void watch() { decoder_->watch(&sums_); }
  // (name, tokens, squares of inputs as doubles, of results, of what they are added to)
  [[nodiscard]] nb::list sums() const {
    nb::list rows;
    for (const auto& [matrix, sum] : sums_.all())
      rows.append(nb::make_tuple(matrix->name, sum.tokens,
                                 nb::bytes(sum.inputs.data(), sum.inputs.size() * sizeof(double)),
                                 sum.added, sum.stream));
    return rows;
  }
  [[nodiscard]] uint64_t memory_bytes() const { return decoder_->memory_bytes(); }
  [[nodiscard]] serve::Work work() const { return decoder_->work(); }

 private:
  // The GIL orders those who look at `used_`.
  class Use {
   public:
    explicit Use(CheckedDecoder& of) : of_(of) {
      if (of.used_) refuse("another thread uses this decoder");
      of.used_ = true;
    }
    ~Use() { of_.used_ = false; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    CheckedDecoder& of_;
  };

  void check_page(uint32_t page) const {
    if (page >= pages_)
      refuse("there is no page " + std::to_string(page) + " of " + std::to_string(pages_));
  }

  [[nodiscard]] serve::Piece checked(const Given& one) const {
    const auto& [tokens, position, pages, outputs, vectors] = one;
    const uint64_t end = uint64_t{position} + tokens.size();
    if (end > description_.context)
      refuse("tokens up to position " + std::to_string(end) + ", and the context is " +
             std::to_string(description_.context));
    if (pages.size() * serve::kPageTokens < end)
      refuse(std::to_string(pages.size()) + " pages do not hold " + std::to_string(end) +
             " positions");
    for (const uint32_t page : pages) check_page(page);
    for (const uint32_t token : tokens) {
      if (token >= description_.vocabulary) refuse("there is no token " + std::to_string(token));
    }
    if (outputs > tokens.size()) refuse("more outputs than tokens");
    return {.tokens = tokens,
            .position = position,
            .pages = pages,
            .outputs = outputs,
            .vectors = vectors};
  }

  serve::Description description_;
  uint32_t pages_;
  size_t threads_;
  serve::ActivationSums sums_;
  std::unique_ptr<Decoder> decoder_;
  bool used_ = false;
};

}  // namespace

KvKind kv_kind_of(const std::string& name) {
  if (name == "f32") return KvKind::f32;
  if (name == "bf16") return KvKind::bf16;
  if (name == "q8") return KvKind::q8;
  refuse("keys and values cannot be kept as '" + name + "'; known: f32, bf16, q8");
}

void bind_serve_decoder(nb::module_& module) {
  module.attr("page_tokens") = serve::kPageTokens;
  module.def("kv_page_bytes", [](const nb::dict& description, const std::string& kind) {
    return serve::kv_page_bytes(description_of(description), kv_kind_of(kind));
  });
  nb::class_<OpenModel>(module, "Model").def("description", [](const OpenModel& model) {
    return dict_of(model.get().description());
  });
  module.def("open_packed_model", [](const std::string& path) {
    return OpenModel(unwrap(without_gil([&]() -> Result<std::unique_ptr<Model>> {
      auto file = serve::PackedFile::open(path);
      if (!file) return file.error();
      return Model::open(std::move(file).value());
    })));
  });
  module.def("open_gguf_model", [](const std::string& path, const nb::dict& given) {
    serve::Description description = description_of(given);
    return OpenModel(unwrap(without_gil([&]() -> Result<std::unique_ptr<Model>> {
      auto file = serve::GgufFile::open(path);
      if (!file) return file.error();
      return Model::open(std::move(file).value(), std::move(description));
    })));
  });
  nb::class_<CheckedDecoder>(module, "Decoder")
      .def(nb::init<const OpenModel&, const std::string&, uint32_t, size_t, const std::string&>(),
           nb::keep_alive<1, 2>())
      .def("run", &CheckedDecoder::run)
      .def("vectors", &CheckedDecoder::vectors)
      .def("use_threads", &CheckedDecoder::use_threads)
      .def("copy_page", &CheckedDecoder::copy_page)
      .def("substitute", &CheckedDecoder::substitute, nb::keep_alive<1, 3>())
      .def("watch", &CheckedDecoder::watch)
      .def("sums", &CheckedDecoder::sums)
      .def("memory_bytes", &CheckedDecoder::memory_bytes)
      .def("work", [](const CheckedDecoder& decoder) {
        const serve::Work work = decoder.work();
        return nb::make_tuple(work.products, work.attention, work.seen);
      });
}

}  // namespace scant::python
