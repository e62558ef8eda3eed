#include "utf8.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace trimtab {
namespace {

bool continues(unsigned char byte) noexcept { return (byte & 0xC0U) == 0x80U; }

// Length of the well-formed multi-byte sequence at the start of `text` (table 3-7 of the Unicode standard), 0 if there
// is none.
std::size_t sequence_length(const unsigned char* text, std::size_t size) noexcept {
    const unsigned char lead = text[0];
    if (lead >= 0xC2 && lead <= 0xDF) return size >= 2 && continues(text[1]) ? 2 : 0;
    if (lead >= 0xE0 && lead <= 0xEF) {
        if (size < 3 || !continues(text[1]) || !continues(text[2])) return 0;
        if (lead == 0xE0 && text[1] < 0xA0) return 0;  // overlong
        if (lead == 0xED && text[1] > 0x9F) return 0;  // surrogate
        return 3;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        if (size < 4 || !continues(text[1]) || !continues(text[2]) || !continues(text[3])) return 0;
        if (lead == 0xF0 && text[1] < 0x90) return 0;  // overlong
        if (lead == 0xF4 && text[1] > 0x8F) return 0;  // past U+10FFFF
        return 4;
    }
    return 0;
}

}  // namespace

bool is_utf8(std::string_view text) noexcept {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    const std::size_t size = text.size();
    std::size_t at = 0;
    while (at < size) {
        // Names and categories are nearly always ASCII: eight bytes at a time.
        while (at + sizeof(std::uint64_t) <= size) {
            std::uint64_t word;
            std::memcpy(&word, bytes + at, sizeof(word));
            if ((word & 0x8080808080808080ULL) != 0) break;
            at += sizeof(word);
        }
        while (at < size && bytes[at] < 0x80) ++at;
        if (at == size) break;
        const std::size_t length = sequence_length(bytes + at, size - at);
        if (length == 0) return false;
        at += length;
    }
    return true;
}

}  // namespace trimtab
