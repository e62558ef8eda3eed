#include "http2_connection.h"

#include <algorithm>
#include <new>
#include <utility>

#include "front_thread.h"
#include "http2_callbacks.h"
#include "net_socket.h"

namespace trimtab {
namespace {

constexpr std::size_t kFlushBytes = 256 << 10;
constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kFrame = 16 << 10;
constexpr std::int64_t kLinger = kSecond / 2;
constexpr std::int64_t kLastGoaway = kSecond / 2;  // after the first, if the peer does not answer our ping

bool passed(std::int64_t now, std::int64_t since, double seconds) {
    return seconds > 0 && static_cast<double>(now - since) > seconds * 1e9;
}

}  // namespace

Connection::Connection(IoThread& thread, LocalListener& listener, std::unique_ptr<NetStream> stream, std::string peer)
    : thread_(thread),
      listener_(listener),
      stream_(std::move(stream)),
      info_(std::make_shared<ConnectionInfo>()),
      meter_(thread.limits(), thread.now()),
      accepted_(thread.now()),
      active_(accepted_),
      phase_since_(accepted_),
      heard_(accepted_),
      progress_(accepted_) {
    info_->peer = std::move(peer);
    thread_.fresh().push_back(*this);
}

Connection::~Connection() {
    abandon();
    nghttp2_session_del(session_);
}

// --- bytes

void Connection::on_ready() {
    if (phase_ == Phase::handshake && !shake_hands()) return;
    if (!leftover_.empty()) thread_.touch(*this);
    read();
}

bool Connection::shake_hands() {
    switch (stream_->handshake()) {
        case IoState::done: break;
        case IoState::again: return false;
        default: abandon(); return false;
    }
    info_->identity = stream_->identity();
    open_session();
    return phase_ == Phase::open;
}

void Connection::open_session() {
    session_ = new_session(*this, thread_.limits(), thread_.session_memory());
    phase_ = Phase::open;
    phase_since_ = thread_.now();
    thread_.touch(*this);
}

void Connection::read() {
    while (thread_.may_read()) {
        if (phase_ == Phase::dead) return;
        if (phase_ == Phase::open && output_full()) {
            paused_ = true;  // flush() reads on
            return;
        }
        const IoResult result = stream_->read(thread_.input());
        thread_.count_read(result.bytes);
        if (result.bytes > 0) {
            heard_ = thread_.now();
            if (phase_ == Phase::open && !feed(std::span(thread_.input()).first(result.bytes))) return;
        }
        switch (result.state) {
            case IoState::done: break;
            case IoState::again:
                if (hung_up_ && result.bytes > 0) break;  // a short read has not seen the end
                return;
            // A client that ends its side has no more calls for us, and what it waits for cannot be told from what it
            // gave up: as other servers do, we take it as the end of all.
            case IoState::closed:
            case IoState::failed: abandon(); return;
        }
    }
    thread_.read_again(*this);
}

bool Connection::feed(std::span<const std::uint8_t> bytes) {
    if (!meter_.scan(bytes, thread_.now())) {
        refuse_flood();
        return false;
    }
    const ssize_t taken = nghttp2_session_mem_recv(session_, bytes.data(), bytes.size());
    thread_.touch(*this);
    if (taken >= 0 && phase_ == Phase::open && ignores_resets()) {
        refuse_flood();
        return false;
    }
    if (taken >= 0) return phase_ == Phase::open;
    if (taken == NGHTTP2_ERR_BAD_CLIENT_MAGIC) {
        refuse_http1(bytes);
    } else if (taken == NGHTTP2_ERR_FLOODED) {
        refuse_flood();
    } else {
        abandon();
    }
    return false;
}

bool Connection::write(std::span<const std::uint8_t> bytes) {
    const IoResult result = stream_->write(bytes);
    if (result.state == IoState::failed || result.state == IoState::closed) {
        abandon();
        return false;
    }
    if (result.bytes == bytes.size()) return true;
    leftover_.assign(bytes.begin() + static_cast<std::ptrdiff_t>(result.bytes), bytes.end());
    leftover_offset_ = 0;
    return false;
}

bool Connection::output_full() const {
    return unsent_ + static_cast<std::int64_t>(leftover_.size() - leftover_offset_) > thread_.limits().output_bytes;
}

void Connection::flush() {
    // Before the client has shown that it speaks HTTP/2, an answer may have to be in HTTP/1.
    if (phase_ != Phase::open || !(meter_.past_preface() || stream_->agreed_on_http2())) return;
    if (received_ > 0) nghttp2_session_consume_connection(session_, std::exchange(received_, 0));
    if (!leftover_.empty()) {
        const auto rest = std::span<const std::uint8_t>(leftover_).subspan(leftover_offset_);
        const IoResult result = stream_->write(rest);
        if (result.bytes > 0) progress_ = thread_.now();
        if (result.state == IoState::failed || result.state == IoState::closed) return abandon();
        leftover_offset_ += result.bytes;
        if (result.bytes < rest.size()) return;
        std::vector<std::uint8_t>().swap(leftover_);  // one that is slow once need not keep it
        leftover_offset_ = 0;
    }
    std::vector<std::uint8_t>& out = thread_.output();
    out.clear();
    for (;;) {
        const std::uint8_t* data = nullptr;
        const ssize_t size = nghttp2_session_mem_send(session_, &data);
        if (size < 0) return abandon();
        out.insert(out.end(), data, data + size);
        if (size == 0 || out.size() >= kFlushBytes) {
            if (!out.empty() && !write(out)) break;
            out.clear();
            if (size == 0 && !submit_resets()) break;
        }
    }
    if (phase_ != Phase::open) return;
    if (paused_ && !output_full()) {
        paused_ = false;
        meter_.excuse(thread_.now());
        thread_.read_again(*this);
    }
    const bool over = nghttp2_session_want_read(session_) == 0 && nghttp2_session_want_write(session_) == 0;
    if (leftover_.empty() && (over || (last_goaway_sent_ && call_count_ == 0))) close();
}

// --- endings

void Connection::close() {
    if (phase_ == Phase::dead || phase_ == Phase::lingering) return;
    while (!calls_.empty()) close_call(*static_cast<CallLink*>(calls_.first())->call);
    phase_ = Phase::lingering;
    phase_since_ = thread_.now();
    // Closing with unread bytes would reset the connection, and lose what the peer has not read yet.
    stream_->shutdown();
}

void Connection::abandon() {
    if (phase_ == Phase::dead) return;
    phase_ = Phase::dead;
    if (linked()) unlink();
    while (!calls_.empty()) close_call(*static_cast<CallLink*>(calls_.first())->call);
    thread_.doom(*this);
}

void Connection::reset() {
    // The peer reads nothing: the end would wait behind what the system has for it, and keep that.
    reset_on_close(stream_->descriptor());
    abandon();
}

// Whether it sends on and on for calls that are over. What it sent before it could know is excused.
bool Connection::ignores_resets() const {
    const std::uint64_t slack = static_cast<std::uint64_t>(thread_.limits().stream_window) + kFrame;
    return meter_.data_bytes() > used_ + excused_ + slack;
}

void Connection::end_calls(StatusCode status, std::string_view message) {
    for (Link* link = calls_.first(); link != &calls_.ends;) {
        Call& call = *static_cast<CallLink*>(link)->call;
        link = link->after;
        cut(call, status, message);
    }
}

void Connection::refuse_flood() {
    // Nothing more goes through the session: what waits in it is part of the flood.
    nghttp2_session_terminate_session(session_, NGHTTP2_ENHANCE_YOUR_CALM);
    flush();
    if (phase_ == Phase::open) close();
    if (phase_ == Phase::lingering) abandon();
}

// The frame that it dawdles with is lost, so its connection is.
void Connection::refuse_slow(std::string_view reason) {
    nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_),
                          NGHTTP2_ENHANCE_YOUR_CALM, reinterpret_cast<const std::uint8_t*>(reason.data()),
                          reason.size());
    flush();
    close();
}

void Connection::refuse_http1(std::span<const std::uint8_t> bytes) {
    const bool text = !bytes.empty() && bytes[0] >= 'A' && bytes[0] <= 'Z';
    constexpr std::string_view answer =
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 57\r\n\r\n"
        "This port speaks gRPC over HTTP/2; HTTP has its own port\n";
    if (text) stream_->write({reinterpret_cast<const std::uint8_t*>(answer.data()), answer.size()});
    close();
}

void Connection::drain() {
    if (phase_ == Phase::handshake) return abandon();
    if (phase_ != Phase::open || draining_) return;
    draining_ = true;
    drain_since_ = thread_.now();
    // First that there will be an end, then, when calls sent before the client knew must have come, which calls count.
    nghttp2_submit_shutdown_notice(session_);
    nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, nullptr);
    thread_.touch(*this);
}

void Connection::last_goaway() {
    if (last_goaway_sent_ || phase_ != Phase::open) return;
    last_goaway_sent_ = true;
    nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_),
                          NGHTTP2_NO_ERROR, nullptr, 0);
    thread_.touch(*this);
}

void Connection::sweep(std::int64_t now) {
    const FrontLimits& limits = thread_.limits();
    if (phase_ == Phase::lingering) {
        if (now - phase_since_ > kLinger) abandon();
        return;
    }
    // A handshake has ended when the first frame has come: TCP, TLS and HTTP/2 count as one.
    if (phase_ == Phase::handshake || !meter_.past_preface()) {
        if (passed(now, accepted_, limits.handshake_seconds)) abandon();
        return;
    }
    if (phase_ != Phase::open) return;
    const bool waits_to_send = !leftover_.empty() || unsent_ > 0;
    if (waits_to_send && passed(now, progress_, limits.write_seconds)) return reset();
    if (!paused_) {
        const std::int64_t began = meter_.unfinished_since();
        if (began != 0 && passed(now, began, limits.header_seconds))
            return refuse_slow("headers, and frames other than DATA, must come sooner than this");
        if (meter_.within_frame() && passed(now, heard_, limits.message_seconds))
            return refuse_slow("a frame did not come on");
    }
    if (draining_) {
        if (now - drain_since_ > kLastGoaway) last_goaway();
        if (age_over_ && passed(now, drain_since_, limits.age_grace_seconds))
            end_calls(StatusCode::unavailable, "the connection has reached its age");
    } else if (passed(now, accepted_, limits.age_seconds)) {
        age_over_ = true;
        drain();
    } else if (call_count_ == 0 && passed(now, active_, limits.idle_seconds)) {
        drain();
    }
    if (ping_sent_ > heard_) {
        if (passed(now, ping_sent_, limits.keepalive_timeout_seconds)) abandon();
    } else if (passed(now, std::max(heard_, ping_sent_), limits.keepalive_seconds)) {
        ping_sent_ = now;
        nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, nullptr);
        thread_.touch(*this);
    }
}

// --- calls

Call* Connection::call_of(std::int32_t stream) {
    if (phase_ != Phase::open) return nullptr;  // calls are gone, and the session does not know
    if (recent_ != nullptr && recent_->stream == stream) return recent_;
    recent_ = static_cast<Call*>(nghttp2_session_get_stream_user_data(session_, stream));
    return recent_;
}

void Connection::close_call(Call& call) {
    if (recent_ == &call) recent_ = nullptr;
    call.open.unlink();
    if (!call.half_closed) excused_ += static_cast<std::uint64_t>(thread_.limits().stream_window);
    --call_count_;
    thread_.charge(-kCallCost);
    if (call_count_ == 0) no_calls();
    const bool told = call.finished || call.status != StatusCode::ok;
    const StatusCode status = told ? call.status : given_up(thread_.now(), call.deadline, call.timeout);
    withdraw(call, status);
    drop_output(call);
    if (call.local != nullptr) {
        bump(call.local->ended[static_cast<std::size_t>(status)]);
        if (call.counted) bump(call.local->closed);
    }
    call.connection = nullptr;
    if (call.under_way.empty()) thread_.give_call(call);
}

void Connection::no_calls() {
    active_ = thread_.now();
    if (phase_ != Phase::dead && !linked()) thread_.idle().push_back(*this);
}

}  // namespace trimtab
