// The arithmetic that reductions promise: round to nearest even, subnormals kept, NaN payloads
// kept. A thread can arrive with other settings (torch.set_flush_denormal, -ffast-math start-up
// code), and one such rank would break bit-equality.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace scant::collective {

// Sets the calling thread's default floating-point modes for its own life time, then restores what
// was there.
class FloatEnvironment {
 public:
  FloatEnvironment() : saved_(read()) {
    if ((saved_ & kModes) != kDefault) write((saved_ & ~kModes) | kDefault);
  }
  ~FloatEnvironment() {
    if ((saved_ & kModes) != kDefault) write(saved_);
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using Word = unsigned;
  static constexpr Word kModes =
      0xFFC0;  // FTZ, rounding, exception masks, DAZ; the low six bits are sticky flags
  static constexpr Word kDefault = 0x1F80;  // every exception masked, everything else off
  static Word read() { return _mm_getcsr(); }
  static void write(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
  using Word = uint64_t;
  static constexpr Word kModes =
      0x07C89F07;  // AHP, DN, FZ, rounding, FZ16, traps, FEAT_AFP's NEP, AH, FIZ
  static constexpr Word kDefault = 0;
  static Word read() {
    Word word;
    asm volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void write(Word word) { asm volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
  using Word = unsigned;
  static constexpr Word kModes = 0;
  static constexpr Word kDefault = 0;
  static Word read() { return 0; }
  static void write(Word) {}
#endif

  Word saved_;
};

}  // namespace scant::collective
