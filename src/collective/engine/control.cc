#include "collective/engine/control.h"

#include <algorithm>
#include <span>

#include "base/bytes.h"
#include "base/fault.h"
#include "base/little_endian.h"

namespace scant::collective {
namespace {

// Version 0.1.0 knows codes up to this one, and takes another for damage. So `failed` travels as
// `closed` with a mark at the end of its text, which that version shows as a space.
constexpr ErrorCode kLastCancelCode = ErrorCode::unsupported;
constexpr auto kFailedMark = std::byte{1};

using base::corrupt;

bool has_reduce(OpKind kind) {
  return kind == OpKind::all_reduce || kind == OpKind::reduce || kind == OpKind::reduce_scatter;
}

bool has_root(OpKind kind) {
  return kind == OpKind::reduce || kind == OpKind::broadcast || kind == OpKind::gather ||
         kind == OpKind::scatter;
}

}  // namespace

std::vector<std::byte> encode_cancel(const Error& error) {
  const bool failed = error.code == ErrorCode::failed;
  const size_t mark = failed ? 1 : 0;
  const size_t text = std::min(error.message.size(), kCancelTextBytesMax - mark);
  std::vector<std::byte> out(12 + text + mark);
  base::ByteWriter w(out);
  w.put(static_cast<uint32_t>(failed ? ErrorCode::closed : error.code));
  w.put(static_cast<uint32_t>(error.peer));
  w.put(static_cast<uint32_t>(error.sys_errno));
  w.put_bytes(std::as_bytes(std::span(error.message)).first(text));
  if (failed) out.back() = kFailedMark;
  return out;
}

Result<Cancel> decode_cancel(Bytes payload) {
  if (payload.size() < 12 || payload.size() > 12 + kCancelTextBytesMax) {
    return corrupt("a cancel frame has a payload of the wrong size");
  }
  const auto code = base::load_little<uint32_t>(payload.data());
  if (code > static_cast<uint32_t>(kLastCancelCode)) {
    return corrupt("a cancel frame has an unknown error code");
  }
  Error error;
  error.code = static_cast<ErrorCode>(code);
  error.peer = static_cast<Rank>(base::load_little<uint32_t>(payload.data() + 4));
  error.sys_errno = static_cast<int>(base::load_little<uint32_t>(payload.data() + 8));
  Bytes text = payload.subspan(12);
  if (error.code == ErrorCode::closed && !text.empty() && text.back() == kFailedMark) {
    error.code = ErrorCode::failed;
    text = text.first(text.size() - 1);
  }
  for (std::byte byte : text) {
    const auto c = std::to_integer<unsigned char>(byte);
    error.message.push_back(c < 0x20 || c == 0x7F ? ' ' : static_cast<char>(c));
  }
  return Cancel{std::move(error)};
}

std::vector<std::byte> encode_proposal(const Proposal& proposal) {
  std::vector<std::byte> out(8 + (proposal.live.size() + 7) / 8);
  base::ByteWriter w(out);
  w.put(proposal.epoch);
  w.put(static_cast<uint32_t>(proposal.live.size()));
  for (size_t i = 0; i < proposal.live.size(); ++i) {
    if (proposal.live[i]) out[8 + i / 8] |= static_cast<std::byte>(1U << (i % 8));
  }
  return out;
}

Result<Proposal> decode_proposal(Bytes payload, size_t stations) {
  if (payload.size() != 8 + (stations + 7) / 8 ||
      base::load_little<uint32_t>(payload.data() + 4) != stations) {
    return corrupt("a propose frame has a bitmap of the wrong size");
  }
  Proposal proposal;
  proposal.epoch = base::load_little<uint32_t>(payload.data());
  proposal.live.resize(stations);
  for (size_t i = 0; i < (stations + 7) / 8 * 8; ++i) {
    const bool bit = (std::to_integer<uint32_t>(payload[8 + i / 8]) >> (i % 8) & 1) != 0;
    if (i < stations) {
      proposal.live[i] = bit;
    } else if (bit) {
      return corrupt("a propose frame names a rank beyond the job");
    }
  }
  return proposal;
}

std::string with_commas(uint64_t value) {
  std::string digits = std::to_string(value);
  for (size_t at = digits.size(); at > 3; at -= 3) digits.insert(at - 3, 1, ',');
  return digits;
}

std::string describe(const net::CallDescriptor& call, bool with_algorithm) {
  const auto kind = static_cast<OpKind>(call.kind);
  std::string text = call.kind >= 1 && call.kind <= static_cast<uint8_t>(kLastOpKind)
                         ? name(kind)
                         : "unknown operation " + std::to_string(call.kind);
  if (kind != OpKind::barrier) {
    text += kind == OpKind::exchange ? " of parts of up to " : " of ";
    text += with_commas(call.bytes) + " bytes ";
    text += is_dtype(call.dtype) ? name(static_cast<DType>(call.dtype))
                                 : "dtype " + std::to_string(call.dtype);
  }
  if (has_reduce(kind)) {
    text += ' ';
    text += call.reduce < kReduceOpCount ? name(static_cast<ReduceOp>(call.reduce))
                                         : "operator " + std::to_string(call.reduce);
  }
  if (has_root(kind)) {
    text += kind == OpKind::broadcast || kind == OpKind::scatter ? " from root " : " to root ";
    text += std::to_string(call.root);
  }
  if (with_algorithm) {
    text += " by ";
    text += call.algorithm >= 1 && call.algorithm <= static_cast<uint8_t>(Algorithm::ring)
                ? name(static_cast<Algorithm>(call.algorithm))
                : "algorithm " + std::to_string(call.algorithm);
  }
  return text;
}

}  // namespace scant::collective
