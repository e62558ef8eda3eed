// What the native front lets a client take, from its first byte on. Every field has a default that is safe on the open
// network; the server gives its own from the settings.
#pragma once

#include <cstdint>

namespace trimtab {

struct FrontLimits {
    // --- sizes, bytes
    std::int64_t max_message_bytes = 64 << 20;  // of one message, before and after decompression
    std::int64_t connection_bytes = 256 << 20;  // received for calls that are not answered, per connection
    std::int64_t total_bytes = 1 << 30;         // the same over all, with answers not yet sent: who has most gives way
    std::int64_t output_bytes = 16 << 20;  // answers not yet sent, per connection: beyond it, no more is read from it
    std::int64_t header_bytes = 16 << 10;  // names and values of a request's headers, 32 bytes more for each
    std::int64_t stream_window = 1 << 20;  // HTTP/2 flow control
    std::int64_t connection_window = 16 << 20;

    // --- numbers
    std::int64_t connections = 16384;
    std::int64_t streams = 1024;         // at once, per connection
    std::int64_t stream_requests = 256;  // messages of one hot stream under way
    double resets_per_second = 200;      // RST_STREAM, and a burst of them
    double reset_burst = 2000;
    double controls_per_second = 500;  // PING, SETTINGS, PRIORITY, CONTINUATION, unknown and empty DATA frames
    double control_burst = 2000;
    double updates_per_second = 100000;  // WINDOW_UPDATE, which clients send with what they receive
    double update_burst = 200000;

    // --- seconds; 0: no bound
    double handshake_seconds = 10;   // from accepting to the first HTTP/2 frame, TLS included
    double header_seconds = 10;      // for a header block, or another frame than DATA, to be complete
    double message_seconds = 30;     // without progress within a message or a frame
    double message_rate = 1024;      // bytes a second, of a message over each message_seconds; 0: a byte will do
    double write_seconds = 60;       // without progress of what waits to be sent
    double idle_seconds = 900;       // without a call
    double keepalive_seconds = 120;  // of silence, after which a ping is sent
    double keepalive_timeout_seconds = 20;
    double age_seconds = 0;         // of a connection, before it is asked to come again
    double age_grace_seconds = 30;  // for its calls after that
};

}  // namespace trimtab
