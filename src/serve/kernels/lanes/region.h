// Functions between SCANT_BEGIN_INSTRUCTIONS and SCANT_END_INSTRUCTIONS may use these instruction
// sets, whatever the rest of the program may use. Headers of others are included before.
// Each is a statement that ends with a semicolon.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

#define SCANT_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SCANT_BEGIN_INSTRUCTIONS(sets)                                                   \
  SCANT_PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function)) \
  static_assert(true)
#define SCANT_END_INSTRUCTIONS SCANT_PRAGMA(clang attribute pop) static_assert(true)
#else
#define SCANT_BEGIN_INSTRUCTIONS(sets) \
  SCANT_PRAGMA(GCC push_options) SCANT_PRAGMA(GCC target(sets)) static_assert(true)
#define SCANT_END_INSTRUCTIONS SCANT_PRAGMA(GCC pop_options) static_assert(true)
#endif

#define SCANT_NEON_DOT "arch=armv8.2-a+dotprod"
#define SCANT_AVX2 "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt"
#define SCANT_AVX512 SCANT_AVX2 ",avx512f,avx512vl,avx512dq,avx512bw"
#define SCANT_AVX512VNNI SCANT_AVX512 ",avx512vnni,avx512vbmi,avx512vbmi2"
#define SCANT_INLINE static inline __attribute__((always_inline))
// A loop that gets all registers.
#define SCANT_APART static __attribute__((noinline))
#define SCANT_METHOD __attribute__((always_inline))
