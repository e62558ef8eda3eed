// gRPC's small encodings: timeouts, percent-encoded messages, base64 of binary metadata. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trimtab {

// Nanoseconds of a grpc-timeout ("1H", "250m": up to 8 digits and one of HMSmun); none if it is malformed.
std::optional<std::int64_t> parse_timeout(std::string_view text);

// A status message as a header value: bytes outside of 0x20-0x7E, and '%', become %XX. Cut at a character's boundary
// so that the result has at most `limit` bytes.
void percent_encode(std::string_view text, std::size_t limit, std::string& out);

// Standard alphabet; padding may be missing. None if the text is no base64.
std::optional<std::string> base64_decode(std::string_view text);
std::string base64_encode(std::string_view bytes);  // without padding, as gRPC sends it

// Whether name and value may go out as custom metadata: lower-case name of [0-9a-z_.-] that is neither reserved nor a
// connection header; value printable ASCII without spaces at its ends (any bytes where the name ends in "-bin").
bool valid_metadata(std::string_view name, std::string_view value);
inline bool is_binary(std::string_view name) { return name.ends_with("-bin"); }

}  // namespace trimtab
