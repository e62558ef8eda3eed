// A call on a stream, and the table of methods that it is looked up in. Everything here belongs to one I/O thread.
//
// A call is taken from its thread's free list when its HEADERS begin, and goes back when its stream is closed *and* all
// its hot requests have come home: until then it is an orphan without a connection.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "front_timers.h"
#include "hot_request.h"

namespace trimtab {

class Connection;

using Metadata = std::vector<std::pair<std::string, std::string>>;

enum class CallKind : std::uint8_t { unary, client_stream, server_stream, duplex };

// How a call's answers go out, where the client takes gzip.
enum class Compression : std::uint8_t {
    mirror,  // compressed if they are large and the request was so
    none,
    gzip,
};

// One method of a listener. Immutable once the front has started.
struct Route {
    std::string path;   // "/package.Service/Method"
    std::string label;  // "Service/Method"
    CallKind kind = CallKind::unary;
    bool accepted = false;              // draining waits for its calls
    std::int64_t handler = -1;          // what Python knows it by
    std::shared_ptr<HotTarget> target;  // of hot methods; the others go to Python

    bool hot() const { return target != nullptr; }
    bool streams_in() const { return kind == CallKind::client_stream || kind == CallKind::duplex; }
    bool streams_out() const { return kind == CallKind::server_stream || kind == CallKind::duplex; }
};

// Counts in something that only this thread writes.
template <class T>
void bump(std::atomic<T>& count) {
    count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

// A route as one thread sees it.
struct LocalRoute {
    const Route* route = nullptr;
    HotRequest* free = nullptr;  // requests of the route's target, for reuse
    std::size_t free_count = 0;
    bool submitted = false;  // in this wake-up, and not flushed yet
    // Written by the thread, read by any.
    std::array<std::atomic<std::uint64_t>, 17> ended{};
    std::atomic<std::int64_t> begun{0};
    std::atomic<std::int64_t> closed{0};
};

struct Call;

// A place in a list of calls.
struct CallLink : Link {
    Call* call = nullptr;
    std::int64_t since = 0;
};

struct Call : Timer {
    Call() { open.call = stall.call = this; }

    Connection* connection = nullptr;  // none once the stream is closed
    LocalRoute* local = nullptr;       // none for an unknown method
    std::int32_t stream = 0;
    std::uint64_t id = 0;  // what Python knows it by; 0 for hot ones
    CallLink open;         // in the list of the connection's calls
    CallLink stall;        // in the list of calls with an incomplete message, the one not looked at for longest first

    // --- the request's headers
    bool post = false;
    bool grpc = false;   // the content type is gRPC's
    bool timed = false;  // it has a grpc-timeout
    bool bad_timeout = false;
    bool bad_te = false;  // "te" is something else than "trailers"
    bool bad_metadata = false;
    bool gzip_in = false;
    bool gzip_out = false;  // the client takes it
    std::size_t header_bytes = 0;
    std::int64_t timeout = 0;  // ns; 0: none
    std::int64_t deadline = kNever;
    std::string encoding;  // an unknown one
    std::string path;      // of an unknown method
    std::string traceparent;
    Metadata metadata;

    // --- the request's messages
    std::uint8_t prefix_bytes = 0;
    std::array<std::uint8_t, 5> prefix{};
    bool compressed = false;          // the current message
    bool mirror_gzip = false;         // the last message came compressed: so goes the answer
    bool half_closed = false;         // the client has sent all
    bool counted = false;             // among those that draining waits for
    bool handed_over = false;         // Python knows of it
    bool withdrawn = false;           // nobody is to answer any more
    std::uint64_t came = 0;           // bytes of messages and their prefixes
    std::uint64_t came_before = 0;    // the same when `stall` was last looked at
    std::uint32_t length = 0;         // of the current message
    std::size_t charged = 0;          // bytes of all messages that are charged to the connection
    std::size_t message_charged = 0;  // of the current one
    HotRequest* filling = nullptr;    // the current message
    HotRequest* whole = nullptr;      // the message of a unary request, until the client has sent all
    std::size_t unread = 0;           // bytes of whole messages that Python has not read
    std::size_t withheld = 0;         // bytes for which no window was given back
    std::vector<HotRequest*> under_way;

    // --- the response
    bool responded = false;  // headers were submitted
    bool gzip_sent = false;  // and they promise gzip
    bool plain = false;      // the next message goes out as it is
    Compression compression = Compression::mirror;
    bool deferred = false;   // the session waits for more
    bool finishing = false;  // after what is queued come the trailers
    bool finished = false;   // trailers were submitted, or the stream was reset
    StatusCode status = StatusCode::ok;
    std::string message;
    Metadata initial, trailing;
    HotRequest* out_first = nullptr;
    HotRequest* out_last = nullptr;
    std::size_t out_offset = 0;    // into the first one, prefix included
    std::size_t out_bytes = 0;     // of all, prefixes included
    std::uint64_t sent_bytes = 0;  // of messages, without prefixes
    std::uint64_t sent_told = 0;   // the same, as Python was told

    bool hot() const { return local != nullptr && local->route->hot(); }
    void reset();  // to what a new one is, memory kept; it is in no list and holds no request
};

}  // namespace trimtab
