// Which requests are traced, and what is known of those that were: decisions and a bounded list, nothing of OpenTelemetry.
// server/tracing.py makes the spans.
//
// A request with a valid W3C traceparent is traced where that says "sampled", and never where it does not; one without is
// traced by chance. Both within so many a second: what is beyond is counted and not traced. A traceparent that is malformed
// counts as none, as the W3C's recommendation has it.
//
// Threads: begin() on those that submit, end() on those that answer, drain() on whoever makes spans; one lock, which
// requests that are not traced never take.
// A span belongs to its request from begin() to end(), then to this list, then to whoever drains it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "hot_request.h"
#include "request_ids.h"
#include "statistics.h"

namespace trimtab {

struct TraceContext {
    std::array<std::uint8_t, 16> trace{};
    std::array<std::uint8_t, 8> parent{};  // zeros: none, this request is a trace's root
    bool sampled = false;
};

// Longer ones are not kept. Version 00 has 55 characters; later ones may have more.
inline constexpr std::size_t kLongestTraceparent = 256;

// False where it is malformed; `context` is then as it was.
bool parse_traceparent(std::string_view text, TraceContext& context) noexcept;

// So many a second, counted by whole seconds from the first.
class SecondLimit {
  public:
    explicit SecondLimit(std::uint32_t most) : most_(most) {}
    bool admit(std::int64_t now);  // ns of the monotonic clock; one that goes back a little does no harm

  private:
    std::uint32_t most_;
    std::uint32_t used_ = 0;
    std::int64_t began_ = 0;
    bool begun_ = false;
};

// What is known of one traced request. Instants are ns of the monotonic clock; 0: it never came so far.
struct Span {
    TraceContext context;
    std::string model;  // empty: none that is here
    std::uint32_t version = 0;
    std::uint32_t rows = 0;
    std::uint32_t batch_rows = 0;
    bool in_stream = false;
    StatusCode status = StatusCode::ok;
    RequestId id{};
    std::int64_t arrived = 0;
    BatchMarks marks;
    std::int64_t ended = 0;
};

class Tracing {
  public:
    // `ratio`: share of requests without a traceparent; `capacity`: most spans that wait to be drained.
    Tracing(double ratio, std::uint32_t per_second, std::size_t capacity);

    std::unique_ptr<Span> begin(std::string_view traceparent, std::int64_t now) noexcept;  // null: not traced
    void end(std::unique_ptr<Span> span) noexcept;
    std::vector<std::unique_ptr<Span>> drain();

    std::uint64_t over_rate() const { return over_rate_.load(std::memory_order_relaxed); }
    std::uint64_t over_capacity() const { return over_capacity_.load(std::memory_order_relaxed); }

  private:
    bool decide(std::string_view traceparent, TraceContext& context) noexcept;

    const double ratio_;
    const std::size_t capacity_;
    std::array<std::uint64_t, 2> seeds_{};
    std::atomic<std::uint64_t> roots_{0};
    std::atomic<std::uint64_t> over_rate_{0};
    std::atomic<std::uint64_t> over_capacity_{0};
    std::mutex lock_;
    SecondLimit limit_;
    std::vector<std::unique_ptr<Span>> ended_;
};

}  // namespace trimtab
