// A hot message on its way: made and filled by a transport, queued, computed and answered by whoever serves it, and
// sent by the transport again. Hot are ModelInfer, each message of a ModelStreamInfer, and unary Feedback: the calls
// that must not cross Python one by one.
//
// Ownership goes with the pointer: origin -> HotTarget::submit -> Origin::deliver -> origin. For each submit there is
// exactly one deliver, from any thread, which may be the submitting one before submit() returns (a refusal). A cancelled
// request is delivered too, so that its memory comes home; its answer is then thrown away.
//
// Requests are reused with all their memory: no allocation per request once a connection is warm. Whoever reuses one
// trims buffers that an unusually large message has left behind.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "buffer.h"

namespace trimtab {

inline constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

class Origin;

// Numbers of gRPC's statuses.
enum class StatusCode : std::uint8_t {
    ok, cancelled, unknown, invalid_argument, deadline_exceeded, not_found, already_exists, permission_denied,
    resource_exhausted, failed_precondition, aborted, out_of_range, unimplemented, internal, unavailable, data_loss,
    unauthenticated,
};

// Why a client gave up a call at `now`. Clients end their calls by their own clocks, at a deadline that is a little
// earlier than the server's: it began to count later, and from a timeout that gRPC rounds up by as much as 1 %.
inline StatusCode given_up(std::int64_t now, std::int64_t deadline, std::int64_t timeout) {
    if (deadline == kNever) return StatusCode::cancelled;
    const std::int64_t early = timeout / 100 + std::min<std::int64_t>(timeout / 2, 5'000'000);
    return now >= deadline - early ? StatusCode::deadline_exceeded : StatusCode::cancelled;
}

struct HotRequest {
    HotRequest() = default;
    HotRequest(const HotRequest&) = delete;
    HotRequest& operator=(const HotRequest&) = delete;
    virtual ~HotRequest() = default;

    // --- set by the origin before submit()
    Origin* origin = nullptr;
    std::uint64_t call = 0;          // the origin's own name for the call
    Buffer<char> body;               // the message, without gRPC's prefix, decompressed
    std::int64_t deadline = kNever;  // of the call; ns of CLOCK_MONOTONIC
    std::int64_t arrived = 0;        // when the message was complete; likewise
    bool in_stream = false;          // of ModelStreamInfer: answers and errors go inside ModelStreamInferResponse
    std::string traceparent;         // W3C trace context, where the client sent one and the target traces()

    // --- set by the target before deliver()
    StatusCode status = StatusCode::ok;
    std::string message;  // of a status other than ok; UTF-8
    Buffer<char> answer;  // the message to send, without gRPC's prefix

    HotRequest* next = nullptr;  // for lists of the current owner
};

// Where requests come from and answers go to.
class Origin {
  public:
    virtual ~Origin() = default;
    // Any thread. Takes the requests; all answers of a batch for one origin come in one call. Must not block, must not
    // call back into the target.
    virtual void deliver(std::span<HotRequest* const> requests) noexcept = 0;
};

// What serves hot messages: the hub of all models, the group queue of Feedback, an echo.
class HotTarget {
  public:
    virtual ~HotTarget() = default;
    virtual std::unique_ptr<HotRequest> make() = 0;  // a request of the target's own kind, for the origin to fill
    virtual void submit(HotRequest* request) noexcept = 0;
    // Ends a burst of submits: wakes whoever computes, once.
    virtual void flush() noexcept = 0;
    // The caller is gone or its deadline passed; `why` says which. If the request still waits, it is taken out and
    // delivered before this returns (or once those before it are, where order is preserved); if it is being computed,
    // nothing happens and its answer comes as usual. Called on the thread that submits for this origin, and only for
    // requests that were submitted and not delivered yet to the caller's knowledge.
    virtual void cancel(HotRequest* request, StatusCode why) noexcept = 0;

    // Whether a submit may now copy much that is not in its message (shared memory), and wait for it: no lock should be
    // held meanwhile.
    virtual bool copies() const noexcept { return false; }

    // Whether it looks at traceparents; otherwise nobody need copy them. Does not change once requests come.
    bool traces() const { return traces_; }

    // Keeps an origin for as long as requests of it may be under way: for ever.
    void keep(std::shared_ptr<Origin> origin) { kept_.push_back(std::move(origin)); }

  protected:
    bool traces_ = false;

  private:
    std::vector<std::shared_ptr<Origin>> kept_;
};

}  // namespace trimtab
