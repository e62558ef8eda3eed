// Responses: headers, messages and trailers. What a call has to send waits in its list of requests, whose answers (or
// bodies, if those hold the compressed answers) are copied once, into the thread's output.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "front_thread.h"
#include "grpc_text.h"
#include "http2_callbacks.h"
#include "http2_connection.h"

namespace trimtab {
namespace {

constexpr std::size_t kPrefix = 5;
constexpr std::size_t kMessageLimit = 4000;  // of grpc-message, encoded: clients bound all headers together
constexpr std::size_t kGzipFrom = 1024;      // smaller answers go out as they are
constexpr std::size_t kTellSent = 64 << 10;

constexpr std::uint8_t kStatic = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE;

// Of literals, which live on.
nghttp2_nv field(std::string_view name, std::string_view value) {
    return {reinterpret_cast<std::uint8_t*>(const_cast<char*>(name.data())),
            reinterpret_cast<std::uint8_t*>(const_cast<char*>(value.data())), name.size(), value.size(), kStatic};
}

// Of what is gone after the call.
nghttp2_nv copied(std::string_view name, std::string_view value) {
    nghttp2_nv result = field(name, value);
    result.flags = NGHTTP2_NV_FLAG_NONE;
    return result;
}

nghttp2_nv status_field(StatusCode status) {
    static constexpr std::array<std::string_view, 17> numbers{"0", "1",  "2",  "3",  "4",  "5",  "6",  "7", "8",
                                                              "9", "10", "11", "12", "13", "14", "15", "16"};
    return field("grpc-status", numbers[static_cast<std::size_t>(status) % numbers.size()]);
}

// Custom metadata as header fields. `texts` keeps what base64 made.
void append(std::vector<nghttp2_nv>& fields, const Metadata& metadata, std::vector<std::string>& texts) {
    texts.reserve(texts.size() + metadata.size());  // no string may move once a field points into it
    for (const auto& [name, value] : metadata) {
        if (!is_binary(name)) {
            fields.push_back(copied(name, value));
        } else {
            texts.push_back(base64_encode(value));
            fields.push_back(copied(name, texts.back()));
        }
    }
}

bool promises_gzip(const Call& call) {
    if (!call.gzip_out || call.compression == Compression::none) return false;
    return call.compression == Compression::gzip || call.mirror_gzip;
}

const Buffer<char>& content(const HotRequest& message) { return message.body.empty() ? message.answer : message.body; }

}  // namespace

// --- what is to be sent

void Connection::on_answer(Call& call, HotRequest* answer) {
    const bool stream = call.local->route->streams_in();
    uncharge(call, stream ? answer->body.size() : call.charged);
    if (call.finished || call.finishing) {
        thread_.give_request(call.local, answer);
        return;
    }
    if (call.withheld > 0 && call.under_way.size() <= static_cast<std::size_t>(thread_.limits().stream_requests) / 2)
        give_window(call);
    if (answer->status != StatusCode::ok) {
        finish(call, answer->status, answer->message);
        thread_.give_request(call.local, answer);
        return;
    }
    enqueue(call, answer);
    if (!stream || (call.half_closed && call.under_way.empty())) call.finishing = true;
    respond(call);
}

void Connection::send(Call& call, HotRequest* message) {
    if (call.finished || call.finishing) return thread_.give_request(call.local, message);
    enqueue(call, message);
    respond(call);
}

void Connection::enqueue(Call& call, HotRequest* message) {
    message->body.clear();
    message->next = nullptr;
    if (!call.responded) call.gzip_sent = promises_gzip(call);
    const bool plain = std::exchange(call.plain, false);
    const bool worth_it =
        call.compression == Compression::gzip || (call.mirror_gzip && message->answer.size() >= kGzipFrom);
    if (call.gzip_sent && worth_it && !plain) thread_.gzip().deflate(message->answer, message->body);
    if (call.out_first == nullptr) {
        call.out_first = message;
    } else {
        call.out_last->next = message;
    }
    call.out_last = message;
    const std::size_t size = content(*message).size() + kPrefix;
    call.out_bytes += size;
    if (unsent_ == 0 && leftover_.empty()) progress_ = thread_.now();
    unsent_ += static_cast<std::int64_t>(size);
    thread_.charge(static_cast<std::int64_t>(size));
}

void Connection::send_headers(Call& call, Metadata metadata) {
    if (call.finished || call.responded) return;
    call.initial = std::move(metadata);
    call.gzip_sent = promises_gzip(call);
    submit_headers(call);
    thread_.touch(*this);
}

void Connection::finish(Call& call, StatusCode status, std::string_view message) {
    if (call.finished || call.finishing) return;
    call.finishing = true;
    call.status = status;
    call.message = message;
    drop_input(call);
    respond(call);
}

// Ends a call before its time: what waits to be sent is dropped.
void Connection::cut(Call& call, StatusCode status, std::string_view message) {
    withdraw(call, status);
    if (call.finished) return;
    call.finishing = false;
    if (call.out_offset > 0) {  // within a message, after which no trailers can come
        call.finished = true;
        call.status = status;
        nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, call.stream, NGHTTP2_CANCEL);
        thread_.touch(*this);
    } else {
        drop_output(call);
        finish(call, status, message);
    }
}

void Connection::drop_output(Call& call) {
    unsent_ -= static_cast<std::int64_t>(call.out_bytes);
    thread_.charge(-static_cast<std::int64_t>(call.out_bytes));
    call.out_bytes = call.out_offset = 0;
    while (call.out_first != nullptr) {
        HotRequest* message = call.out_first;
        call.out_first = message->next;
        thread_.give_request(call.local, message);
    }
    call.out_last = nullptr;
}

// --- to the session

void Connection::respond(Call& call) {
    thread_.touch(*this);
    if (!call.responded) {
        if (call.finishing && call.out_first == nullptr && call.initial.empty()) return submit_trailers_only(call);
        submit_headers(call);
    } else if (call.deferred) {
        call.deferred = false;
        nghttp2_session_resume_data(session_, call.stream);
    }
}

void Connection::submit_headers(Call& call) {
    call.responded = true;
    nghttp2_data_provider source{};
    source.source.ptr = &call;
    source.read_callback = &pull_data;
    if (call.initial.empty() && !call.gzip_sent) {
        static const std::array<nghttp2_nv, 2> fields{field(":status", "200"),
                                                      field("content-type", "application/grpc")};
        nghttp2_submit_response(session_, call.stream, fields.data(), fields.size(), &source);
        return;
    }
    std::vector<nghttp2_nv> fields{field(":status", "200"), field("content-type", "application/grpc")};
    std::vector<std::string> texts;
    if (call.gzip_sent) fields.push_back(field("grpc-encoding", "gzip"));
    append(fields, call.initial, texts);
    nghttp2_submit_response(session_, call.stream, fields.data(), fields.size(), &source);
}

void Connection::submit_trailers_only(Call& call) {
    call.responded = call.finished = true;
    std::vector<nghttp2_nv> fields{field(":status", "200"), field("content-type", "application/grpc"),
                                   status_field(call.status)};
    std::vector<std::string> texts;
    if (!call.message.empty()) {
        percent_encode(call.message, kMessageLimit, thread_.scratch());
        fields.push_back(copied("grpc-message", thread_.scratch()));
    }
    if (!call.encoding.empty()) fields.push_back(field("grpc-accept-encoding", "identity,gzip"));
    append(fields, call.trailing, texts);
    nghttp2_submit_response(session_, call.stream, fields.data(), fields.size(), nullptr);
    stop_client(call);
}

void Connection::submit_trailers(Call& call) {
    call.finished = true;
    if (call.status == StatusCode::ok && call.message.empty() && call.trailing.empty()) {
        static const nghttp2_nv fine = field("grpc-status", "0");
        nghttp2_submit_trailer(session_, call.stream, &fine, 1);
    } else {
        std::vector<nghttp2_nv> fields{status_field(call.status)};
        std::vector<std::string> texts;
        if (!call.message.empty()) {
            percent_encode(call.message, kMessageLimit, thread_.scratch());
            fields.push_back(copied("grpc-message", thread_.scratch()));
        }
        append(fields, call.trailing, texts);
        nghttp2_submit_trailer(session_, call.stream, fields.data(), fields.size());
    }
    stop_client(call);
}

void Connection::submit_http_error(Call& call, std::string_view status, std::string_view text) {
    call.responded = call.finished = true;
    call.status = StatusCode::internal;
    const std::array<nghttp2_nv, 3> fields{copied(":status", status), copied("content-type", "text/plain"),
                                           copied("x-error", text)};
    nghttp2_submit_response(session_, call.stream, fields.data(), fields.size(), nullptr);
    stop_client(call);
    thread_.touch(*this);
}

// The client need not send the rest. A reset that is submitted now would overtake the trailers.
void Connection::stop_client(const Call& call) {
    if (!call.half_closed) to_reset_.push_back(call.stream);
}

bool Connection::submit_resets() {
    if (to_reset_.empty()) return false;
    for (const std::int32_t stream : to_reset_) {
        if (call_of(stream) != nullptr)
            nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, stream, NGHTTP2_NO_ERROR);
    }
    to_reset_.clear();
    return true;
}

ssize_t Connection::on_pull(Call& call, std::size_t most, std::uint32_t& flags) {
    const std::size_t bytes = std::min(most, call.out_bytes);
    const bool last = call.finishing && bytes == call.out_bytes;
    if (bytes == 0 && !last) {
        call.deferred = true;
        return NGHTTP2_ERR_DEFERRED;
    }
    if (last) {
        flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        submit_trailers(call);
    }
    if (bytes > 0) flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    return static_cast<ssize_t>(bytes);
}

void Connection::on_pulled(Call& call, std::span<const std::uint8_t> frame_header, std::size_t bytes) {
    std::vector<std::uint8_t>& out = thread_.output();
    std::size_t place = out.size();
    out.resize(place + frame_header.size() + bytes);
    std::memcpy(out.data() + place, frame_header.data(), frame_header.size());
    place += frame_header.size();
    call.out_bytes -= bytes;
    unsent_ -= static_cast<std::int64_t>(bytes);
    thread_.charge(-static_cast<std::int64_t>(bytes));
    progress_ = thread_.now();
    while (bytes > 0) {
        HotRequest* message = call.out_first;
        const Buffer<char>& from = content(*message);
        if (call.out_offset < kPrefix) {
            const std::size_t size = from.size();
            const std::array<std::uint8_t, kPrefix> prefix{
                static_cast<std::uint8_t>(message->body.empty() ? 0 : 1), static_cast<std::uint8_t>(size >> 24),
                static_cast<std::uint8_t>(size >> 16), static_cast<std::uint8_t>(size >> 8),
                static_cast<std::uint8_t>(size)};
            const std::size_t part = std::min(kPrefix - call.out_offset, bytes);
            std::memcpy(out.data() + place, prefix.data() + call.out_offset, part);
            call.out_offset += part;
            place += part;
            bytes -= part;
        }
        if (call.out_offset < kPrefix) return;
        const std::size_t done = call.out_offset - kPrefix;
        const std::size_t part = std::min(from.size() - done, bytes);
        if (part > 0) std::memcpy(out.data() + place, from.data() + done, part);
        call.out_offset += part;
        place += part;
        bytes -= part;
        if (done + part < from.size()) return;
        call.sent_bytes += message->answer.size();
        call.out_offset = 0;
        call.out_first = message->next;
        if (call.out_first == nullptr) call.out_last = nullptr;
        thread_.give_request(call.local, message);
    }
    tell_sent(call);
}

// Python counts what is unsent in the same way; see NativeCall.
void Connection::tell_sent(Call& call) {
    if (!call.handed_over || call.sent_bytes - call.sent_told < kTellSent) return;
    call.sent_told = call.sent_bytes;
    thread_.post({EventKind::sent, call.id, static_cast<std::int64_t>(call.sent_bytes), nullptr, nullptr});
}

}  // namespace trimtab
