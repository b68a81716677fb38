// Loops whose counters are constants of the compiler, so that what they index stays in registers.
// Included within the namespace of an instruction set, before its lanes.

// Calls what.template operator()<count>(), count being 1 to kMost.
template <size_t kMost, typename What>
SCANT_INLINE void for_count(size_t count, const What& what) {
  if constexpr (kMost > 1) {
    if (count < kMost) return for_count<kMost - 1>(count, what);
  }
  what.template operator()<kMost>();
}
// Cuts `count` into as few blocks as possible, of nearly the same size, at most kMost: calls
// what.template operator()<size of the block>(where it begins).
template <size_t kMost, typename What>
SCANT_INLINE void for_blocks(size_t count, const What& what) {
  size_t at = 0;
  for (size_t blocks = (count + kMost - 1) / kMost; blocks > 0; --blocks) {
    const size_t size = (count - at + blocks - 1) / blocks;
    for_count<kMost>(size, [&]<size_t kSize>() { what.template operator()<kSize>(at); });
    at += size;
  }
}

// Calls what(k) for 0 to 15; each k is a constant, of a type of its own.
template <typename What, size_t... k>
SCANT_INLINE void call_each(const What& what, std::index_sequence<k...>) {
  (what(std::integral_constant<size_t, k>{}), ...);
}
template <typename What>
SCANT_INLINE void for_sixteen(const What& what) {
  call_each(what, std::make_index_sequence<16>{});
}
