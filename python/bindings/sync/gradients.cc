#include "bindings/sync/gradients.h"

#include <cmath>
#include <memory>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/fork.h"
#include "bindings/base/gil.h"
#include "bindings/base/options.h"
#include "bindings/codec/plane.h"
#include "bindings/sync/communicator.h"
#include "bindings/sync/findings.h"
#include "gradient/averager.h"
#include "gradient/communicator_exchange.h"
#include "plan/auto_plan.h"

namespace scant::python {
namespace {

using gradient::Averager;
using gradient::AveragerOptions;
using gradient::BufferPlan;
using gradient::CommunicatorExchange;
using gradient::FusionPlan;
using gradient::Layout;
using gradient::Path;
using plan::AutoPlan;
using plan::AutoPlanOptions;

nb::bytes to_bytes(const std::vector<std::byte>& bytes) {
  return nb::bytes(bytes.data(), bytes.size());
}
Bytes from_bytes(const nb::bytes& bytes) {
  return {reinterpret_cast<const std::byte*>(bytes.c_str()), bytes.size()};
}

Path path_from(const std::string& text) {
  const auto path = gradient::path_of(text);
  if (!path) refuse("path: no '" + text + "'; there are all_reduce, split and gather");
  return *path;
}

Layout* make_layout(const std::vector<std::tuple<uint64_t, uint64_t>>& shapes, int ranks) {
  std::vector<codec::Shape> tensors;
  for (const auto& [rows, columns] : shapes) tensors.push_back({rows, columns});
  return new Layout(unwrap(Layout::create(tensors, ranks)));
}

using PythonPoint = std::tuple<double, std::string, double, std::string>;
using PythonBuffer = std::tuple<std::string, uint32_t, uint32_t, std::vector<PythonPoint>>;

std::vector<PythonBuffer> buffers_of(const FusionPlan& plan) {
  std::vector<PythonBuffer> all;
  for (const BufferPlan& buffer : plan.buffers) {
    std::vector<PythonPoint> points;
    for (const gradient::PartPlan& point : buffer.points) {
      points.emplace_back(point.first.density, codec::values_text(point.first),
                          point.second.density, codec::values_text(point.second));
    }
    all.emplace_back(gradient::name(buffer.path), buffer.first_part, buffer.parts,
                     std::move(points));
  }
  return all;
}

// (path, parts, points) of each buffer, in the order of the layout's parts.
FusionPlan* make_plan(
    const Layout& layout,
    const std::vector<std::tuple<std::string, uint32_t, std::vector<PythonPoint>>>& buffers,
    uint32_t reversed) {
  FusionPlan plan;
  plan.reversed = reversed;
  uint32_t part = 0;
  for (const auto& [path, parts, points] : buffers) {
    BufferPlan buffer{part, parts, path_from(path), {}};
    for (const auto& [first_density, first_values, second_density, second_values] : points) {
      buffer.points.push_back(
          {point_from(first_density, first_values), point_from(second_density, second_values)});
    }
    part += parts;
    plan.buffers.push_back(std::move(buffer));
  }
  unwrap(gradient::validate(plan, layout));
  return new FusionPlan(std::move(plan));
}

FusionPlan* make_uniform(const Layout& layout, const std::string& path, double density,
                         const std::string& values, uint64_t buffer_bytes,
                         uint64_t first_buffer_bytes, uint64_t small_elements) {
  FusionPlan plan = gradient::uniform_plan({.path = path_from(path),
                                            .point = point_from(density, values),
                                            .buffer_bytes = buffer_bytes,
                                            .first_buffer_bytes = first_buffer_bytes,
                                            .small_elements = small_elements},
                                           layout);
  unwrap(gradient::validate(plan, layout));
  return new FusionPlan(std::move(plan));
}

nb::dict dict_of(const gradient::StepReport& report) {
  nb::dict out;
  out["step"] = report.step;
  out["plan_hash"] = report.plan_hash;
  out["present"] = report.present;
  out["nonfinite"] = report.nonfinite;
  nb::list not_finite;
  for (const gradient::NotFinite& one : report.not_finite) {
    not_finite.append(nb::make_tuple(one.tensor, one.ranks));
  }
  out["not_finite"] = not_finite;
  nb::list energies;  // by rank: what each would take along if it were lost now
  uint64_t samples = 0;
  for (const gradient::RankAccount& one : report.accounts) {
    energies.append(one.residual_energy);
    samples += one.samples;
  }
  out["residual_energy"] = energies;
  out["samples"] = samples;
  out["sent_bytes"] = report.sent_bytes;
  out["backward_s"] = report.backward_s;
  out["end_s"] = report.end_s;
  out["exposed_s"] = report.exposed_s;
  out["encode_s"] = report.encode_s;
  out["add_s"] = report.add_s;
  out["decode_s"] = report.decode_s;
  nb::list buffers;
  for (const gradient::BufferTimes& times : report.buffers) {
    nb::dict row;
    row["ready"] = times.ready;
    row["encoded"] = times.encoded;
    row["first_begin"] = times.first_begin;
    row["first_end"] = times.first_end;
    row["second_begin"] = times.second_begin;
    row["second_end"] = times.second_end;
    row["done"] = times.done;
    row["first_bytes"] = times.first_bytes;
    row["second_bytes"] = times.second_bytes;
    buffers.append(row);
  }
  out["buffers"] = buffers;
  // Lists rather than a dictionary for each part: there may be thousands.
  const auto column = [&](auto member) {
    nb::list values;
    for (const gradient::PartReport& part : report.parts) values.append(part.*member);
    return values;
  };
  nb::dict parts;
  parts["ready"] = column(&gradient::PartReport::ready);
  parts["needed"] = column(&gradient::PartReport::needed);
  parts["encode_s"] = column(&gradient::PartReport::encode_s);
  parts["bytes"] = column(&gradient::PartReport::bytes);
  parts["energy"] = column(&gradient::PartReport::energy);
  parts["energy_left"] = column(&gradient::PartReport::energy_left);
  out["parts"] = parts;
  return out;
}

struct AutomaticPlans {
  std::unique_ptr<gradient::Exchange> exchange;
  std::unique_ptr<AutoPlan> plans;
};

class PythonAverager {
 public:
  // `keep` owns communicator and arena.
  PythonAverager(Communicator& communicator, const Layout& layout, uintptr_t arena,
                 const nb::dict& given, nb::object keep)
      : keep_(std::move(keep)), communicator_(communicator), rank_(communicator.rank()) {
    AveragerOptions options;
    std::string residual = codec::name(options.residual);
    Options reader("Averager", given);
    reader.get("key", options.key);
    reader.get("members", options.members);
    reader.get("names", options.names);
    reader.get("residual", residual);
    reader.get("decay", options.decay);
    reader.get("seed", options.seed);
    reader.get("workers", options.workers);
    reader.get("missing_as_zeros", options.missing_as_zeros);
    reader.get("timeout_s", options.timeout);
    reader.done();
    options.residual = residual_from(residual);
    key_ = options.key;
    members_ = options.members;
    timeout_ = options.timeout;
    averager_ = unwrap(without_gil([&] {
                         return Averager::create(
                             communicator, layout,
                             {reinterpret_cast<float*>(arena), layout.arena_elements()}, options);
                       }),
                       rank_);
  }
  PythonAverager(const PythonAverager&) = delete;
  PythonAverager& operator=(const PythonAverager&) = delete;
  ~PythonAverager() {
    if (generation_ != fork_generation()) {
      // The parent's; its threads do not exist here.
      static_cast<void>(new std::shared_ptr<Averager>(std::move(averager_)));
      static_cast<void>(new std::shared_ptr<AutomaticPlans>(std::move(auto_plan_)));
      return;
    }
    close();
  }

  [[nodiscard]] Averager& get() const {
    if (!averager_ || generation_ != fork_generation()) {
      raise({.code = ErrorCode::closed,
             .message = averager_ ? "the averager belongs to the process that forked this one"
                                  : "the averager was closed"},
            rank_);
    }
    return *averager_;
  }
  [[nodiscard]] std::shared_ptr<Averager> shared() const {
    static_cast<void>(get());
    return averager_;
  }
  void close() {
    if (generation_ != fork_generation()) return;
    without_gil([this] {
      auto_plan_.reset();  // uses the averager
      averager_.reset();
    });
  }

  void start_auto_plan(double fidelity_min, const FusionPlan* pinned) {
    AutoPlanOptions options{.timeout = timeout_};
    options.tuning.fidelity_min = fidelity_min;
    if (pinned != nullptr) options.tuning.pinned = *pinned;
    static_cast<void>(get());
    const std::shared_ptr<Averager> averager = averager_;  // while another thread closes
    auto next = std::make_shared<AutomaticPlans>();
    next->exchange = unwrap(
        CommunicatorExchange::create(communicator_, {.key = key_, .ranks = members_}), rank_);
    next->plans = unwrap(
        without_gil([&] { return AutoPlan::create(*next->exchange, *averager, options); }), rank_);
    without_gil([&] { std::swap(auto_plan_, next); });
  }
  // Asks until there is an outcome, and lets signal handlers run meanwhile.
  template <typename Ask>
  auto interruptible(const Ask& ask) {
    for (;;) {
      auto outcome = without_gil([&] { return ask(std::chrono::milliseconds(200)); });
      if (outcome) return unwrap(std::move(*outcome), rank_);
      if (PyErr_CheckSignals() != 0) {
        close();  // what is under way cannot be waited for again
        throw nb::python_error();
      }
    }
  }

  // Whether they are there; false: the step has failed, and wait() tells how.
  bool wait_for(const std::vector<uint32_t>& tensors) {
    static_cast<void>(get());
    const std::shared_ptr<Averager> averager = averager_;
    return interruptible([&](Duration limit) { return averager->wait_for(tensors, limit); });
  }

  // With the step's report come, after an agreement, the lines of the run log on the first member,
  // and none on the others.
  nb::dict wait() {
    static_cast<void>(get());
    const std::shared_ptr<Averager> averager = averager_;
    const std::shared_ptr<AutomaticPlans> automatic = auto_plan_;
    const gradient::StepReport report =
        interruptible([&](Duration limit) { return averager->wait(limit); });
    nb::dict out = dict_of(report);
    if (automatic && automatic->plans->step_done(report)) {
      AutoPlan& plans = *automatic->plans;
      interruptible([&](Duration limit) { return plans.agree(limit); });
      const plan::Findings* findings = plans.findings();
      out["agreement"] = findings != nullptr ? lines_of(*findings, averager->layout()) : nb::list();
    }
    return out;
  }

  [[nodiscard]] Rank rank() const { return rank_; }

 private:
  nb::object keep_;
  Communicator& communicator_;
  std::shared_ptr<Averager> averager_;         // kept by a wait() while another thread closes
  std::shared_ptr<AutomaticPlans> auto_plan_;  // likewise; its end comes before the averager's
  std::string key_;
  std::vector<Rank> members_;
  Duration timeout_ = Duration::zero();
  Rank rank_ = kNoRank;
  uint32_t generation_ = fork_generation();
};

void bind_layout(nb::module_& module) {
  nb::class_<Layout>(module, "GradientLayout")
      .def("__init__",
           [](Layout* self, const std::vector<std::tuple<uint64_t, uint64_t>>& shapes, int ranks) {
             const std::unique_ptr<Layout> made(make_layout(shapes, ranks));
             new (self) Layout(*made);
           })
      .def_prop_ro("ranks", &Layout::ranks)
      .def_prop_ro("arena_elements", &Layout::arena_elements)
      .def_prop_ro("elements", &Layout::elements)
      .def_prop_ro("offsets",
                   [](const Layout& self) {
                     std::vector<uint64_t> all;
                     for (const auto& tensor : self.tensors()) all.push_back(tensor.offset);
                     return all;
                   })
      .def_prop_ro("parts",
                   [](const Layout& self) {
                     std::vector<std::tuple<uint32_t, uint64_t, uint64_t>> all;
                     for (const auto& part : self.parts()) {
                       all.emplace_back(part.tensor, part.range.first, part.range.elements);
                     }
                     return all;
                   })
      .def_prop_ro("slices", [](const Layout& self) {
        std::vector<std::tuple<uint32_t, int, uint64_t, uint64_t>> all;
        for (const auto& slice : self.slices()) {
          all.emplace_back(slice.part, slice.owner, slice.range.first, slice.range.elements);
        }
        return all;
      });
}

void bind_plan(nb::module_& module) {
  nb::class_<FusionPlan>(module, "FusionPlan")
      .def_static("make", &make_plan, nb::arg("layout"), nb::arg("buffers"),
                  nb::arg("reversed") = 0, nb::rv_policy::take_ownership)
      .def_static("uniform", &make_uniform, nb::rv_policy::take_ownership)
      .def_static(
          "parse",
          [](const nb::bytes& bytes, const Layout& layout) {
            return new FusionPlan(unwrap(gradient::parse_fusion_plan(from_bytes(bytes), layout)));
          },
          nb::rv_policy::take_ownership)
      .def("serialise",
           [](const FusionPlan& self, const Layout& layout) {
             return to_bytes(gradient::serialise(self, layout));
           })
      .def("sent_bytes", [](const FusionPlan& self,
                            const Layout& layout) { return gradient::sent_bytes(self, layout); })
      .def_prop_ro("buffers", &buffers_of)
      .def_prop_ro("reversed", [](const FusionPlan& self) { return self.reversed; })
      .def("__eq__", [](const FusionPlan& self, const FusionPlan& other) { return self == other; });
}

}  // namespace

std::shared_ptr<gradient::Averager> native_averager(const nb::object& object) {
  return nb::cast<PythonAverager&>(object).shared();
}

void bind_gradients(nb::module_& module) {
  bind_layout(module);
  bind_plan(module);
  nb::class_<PythonAverager>(module, "Averager")
      .def("__init__",
           [](PythonAverager* self, const nb::object& communicator, const Layout& layout,
              uintptr_t arena, const nb::dict& options, nb::object keep) {
             new (self) PythonAverager(native_communicator(communicator), layout, arena, options,
                                       nb::make_tuple(communicator, std::move(keep)));
           })
      .def("close", &PythonAverager::close)
      .def("set_plan",
           [](PythonAverager& self, const FusionPlan& plan) {
             unwrap(self.get().set_plan(plan), self.rank());
           })
      .def("start_auto_plan", &PythonAverager::start_auto_plan, nb::arg("fidelity_min"),
           nb::arg("pinned").none())
      .def_prop_ro("plan_hash", [](PythonAverager& self) { return self.get().plan_hash(); })
      .def("ready", [](PythonAverager& self,
                       uint32_t tensor) { unwrap(self.get().ready(tensor), self.rank()); })
      .def(
          "finish",
          [](PythonAverager& self, uint64_t hash, uint64_t samples) {
            unwrap(self.get().finish(hash, samples), self.rank());
          },
          nb::arg("parameters_hash"), nb::arg("samples") = 0)
      .def("wait_for", &PythonAverager::wait_for)
      .def("arrived", [](PythonAverager& self) { return self.get().arrived(); })
      .def("wait", &PythonAverager::wait)
      .def("save",
           [](PythonAverager& self) {
             Averager& averager = self.get();
             return to_bytes(unwrap(without_gil([&] { return averager.save(); }), self.rank()));
           })
      .def("restore",
           [](PythonAverager& self, const nb::bytes& saved) {
             Averager& averager = self.get();
             unwrap(without_gil([&] { return averager.restore(from_bytes(saved)); }), self.rank());
           })
      .def("scale_residuals",
           [](PythonAverager& self, float factor) {
             if (!std::isfinite(factor)) refuse("scale_residuals: factor is not finite");
             Averager& averager = self.get();
             without_gil([&] { averager.scale_residuals(factor); });
           })
      .def_prop_ro("residual_energy",
                   [](PythonAverager& self) {
                     Averager& averager = self.get();
                     return without_gil([&] { return averager.residual_energy(); });
                   })
      .def_prop_ro("memory_bytes", [](PythonAverager& self) { return self.get().memory_bytes(); });
}

}  // namespace scant::python
