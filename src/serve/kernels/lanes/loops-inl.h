// What keeps loops in registers: counters that are constants of the compiler, and few places of
// rows. Included within the namespace of an instruction set, before its lanes.

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

// Where sixteen rows begin. Four places and three distances fit into registers; sixteen places, as
// the compiler would have them, do not.
struct RowPlaces {
  const std::byte* at[4];  // of rows 0, 4, 8 and 12
  size_t stride;

  SCANT_METHOD RowPlaces(const std::byte* first, size_t bytes_apart)
      : at{first, first + 4 * bytes_apart, first + 8 * bytes_apart, first + 12 * bytes_apart},
        stride(bytes_apart) {
    asm("" : "+r"(at[1]), "+r"(at[2]), "+r"(at[3]));
  }
  [[nodiscard]] SCANT_METHOD const std::byte* row(size_t i) const {
    return at[i / 4] + i % 4 * stride;
  }
};
