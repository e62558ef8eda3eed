// Requests: the messages in DATA frames, and to whom they go. Everything that can be refused is refused here, before it
// is stored: afterwards the rest of the stream is thrown away as it comes.
#include <algorithm>
#include <cstring>

#include "front_thread.h"
#include "http2_connection.h"

namespace trimtab {
namespace {

constexpr std::size_t kFirstBody = 64 << 10;  // memory for a message before more of it has come
constexpr std::size_t kLargeBody = 1 << 20;

// Room for a message of which `have` bytes have come. Large ones take more at once: pages that nothing is written to
// cost nothing, whereas each smaller buffer on the way leaves a hole in the heap.
std::size_t room_for(std::size_t have, std::size_t length, std::size_t capacity) {
    return std::min(length, std::max({have, capacity * (capacity < kLargeBody ? 2 : 8), kFirstBody}));
}

}  // namespace

void Connection::on_data(Call& call, std::span<const std::uint8_t> data) {
    if (call.finished || call.finishing) return;
    const std::size_t came = data.size();
    call.came += came;
    while (!data.empty()) {
        if (!fill(call, data)) return;
    }
    // What is not used up withholds its window, until on_read() or on_answer().
    const bool stream = call.local->route->streams_in();
    if (stream && holds_window(call)) {
        call.withheld += came;
    } else if (call.filling != nullptr || stream) {
        nghttp2_session_consume_stream(session_, call.stream, came);
    }
    if (stream && !call.stall.linked() && (call.filling != nullptr || call.prefix_bytes != 0)) watch_message(call);
}

void Connection::watch_message(Call& call) {
    call.stall.since = thread_.now();
    call.came_before = call.came;
    thread_.stalled().push_back(call.stall);
}

bool Connection::holds_window(const Call& call) const {
    const FrontLimits& limits = thread_.limits();
    if (call.hot()) return call.under_way.size() >= static_cast<std::size_t>(limits.stream_requests);
    // A message that is larger than the window needs more of it, but not while others wait to be read.
    return call.unread > 0 && (call.filling == nullptr || call.unread > static_cast<std::size_t>(limits.stream_window));
}

void Connection::give_window(Call& call) {
    nghttp2_session_consume_stream(session_, call.stream, std::exchange(call.withheld, 0));
    thread_.touch(*this);
}

// Takes bytes of one message. False: the call was refused.
bool Connection::fill(Call& call, std::span<const std::uint8_t>& data) {
    if (call.filling == nullptr) {
        const std::size_t part = std::min(call.prefix.size() - call.prefix_bytes, data.size());
        std::memcpy(call.prefix.data() + call.prefix_bytes, data.data(), part);
        call.prefix_bytes = static_cast<std::uint8_t>(call.prefix_bytes + part);
        data = data.subspan(part);
        if (call.prefix_bytes < call.prefix.size()) return true;
        if (!begin_message(call)) return false;
    }
    Buffer<char>& body = call.filling->body;
    const std::size_t have = body.size();
    const std::size_t part = std::min(call.length - have, data.size());
    if (part > 0) {
        if (!charge(call, part)) return false;
        if (body.capacity() < have + part)
            body.reserve(room_for(have + part, call.length, body.capacity()));
        body.resize(have + part);
        std::memcpy(body.data() + have, data.data(), part);
        data = data.subspan(part);
    }
    return body.size() < call.length || end_message(call);
}

bool Connection::begin_message(Call& call) {
    const auto& prefix = call.prefix;
    call.length = (static_cast<std::uint32_t>(prefix[1]) << 24) | (static_cast<std::uint32_t>(prefix[2]) << 16) |
                  (static_cast<std::uint32_t>(prefix[3]) << 8) | prefix[4];
    call.compressed = prefix[0] == 1;
    const auto most = static_cast<std::uint64_t>(thread_.limits().max_message_bytes);
    if (call.whole != nullptr) {
        finish(call, StatusCode::unimplemented, "expected one message, and a second one came");
    } else if (prefix[0] > 1) {
        finish(call, StatusCode::internal, "a message with an unknown compression flag");
    } else if (call.compressed && !call.gzip_in) {
        finish(call, StatusCode::internal, "a compressed message in a call without grpc-encoding");
    } else if (call.length > most) {
        finish(call, StatusCode::resource_exhausted,
               "a message of " + std::to_string(call.length) + " bytes is larger than this server takes (" +
                   std::to_string(most) + ")");
    } else {
        call.filling = thread_.take_request(*call.local);
        call.filling->body.clear();
        return true;
    }
    return false;
}

bool Connection::charge(Call& call, std::size_t bytes) {
    const auto more = static_cast<std::int64_t>(bytes);
    if (held_ + more > thread_.limits().connection_bytes || !thread_.find_room(*this, more)) {
        finish(call, StatusCode::resource_exhausted, "as many bytes of requests are under way as this server takes");
        return false;
    }
    held_ += more;
    call.charged += bytes;
    call.message_charged += bytes;
    thread_.charge(more);
    return true;
}

std::int64_t Connection::weight() const { return held_ + unsent_ + call_count_ * kCallCost; }

void Connection::give_way() {
    // Answers that its socket does not take would stay, and so would calls until their client has closed them.
    if (!leftover_.empty() || held_ + unsent_ < weight() / 2) return reset();
    end_calls(StatusCode::resource_exhausted,
              "as many bytes are under way as this server takes, and this connection has most of them");
}

void Connection::uncharge(Call& call, std::size_t bytes) {
    bytes = std::min(bytes, call.charged);
    call.charged -= bytes;
    held_ -= static_cast<std::int64_t>(bytes);
    thread_.charge(-static_cast<std::int64_t>(bytes));
}

bool Connection::end_message(Call& call) {
    HotRequest* message = std::exchange(call.filling, nullptr);
    call.prefix_bytes = 0;
    if (call.stall.linked() && call.local->route->streams_in()) call.stall.unlink();
    call.mirror_gzip = call.compressed;
    if (call.compressed) {
        Buffer<char> content;
        const auto most = static_cast<std::size_t>(thread_.limits().max_message_bytes);
        const Inflated result = thread_.gzip().inflate(message->body, most, content);
        message->body.swap(content);
        if (result != Inflated::good) {
            thread_.give_request(call.local, message);
            if (result == Inflated::too_large) {
                finish(call, StatusCode::resource_exhausted,
                       "a decompressed message is larger than this server takes (" + std::to_string(most) + ")");
            } else {
                finish(call, StatusCode::internal, "a compressed message that is no gzip");
            }
            return false;
        }
        const std::size_t size = message->body.size();
        if (size < call.message_charged) uncharge(call, call.message_charged - size);
        if (size > call.message_charged && !charge(call, size - call.message_charged)) {
            thread_.give_request(call.local, message);
            return false;
        }
    }
    call.message_charged = 0;
    if (!call.local->route->streams_in()) {
        call.whole = message;
    } else if (call.hot()) {
        dispatch(call, message);
    } else {
        // Empty messages take memory, too.
        call.unread += message->body.size() + kMessageCost;
        if (!charge(call, kMessageCost)) {
            thread_.give_request(call.local, message);
            return false;
        }
        call.message_charged = 0;
        thread_.post({EventKind::message, call.id, 0, std::unique_ptr<HotRequest>(message), nullptr});
    }
    return true;
}

void Connection::on_half_closed(Call& call) {
    if (call.stall.linked()) call.stall.unlink();
    if (call.finished || call.finishing) return;
    if (call.filling != nullptr || call.prefix_bytes != 0) {
        return finish(call, StatusCode::internal, "the request ended within a message");
    }
    if (call.local->route->streams_in()) {
        if (!call.hot()) {
            thread_.post({EventKind::half_closed, call.id, 0, nullptr, nullptr});
        } else if (call.under_way.empty()) {
            finish(call, StatusCode::ok, "");
        }
    } else if (call.whole == nullptr) {
        finish(call, StatusCode::unimplemented, "expected one message, and none came");
    } else if (call.hot()) {
        dispatch(call, std::exchange(call.whole, nullptr));
    } else {
        hand_over(call, std::exchange(call.whole, nullptr));
    }
}

// --- to whoever answers

void Connection::hand_over(Call& call, HotRequest* message) {
    auto info = std::make_unique<CallInfo>();
    info->handler = call.local->route->handler;
    info->deadline = call.deadline;
    info->metadata = std::move(call.metadata);
    call.metadata.clear();
    info->connection = info_;
    call.id = thread_.name_call(call);
    call.handed_over = true;
    ++*in_python_;
    thread_.post({EventKind::call, call.id, 0, std::unique_ptr<HotRequest>(message), std::move(info)});
}

void Connection::dispatch(Call& call, HotRequest* message) {
    message->call = reinterpret_cast<std::uintptr_t>(&call);
    message->deadline = call.deadline;
    message->arrived = thread_.now();
    message->in_stream = call.local->route->streams_in();
    if (call.local->route->target->traces()) message->traceparent = call.traceparent;
    call.under_way.push_back(message);
    thread_.submit(*call.local, message);
}

// The handler of a stream has taken messages of so many bytes.
void Connection::on_read(Call& call, std::size_t bytes) {
    bytes = std::min(bytes, call.unread);
    call.unread -= bytes;
    uncharge(call, bytes);
    if (call.withheld > 0 && call.unread <= static_cast<std::size_t>(thread_.limits().stream_window) / 2)
        give_window(call);
}

// What was received and not handed on.
void Connection::drop_input(Call& call) {
    if (call.stall.linked()) call.stall.unlink();
    if (call.filling != nullptr) thread_.give_request(call.local, std::exchange(call.filling, nullptr));
    if (call.whole != nullptr) thread_.give_request(call.local, std::exchange(call.whole, nullptr));
}

// Nobody waits for the answer any more: takes the call back from whoever was asked.
void Connection::withdraw(Call& call, StatusCode why) {
    TimerWheel::remove(call);
    drop_input(call);
    if (std::exchange(call.withdrawn, true)) return;
    // cancel() may deliver at once, which is kept for later: under_way does not change meanwhile.
    for (HotRequest* request : call.under_way) call.local->route->target->cancel(request, why);
    if (call.handed_over) {
        call.handed_over = false;
        thread_.abandon_call(call.id, in_python_);
        thread_.post({EventKind::cancelled, call.id, static_cast<std::int64_t>(why), nullptr, nullptr});
    }
    uncharge(call, call.charged);
}

void Connection::expire(Call& call) { cut(call, StatusCode::deadline_exceeded, "the deadline has passed"); }

void Connection::on_stall(Call& call) {
    const FrontLimits& limits = thread_.limits();
    const auto least = static_cast<std::uint64_t>(std::max(limits.message_rate * limits.message_seconds, 1.0));
    // Where it is we who keep the rest back, nobody is slow.
    if (paused_ || call.withheld > 0 || call.came - call.came_before >= least) return watch_message(call);
    cut(call, StatusCode::deadline_exceeded, "the request's message came too slowly, or did not come on");
}

}  // namespace trimtab
