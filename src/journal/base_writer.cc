#include "journal/base_writer.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/crc.h"
#include "base/little_endian.h"

namespace scant::journal {
namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kAll = UINT64_MAX;
constexpr Duration kLookEvery = std::chrono::milliseconds(20);  // for files of the other ranks

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// What a rank leaves in the part when its files are durable: an index of them alone.
std::string rank_index_name(uint32_t rank) {
  const std::string digits = std::to_string(rank);
  return "rank-" + std::string(4 - std::min<size_t>(4, digits.size()), '0') + digits + ".files";
}

// Of a safetensors file with one tensor of bytes.
std::vector<std::byte> head_of_bytes(const std::string& tensor, size_t bytes) {
  const std::string count = std::to_string(bytes);
  std::string json = R"({")" + tensor + R"(":{"dtype":"U8","shape":[)" + count +
                     R"(],"data_offsets":[0,)" + count + "]}}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::vector<std::byte> head(8 + json.size());
  base::store_little(head.data(), uint64_t{json.size()});
  std::memcpy(head.data() + 8, json.data(), json.size());
  return head;
}

size_t chunks_of(const BaseWriterOptions& options) {
  return std::max<uint64_t>(2, options.staging_bytes / options.chunk_bytes);
}

}  // namespace

BaseWriter::BaseWriter(Disk& disk, const BaseWriterOptions& options)
    : disk_(disk), options_(options), free_(chunks_of(options)) {}

Result<std::unique_ptr<BaseWriter>> BaseWriter::create(Disk& disk,
                                                       const BaseWriterOptions& options) {
  std::unique_ptr<BaseWriter> made(new BaseWriter(disk, options));
  BaseWriter* writer = made.get();
  for (size_t i = 0; i < chunks_of(options); ++i) {
    Result<base::Buffer> chunk = base::Buffer::allocate(options.chunk_bytes);
    if (!chunk) return chunk.error();
    SCANT_CHECK(writer->free_.try_push(std::move(chunk).value()));
  }
  if (Result<void> started =
          writer->copy_thread_.start("scant-copy", [writer] { writer->copy_loop(); });
      !started) {
    return started.error();
  }
  if (Result<void> started =
          writer->write_thread_.start("scant-base", [writer] { writer->write_loop(); });
      !started) {
    return started.error();
  }
  return made;
}

BaseWriter::~BaseWriter() {
  // Copying ends with what was granted, or at the next chunk.
  copies_.close();
  grants_.close();
  free_.close();
  copy_thread_.join();
  events_.push(Stop{});
  write_thread_.join();
}

Result<void> BaseWriter::start(BaseIndex index, std::vector<BaseSource> files) {
  if (error_) return *error_;
  SCANT_CHECK(!busy_);
  busy_ = true;
  copying_ = true;
  files_ = std::move(files);
  index.files.clear();
  for (const BaseSource& file : files_) index.files.push_back({file.name, 0, 0});
  static_cast<void>(grants_.drain());
  SCANT_CHECK(events_.push(Begin{std::move(index), &files_}));
  SCANT_CHECK(copies_.push(Copy{&files_}));
  return {};
}

void BaseWriter::grant(uint64_t bytes) {
  if (copying_ && bytes > 0) static_cast<void>(grants_.try_push(bytes));
}

Result<double> BaseWriter::finish_copying(std::string late, std::vector<std::byte> content) {
  if (!copying_) return 0.0;
  const auto begun = Clock::now();
  grants_.push(kAll);
  const std::optional<double> work_s = copied_.pop();
  SCANT_CHECK(work_s.has_value());
  copy_s_ = *work_s;
  copying_ = false;
  events_.push(End{std::move(late), std::move(content)});
  if (error_) return *error_;
  return seconds_since(begun);
}

Result<std::optional<BaseDone>> BaseWriter::poll(Duration wait) {
  if (error_) return *error_;
  if (!busy_) return std::optional<BaseDone>();
  const auto begun = Clock::now();
  std::optional<Result<BaseDone>> done = done_.try_pop();
  while (!done && !copying_) {
    static_cast<void>(events_.try_push(Poke{}));
    if (wait == Duration::zero()) break;
    done = done_.pop(std::min(wait, kLookEvery));
    if (!done && Clock::now() - begun >= wait) {
      return Error{.code = ErrorCode::timeout,
                   .message = "journal: a base was not written in time on every rank"};
    }
  }
  if (!done) return std::optional<BaseDone>();
  busy_ = false;
  if (!*done) {
    error_ = done->error();
    return *error_;
  }
  done->value().copy_s = copy_s_;
  return std::optional<BaseDone>(done->value());
}

// ---- scant-copy -----------------------------------------------------------------------------

void BaseWriter::copy_loop() {
  while (const std::optional<Copy> copy = copies_.pop()) {
    if (!copy_files(*copy->files)) return;
  }
}

// False: the writer closes.
bool BaseWriter::copy_files(const std::vector<BaseSource>& files) {
  double work_s = 0;
  uint64_t granted = 0;
  for (uint32_t i = 0; i < files.size(); ++i) {
    std::optional<Chunk> chunk;
    const auto pass_on = [&] {
      if (!chunk) return;
      events_.push(std::move(*chunk));
      chunk.reset();
    };
    for (Bytes left : files[i].copied) {
      while (!left.empty()) {
        while (granted == 0) {
          const std::optional<uint64_t> more = grants_.pop();
          if (!more) return false;
          granted = *more;
        }
        if (!chunk) {
          std::optional<base::Buffer> buffer = free_.pop();
          if (!buffer) return false;
          chunk = Chunk{.buffer = std::move(*buffer), .file = i};
        }
        const auto begun = Clock::now();
        const uint64_t room = chunk->buffer.size() - chunk->bytes;
        const uint64_t count = std::min<uint64_t>({left.size(), room, granted});
        std::memcpy(chunk->buffer.data() + chunk->bytes, left.data(), count);
        chunk->bytes += count;
        left = left.subspan(count);
        if (granted != kAll) granted -= count;
        work_s += seconds_since(begun);
        if (chunk->bytes == chunk->buffer.size()) pass_on();
      }
    }
    pass_on();
  }
  // finish_copying() always grants the rest, and waits.
  while (granted != kAll) {
    const std::optional<uint64_t> more = grants_.pop();
    if (!more) return false;
    granted = *more == kAll ? kAll : granted;
  }
  copied_.push(work_s);
  return true;
}

// ---- scant-base -----------------------------------------------------------------------------

void BaseWriter::write_loop() {
  while (std::optional<Event> event = events_.pop()) {
    if (std::holds_alternative<Stop>(*event)) return;
    const auto begun = Clock::now();
    // After an error chunks still go round, so that nobody waits for them.
    Result<void> outcome = write_error_ ? Result<void>{} : on_event(*event);
    write_s_ += seconds_since(begun);
    if (auto* chunk = std::get_if<Chunk>(&*event)) free_.push(std::move(chunk->buffer));
    if (!outcome) {
      write_error_ = outcome.error();
      done_.push(Result<BaseDone>(outcome.error()));
    }
  }
}

Result<void> BaseWriter::on_event(Event& event) {
  if (auto* begun = std::get_if<Begin>(&event)) return begin(*begun);
  if (auto* chunk = std::get_if<Chunk>(&event)) return write(*chunk);
  if (const auto* last = std::get_if<End>(&event)) return end(*last);
  return sealing_ ? seal_if_all_done() : Result<void>{};
}

Result<void> BaseWriter::begin(Begin& begun) {
  index_ = std::move(begun.index);
  write_s_ = 0;
  now_ = {.step = index_.step};
  const std::string part = part_name(index_.step);
  if (Result<void> made = disk_.make_folder(part); !made) return made;
  open_.clear();
  for (uint32_t i = 0; i < index_.files.size(); ++i) {
    auto opened = disk_.create(part + "/" + index_.files[i].name);
    if (!opened) return opened.error();
    open_.push_back(std::move(opened).value());
    const BaseSource& source = (*begun.files)[i];
    std::vector<std::byte> made = source.made ? source.made() : std::vector<std::byte>();
    const std::vector<std::byte> head =
        source.made ? head_of_bytes(source.tensor, made.size()) : source.head;
    if (Result<void> wrote = append(i, head); !wrote) return wrote;
    if (Result<void> wrote = append(i, made); !wrote) return wrote;
  }
  return {};
}

Result<void> BaseWriter::append(uint32_t number, Bytes bytes) {
  if (Result<void> wrote = open_[number]->append({&bytes, 1}); !wrote) return wrote;
  BaseFile& file = index_.files[number];
  file.bytes += bytes.size();
  file.crc = base::crc32c(bytes, file.crc);
  return {};
}

Result<void> BaseWriter::write(Chunk& chunk) {
  return append(chunk.file, std::as_const(chunk.buffer).view().first(chunk.bytes));
}

Result<void> BaseWriter::end(const End& last) {
  const auto begun = Clock::now();
  if (!last.late.empty()) {
    auto file = disk_.create(part_name(index_.step) + "/" + last.late);
    if (!file) return file.error();
    open_.push_back(std::move(file).value());
    index_.files.push_back({.name = last.late, .bytes = 0, .crc = 0});
    const auto number = static_cast<uint32_t>(open_.size() - 1);
    if (Result<void> wrote = append(number, last.content); !wrote) return wrote;
  }
  for (const auto& file : open_) {
    if (Result<void> synced = file->sync(); !synced) return synced;
  }
  open_.clear();
  for (const BaseFile& file : index_.files) now_.bytes += file.bytes;
  const std::string part = part_name(index_.step);
  // Whole at once, as all small files: others look for it.
  const std::string name = part + "/" + rank_index_name(options_.rank);
  auto file = disk_.create(name + ".next");
  if (!file) return file.error();
  const std::string text = write_index(index_);
  const Bytes piece(reinterpret_cast<const std::byte*>(text.data()), text.size());
  if (Result<void> wrote = file.value()->append({&piece, 1}); !wrote) return wrote;
  if (Result<void> synced = file.value()->sync(); !synced) return synced;
  if (Result<void> named = disk_.rename(name + ".next", name); !named) return named;
  now_.write_s = write_s_ + seconds_since(begun);
  if (options_.rank != 0) {
    done_.push(Result<BaseDone>(now_));
    return {};
  }
  sealing_ = true;
  return seal_if_all_done();
}

Result<void> BaseWriter::seal_if_all_done() {
  BaseIndex all = index_;
  all.files.clear();
  const std::string part = part_name(index_.step);
  for (uint32_t rank = 0; rank < options_.ranks; ++rank) {
    const std::string name = part + "/" + rank_index_name(rank);
    const auto bytes = disk_.read(name);
    if (!bytes && is_missing(bytes.error())) return {};  // asked again at the next step
    if (!bytes) return bytes.error();
    const auto& text = bytes.value();
    auto index = read_index({reinterpret_cast<const char*>(text.data()), text.size()}, name);
    if (!index) return index.error();
    const BaseIndex& found = index.value();
    // The sequence is known to this rank, which writes the log.
    if (found.identity != all.identity || found.step != all.step ||
        found.timeline != all.timeline) {
      return Error{.code = ErrorCode::mismatch,
                   .message = "journal: " + name + " is of another job or another step"};
    }
    all.files.insert(all.files.end(), found.files.begin(), found.files.end());
    all.files.push_back(
        {.name = rank_index_name(rank), .bytes = text.size(), .crc = base::crc32c(text)});
  }
  if (!std::exchange(looked_, true)) {
    auto contents = look(disk_, false);
    if (!contents) return contents.error();
    for (const Base& base : contents.value().bases) {
      if (base.problem.empty() && base.index.step < all.step) kept_.push_back(base.index.step);
    }
    std::ranges::reverse(kept_);
  }
  kept_.push_back(all.step);
  if (kept_.size() > options_.keep_bases) {
    kept_.erase(kept_.begin(), kept_.end() - static_cast<std::ptrdiff_t>(options_.keep_bases));
  }
  if (Result<void> sealed = seal_base(disk_, all, kept_.front()); !sealed) return sealed;
  const Manifest manifest = manifest_of(all, kept_.front());
  if (Result<void> cleared = clear_old(disk_, manifest, all.step + 1); !cleared) return cleared;
  sealing_ = false;
  now_.sealed = true;
  done_.push(Result<BaseDone>(now_));
  return {};
}

}  // namespace scant::journal
