#include "gradient/verdict.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>

#include "base/check.h"
#include "base/little_endian.h"

namespace scant::gradient {
namespace {

constexpr size_t kNumbers = 9;
constexpr size_t kNamedMax = 8;  // in one message

Error mismatch(Rank peer, std::string message) {
  return Error{.code = ErrorCode::mismatch, .peer = peer, .message = std::move(message)};
}

// "rank 3", "ranks 0, 2 and 5", "ranks 0, 1, ... (12 in all)"
std::string list(const std::vector<Rank>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i == kNamedMax) return text + ", ... (" + std::to_string(ranks.size()) + " in all)";
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

std::string tensor_name(size_t tensor, const JudgeOptions& options) {
  if (tensor < options.names.size()) return "'" + options.names[tensor] + "'";
  return "tensor " + std::to_string(tensor);
}

// Nothing else is compared where the numbers may mean something else.
std::optional<Error> compare_versions(std::span<const Verdict> by_rank) {
  for (size_t rank = 1; rank < by_rank.size(); ++rank) {
    if (by_rank[rank].version == by_rank[0].version) continue;
    return mismatch(static_cast<Rank>(rank),
                    "rank " + std::to_string(rank) + " sends verdicts of version " +
                        std::to_string(by_rank[rank].version) + ", rank 0 of version " +
                        std::to_string(by_rank[0].version) +
                        ": install one version of Scant on all ranks");
  }
  return std::nullopt;
}

std::optional<Error> compare_steps(std::span<const Verdict> by_rank) {
  for (size_t rank = 1; rank < by_rank.size(); ++rank) {
    if (by_rank[rank].members_hash != by_rank[0].members_hash) {
      return mismatch(static_cast<Rank>(rank), "rank " + std::to_string(rank) +
                                                   " and rank 0 have different members in step " +
                                                   std::to_string(by_rank[0].step));
    }
    if (by_rank[rank].step != by_rank[0].step) {
      return mismatch(static_cast<Rank>(rank), "rank " + std::to_string(rank) + " is at step " +
                                                   std::to_string(by_rank[rank].step) +
                                                   " of its gradients, rank 0 at step " +
                                                   std::to_string(by_rank[0].step));
    }
    if (by_rank[rank].plan_hash != by_rank[0].plan_hash) {
      return mismatch(static_cast<Rank>(rank), "rank " + std::to_string(rank) +
                                                   " and rank 0 use different plans in step " +
                                                   std::to_string(by_rank[0].step));
    }
  }
  return std::nullopt;
}

// The ranks that differ from the most frequent hash (of several the lowest rank's).
std::optional<Error> compare_parameters(std::span<const Verdict> by_rank) {
  std::map<uint64_t, size_t> counts;
  for (const Verdict& verdict : by_rank) ++counts[verdict.parameters_hash];
  if (counts.size() == 1) return std::nullopt;
  uint64_t most = by_rank[0].parameters_hash;
  for (const Verdict& verdict : by_rank) {
    if (counts[verdict.parameters_hash] > counts[most]) most = verdict.parameters_hash;
  }
  std::vector<Rank> others;
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    if (by_rank[rank].parameters_hash != most) others.push_back(static_cast<Rank>(rank));
  }
  return mismatch(others.front(), "the parameters of " + list(others) +
                                      " differ from those of the other ranks before step " +
                                      std::to_string(by_rank[0].step));
}

// A rank that only met the end of what others gave up says `closed`: others know better.
std::optional<Error> first_failure(std::span<const Verdict> by_rank) {
  constexpr uint64_t kClosed = static_cast<uint64_t>(ErrorCode::closed) + 1;
  std::optional<Error> found;
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    const uint64_t failure = by_rank[rank].failure;
    if (failure == 0 || (found && failure == kClosed)) continue;
    const bool known = failure <= static_cast<uint64_t>(kErrorCodeCount);
    const ErrorCode code = known ? static_cast<ErrorCode>(failure - 1) : ErrorCode::corrupt;
    found = Error{.code = code,
                  .peer = static_cast<Rank>(rank),
                  .message = "step " + std::to_string(by_rank[0].step) + " failed on rank " +
                             std::to_string(rank) + " (" + name(code) + ")"};
    if (failure != kClosed) break;
  }
  return found;
}

size_t bytes_of_bits(size_t bits) { return (bits + 7) / 8; }

void write_bits(const std::vector<bool>& bits, std::byte* out) {
  for (size_t i = 0; i < bits.size(); ++i) {
    if (bits[i]) out[i / 8] |= static_cast<std::byte>(1u << (i % 8));
  }
}

std::vector<bool> read_bits(const std::byte* in, size_t count) {
  std::vector<bool> bits(count);
  for (size_t i = 0; i < count; ++i) {
    bits[i] = (in[i / 8] & static_cast<std::byte>(1u << (i % 8))) != std::byte{0};
  }
  return bits;
}

// What a rank says of a tensor that it had no gradient of counts for nothing.
std::vector<NotFinite> all_not_finite(std::span<const Verdict> by_rank) {
  std::vector<NotFinite> found;
  for (uint32_t tensor = 0; tensor < by_rank[0].present.size(); ++tensor) {
    NotFinite one{.tensor = tensor, .ranks = {}};
    for (size_t rank = 0; rank < by_rank.size(); ++rank) {
      const Verdict& verdict = by_rank[rank];
      if (verdict.present[tensor] && verdict.not_finite[tensor]) {
        one.ranks.push_back(static_cast<Rank>(rank));
      }
    }
    if (!one.ranks.empty()) found.push_back(std::move(one));
  }
  return found;
}

}  // namespace

size_t verdict_bytes(size_t tensors) { return kNumbers * 8 + 2 * bytes_of_bits(tensors); }

void write_verdict(const Verdict& verdict, MutableBytes out) {
  const size_t tensors = verdict.present.size();
  SCANT_CHECK(out.size() == verdict_bytes(tensors) && verdict.not_finite.size() == tensors);
  const std::array<uint64_t, kNumbers> numbers = {verdict.version,
                                                  verdict.step,
                                                  verdict.plan_hash,
                                                  verdict.nonfinite,
                                                  verdict.parameters_hash,
                                                  verdict.failure,
                                                  verdict.members_hash,
                                                  verdict.samples,
                                                  std::bit_cast<uint64_t>(verdict.residual_energy)};
  for (size_t i = 0; i < kNumbers; ++i) base::store_little(out.data() + 8 * i, numbers[i]);
  std::fill(out.begin() + 8 * kNumbers, out.end(), std::byte{0});
  write_bits(verdict.present, out.data() + 8 * kNumbers);
  write_bits(verdict.not_finite, out.data() + 8 * kNumbers + bytes_of_bits(tensors));
}

Verdict read_verdict(Bytes bytes, size_t tensors) {
  SCANT_CHECK(bytes.size() == verdict_bytes(tensors));
  const auto number = [&](size_t i) { return base::load_little<uint64_t>(bytes.data() + 8 * i); };
  const std::byte* bits = bytes.data() + 8 * kNumbers;
  return {.version = number(0),
          .step = number(1),
          .plan_hash = number(2),
          .nonfinite = number(3),
          .parameters_hash = number(4),
          .failure = number(5),
          .members_hash = number(6),
          .samples = number(7),
          .residual_energy = std::bit_cast<double>(number(8)),
          .present = read_bits(bits, tensors),
          .not_finite = read_bits(bits + bytes_of_bits(tensors), tensors)};
}

Result<void> compare_openings(std::span<const Verdict> by_rank) {
  if (auto error = compare_versions(by_rank)) return *std::move(error);
  if (auto error = compare_steps(by_rank)) return *std::move(error);
  return {};
}

Result<Judgement> judge(std::span<const Verdict> by_rank, const JudgeOptions& options) {
  SCANT_CHECK(!by_rank.empty());
  if (auto error = compare_versions(by_rank)) return *std::move(error);
  if (auto error = compare_steps(by_rank)) return *std::move(error);
  Judgement judgement{.present = std::vector<bool>(by_rank[0].present.size()),
                      .not_finite = all_not_finite(by_rank),
                      .accounts = {}};
  for (const Verdict& verdict : by_rank) {
    judgement.accounts.push_back({verdict.residual_energy, verdict.samples});
    const uint64_t sum = judgement.nonfinite + verdict.nonfinite;
    judgement.nonfinite = sum < verdict.nonfinite ? UINT64_MAX : sum;
  }
  for (size_t tensor = 0; tensor < judgement.present.size(); ++tensor) {
    std::vector<Rank> missing;
    for (size_t rank = 0; rank < by_rank.size(); ++rank) {
      if (!by_rank[rank].present[tensor]) missing.push_back(static_cast<Rank>(rank));
    }
    judgement.present[tensor] = missing.size() < by_rank.size();
    if (judgement.present[tensor] && !missing.empty() && !options.missing_as_zeros) {
      return mismatch(missing.front(), tensor_name(tensor, options) + " got no gradient on " +
                                           list(missing) + " in step " +
                                           std::to_string(by_rank[0].step) +
                                           ", but did on the other ranks");
    }
  }
  if (auto error = compare_parameters(by_rank)) return *std::move(error);
  if (auto error = first_failure(by_rank)) return *std::move(error);
  return judgement;
}

}  // namespace scant::gradient
