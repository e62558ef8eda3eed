#include "errors.h"

#include <cstddef>

namespace trimtab {

std::string quote(std::string_view text) {
    constexpr std::size_t limit = 80;
    std::string quoted = "\"";
    const auto escape = [&](unsigned char code) {
        constexpr char digits[] = "0123456789abcdef";
        quoted += {'\\', 'x', digits[code >> 4], digits[code & 0xFU]};
    };
    for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        const bool starts_character = (byte & 0xC0U) != 0x80U;
        if (i >= limit && starts_character) return quoted + "…\"";
        const auto next = static_cast<unsigned char>(i + 1 < text.size() ? text[i + 1] : 0);
        if (byte < 0x20 || byte == 0x7F) {
            escape(byte);
        } else if (byte == 0xC2 && next < 0xA0) {  // U+0080 to U+009F, control characters too
            escape(next);
            ++i;
        } else {
            if (byte == '"' || byte == '\\') quoted += '\\';
            quoted += text[i];
        }
    }
    return quoted + '"';
}

}  // namespace trimtab
