#include "grpc_text.h"

#include <array>
#include <limits>

namespace trimtab {
namespace {

constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

constexpr std::array<std::int8_t, 256> make_values() {
    std::array<std::int8_t, 256> values{};
    for (auto& value : values) value = -1;
    for (int i = 0; i < 64; ++i) values[static_cast<unsigned char>(kAlphabet[i])] = static_cast<std::int8_t>(i);
    return values;
}
constexpr std::array<std::int8_t, 256> kValues = make_values();

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

}  // namespace

std::optional<std::int64_t> parse_timeout(std::string_view text) {
    if (text.size() < 2 || text.size() > 9) return std::nullopt;
    std::int64_t value = 0;
    for (const char c : text.substr(0, text.size() - 1)) {
        if (c < '0' || c > '9') return std::nullopt;
        value = value * 10 + (c - '0');
    }
    std::int64_t unit = 0;
    switch (text.back()) {
        case 'H': unit = 3'600'000'000'000; break;
        case 'M': unit = 60'000'000'000; break;
        case 'S': unit = 1'000'000'000; break;
        case 'm': unit = 1'000'000; break;
        case 'u': unit = 1'000; break;
        case 'n': unit = 1; break;
        default: return std::nullopt;
    }
    // Far enough away to be never; also, no sum with the clock overflows.
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max() / 4;
    return value > most / unit ? most : value * unit;
}

void percent_encode(std::string_view text, std::size_t limit, std::string& out) {
    constexpr char digits[] = "0123456789ABCDEF";
    out.clear();
    std::size_t character = 0;  // where the encoding of the current character begins
    for (const char c : text) {
        if (!continues(c)) character = out.size();
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte <= 0x7E && c != '%') {
            out += c;
        } else {
            out += {'%', digits[byte >> 4], digits[byte & 0xFU]};
        }
        if (out.size() > limit) {
            out.resize(character);
            return;
        }
    }
}

std::optional<std::string> base64_decode(std::string_view text) {
    for (int i = 0; i < 2 && !text.empty() && text.back() == '='; ++i) text.remove_suffix(1);
    if (text.size() % 4 == 1) return std::nullopt;
    std::string out;
    out.reserve(text.size() * 3 / 4);
    std::uint32_t bits = 0;
    int count = 0;
    for (const char c : text) {
        const std::int8_t value = kValues[static_cast<unsigned char>(c)];
        if (value < 0) return std::nullopt;
        bits = (bits << 6) | static_cast<std::uint32_t>(value);
        count += 6;
        if (count >= 8) {
            count -= 8;
            out += static_cast<char>((bits >> count) & 0xFFU);
        }
    }
    return out;
}

std::string base64_encode(std::string_view bytes) {
    std::string out;
    out.reserve(bytes.size() * 4 / 3 + 2);
    std::uint32_t bits = 0;
    int count = 0;
    for (const char c : bytes) {
        bits = (bits << 8) | static_cast<unsigned char>(c);
        count += 8;
        while (count >= 6) {
            count -= 6;
            out += kAlphabet[(bits >> count) & 63U];
        }
    }
    if (count > 0) out += kAlphabet[(bits << (6 - count)) & 63U];
    return out;
}

bool valid_metadata(std::string_view name, std::string_view value) {
    if (name.empty() || name.size() > 1024) return false;
    for (const char c : name) {
        const bool good = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.';
        if (!good) return false;
    }
    if (name.starts_with("grpc-") || name == "connection" || name == "transfer-encoding" || name == "te" ||
        name == "content-type" || name == "keep-alive" || name == "upgrade" || name == "proxy-connection" ||
        name == "host" || name == "content-length")
        return false;
    if (is_binary(name)) return true;
    for (const char c : value) {
        if (c < 0x20 || c > 0x7E) return false;
    }
    return value.empty() || (value.front() != ' ' && value.back() != ' ');
}

}  // namespace trimtab
