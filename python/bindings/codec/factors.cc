#include "bindings/codec/factors.h"

#include <algorithm>
#include <mutex>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/codec/encoder.h"
#include "bindings/codec/plane.h"
#include "bindings/codec/record.h"
#include "bindings/codec/workspaces.h"
#include "codec/rank/factors.h"

namespace scant::python {
namespace {

namespace nb = nanobind;
using codec::Factors;
using codec::MatrixSlice;
using codec::Range;
using codec::Shape;

// The encoders of a range, in order; one nullptr: nothing is kept.
using Encoders = std::vector<PythonEncoder*>;

// One member's factors, used by one thread at a time.
class PythonFactors {
 public:
  PythonFactors(Shape shape, Range range, uint64_t seed, uint32_t rank)
      : shape_(shape), range_(range), factors_(shape, range, seed) {
    unwrap(factors_.set_rank(rank));
  }

  [[nodiscard]] Shape shape() const { return shape_; }
  [[nodiscard]] Range range() const { return range_; }

  // Without the GIL: body(factors).
  template <typename F>
  auto locked(const F& body) {
    check_process(generation_, "object of factors");
    return without_gil([&] {
      const std::lock_guard held(mutex_);
      return body(factors_);
    });
  }
  // And the encoders: body(factors, slices).
  template <typename F>
  auto locked(const Encoders& encoders, uintptr_t gradient, const F& body) {
    for (const PythonEncoder* encoder : encoders) {
      if (encoder != nullptr) encoder->check();
    }
    return locked([&](Factors& factors) {
      std::vector<std::unique_lock<std::mutex>> held;
      std::vector<MatrixSlice> slices;
      uint64_t end = range_.first;
      for (PythonEncoder* encoder : encoders) {
        Range range = range_;
        if (encoder != nullptr) {
          range = encoder->get().range();
          if (encoder->get().shape() != shape_ || range.first != end) return body(factors, kNone);
          held.push_back(encoder->lock());
        }
        slices.push_back(
            {.encoder = encoder == nullptr ? nullptr : &encoder->get(),
             .range = range,
             .gradient = output(gradient + (end - range_.first) * sizeof(float), range.elements)});
        end = range.first + range.elements;
      }
      const bool covers = end == range_.first + range_.elements;
      return body(factors, covers ? std::span<const MatrixSlice>(slices) : kNone);
    });
  }

 private:
  static constexpr std::span<const MatrixSlice> kNone{};

  const Shape shape_;
  const Range range_;
  std::mutex mutex_;
  Factors factors_;
  uint32_t generation_ = fork_generation();
};

Error uncovered() {
  return Error{.code = ErrorCode::invalid_argument,
               .message = "encoders: they must be of this matrix, ascend and cover its range"};
}

void project(PythonFactors& self, const Encoders& encoders, uintptr_t gradient, uintptr_t left,
             size_t threads) {
  const WorkspaceLease lease(threads);
  unwrap(self.locked(encoders, gradient, [&](Factors& factors, auto slices) -> Result<void> {
    if (slices.empty()) return uncovered();
    return factors.project(slices, lease.get(), output(left, factors.left_elements()));
  }));
}

bool coefficients(PythonFactors& self, const Encoders& encoders, uintptr_t whole, uintptr_t right,
                  size_t threads) {
  const WorkspaceLease lease(threads);
  return unwrap(self.locked(encoders, whole, [&](Factors& factors, auto slices) -> Result<bool> {
    if (slices.empty()) return uncovered();
    return factors.coefficients(slices, lease.get(), output(right, factors.right_elements()));
  }));
}

PythonRecord* encode_rest(PythonFactors& self, PythonEncoder& encoder, uintptr_t whole,
                          size_t elements, uintptr_t right, double density,
                          const std::string& values, size_t threads) {
  const codec::Point point = point_from(density, values);
  const WorkspaceLease lease(threads);
  codec::RecordBuffer buffer = take_record_buffer();
  encoder.check();
  const auto report = self.locked([&](Factors& factors) -> Result<codec::EncodeReport> {
    const auto held = encoder.lock();
    const Range range = encoder.get().range();
    const uint64_t end = self.range().first + self.range().elements;
    if (encoder.get().shape() != self.shape() || range.first < self.range().first ||
        range.first + range.elements > end) {
      return uncovered();
    }
    return encoder.get().encode_rest(output(whole, elements),
                                     factors.product(input(right, factors.right_elements()), -1),
                                     point, lease.get(), buffer);
  });
  if (!report) raise(report.error(), kNoRank);
  return new PythonRecord(std::move(buffer), report.value());
}

void add(PythonFactors& self, uintptr_t right, double times, uint64_t first, uintptr_t out,
         size_t elements, size_t threads) {
  const WorkspaceLease lease(threads);
  self.locked([&](Factors& factors) {
    factors.add(input(right, factors.right_elements()), static_cast<float>(times),
                {first, elements}, output(out, elements), lease.get());
  });
}

// (density, values) that so many elements of a matrix can have, nearest to these.
std::tuple<double, std::string, uint32_t, std::string> point_for(double density,
                                                                 const std::string& values,
                                                                 uint64_t rows, uint64_t columns,
                                                                 uint64_t elements) {
  const codec::Point point =
      codec::point_for(point_from(density, values), {rows, columns}, elements);
  return {point.density, codec::name(point.values), point.rank, codec::name(point.factors)};
}

// Where the slices of a range end, for so many members.
std::vector<uint64_t> slice_ends(uint64_t elements, uint64_t members) {
  const uint64_t count = codec::slice_count(elements, members);
  std::vector<uint64_t> ends;
  for (uint64_t i = 0; i < count; ++i) ends.push_back(codec::slice_end(elements, i, count));
  return ends;
}

}  // namespace

void bind_codec_factors(nb::module_& module) {
  module.attr("rank_max") = codec::kRankMax;
  module.attr("part_elements_max") = codec::kPartElementsMax;
  module.attr("directions_seed") = codec::kDirectionsSeed;
  module.def("seed_of_member", &codec::seed_of_member);
  module.def("point_for", &point_for);
  module.def("slice_ends", &slice_ends);
  nb::class_<PythonFactors> cls(module, "Factors");
  cls.def(nb::new_([](uint64_t rows, uint64_t columns, uint64_t first, uint64_t elements,
                      uint64_t seed, uint32_t rank) {
    return new PythonFactors({rows, columns}, {first, elements}, seed, rank);
  }));
  cls.def("project", &project);
  cls.def("coefficients", &coefficients);
  cls.def("encode_rest", &encode_rest, nb::rv_policy::take_ownership);
  cls.def("add", &add);
  cls.def("set_basis", [](PythonFactors& self, uintptr_t left) {
    self.locked([&](Factors& factors) { factors.set_basis(input(left, factors.left_elements())); });
  });
  cls.def("read_basis", [](PythonFactors& self, uintptr_t out) {
    self.locked(
        [&](Factors& factors) { factors.read_basis(output(out, factors.left_elements())); });
  });
  cls.def("learn", [](PythonFactors& self, uintptr_t right) {
    self.locked([&](Factors& factors) { factors.learn(input(right, factors.right_elements())); });
  });
  cls.def("read_directions", [](PythonFactors& self, uintptr_t out) {
    self.locked([&](Factors& factors) {
      std::ranges::copy(factors.directions(), output(out, factors.right_elements()).begin());
    });
  });
}

}  // namespace scant::python
