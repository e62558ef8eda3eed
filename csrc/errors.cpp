#include "errors.h"

#include <cstddef>

namespace trimtab {

std::string quote(std::string_view text) {
    constexpr std::size_t limit = 80;
    constexpr char digits[] = "0123456789abcdef";
    std::string quoted = "\"";
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        const bool starts_character = (byte & 0xC0U) != 0x80U;
        if (i >= limit && starts_character) return quoted + "…\"";
        if (byte < 0x20 || byte == 0x7F) {
            quoted += "\\x";
            quoted += digits[byte >> 4];
            quoted += digits[byte & 0xFU];
        } else {
            if (byte == '"' || byte == '\\') quoted += '\\';
            quoted += text[i];
        }
    }
    return quoted + '"';
}

}  // namespace trimtab
