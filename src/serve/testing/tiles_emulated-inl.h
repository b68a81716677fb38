// What serve/kernels/x86/tiles_amx-inl.h does by AMX's instructions, on tiles in software. Included
// within a namespace, as that file is.

SCANT_INLINE void configure(const TileShapes& shapes) {
  TileRegisters::of_thread().configure(shapes);
}
// Nothing to keep in order: the compiler sees what these tiles load and store.
SCANT_INLINE void memory_barrier() {}
template <int kTile>
SCANT_INLINE void load_tile(const void* from, size_t stride) {
  TileRegisters::of_thread().load(kTile, from, stride);
}
template <int kTile>
SCANT_INLINE void store_tile(void* to) {
  TileRegisters::of_thread().store(kTile, to, TileRegisters::kRowBytes);
}
template <int kTile>
SCANT_INLINE void zero_tile() {
  TileRegisters::of_thread().zero(kTile);
}
template <int kTo, int kLeft, int kRight>
SCANT_INLINE void add_bytes() {
  TileRegisters::of_thread().add_bytes(kTo, kLeft, kRight);
}
template <int kTo, int kLeft, int kRight>
SCANT_INLINE void add_halves() {
  TileRegisters::of_thread().add_halves(kTo, kLeft, kRight);
}
SCANT_INLINE void release() { TileRegisters::of_thread().release(); }
