// Which of the instruction sets that Highway compiles for this CPU has and the operating system
// keeps. Asked by us, since Highway's own choice would need libhwy, which Debian ships as a shared
// library only, and a wheel must be self-contained.
#pragma once

namespace scant::base {

[[nodiscard]] bool cpu_has_avx2();    // and what Highway's HWY_AVX2 takes for granted beside it
[[nodiscard]] bool cpu_has_avx512();  // likewise of HWY_AVX3
// And VNNI, VBMI and VBMI2: Ice Lake and later.
[[nodiscard]] bool cpu_has_avx512vnni();
// And sums of products of pairs of bf16: Zen 4 and later.
[[nodiscard]] bool cpu_has_avx512bf16();
// VNNI's, and tiles of bytes and bf16. Asks Linux to let this process use them; false if it does
// not. The permission holds for all threads, also those that started before.
[[nodiscard]] bool cpu_has_amx();
// Of ARM: products of four bytes.
[[nodiscard]] bool cpu_has_dot_products();

}  // namespace scant::base
