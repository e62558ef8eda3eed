// CRC-32C by the SSE4.2 instruction where the processor has it (asked once, at run time), else by eight tables at a
// time
// ("slicing-by-8", Kounavis and Berry 2005). Both give the same value for the same bytes.
#include "crc32c.h"

#include <pybind11/pybind11.h>

#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "bindings.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace py = pybind11;

namespace trimtab {
namespace {

static_assert(std::endian::native == std::endian::little, "slicing reads the bytes as little-endian words");

constexpr std::uint32_t kPolynomial = 0x82F63B78U;  // reflected 0x1EDC6F41

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

constexpr Tables make_tables() {
    Tables tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? kPolynomial : 0U);
        tables[0][byte] = crc;
    }
    for (std::size_t slice = 1; slice < 8; ++slice) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = tables[slice - 1][byte];
            tables[slice][byte] = (before >> 8) ^ tables[0][before & 0xFFU];
        }
    }
    return tables;
}

constexpr Tables kTables = make_tables();

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t crc32c_sse42(const void* data, std::size_t size,
                                                             std::uint32_t seed) noexcept {
    const auto* bytes = static_cast<const unsigned char*>(data);
    std::uint64_t crc = ~seed;
    for (; size >= sizeof(std::uint64_t); bytes += sizeof(std::uint64_t), size -= sizeof(std::uint64_t)) {
        std::uint64_t word;
        std::memcpy(&word, bytes, sizeof(word));
        crc = _mm_crc32_u64(crc, word);
    }
    auto rest = static_cast<std::uint32_t>(crc);
    for (; size > 0; ++bytes, --size) rest = _mm_crc32_u8(rest, *bytes);
    return ~rest;
}
#endif

using Function = std::uint32_t (*)(const void*, std::size_t, std::uint32_t) noexcept;

Function best() noexcept {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) return crc32c_sse42;
#endif
    return crc32c_portable;
}

std::uint32_t over_buffer(const py::buffer& data, std::uint32_t seed, Function function) {
    constexpr std::size_t kReleaseBytes = std::size_t{1}
                                          << 20;  // some 100 us; below it the GIL is not worth handing over
    const py::buffer_info info = data.request();
    if (PyBuffer_IsContiguous(info.view(), 'C') == 0)
        throw std::invalid_argument("expected contiguous bytes, came a strided buffer");
    const auto size = static_cast<std::size_t>(info.size) * static_cast<std::size_t>(info.itemsize);
    if (size < kReleaseBytes) return function(info.ptr, size, seed);
    py::gil_scoped_release released;
    return function(info.ptr, size, seed);
}

}  // namespace

std::uint32_t crc32c_portable(const void* data, std::size_t size, std::uint32_t seed) noexcept {
    const auto* bytes = static_cast<const unsigned char*>(data);
    std::uint32_t crc = ~seed;
    for (; size >= 8; bytes += 8, size -= 8) {
        std::uint32_t low;
        std::uint32_t high;
        std::memcpy(&low, bytes, 4);
        std::memcpy(&high, bytes + 4, 4);
        low ^= crc;
        crc = kTables[7][low & 0xFFU] ^ kTables[6][(low >> 8) & 0xFFU] ^ kTables[5][(low >> 16) & 0xFFU] ^
              kTables[4][low >> 24] ^ kTables[3][high & 0xFFU] ^ kTables[2][(high >> 8) & 0xFFU] ^
              kTables[1][(high >> 16) & 0xFFU] ^ kTables[0][high >> 24];
    }
    for (; size > 0; ++bytes, --size) crc = (crc >> 8) ^ kTables[0][(crc ^ *bytes) & 0xFFU];
    return ~crc;
}

std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t seed) noexcept {
    static const Function function = best();
    return function(data, size, seed);
}

void bind_crc(py::module_& module) {
    module.def(
        "crc32c", [](const py::buffer& data, std::uint32_t seed) { return over_buffer(data, seed, crc32c); },
        py::arg("data"), py::arg("seed") = 0, "CRC-32C of bytes that follow bytes whose CRC-32C is `seed`.");
    module.def(
        "crc32c_portable",
        [](const py::buffer& data, std::uint32_t seed) { return over_buffer(data, seed, crc32c_portable); },
        py::arg("data"), py::arg("seed") = 0, "crc32c without the processor's instruction.");
}

}  // namespace trimtab
