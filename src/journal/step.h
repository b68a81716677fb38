// The body of a step's entry: the gradients as the optimizer found them, as records where that
// proves exact, else as they are. docs/journal.md, "What a step logs". One owner thread at a time.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "codec/workspace.h"
#include "journal/matrices.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::journal {

enum class PartKind : uint8_t {
  averages = 1,  // records of averages, by one owner; where: buffer
  gathered = 2,  // records of one rank, to be added in the order of ranks; where: buffer
  raw = 3,       // a tensor's bytes; where: tensor, first: byte
  bf16 = 4,      // f32 values that bf16 holds exactly; where: tensor, first: byte of the f32 values
  state = 5,     // bytes of a module's buffer; where: buffer
  matrices = 6,  // parts of a buffer whose records are factors; where: buffer
};

[[nodiscard]] const char* name(PartKind kind);

struct Part {
  PartKind kind = PartKind::raw;
  uint32_t where = 0;
  uint64_t first = 0;
  Bytes bytes{};
  std::vector<Matrix> matrices{};  // for kind `matrices` only: what `bytes` says
  [[nodiscard]] uint64_t size() const;
};

struct Step {
  float factor = 1;  // of what records give
  uint32_t crc = 0;  // crc32c of all gradients that are present, tensor by tensor
  uint32_t ranks = 1;
  std::vector<bool> present{};  // by tensor
  std::string settings{};       // JSON, or empty: as before
  std::vector<Part> parts{};
};

// The least version of the segment that holds a step's entry.
[[nodiscard]] uint16_t version_of(const Step& step);

// Checked as far as lengths, kinds and bits go; views borrow the bytes.
[[nodiscard]] Result<Step> read_step(Bytes body);

// A step as pieces to append. It keeps what is not in the parts themselves.
class WrittenStep {
 public:
  explicit WrittenStep(const Step& step);
  [[nodiscard]] const std::vector<Bytes>& pieces() const { return pieces_; }

 private:
  std::vector<std::byte> heads_;
  std::vector<Bytes> pieces_;
};

// Memory for the gradients of one step, tensor by tensor.
class Gradients {
 public:
  // Of so many bytes, by tensor. ErrorCode::resource when memory runs out.
  [[nodiscard]] static Result<std::unique_ptr<Gradients>> create(std::vector<uint64_t> bytes);
  Gradients(const Gradients&) = delete;
  Gradients& operator=(const Gradients&) = delete;

  [[nodiscard]] size_t tensors() const { return bytes_.size(); }
  [[nodiscard]] MutableBytes tensor(size_t index) {
    return memory_.view().subspan(offsets_[index], bytes_[index]);
  }
  [[nodiscard]] size_t memory_bytes() const { return memory_.size(); }
  // Memory of the factors of the step that was decoded last.
  [[nodiscard]] size_t factor_bytes() const { return matrices_.memory_bytes(); }
  [[nodiscard]] uint32_t crc(const std::vector<bool>& present);

  // Fills in what the step holds of each present tensor. ErrorCode::corrupt: records or ranges that
  // fit no tensor. With `prove`: and the checksum is another.
  Result<void> decode(const Step& step, bool prove);

  // The factor between what records gave (decode() with factor 1 came before) and what is found;
  // applied when it returns true. False: no factor explains it.
  bool find_factor(std::span<const Bytes> found, float& factor);

  // The bytes of raw parts are copied to where the next decode() would leave them; the parts point
  // there.
  Result<void> keep(Step& step);

 private:
  explicit Gradients(std::vector<uint64_t> bytes) : bytes_(std::move(bytes)) {}

  struct Range {
    float* data = nullptr;
    uint64_t elements = 0;
    uint32_t tensor = 0;
    uint64_t first = 0;  // element
  };
  // The largest element at the front of a range, as records gave it and as it was found.
  struct Sample {
    float before = 0;
    float after = 0;
  };
  Result<void> add_records(const Step& step);
  Result<void> add_buffer(std::span<const Part> messages, uint32_t ranks);
  Result<void> add_factors(std::span<const Part> messages, uint32_t ranks,
                           std::span<const Matrix> matrices);
  Result<std::span<float>> room_of(const codec::RecordHeader& header);
  [[nodiscard]] Result<std::span<float>> floats(uint32_t tensor, codec::Range range);
  void note(uint32_t tensor, codec::Range range, std::span<float> values);
  [[nodiscard]] Result<MutableBytes> place(uint32_t tensor, uint64_t first, uint64_t bytes);
  void scale(float factor);
  [[nodiscard]] std::optional<std::vector<Sample>> take_samples(std::span<const Bytes> found) const;
  [[nodiscard]] bool explains(std::span<const Bytes> found, float factor) const;
  void clear_uncovered(const Step& step);

  std::vector<uint64_t> bytes_;
  std::vector<uint64_t> offsets_;
  base::Buffer memory_;
  codec::Workspace workspace_;
  Matrices matrices_;
  std::vector<Range> from_records_;
};

// bf16 of these f32 values where that loses nothing; `out` has half the bytes. False: it does not.
[[nodiscard]] bool to_bf16_exactly(Bytes floats, MutableBytes out);

}  // namespace scant::journal
