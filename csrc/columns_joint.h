// Summing up rows as a whole: random Fourier features of the buckets that their values fall into, in integers. What that
// is for, and the layout of the sums, is kernels/joint_spec.py's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace trimtab {

inline constexpr std::size_t kFrequencies = 32;
inline constexpr std::size_t kJointWidth = 2 * kFrequencies;
inline constexpr std::size_t kJointLength = 1 + kJointWidth + kJointWidth * (kJointWidth + 1) / 2;

// Rows whose phases were added up, at most kJointRows at a time.
inline constexpr std::size_t kJointRows = 128;

// Adds what `count` rows, of kFrequencies phases each, give to the sums. A turn is 2^16.
void add_joint(const std::uint16_t* phases, std::size_t count, std::span<std::int64_t, kJointLength> sums);

}  // namespace trimtab
