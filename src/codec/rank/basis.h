// Columns made orthonormal, the same bits on every machine: docs/codec.md, "Rank". Pure functions.
#pragma once

#include <cstddef>
#include <span>

namespace scant::codec {

// `columns`: so many of `rows` numbers each, one behind the other. Gram and Schmidt, twice, with
// sums in f64 and 16 lanes; each column in turn against those before it. A column of which nothing
// is left becomes zeros. Where any number is not finite, all become zeros. Returns how many columns
// are not zero.
size_t orthonormalise(std::span<float> columns, size_t rows);

// Each column divided by its length; returns false, and leaves it as it is, where that is 0 or not
// finite.
bool normalise(std::span<float> column);

}  // namespace scant::codec
