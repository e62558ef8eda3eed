// The way between I/O threads and the asyncio loop for every call that is not hot. Events go to Python through one
// list and one eventfd, commands come back through each I/O thread's mailbox: a burst is one lock and one wake-up
// either way. I/O threads never take the GIL.
//
// A call's life as Python sees it: `call`, then `message`s and `half_closed` where the client streams (a single request
// comes with `call`), `sent` as its answers leave, and at most one `cancelled`. It ends with Python's `finish`, also
// after `cancelled`; what refers to a call that has ended on the other side is ignored by either.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "front_call.h"
#include "hot_request.h"
#include "net_stream.h"

namespace trimtab {

// What calls of one connection share.
struct ConnectionInfo {
    std::string peer;  // as grpc names it: "ipv4:127.0.0.1:50000"
    PeerIdentity identity;
};

enum class EventKind : std::uint8_t {
    call,         // info, and the message of a single request
    message,      // of a stream
    half_closed,  // the client has sent all
    sent,         // number: bytes of this call's messages that have left, in all
    cancelled,    // by the client, a passed deadline, or the end of the connection; number: the status to count
    stopped,      // number: a listener of which one thread has closed the last connection
    idle,         // no hot call that draining waits for is under way on one thread
};

struct CallInfo {
    std::int64_t handler = -1;
    std::int64_t deadline = kNever;
    Metadata metadata;
    std::shared_ptr<const ConnectionInfo> connection;
};

struct Event {
    EventKind kind = EventKind::call;
    std::uint64_t id = 0;
    std::int64_t number = 0;
    std::unique_ptr<HotRequest> message;
    std::unique_ptr<CallInfo> info;
};

enum class CommandKind : std::uint8_t {
    headers,     // initial metadata, now
    message,     // to send
    read,        // number: bytes of messages that the handler has taken
    finish,      // status, text, trailing metadata; with a message: the answer
    stop,        // listener `id`: no new calls; those under way have `number` ns
    watch_idle,  // an event `idle` as soon as it is so
    quit,        // end the thread once it has nothing left to do
};

struct Command {
    CommandKind kind = CommandKind::finish;
    std::uint64_t id = 0;
    std::int64_t number = 0;
    StatusCode status = StatusCode::ok;
    std::string text;
    Metadata metadata;
    Compression compression = Compression::mirror;  // as the handler wants it by now
    bool plain = false;                             // this one message is not compressed
    std::unique_ptr<HotRequest> message;
};

// Events for Python, from all I/O threads.
class Bridge {
  public:
    Bridge();

    int descriptor() const { return wake_.get(); }
    void post(std::vector<Event>& events);  // any thread; leaves it empty
    std::vector<Event> take();              // any thread

  private:
    Descriptor wake_;
    std::mutex mutex_;
    std::vector<Event> events_;
};

}  // namespace trimtab
