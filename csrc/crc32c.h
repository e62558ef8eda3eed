// CRC-32C (Castagnoli), the checksum of capture frames.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab {

// The checksum of `size` bytes that follow bytes whose checksum is `seed` (0 at the start).
std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t seed = 0) noexcept;

// The same by tables, on any processor.
std::uint32_t crc32c_portable(const void* data, std::size_t size, std::uint32_t seed = 0) noexcept;

}  // namespace trimtab
