// One step of an encoder: dense, sparse, or without a record. Internal to encoder.cc; lives for one
// call.
#pragma once

#include <span>
#include <vector>

#include "codec/encoder.h"
#include "codec/record/block_writer.h"
#include "codec/select/threshold.h"

namespace scant::codec {

// Blocks of 4096 elements: accumulate, quantise, keep the rest, all within the first-level cache.
class DenseStep {
 public:
  // With `rest`, `gradient` + `rest` is encoded; `gradient` then contains the residual already.
  DenseStep(Encoder& encoder, const float* gradient, Point point, Workspace& workspace,
            const Product* rest = nullptr)
      : encoder_(encoder), gradient_(gradient), point_(point), workspace_(workspace), rest_(rest) {}
  // An error comes before anything has changed.
  Result<EncodeReport> run(RecordBuffer& record);

 private:
  struct BlockResult {
    float energy = 0;
    float energy_left = 0;
    uint32_t nonfinite = 0;
  };
  [[nodiscard]] uint32_t elements_of(uint64_t block) const;
  // The block behind, if it is as long; with momentum its gradient is not yet known.
  [[nodiscard]] Ahead ahead_of(uint64_t block) const;
  // Puts into `work` what a block is to send.
  Accumulated take(uint64_t block, float* work, GroupMagnitudes* groups, Ahead ahead);
  BlockResult encode_block(uint64_t block, size_t worker, MutableBytes record);
  // Takes a block's values out of `work`. False: there was no memory for them.
  bool keep_wide(uint64_t block, float* work, uint32_t n);
  void send_zeros(uint64_t block, uint32_t n, std::byte* payload, BlockHeader& header) const;
  // A block with NaN or infinities goes as f32: its values wait here until all blocks are done.
  void widen_blocks(RecordBuffer& record) const;

  Encoder& encoder_;
  const float* gradient_;
  Point point_;
  Workspace& workspace_;
  const Product* rest_;
  std::vector<BlockResult> results_;
  std::vector<std::vector<float>> wide_;  // by block; empty but for those with NaN or infinities
};

// Blocks of 4096 elements of which nothing is sent.
class KeepStep {
 public:
  // `rest` as of a dense step.
  KeepStep(Encoder& encoder, const float* gradient, Workspace& workspace,
           const Product* rest = nullptr)
      : encoder_(encoder), gradient_(gradient), workspace_(workspace), rest_(rest) {}
  // An error comes before anything has changed.
  Result<EncodeReport> run(RecordBuffer& record);

 private:
  Accumulated take(uint64_t at, size_t n, float* work);
  EncodeReport keep_block(uint64_t block, float* work);
  static float zero_nonfinite(std::span<float> values);  // the energy of the others

  Encoder& encoder_;
  const float* gradient_;
  Workspace& workspace_;
  const Product* rest_;
};

// Blocks of 65536 elements. A range of up to kWholeElements is scanned as a whole before anything
// is sent, so that exactly as many entries go as may; a larger one in one pass, with thresholds
// from earlier steps that a sample has confirmed. By row, each row sends its largest instead.
class SparseStep {
 public:
  static constexpr uint64_t kWholeElements = uint64_t{1} << 22;

  // `decay`: factor of the residual.
  SparseStep(Encoder& encoder, const float* gradient, float decay, Point point,
             Workspace& workspace);
  // An error comes before anything has changed.
  Result<EncodeReport> run(RecordBuffer& record);

 private:
  struct Block {
    std::vector<uint16_t> positions;
    std::vector<float> values;
    std::vector<std::byte> payload;
    BlockHeader header;
    double energy = 0;
    double energy_sent = 0;  // of the entries before quantisation
    double energy_back = 0;  // of what quantisation returned to the residual
    uint64_t nonfinite = 0;
    uint64_t forced = 0;
    uint64_t above = 0;  // entries beyond kAboveRatio thresholds
  };
  struct Tie {            // equal magnitudes at the threshold, of which only a share is sent
    float magnitude = 0;  // 0: no tie
    uint32_t keep = 0;    // of 2^32
  };

  [[nodiscard]] size_t elements_of(uint64_t block) const;
  [[nodiscard]] float threshold_of(uint64_t block, float threshold) const;
  // Where a block's gradient + residual is worked on.
  float* work_of(uint64_t block, size_t worker);
  // With momentum: the velocity, brought up to this step. Once a step.
  const float* gradient_of(uint64_t block);
  // Lists what passes; with `add` after residual and gradient have been added up in `work`.
  void select(uint64_t number, size_t worker, bool add, float* work, float threshold);

  Result<void> take_whole();
  // All that the step's lists can need: from here on nothing runs out of memory.
  void reserve_lists(bool streamed);
  void run_whole();
  uint64_t scan(float threshold, bool add);  // candidates found
  float calibrated_threshold();
  void trim(uint64_t count, float threshold);

  void run_by_row();
  void select_by_row(uint64_t number, const float* work, std::vector<uint64_t>& order);

  void run_streamed(float threshold);
  float confirm_threshold();
  float calibrate(double share, float predicted);
  [[nodiscard]] uint64_t elements_for(double entries) const;  // that hold so many, on average
  template <size_t kPiece, class See>
  uint64_t sample(uint64_t wanted, const See& see) const;  // elements seen
  void drop_ties(uint64_t number);

  void choose_turns();
  void force_rows(uint64_t number, const float* work);
  // Appends to the block's positions, behind those that were chosen by magnitude.
  void force_rows(uint64_t number, const float* work, uint64_t row_begin, uint64_t row_end,
                  std::span<const uint16_t> chosen);
  void finish_block(uint64_t number, float* work);
  void restart_momentum(uint64_t number);
  void adjust_levels();
  EncodeReport assemble(RecordBuffer& record);

  Encoder& encoder_;
  const float* gradient_;
  float decay_;
  Point point_;
  Workspace& workspace_;
  uint64_t wanted_ = 0;
  RowWindow turns_;  // rows that send something, be it little; none: begin is end
  float* whole_ = nullptr;
  Tie tie_;
  std::vector<Block> blocks_;
  std::vector<uint32_t> magnitudes_;           // of trim()
  std::vector<std::vector<uint64_t>> orders_;  // of select_by_row(), by worker
  MagnitudeHistogram histogram_;
};

}  // namespace scant::codec
