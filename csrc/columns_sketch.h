// Adding values to a sketch's flat arrays, whose layout kernels/sketch_spec.py fixes and owns.
//
//   counts   (a field's part)  missing, unseen, negative_infinite, positive_infinite, buckets...
//   moments  (a field's part)  minimum, maximum, sum and sum of squares of (x - shift), over finite values
//
// Counts are exact. Sums are taken in eight lanes (by row modulo 8, from the start of the call) that are added in a
// fixed order, so the same calls give the same bits on every dispatch level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "columns_hot.h"

namespace trimtab {

inline constexpr std::size_t kSketchPrefix = 4;
inline constexpr std::size_t kSketchMoments = 4;

// A numeric field as the inner loops take it; it borrows the edges.
hot::Sketch make_sketch(std::span<const float> edges, float low, float high, float shift);

// Adds values of one field alone, as one call. counts and moments point at the field's parts.
void sketch_values(const hot::Table& level, const hot::Sketch& field, std::span<const float> values,
                   std::uint64_t* counts, double* moments);

}  // namespace trimtab
