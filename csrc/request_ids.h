// Request ids: UUIDs of version 7 (RFC 9562), as store/ids.py describes them: 48 bits of milliseconds, 12 bits of
// fractions of one, 62 random bits; the first 60 bits grow strictly within a process, whatever the clock does.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace trimtab {

using RequestId = std::array<std::uint8_t, 16>;
inline constexpr std::size_t kIdText = 36;

// Fills in ids that grow, in their order. Any thread: the growing part is shared by all makers of the process, the random
// part is a thread's own.
void make_request_ids(std::span<RequestId> ids);

// The id as text of kIdText characters, such as 0198f5a2-7b3c-7def-8123-456789abcdef.
void write_request_id(const RequestId& id, char* out);

}  // namespace trimtab
