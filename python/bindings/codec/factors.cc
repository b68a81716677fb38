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

bool coefficients(PythonFactors& self, const Encoders& encoders, uintptr_t gradient,
                  uintptr_t right, size_t threads) {
  const WorkspaceLease lease(threads);
  return unwrap(self.locked(encoders, gradient, [&](Factors& factors, auto slices) -> Result<bool> {
    if (slices.empty()) return uncovered();
    return factors.coefficients(slices, lease.get(), output(right, factors.right_elements()));
  }));
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
