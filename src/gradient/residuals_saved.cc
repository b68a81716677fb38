// Residuals as bytes, and back under another layout: docs/gradients.md, "Saved residuals".
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/crc.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "base/version.h"
#include "gradient/residuals.h"

namespace scant::gradient {
namespace {

constexpr uint32_t kSavedMagic = 0x52474353;  // "SCGR" in memory
constexpr uint32_t kSavedVersion = 2;
constexpr uint32_t kVersionWithoutDirections = 1;
constexpr uint32_t kDirections = 2;  // beside worker 0 and owner 1
constexpr size_t kHeadBytes = 24;
constexpr size_t kEntryBytes = 16;
constexpr size_t kCrcBytes = 4;

Error corrupt(const std::string& what) { return base::corrupt("saved residuals: " + what); }

template <typename T>
void put(std::vector<std::byte>& out, T value) {
  out.resize(out.size() + sizeof(T));
  base::store_little(out.data() + out.size() - sizeof(T), value);
}

}  // namespace

size_t Residuals::saved_bytes_max() const {
  constexpr size_t kHeadsMax = 256;  // of an entry and of an encoder's state
  size_t bytes = kHeadBytes + kCrcBytes;
  for (size_t i = 0; i < slices_.size(); ++i) {
    const size_t kept = size_t{slices_[i].worker.dirty} + size_t{slices_[i].owner.dirty};
    bytes += kept * (layout_.slices()[i].range.elements * sizeof(float) + kHeadsMax);
  }
  return bytes;
}

void Residuals::put_directions(uint32_t part, const codec::Factors& factors,
                               std::vector<std::byte>& out) {
  const Bytes directions = std::as_bytes(factors.directions());
  put(out, kDirections);
  put(out, uint32_t{0});
  put(out, uint64_t{RoundFactors::kSavedHeadBytes + directions.size()});
  put(out, part);
  put(out, factors.rank());
  put(out, factors.drawn());
  out.insert(out.end(), directions.begin(), directions.end());
}

Result<std::vector<std::byte>> Residuals::save(const Seat& seat,
                                               const RoundFactors& factors) const {
  std::vector<std::byte> out;
  out.reserve(saved_bytes_max() + factors.memory_bytes());
  put(out, kSavedMagic);
  put(out, factors.known().empty() ? kVersionWithoutDirections : kSavedVersion);
  put(out, static_cast<uint32_t>(layout_.ranks()));
  put(out, static_cast<uint32_t>(seat.station()));
  put(out, uint64_t{0});  // entries, below
  uint64_t entries = 0;
  const auto add = [&](const Kept& kept, uint32_t of_owner) -> Result<void> {
    if (!kept.dirty) return {};
    const Result<std::vector<std::byte>> saved = kept.encoder->save();
    if (!saved) return saved.error();
    const std::vector<std::byte>& bytes = saved.value();
    put(out, of_owner);
    put(out, uint32_t{0});
    put(out, uint64_t{bytes.size()});
    out.insert(out.end(), bytes.begin(), bytes.end());
    ++entries;
    return {};
  };
  for (const OfSlice& slice : slices_) {
    if (Result<void> added = add(slice.worker, 0); !added) return added.error();
    if (Result<void> added = add(slice.owner, 1); !added) return added.error();
  }
  for (const auto& [part, known] : factors.known()) {
    put_directions(part, known, out);
    ++entries;
  }
  base::store_little(out.data() + 16, entries);
  put(out, base::crc32c(out));
  return out;
}

Result<void> Residuals::restore(Bytes saved, const Seat& seat, RoundFactors& factors) {
  if (saved.size() < kHeadBytes + kCrcBytes) return corrupt("too few bytes");
  if (base::load_little<uint32_t>(saved.data()) != kSavedMagic) return corrupt("not begun by SCGR");
  const auto version = base::load_little<uint32_t>(saved.data() + 4);
  if (version != kSavedVersion && version != kVersionWithoutDirections) {
    return base::other_version("what was saved of the residuals", version, kSavedVersion);
  }
  const Bytes body = saved.first(saved.size() - kCrcBytes);
  if (base::crc32c(body) != base::load_little<uint32_t>(saved.data() + body.size())) {
    return corrupt("the checksum does not fit");
  }
  const auto of_ranks = base::load_little<uint32_t>(body.data() + 8);
  const auto of_rank = base::load_little<uint32_t>(body.data() + 12);
  if (of_ranks == static_cast<uint32_t>(layout_.ranks()) &&
      of_rank != static_cast<uint32_t>(seat.station())) {
    return Error{.code = ErrorCode::mismatch,
                 .message = "saved residuals: of rank " + std::to_string(of_rank) +
                            ", this is rank " + std::to_string(seat.station()) +
                            "; every rank loads its own"};
  }
  Residuals fresh(layout_, options_, workspace_, record_);
  std::vector<Bytes> directions;
  if (Result<void> taken = fresh.take_all(body, seat, directions); !taken) return taken;
  for (const Bytes one : directions) {
    if (Result<void> taken = factors.restore(one); !taken) return taken;
  }
  slices_ = std::move(fresh.slices_);
  for (OfSlice& slice : slices_) {
    slice.worker.measure();
    slice.owner.measure();
  }
  return {};
}

// The entries behind the head; the checksum fits. All are read before the first is taken.
Result<void> Residuals::take_all(Bytes body, const Seat& seat, std::vector<Bytes>& directions) {
  const auto entries = base::load_little<uint64_t>(body.data() + 16);
  std::vector<std::pair<codec::Encoder, bool>> found;
  size_t at = kHeadBytes;
  for (uint64_t i = 0; i < entries; ++i) {
    if (body.size() - at < kEntryBytes) return corrupt("an entry is cut off");
    const auto kind = base::load_little<uint32_t>(body.data() + at);
    const auto size = base::load_little<uint64_t>(body.data() + at + 8);
    at += kEntryBytes;
    if (kind > kDirections || size > body.size() - at) return corrupt("an entry is damaged");
    if (kind == kDirections) {
      directions.push_back(body.subspan(at, size));
      at += size;
      continue;
    }
    Result<codec::Encoder> encoder = codec::Encoder::restore(body.subspan(at, size));
    if (!encoder) return encoder.error();
    at += size;
    const uint32_t tensor = encoder.value().tensor();
    if (tensor >= layout_.tensors().size() ||
        layout_.tensors()[tensor].shape != encoder.value().shape()) {
      return Error{
          .code = ErrorCode::mismatch,
          .message = "saved residuals: tensor " + std::to_string(tensor) + " is of another model"};
    }
    found.emplace_back(std::move(encoder).value(), kind == 1);
  }
  if (at != body.size()) return corrupt("bytes are left over");
  for (auto& [encoder, of_owner] : found) {
    if (Result<void> taken = take(std::move(encoder), of_owner, seat); !taken) return taken;
  }
  return {};
}

Result<void> Residuals::take(codec::Encoder saved, bool of_owner, const Seat& seat) {
  const TensorLayout& tensor = layout_.tensors()[saved.tensor()];
  for (uint32_t part = tensor.first_part; part < tensor.first_part + tensor.parts; ++part) {
    const PartLayout& known = layout_.parts()[part];
    for (uint32_t i = known.first_slice; i < known.first_slice + known.slices; ++i) {
      const codec::Range range = layout_.slices()[i].range;
      const Result<bool> whole = take_whole(saved, of_owner, i, seat);
      if (!whole) return whole.error();
      if (whole.value()) return {};
      const bool apart = range.first >= saved.range().first + saved.range().elements ||
                         saved.range().first >= range.first + range.elements;
      if (apart) continue;
      if (Result<void> taken = take_part(saved, of_owner, i, seat); !taken) return taken;
    }
  }
  return {};
}

// An encoder that fits as it is goes on as if nothing had been; of others, the residual is taken.
Result<bool> Residuals::take_whole(codec::Encoder& saved, bool of_owner, uint32_t slice,
                                   const Seat& seat) {
  Kept& kept = of_owner ? slices_[slice].owner : slices_[slice].worker;
  const bool fits = saved.range() == layout_.slices()[slice].range &&
                    saved.options().residual == options_.residual;
  if (kept.encoder || !fits || (of_owner && !seat.owns(slice))) return false;
  const Result<codec::TensorEncoder*> made = of_owner ? &owner(slice, seat) : worker(slice, seat);
  if (!made) return made.error();
  if (Result<void> gone = made.value()->go_on_from(std::move(saved)); !gone) return gone.error();
  kept.dirty = true;
  return true;
}

// A rank that owns a slice no more gives what the average lacks to its own gradient: P times, since
// the average divides by P.
Result<void> Residuals::take_part(const codec::Encoder& saved, bool of_owner, uint32_t slice,
                                  const Seat& seat) {
  if (!of_owner || seat.owns(slice)) {
    Kept& kept = of_owner ? slices_[slice].owner : slices_[slice].worker;
    const Result<codec::TensorEncoder*> to = of_owner ? &owner(slice, seat) : worker(slice, seat);
    if (!to) return to.error();
    kept.dirty = true;
    return to.value()->take_over(saved);
  }
  std::vector<float> theirs(saved.range().elements);
  saved.read_residual(theirs);
  const codec::Range range = layout_.slices()[slice].range;
  std::vector<float> addend(range.elements, 0.0f);
  const uint64_t begin = std::max(range.first, saved.range().first);
  const uint64_t end =
      std::min(range.first + range.elements, saved.range().first + saved.range().elements);
  for (uint64_t i = begin; i < end; ++i) {
    addend[i - range.first] = theirs[i - saved.range().first];
  }
  return add_to_worker(slice, std::move(addend), seat);
}

}  // namespace scant::gradient
