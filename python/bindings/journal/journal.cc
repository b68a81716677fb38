#include "bindings/journal/journal.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/fork.h"
#include "bindings/base/gil.h"
#include "bindings/journal/averaged.h"
#include "journal/averages.h"
#include "journal/base_writer.h"
#include "journal/folder.h"
#include "journal/step.h"
#include "journal/writer.h"

namespace scant::python {
namespace {

using journal::Base;
using journal::BaseIndex;
using journal::Contents;
using journal::Disk;
using journal::Identity;
using journal::LogEntry;
using journal::Manifest;
using journal::Part;
using journal::PartKind;
using journal::State;

using Memory = std::tuple<uintptr_t, uint64_t>;  // address and bytes

Bytes bytes_at(const Memory& memory) {
  return {reinterpret_cast<const std::byte*>(std::get<0>(memory)), std::get<1>(memory)};
}

// What only the process that made it may use or destroy.
template <typename T>
class Owned {
 public:
  explicit Owned(std::unique_ptr<T> thing) : thing_(std::move(thing)) {}
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (generation_ == fork_generation()) {
      without_gil([this] { thing_.reset(); });
    } else {
      static_cast<void>(thing_.release());  // the parent's: its threads do not exist here
    }
  }
  [[nodiscard]] T& get() const {
    if (!thing_ || generation_ != fork_generation()) {
      raise({.code = ErrorCode::closed,
             .message = thing_ ? "the journal belongs to the process that forked this one"
                               : "the journal was closed"},
            kNoRank);
    }
    return *thing_;
  }
  void close() {
    if (generation_ == fork_generation()) without_gil([this] { thing_.reset(); });
  }

 private:
  std::unique_ptr<T> thing_;
  uint32_t generation_ = fork_generation();
};

nb::dict dict_of(const Manifest& manifest) {
  nb::dict out;
  out["job"] = manifest.identity.job;
  out["model"] = manifest.identity.model;
  out["timeline"] = manifest.timeline;
  out["base"] = manifest.base;
  out["sequence"] = manifest.sequence;
  out["oldest"] = manifest.oldest;
  return out;
}

nb::dict dict_of(const Base& base) {
  nb::dict out;
  out["folder"] = base.folder;
  out["problem"] = base.problem;
  out["job"] = base.index.identity.job;
  out["model"] = base.index.identity.model;
  out["timeline"] = base.index.timeline;
  out["step"] = base.index.step;
  out["sequence"] = base.index.sequence;
  out["ranks"] = base.index.ranks;
  nb::list files;
  for (const auto& file : base.index.files) {
    files.append(nb::make_tuple(file.name, file.bytes, file.crc));
  }
  out["files"] = files;
  return out;
}

nb::dict dict_of(const Contents& contents) {
  nb::dict out;
  out["manifest"] = contents.manifest ? nb::object(dict_of(*contents.manifest)) : nb::none();
  nb::list bases;
  for (const Base& base : contents.bases) bases.append(dict_of(base));
  out["bases"] = bases;
  nb::list problems;
  for (const std::string& problem : contents.problems) problems.append(problem);
  out["problems"] = problems;
  return out;
}

nb::dict dict_of(const State& state) {
  nb::dict out;
  out["base"] = dict_of(state.base);
  out["step"] = state.step();
  nb::list entries;
  for (const LogEntry& entry : state.log.entries) {
    entries.append(nb::make_tuple(entry.header.sequence, entry.header.step, entry.header.length,
                                  entry.segment, entry.offset));
  }
  out["entries"] = entries;
  out["end"] = nb::none();
  if (const auto& end = state.log.end) {
    nb::dict row;
    row["damaged"] = end->damaged;
    row["segment"] = end->segment;
    row["offset"] = end->offset;
    row["sequence"] = end->sequence;
    out["end"] = row;
  }
  return out;
}

struct Folder {
  std::shared_ptr<Disk> disk;  // threads of writers use it as long as they live

  Folder(const std::string& path, bool writes, const std::string& replica, bool fill)
      : disk(unwrap(without_gil([&]() -> Result<std::unique_ptr<Disk>> {
          auto first = journal::open_disk(path, writes);
          if (!first || replica.empty()) return first;
          auto second = journal::open_disk(replica, writes);
          if (!second) return second;
          return journal::mirror(std::move(first).value(), std::move(second).value(), fill);
        }))) {}

  [[nodiscard]] nb::dict look(bool check_files) const {
    return dict_of(unwrap(without_gil([&] { return journal::look(*disk, check_files); })));
  }
  [[nodiscard]] nb::object state(std::optional<uint64_t> of_base, bool check_files) const {
    const auto found =
        unwrap(without_gil([&] { return journal::state_from(*disk, of_base, check_files); }));
    return found ? nb::object(dict_of(*found)) : nb::none();
  }
  [[nodiscard]] uint64_t fresh_sequence() const {
    return unwrap(without_gil([&]() -> Result<uint64_t> {
      auto contents = journal::look(*disk, false);
      if (!contents) return contents.error();
      return journal::fresh_sequence(*disk, contents.value());
    }));
  }
  void sync_state(uint64_t of_base) const {
    unwrap(without_gil([&]() -> Result<void> {
      auto state = journal::state_from(*disk, of_base, false);
      if (!state) return state.error();
      return state.value() ? journal::sync_state(*disk, *state.value()) : Result<void>{};
    }));
  }
  void write_manifest(uint64_t job, uint64_t model, uint32_t timeline, uint64_t base,
                      uint64_t sequence, uint64_t oldest) const {
    const Manifest manifest{.identity = {.job = job, .model = model},
                            .timeline = timeline,
                            .base = base,
                            .sequence = sequence,
                            .oldest = oldest};
    unwrap(without_gil([&] { return journal::replace_manifest(*disk, manifest); }));
  }
  void clear_begun() const {
    unwrap(without_gil([&]() -> Result<void> {
      auto contents = journal::look(*disk, false);
      if (!contents) return contents.error();
      return journal::clear_begun(*disk, contents.value());
    }));
  }
};

// Entries decoded into memory for gradients, one after the other.
class Replay {
 public:
  Replay(const Folder& folder, std::vector<uint64_t> bytes)
      : disk_(folder.disk),
        reader_(*disk_),
        gradients_(unwrap(journal::Gradients::create(std::move(bytes)))) {}

  nb::dict read(uint64_t sequence, const std::string& segment, uint64_t offset) {
    const LogEntry entry{.header = {.sequence = sequence}, .segment = segment, .offset = offset};
    journal::Step step = unwrap(without_gil([&]() -> Result<journal::Step> {
      auto body = reader_.body(entry);
      if (!body) return body.error();
      auto read = journal::read_step(body.value());
      if (!read) return read.error();
      if (Result<void> decoded = gradients_->decode(read.value(), true); !decoded) {
        return decoded.error();
      }
      return read;
    }));
    nb::dict out;
    out["factor"] = step.factor;
    out["settings"] = step.settings;
    nb::list present;
    for (const bool one : step.present) present.append(one);
    out["present"] = present;
    nb::list state;
    for (const Part& part : step.parts) {
      if (part.kind != PartKind::state) continue;
      state.append(nb::make_tuple(part.where, nb::bytes(part.bytes.data(), part.bytes.size())));
    }
    out["state"] = state;
    return out;
  }
  [[nodiscard]] uintptr_t address(size_t tensor) {
    if (tensor >= gradients_->tensors()) throw nb::index_error("no such tensor");
    return reinterpret_cast<uintptr_t>(gradients_->tensor(tensor).data());
  }

 private:
  std::shared_ptr<Disk> disk_;
  journal::LogReader reader_;
  std::unique_ptr<journal::Gradients> gradients_;
};

// Of an entry, without memory for gradients.
nb::dict summary_of(const Folder& folder, uint64_t sequence, const std::string& segment,
                    uint64_t offset) {
  journal::LogReader reader(*folder.disk);
  const Bytes body =
      unwrap(reader.body({.header = {.sequence = sequence}, .segment = segment, .offset = offset}));
  const journal::Step step = unwrap(journal::read_step(body));
  nb::dict out;
  out["factor"] = step.factor;
  out["ranks"] = step.ranks;
  out["tensors"] = step.present.size();
  out["present"] = std::ranges::count(step.present, true);
  out["settings"] = step.settings;
  nb::list parts;
  for (const Part& part : step.parts) {
    parts.append(nb::make_tuple(journal::name(part.kind), part.where, part.size()));
  }
  out["parts"] = parts;
  return out;
}

class PythonWriter {
 public:
  PythonWriter(const Folder& folder, uint64_t job, uint64_t model, uint64_t sequence,
               std::optional<uint64_t> joins, std::vector<uint64_t> gradients,
               uint32_t unsynced_steps, uint64_t segment_bytes)
      : disk_(folder.disk),
        writer_(unwrap(journal::Writer::create(*disk_, {.job = job, .model = model}, sequence,
                                               std::move(gradients),
                                               {.segment_bytes_max = segment_bytes,
                                                .unsynced_steps = unsynced_steps,
                                                .joins = joins}))) {}

  void begin(uint64_t step, const std::vector<Memory>& found, const nb::object& averager,
             const std::vector<Memory>& state, uint32_t ranks, std::string settings) {
    std::vector<Bytes> gradients;
    gradients.reserve(found.size());
    for (const Memory& one : found) gradients.push_back(bytes_at(one));
    std::vector<Part> parts;
    if (!averager.is_none()) parts = journal::parts_of(averages_of(averager), gradients);
    for (uint32_t i = 0; i < state.size(); ++i) {
      parts.push_back({.kind = PartKind::state, .where = i, .bytes = bytes_at(state[i])});
    }
    journal::Writer& writer = writer_.get();
    unwrap(without_gil([&] {
      return writer.begin(step, std::move(gradients), std::move(parts), ranks, std::move(settings));
    }));
  }
  nb::dict end() {
    journal::Writer& writer = writer_.get();
    const journal::Logged logged = unwrap(without_gil([&] { return writer.end(); }));
    nb::dict out;
    out["sequence"] = logged.sequence;
    out["bytes"] = logged.bytes;
    out["proven"] = logged.proven;
    out["as_is"] = logged.as_is;
    out["factor"] = logged.factor;
    out["begin_s"] = logged.begin_s;
    out["end_s"] = logged.end_s;
    out["work_s"] = logged.work_s;
    out["unsynced"] = logged.unsynced;
    return out;
  }
  uint64_t cut() {
    journal::Writer& writer = writer_.get();
    return unwrap(without_gil([&] { return writer.cut(); }));
  }
  void sync() {
    journal::Writer& writer = writer_.get();
    unwrap(without_gil([&] { return writer.sync(); }));
  }
  nb::dict cost() {
    const journal::SyncCost cost = writer_.get().sync_cost();
    nb::dict out;
    out["startup_s"] = cost.startup_s;
    out["bytes_per_second"] = cost.bytes_per_second;
    out["syncs"] = cost.syncs;
    out["durable_sequence"] = writer_.get().durable_sequence();
    out["memory_bytes"] = writer_.get().memory_bytes();
    return out;
  }
  void close() { writer_.close(); }

 private:
  std::shared_ptr<Disk> disk_;  // outlives the writer
  Owned<journal::Writer> writer_;
};

class PythonBase {
 public:
  using Source = std::tuple<std::string, nb::bytes, std::vector<Memory>>;

  PythonBase(const Folder& folder, uint32_t rank, uint32_t ranks, uint64_t staging_bytes,
             uint64_t chunk_bytes, uint32_t keep_bases)
      : disk_(folder.disk),
        writer_(unwrap(journal::BaseWriter::create(*disk_, {.rank = rank,
                                                            .ranks = ranks,
                                                            .staging_bytes = staging_bytes,
                                                            .chunk_bytes = chunk_bytes,
                                                            .keep_bases = keep_bases}))) {}

  void start(const std::tuple<uint64_t, uint64_t>& identity, uint32_t timeline, uint64_t step,
             uint64_t sequence, uint32_t ranks, const std::vector<Source>& sources,
             const std::string& residuals, const nb::object& averager) {
    std::vector<journal::BaseSource> files;
    for (const auto& [name, head, memory] : sources) {
      const auto* data = reinterpret_cast<const std::byte*>(head.c_str());
      journal::BaseSource file;
      file.name = name;
      file.head.assign(data, data + head.size());
      for (const Memory& one : memory) file.copied.push_back(bytes_at(one));
      files.push_back(std::move(file));
    }
    if (!averager.is_none()) files.push_back(residuals_of(averager, residuals));
    BaseIndex index{.identity = {.job = std::get<0>(identity), .model = std::get<1>(identity)},
                    .timeline = timeline,
                    .step = step,
                    .sequence = sequence,
                    .ranks = ranks,
                    .files = {}};
    unwrap(writer_.get().start(std::move(index), std::move(files)));
  }
  void grant(uint64_t bytes) { writer_.get().grant(bytes); }
  double finish_copying(const std::string& late, const nb::bytes& content) {
    journal::BaseWriter& writer = writer_.get();
    const auto* data = reinterpret_cast<const std::byte*>(content.c_str());
    std::vector<std::byte> bytes(data, data + content.size());
    return unwrap(without_gil([&] { return writer.finish_copying(late, std::move(bytes)); }));
  }
  [[nodiscard]] bool busy() const { return writer_.get().busy(); }
  nb::object poll(double wait_s) {
    journal::BaseWriter& writer = writer_.get();
    const auto wait = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(wait_s));
    const auto done = unwrap(without_gil([&] { return writer.poll(wait); }));
    if (!done) return nb::none();
    nb::dict out;
    out["step"] = done->step;
    out["bytes"] = done->bytes;
    out["copy_s"] = done->copy_s;
    out["write_s"] = done->write_s;
    out["sealed"] = done->sealed;
    return out;
  }
  void close() { writer_.close(); }

 private:
  std::shared_ptr<Disk> disk_;
  Owned<journal::BaseWriter> writer_;
};

}  // namespace

void bind_journal(nb::module_& module) {
  nb::class_<Folder>(module, "JournalFolder")
      .def(nb::init<const std::string&, bool, const std::string&, bool>(), nb::arg("path"),
           nb::arg("writes"), nb::arg("replica") = "", nb::arg("fill") = false)
      .def("look", &Folder::look, nb::arg("check_files") = true)
      .def("state", &Folder::state, nb::arg("of_base").none() = nb::none(),
           nb::arg("check_files") = true)
      .def("fresh_sequence", &Folder::fresh_sequence)
      .def("sync_state", &Folder::sync_state)
      .def("write_manifest", &Folder::write_manifest)
      .def("clear_begun", &Folder::clear_begun)
      .def("summary", &summary_of);
  nb::class_<Replay>(module, "JournalReplay")
      .def(nb::init<const Folder&, std::vector<uint64_t>>())
      .def("read", &Replay::read)
      .def("address", &Replay::address);
  nb::class_<PythonWriter>(module, "JournalWriter")
      .def(nb::init<const Folder&, uint64_t, uint64_t, uint64_t, std::optional<uint64_t>,
                    std::vector<uint64_t>, uint32_t, uint64_t>(),
           nb::arg("folder"), nb::arg("job"), nb::arg("model"), nb::arg("sequence"),
           nb::arg("joins").none(), nb::arg("gradients"), nb::arg("unsynced_steps"),
           nb::arg("segment_bytes"))
      .def("begin", &PythonWriter::begin, nb::arg("step"), nb::arg("found"),
           nb::arg("averager").none(), nb::arg("state"), nb::arg("ranks"), nb::arg("settings"))
      .def("end", &PythonWriter::end)
      .def("cut", &PythonWriter::cut)
      .def("sync", &PythonWriter::sync)
      .def("cost", &PythonWriter::cost)
      .def("close", &PythonWriter::close);
  nb::class_<PythonBase>(module, "JournalBase")
      .def(nb::init<const Folder&, uint32_t, uint32_t, uint64_t, uint64_t, uint32_t>())
      .def("start", &PythonBase::start, nb::arg("identity"), nb::arg("timeline"), nb::arg("step"),
           nb::arg("sequence"), nb::arg("ranks"), nb::arg("sources"), nb::arg("residuals"),
           nb::arg("averager").none())
      .def("grant", &PythonBase::grant)
      .def("finish_copying", &PythonBase::finish_copying)
      .def("busy", &PythonBase::busy)
      .def("poll", &PythonBase::poll, nb::arg("wait_s") = 0.0)
      .def("close", &PythonBase::close);
}

}  // namespace scant::python
