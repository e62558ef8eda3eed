// The native front: HTTP/2 (nghttp2) and gRPC for many clients, without Python.
//
//     sockets ──▶ I/O thread: stream (plain, TLS) → frame meter → nghttp2 session → gRPC call ──▶ HotTarget
//                     ▲                                                              │    answers: Origin::deliver
//                     └──────────────── commands ◀── asyncio loop ◀── events ────────┘    (a hot method, or any other)
//
// Threads. N I/O threads, each an edge-triggered epoll loop with listening sockets of its own (SO_REUSEPORT; a Unix
// socket belongs to the first). A connection stays on the thread that accepted it, with its session, calls and
// memory: threads share nothing but mailboxes, and numbers that are bounded in total.
// A wake-up reads what its sockets have (256 KiB at a time), submits all whole requests to their HotTarget, calls its
// flush() once, and sends what there is to answer: one write per connection. Answers from other threads come into
// the mailbox under one lock and one eventfd write per batch, and are sent the same way. I/O threads never take
// the GIL, never block, and allocate nothing per hot request once they are warm (but for what nghttp2 does).
//
// Hot methods (Route::target) stay in C++. Every other call is an event to the asyncio loop, whose answers are
// commands: front_bridge.h.
//
// Bounds: front_limits.h. Where each is enforced: floods of cheap frames in http2_meter.h, before the session; headers
// in grpc_headers.cpp; message sizes and bytes under way in grpc_requests.cpp; slow headers, idle time and age in
// Connection::sweep, slow messages in on_stall; data for calls that are over in Connection::ignores_resets; that nobody
// keeps others out by holding all there is in IoThread::find_room; connections where they are accepted.
//
// Lifetimes. A request that was submitted always comes back by deliver(); its call waits for it, also when the
// connection is gone. close() ends the threads when all have come back, so whoever serves hot methods must answer or
// refuse what it holds before or during close().
//
// Turned down: one thread that accepts for all (a hop for each connection, and no even load); a thread pool over shared
// connections (locks on every frame); letting nghttp2 send window updates by itself (the handler of a stream could not
// hold its client back).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "front_bridge.h"
#include "front_limits.h"
#include "front_thread.h"

namespace trimtab {

class Front {
  public:
    static constexpr std::int64_t kCloseTimeout = 5'000'000'000;

    Front(const FrontLimits& limits, std::size_t threads);  // throws std::system_error
    Front(const Front&) = delete;
    Front& operator=(const Front&) = delete;
    ~Front() { close(kCloseTimeout); }

    // Before start(). One socket a thread, or fewer (the rest do not listen there); all are bound and listening.
    void listen(std::uint64_t index, std::shared_ptr<const Offer> offer, std::vector<Descriptor> sockets);
    void start();
    // No new calls on a listener; those under way have `grace` ns. Each thread tells by an event when it is done.
    void stop(std::uint64_t index, std::int64_t grace);
    void watch_idle();
    // Ends all listeners at once and joins the threads. False: some request has not come back within so many ns; the
    // thread that waits for it is left behind, with its memory, so that it may still come.
    bool close(std::int64_t timeout);

    Bridge& bridge() { return *bridge_; }
    std::size_t threads() const { return threads_.size(); }
    void command(std::vector<Command> commands);  // sorts them to their threads

    struct Ended {
        std::string label;
        std::size_t status;
        std::uint64_t count;
    };
    std::vector<Ended> ended() const;                       // hot calls
    std::pair<std::int64_t, std::int64_t> counted() const;  // hot calls that draining waits for: under way, ended
    std::int64_t connections() const { return totals_->connections.load(std::memory_order_relaxed); }
    std::int64_t bytes() const;

  private:
    void tell(CommandKind kind, std::uint64_t id, std::int64_t number);

    std::shared_ptr<Bridge> bridge_;
    std::shared_ptr<FrontTotals> totals_;
    std::vector<std::unique_ptr<IoThread>> threads_;
    bool started_ = false;
};

}  // namespace trimtab
