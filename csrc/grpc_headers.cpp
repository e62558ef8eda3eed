// Requests' headers: what a call is, and whether it can be one of ours.
#include <algorithm>

#include "front_thread.h"
#include "grpc_text.h"
#include "http2_connection.h"
#include "tracing.h"

namespace trimtab {
namespace {

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
                if (call.hot()) {
                    const bool wanted = call.local->route->target->traces() && value.size() <= kLongestTraceparent;
                    // Of two, nobody can say which is meant: no valid one.
                    if (wanted) call.traceparent = call.traceparent.empty() ? value : "-";
                    return;
                }
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
    } else if (!thread_.find_room(*this, 0) || (!call.hot() && *in_python_ > 2 * thread_.limits().streams)) {
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
        watch_message(call);  // a single request is within a message from its headers on
    }
}

}  // namespace trimtab
