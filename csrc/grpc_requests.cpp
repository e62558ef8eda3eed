// Requests: headers, and the messages in DATA frames. Everything that can be refused is refused here, before it is
// stored: afterwards the rest of the stream is thrown away as it comes.
#include <algorithm>
#include <cstring>

#include "front_thread.h"
#include "grpc_text.h"
#include "http2_connection.h"

namespace trimtab {
namespace {

constexpr std::size_t kFirstBody = 64 << 10;  // memory for a message before more of it has come

bool is_grpc(std::string_view type) {
    constexpr std::string_view name = "application/grpc";
    return type.starts_with(name) &&
           (type.size() == name.size() || type[name.size()] == '+' || type[name.size()] == ';');
}

bool offers_gzip(std::string_view list) {
    while (!list.empty()) {
        const std::size_t comma = std::min(list.find(','), list.size());
        std::string_view item = list.substr(0, comma);
        list.remove_prefix(std::min(comma + 1, list.size()));
        while (item.starts_with(' ')) item.remove_prefix(1);
        while (item.ends_with(' ')) item.remove_suffix(1);
        if (item == "gzip") return true;
    }
    return false;
}

// The session does not check names and values: most are looked at here only to be compared.
bool is_metadata(std::string_view name, std::string_view value) {
    const auto good_name = [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
    };
    const auto good_value = [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F; };
    return !name.empty() && std::all_of(name.begin(), name.end(), good_name) &&
           std::all_of(value.begin(), value.end(), good_value);
}

}  // namespace

// --- headers

Call& Connection::begin_call(std::int32_t stream) {
    Call& call = thread_.take_call();
    call.connection = this;
    call.stream = stream;
    calls_.push_back(call.open);
    ++call_count_;
    if (linked()) unlink();
    recent_ = &call;
    thread_.charge(kCallCost);
    return call;
}

void Connection::on_header(Call& call, std::string_view name, std::string_view value) {
    if (call.finished) return;
    call.header_bytes += name.size() + value.size() + 32;
    if (call.header_bytes > static_cast<std::size_t>(thread_.limits().header_bytes)) return;  // on_headers refuses
    switch (name.size()) {
        case 2:
            if (name == "te") return void(call.bad_te = value != "trailers");
            break;
        case 5:
            if (name == ":path") {
                if (value != last_path_) {
                    const auto found = listener_.paths.find(value);
                    last_local_ = found == listener_.paths.end() ? nullptr : found->second;
                    last_path_ = value;
                }
                call.local = last_local_;
                if (call.local == nullptr) call.path = value;
                return;
            }
            break;
        case 7:
            if (name == ":method") return void(call.post = value == "POST");
            if (name == ":scheme") return;
            break;
        case 10:
            if (name == ":authority") return;
            break;
        case 11:
            if (name == "traceparent") {
                call.traceparent = value;
                if (call.hot()) return;
            }
            break;
        case 12:
            if (name == "content-type") return void(call.grpc = is_grpc(value));
            if (name == "grpc-timeout") {
                const auto timeout = parse_timeout(value);
                call.timed = true;
                call.bad_timeout = !timeout;
                call.timeout = timeout.value_or(0);
                return;
            }
            break;
        case 13:
            if (name == "grpc-encoding") {
                call.gzip_in = value == "gzip";
                if (!call.gzip_in && value != "identity") call.encoding = value;
                return;
            }
            break;
        case 20:
            if (name == "grpc-accept-encoding") return void(call.gzip_out = offers_gzip(value));
            break;
        default: break;
    }
    if (!call.hot()) on_metadata(call, name, value);
}

void Connection::on_metadata(Call& call, std::string_view name, std::string_view value) {
    if (name.starts_with(':') || name == "content-length") return;
    if (!is_metadata(name, value)) {
        call.bad_metadata = true;
        return;
    }
    if (!is_binary(name)) {
        call.metadata.emplace_back(name, value);
        return;
    }
    // Several values of a binary name may come joined by commas, which are not of the alphabet.
    for (;;) {
        const std::size_t comma = std::min(value.find(','), value.size());
        auto bytes = base64_decode(value.substr(0, comma));
        if (!bytes) {
            call.bad_metadata = true;
            return;
        }
        call.metadata.emplace_back(name, std::move(*bytes));
        if (comma == value.size()) return;
        value.remove_prefix(comma + 1);
    }
}

bool Connection::refuse_headers(Call& call) {
    if (call.header_bytes > static_cast<std::size_t>(thread_.limits().header_bytes)) {
        finish(call, StatusCode::resource_exhausted, "the request's headers are larger than this server takes");
    } else if (thread_.over_budget(0)) {
        finish(call, StatusCode::resource_exhausted, "as many calls are under way as this server takes");
    } else if (!call.post) {
        submit_http_error(call, "405", "gRPC calls are POST");
    } else if (!call.grpc) {
        submit_http_error(call, "415", "this server speaks gRPC: content-type application/grpc");
    } else if (call.bad_te) {
        submit_http_error(call, "400", "te: expected trailers");
    } else if (call.local == nullptr) {
        finish(call, StatusCode::unimplemented, "no method " + call.path.substr(0, 200) + " here");
    } else if (!call.encoding.empty()) {
        finish(call, StatusCode::unimplemented,
               "grpc-encoding " + call.encoding.substr(0, 50) + " is not supported; these are: identity, gzip");
    } else if (call.bad_timeout) {
        finish(call, StatusCode::internal, "malformed grpc-timeout");
    } else if (call.bad_metadata) {
        finish(call, StatusCode::internal, "malformed metadata");
    } else {
        return false;
    }
    return true;
}

void Connection::on_headers(Call& call) {
    if (call.local != nullptr && call.local->route->accepted) {
        call.counted = true;
        bump(call.local->begun);
    }
    if (refuse_headers(call)) return;
    if (call.timed) {
        call.deadline = thread_.now() + call.timeout;
        if (call.timeout <= 0) return expire(call);
        thread_.timers().add(call, call.deadline);
    }
    if (call.local->route->streams_in()) {
        if (!call.hot()) hand_over(call, nullptr);
    } else {
        // A single request is within a message from its headers on.
        call.stall.since = thread_.now();
        thread_.stalled().push_back(call.stall);
    }
}

// --- messages

void Connection::on_data(Call& call, std::span<const std::uint8_t> data) {
    if (call.finished || call.finishing) return;
    const std::size_t came = data.size();
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
    if (!call.stall.linked()) {
        if (!stream || call.filling == nullptr) return;
    } else {
        call.stall.unlink();
        if (stream && call.filling == nullptr && call.prefix_bytes == 0) return;
    }
    call.stall.since = thread_.now();
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
            body.reserve(std::min<std::size_t>(call.length, std::max({have + part, body.capacity() * 2, kFirstBody})));
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
    if (held_ + more > thread_.limits().connection_bytes || thread_.over_budget(more)) {
        finish(call, StatusCode::resource_exhausted, "as many bytes of requests are under way as this server takes");
        return false;
    }
    held_ += more;
    call.charged += bytes;
    call.message_charged += bytes;
    thread_.charge(more);
    return true;
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
    thread_.post({EventKind::call, call.id, 0, std::unique_ptr<HotRequest>(message), std::move(info)});
}

void Connection::dispatch(Call& call, HotRequest* message) {
    message->call = reinterpret_cast<std::uintptr_t>(&call);
    message->deadline = call.deadline;
    message->arrived = thread_.now();
    message->in_stream = call.local->route->streams_in();
    message->traceparent = call.traceparent;
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
void Connection::withdraw(Call& call) {
    TimerWheel::remove(call);
    drop_input(call);
    if (std::exchange(call.withdrawn, true)) return;
    // cancel() may deliver at once, which is kept for later: under_way does not change meanwhile.
    for (HotRequest* request : call.under_way) call.local->route->target->cancel(request);
    if (call.handed_over) {
        call.handed_over = false;
        thread_.forget_call(call.id);
        thread_.post({EventKind::cancelled, call.id, 0, nullptr, nullptr});
    }
    uncharge(call, call.charged);
}

void Connection::expire(Call& call) { cut(call, StatusCode::deadline_exceeded, "the deadline has passed"); }

void Connection::on_stall(Call& call) {
    cut(call, StatusCode::deadline_exceeded, "the request's message did not come on");
}

}  // namespace trimtab
