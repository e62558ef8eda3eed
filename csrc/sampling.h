// Sampling of served rows by the hash of their request id; store/sampling.py says why and what for.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace trimtab {

// A number in [0, 1) for an id of 16 bytes: the finaliser of splitmix64 (Steele et al., 2014) over both halves. The same
// bits as store/sampling.py's hash_unit.
inline double hash_unit(const std::uint8_t* id, std::uint64_t seed) {
    static_assert(std::endian::native == std::endian::little);
    std::uint64_t low = 0;
    std::uint64_t high = 0;
    std::memcpy(&low, id, 8);
    std::memcpy(&high, id + 8, 8);
    std::uint64_t mixed = low * 0x9E3779B97F4A7C15U ^ high ^ seed;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9U;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBU;
    mixed ^= mixed >> 31;
    return static_cast<double>(mixed >> 11) * 0x1p-53;
}

}  // namespace trimtab
