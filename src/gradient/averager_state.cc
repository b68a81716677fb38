// What outlives a step: residuals saved, restored under another layout, scaled and measured.
// docs/gradients.md, "Saved residuals".
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "base/crc.h"
#include "base/little_endian.h"
#include "base/version.h"
#include "gradient/averager_impl.h"

namespace scant::gradient {
namespace {

using base::load_little;
using base::store_little;

constexpr uint32_t kSavedMagic = 0x52474353;  // "SCGR" in memory
constexpr uint32_t kSavedVersion = 1;
constexpr size_t kHeadBytes = 24;
constexpr size_t kEntryBytes = 16;
constexpr size_t kCrcBytes = 4;
constexpr float kMost = std::numeric_limits<float>::max();

Error corrupt(const std::string& what) {
  return Error{.code = ErrorCode::corrupt, .message = "saved residuals: " + what};
}

template <typename T>
void put(std::vector<std::byte>& out, T value) {
  out.resize(out.size() + sizeof(T));
  base::store_little(out.data() + out.size() - sizeof(T), value);
}

bool same_place(const codec::Encoder& a, const codec::Encoder& b) {
  return a.tensor() == b.tensor() && a.shape() == b.shape() && a.range() == b.range() &&
         a.options().residual == b.options().residual;
}

}  // namespace

size_t Averager::Impl::saved_bytes_max() const {
  constexpr size_t kHeadsMax = 256;  // of an entry and of an encoder's state
  size_t bytes = kHeadBytes + kCrcBytes;
  for (size_t i = 0; i < slices_.size(); ++i) {
    const size_t kept = size_t{slices_[i].worker_dirty} + size_t{slices_[i].owner_dirty};
    bytes += kept * (layout.slices()[i].range.elements * sizeof(float) + kHeadsMax);
  }
  return bytes;
}

std::vector<std::byte> Averager::Impl::save() const {
  std::vector<std::byte> out;
  out.reserve(saved_bytes_max());
  put(out, kSavedMagic);
  put(out, kSavedVersion);
  put(out, static_cast<uint32_t>(ranks()));
  put(out, static_cast<uint32_t>(rank_));
  put(out, uint64_t{0});  // entries, below
  uint64_t entries = 0;
  const auto add = [&](const codec::Encoder& encoder, uint32_t of_owner) {
    const std::vector<std::byte> bytes = encoder.save();
    put(out, of_owner);
    put(out, uint32_t{0});
    put(out, uint64_t{bytes.size()});
    out.insert(out.end(), bytes.begin(), bytes.end());
    ++entries;
  };
  for (const SliceState& state : slices_) {
    if (state.worker_dirty) add(*state.worker, 0);
    if (state.owner_dirty) add(*state.owner, 1);
  }
  base::store_little(out.data() + 16, entries);
  put(out, base::crc32c(out));
  return out;
}

Result<void> Averager::Impl::restore(Bytes saved) {
  if (phase_ != Phase::idle) {
    return Error{.code = ErrorCode::invalid_argument,
                 .message = "residuals can only be restored between steps"};
  }
  if (saved.size() < kHeadBytes + kCrcBytes) return corrupt("too few bytes");
  if (base::load_little<uint32_t>(saved.data()) != kSavedMagic) return corrupt("not begun by SCGR");
  const auto version = base::load_little<uint32_t>(saved.data() + 4);
  if (version != kSavedVersion) {
    return base::other_version("what was saved of the residuals", version, kSavedVersion);
  }
  const Bytes body = saved.first(saved.size() - kCrcBytes);
  if (base::crc32c(body) != base::load_little<uint32_t>(saved.data() + body.size())) {
    return corrupt("the checksum does not fit");
  }
  const auto of_ranks = base::load_little<uint32_t>(body.data() + 8);
  const auto of_rank = base::load_little<uint32_t>(body.data() + 12);
  if (of_ranks == static_cast<uint32_t>(ranks()) && of_rank != static_cast<uint32_t>(rank_)) {
    return Error{.code = ErrorCode::mismatch,
                 .message = "saved residuals: of rank " + std::to_string(of_rank) +
                            ", this is rank " + std::to_string(rank_) +
                            "; every rank loads its own"};
  }
  const auto entries = base::load_little<uint64_t>(body.data() + 16);
  std::vector<std::pair<codec::Encoder, bool>> found;
  size_t at = kHeadBytes;
  for (uint64_t i = 0; i < entries; ++i) {
    if (body.size() - at < kEntryBytes) return corrupt("an entry is cut off");
    const auto of_owner = base::load_little<uint32_t>(body.data() + at);
    const auto size = base::load_little<uint64_t>(body.data() + at + 8);
    at += kEntryBytes;
    if (of_owner > 1 || size > body.size() - at) return corrupt("an entry is damaged");
    Result<codec::Encoder> encoder = codec::Encoder::restore(body.subspan(at, size));
    if (!encoder) return encoder.error();
    at += size;
    if (encoder.value().tensor() >= layout.tensors().size() ||
        layout.tensors()[encoder.value().tensor()].shape != encoder.value().shape()) {
      return Error{.code = ErrorCode::mismatch,
                   .message = "saved residuals: tensor " +
                              std::to_string(encoder.value().tensor()) + " is of another model"};
    }
    found.emplace_back(std::move(encoder).value(), of_owner == 1);
  }
  if (at != body.size()) return corrupt("bytes are left over");
  for (SliceState& state : slices_) state = SliceState{};
  for (auto& [encoder, of_owner] : found) {
    if (Result<void> taken = take(std::move(encoder), of_owner); !taken) return taken;
  }
  return {};
}

// An encoder that fits as it is goes on as if nothing had been; of others, the residual is taken.
Result<void> Averager::Impl::take(codec::Encoder saved, bool of_owner) {
  const TensorLayout& tensor = layout.tensors()[saved.tensor()];
  for (uint32_t part = tensor.first_part; part < tensor.first_part + tensor.parts; ++part) {
    const PartLayout& known = layout.parts()[part];
    for (uint32_t i = known.first_slice; i < known.first_slice + known.slices; ++i) {
      SliceState& state = slices_[i];
      const bool owned = layout.slices()[i].owner == rank_;
      const codec::Range range = layout.slices()[i].range;
      if (range == saved.range() && (!of_owner || owned)) {
        auto& place = of_owner ? state.owner : state.worker;
        const bool free = !place && same_place(saved, of_owner ? owner(i) : worker(i));
        if (free) {
          *place = std::move(saved);
          (of_owner ? state.owner_dirty : state.worker_dirty) = true;
          return {};
        }
      }
      const bool apart = range.first >= saved.range().first + saved.range().elements ||
                         saved.range().first >= range.first + range.elements;
      if (apart) continue;
      if (Result<void> taken = take_part(saved, of_owner, i); !taken) return taken;
    }
  }
  return {};
}

// A rank that owns a slice no more gives what the average lacks to its own gradient: P times, since
// the average divides by P.
Result<void> Averager::Impl::take_part(const codec::Encoder& saved, bool of_owner, uint32_t slice) {
  SliceState& state = slices_[slice];
  const SliceLayout& known = layout.slices()[slice];
  if (!of_owner || known.owner == rank_) {
    (of_owner ? state.owner_dirty : state.worker_dirty) = true;
    return (of_owner ? owner(slice) : worker(slice)).take_over(saved);
  }
  std::vector<float> theirs(saved.range().elements);
  saved.read_residual(theirs);
  std::vector<float> addend(known.range.elements, 0.0f);
  const uint64_t begin = std::max(known.range.first, saved.range().first);
  const uint64_t end = std::min(known.range.first + known.range.elements,
                                saved.range().first + saved.range().elements);
  for (uint64_t i = begin; i < end; ++i) {
    addend[i - known.range.first] = static_cast<float>(ranks()) * theirs[i - saved.range().first];
  }
  for (float& value : addend) value = std::clamp(value, -kMost, kMost);
  state.worker_dirty = true;
  return worker(slice).add_residual(addend);
}

void Averager::Impl::scale_residuals(float factor) {
  for (SliceState& state : slices_) {
    if (state.worker) state.worker->scale_residual(factor);
    if (state.owner) state.owner->scale_residual(factor);
  }
}

double Averager::Impl::residual_energy() const {
  double sum = 0;
  std::vector<float> residual;
  for (const SliceState& state : slices_) {
    if (!state.worker_dirty) continue;
    residual.resize(state.worker->range().elements);
    state.worker->read_residual(residual);
    for (const float value : residual) sum += static_cast<double>(value) * value;
  }
  return sum;
}

size_t Averager::Impl::memory_bytes() const {
  size_t bytes = 0;
  for (const SliceState& state : slices_) {
    if (state.worker) bytes += state.worker->memory_bytes();
    if (state.owner) bytes += state.owner->memory_bytes();
  }
  for (const BufferMemory& memory : buffers_) {
    for (const Message& message : memory.outgoing) bytes += message.view().size();
    for (const uint64_t received : memory.received) bytes += received;
    bytes += memory.average.view().size();
  }
  return bytes;
}

}  // namespace scant::gradient
