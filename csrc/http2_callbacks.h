// Between nghttp2's callbacks and a Connection.
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstddef>
#include <cstdint>

#include "front_limits.h"
#include "http2_memory.h"

namespace trimtab {

class Connection;

// A server's session with its first SETTINGS submitted. Throws std::bad_alloc.
// `memory` is the thread's, and outlives the session.
nghttp2_session* new_session(Connection& connection, const FrontLimits& limits, Http2Memory& memory);

// The data source of a response; its `ptr` is the Call.
ssize_t pull_data(nghttp2_session* session, std::int32_t stream, std::uint8_t* buffer, std::size_t length,
                  std::uint32_t* flags, nghttp2_data_source* source, void* user);

}  // namespace trimtab
