// AMX's instructions. A number of a register is a constant of the instruction. Included within the
// namespace of an instruction set. src/serve/testing/tiles_emulated-inl.h does the same in
// software.

// The clobber keeps the compiler from dropping the stores into `shapes`, as GCC 12's intrinsic
// does.
SCANT_INLINE void configure(const TileShapes& shapes) {
  asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
}
// What tiles load must be in memory, and what they have stored must be read from it: between loops
// that use tiles and others. Clobbers in each instruction would keep no sum in a register.
SCANT_INLINE void memory_barrier() { asm volatile("" ::: "memory"); }
template <int kTile>
SCANT_INLINE void load_tile(const void* from, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile));
}
// 16 rows of 64 bytes.
template <int kTile>
SCANT_INLINE void store_tile(void* to) {
  asm volatile("tilestored %%tmm%c3, (%1,%2,1)"
               : "=m"(*static_cast<std::byte(*)[1024]>(to))
               : "r"(to), "r"(size_t{64}), "i"(kTile));
}
template <int kTile>
SCANT_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Adds left times right, both of signed bytes or both of bf16.
template <int kTo, int kLeft, int kRight>
SCANT_INLINE void add_bytes() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kLeft), "i"(kRight));
}
template <int kTo, int kLeft, int kRight>
SCANT_INLINE void add_halves() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kLeft), "i"(kRight));
}
// Of this thread. Until the next configure() no tile may be used.
SCANT_INLINE void release() { asm volatile("tilerelease" ::: "memory"); }
