// A client's connection: its bytes, its HTTP/2 session (nghttp2), and the gRPC calls on it. Belongs to one I/O thread;
// nothing here locks or blocks.
//
// Flow control: window updates are not left to nghttp2. The connection's window is given back at each flush for all
// that came (one slow stream must not stop the others); a stream's as its messages are used up: at once for hot and
// single requests, as the handler reads for streams. What that lets a client make us hold is charged to the connection
// and to the server before it is stored.
//
// In four files: http2_connection.cpp (bytes, session, lifetime), grpc_headers.cpp and grpc_requests.cpp (headers and
// messages in), grpc_responses.cpp (messages and trailers out).
#pragma once

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "front_bridge.h"
#include "front_call.h"
#include "front_limits.h"
#include "http2_meter.h"
#include "net_stream.h"

namespace trimtab {

class IoThread;
struct LocalListener;

// What a message of a stream is charged with beside its bytes.
inline constexpr std::size_t kMessageCost = 64;
// What a call is charged with, to the server.
inline constexpr std::int64_t kCallCost = 2048;

class Connection : public Link {  // linked while it is idle
  public:
    Connection(IoThread& thread, LocalListener& listener, std::unique_ptr<NetStream> stream, std::string peer);
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    ~Connection();

    void on_hang_up() { hung_up_ = true; }
    void on_ready();  // after an event on the descriptor
    void flush();     // sends what the session has, as far as the socket takes it
    void drain();     // GOAWAY in two steps; closes when the last call has ended
    void last_goaway();
    void end_calls(StatusCode status, std::string_view message);
    void sweep(std::int64_t now);  // looks at everything that may take too long
    std::int64_t weight() const;   // bytes that it makes the server hold
    void give_way();               // ends its calls: others need the room
    void close();                  // in order: says goodbye, and waits a moment for the peer to close
    void abandon();                // at once
    int descriptor() const { return stream_->descriptor(); }
    LocalListener& listener() { return listener_; }
    bool dead() const { return phase_ == Phase::dead; }
    std::int64_t idle_since() const { return active_; }
    bool touched = false, reading_again = false;  // places in the thread's lists

    // --- of calls, also from the thread
    void finish(Call& call, StatusCode status, std::string_view message);
    void on_answer(Call& call, HotRequest* answer);  // of a hot call; takes the request
    void send(Call& call, HotRequest* message);      // takes it
    void send_headers(Call& call, Metadata metadata);
    void on_read(Call& call, std::size_t bytes);  // the handler took so much, kMessageCost of each message included
    void expire(Call& call);
    void on_stall(Call& call);  // message_seconds have passed since it was last looked at
    void python_forgets() { --*in_python_; }

  private:
    friend class Http2Callbacks;
    enum class Phase : std::uint8_t { handshake, open, lingering, dead };

    // --- http2_connection.cpp
    bool shake_hands();
    void open_session();
    void read();
    bool feed(std::span<const std::uint8_t> bytes);
    bool write(std::span<const std::uint8_t> bytes);
    void refuse_flood();
    void refuse_slow(std::string_view reason);
    void reset();  // as abandon(), and what waits to be sent is thrown away by the system, too
    bool ignores_resets() const;
    void refuse_http1(std::span<const std::uint8_t> bytes);
    bool output_full() const;
    Call* call_of(std::int32_t stream);
    void close_call(Call& call);
    void no_calls();

    // --- grpc_headers.cpp
    Call& begin_call(std::int32_t stream);
    void on_header(Call& call, std::string_view name, std::string_view value);
    void on_metadata(Call& call, std::string_view name, std::string_view value);
    void on_headers(Call& call);
    bool refuse_headers(Call& call);

    // --- grpc_requests.cpp
    void on_data(Call& call, std::span<const std::uint8_t> data);
    bool begin_message(Call& call);
    bool fill(Call& call, std::span<const std::uint8_t>& data);
    bool charge(Call& call, std::size_t bytes);
    void uncharge(Call& call, std::size_t bytes);
    bool holds_window(const Call& call) const;
    void give_window(Call& call);
    bool end_message(Call& call);
    void on_half_closed(Call& call);
    void hand_over(Call& call, HotRequest* message);
    void dispatch(Call& call, HotRequest* message);
    void drop_input(Call& call);
    void watch_message(Call& call);
    void withdraw(Call& call, StatusCode why);

    // --- grpc_responses.cpp
    void respond(Call& call);
    void submit_headers(Call& call);
    void submit_trailers_only(Call& call);
    void submit_trailers(Call& call);
    void submit_http_error(Call& call, std::string_view status, std::string_view text);
    void cut(Call& call, StatusCode status, std::string_view message);
    void enqueue(Call& call, HotRequest* message);
    void drop_output(Call& call);
    void stop_client(const Call& call);
    bool submit_resets();
    ssize_t on_pull(Call& call, std::size_t most, std::uint32_t& flags);
    void on_pulled(Call& call, std::span<const std::uint8_t> frame_header, std::size_t bytes);
    void tell_sent(Call& call);

    IoThread& thread_;
    LocalListener& listener_;
    std::unique_ptr<NetStream> stream_;
    std::shared_ptr<ConnectionInfo> info_;
    nghttp2_session* session_ = nullptr;
    FrameMeter meter_;
    Phase phase_ = Phase::handshake;
    bool draining_ = false, last_goaway_sent_ = false, age_over_ = false;
    bool hung_up_ = false;  // the end is behind what there is to read, and no new event will tell
    bool paused_ = false;   // reading waits until there is less to send

    LinkedList calls_;
    std::int64_t call_count_ = 0;
    Call* recent_ = nullptr;
    std::string last_path_;
    LocalRoute* last_local_ = nullptr;

    std::vector<std::int32_t> to_reset_;  // answered streams whose clients have not sent all
    std::vector<std::uint8_t> leftover_;  // serialised, and not taken by the socket
    std::size_t leftover_offset_ = 0;
    std::size_t received_ = 0;  // bytes of DATA for which the connection's window is to be given back
    std::uint64_t used_ = 0;    // bytes of DATA frames that belonged to a call
    std::uint64_t excused_ = 0; // such bytes that may come for calls that are over: a window for each
    std::int64_t held_ = 0;     // bytes of requests that are not answered
    std::int64_t unsent_ = 0;   // bytes of answers that are not sent

    // Calls that Python knows of. Those that were cancelled count until it has noticed: else a client that makes and
    // breaks off calls faster than Python takes them would fill its queue.
    std::shared_ptr<std::int64_t> in_python_ = std::make_shared<std::int64_t>(0);

    // ns
    std::int64_t accepted_, active_, phase_since_;
    std::int64_t heard_;     // the last byte came
    std::int64_t progress_;  // output moved, or there was none
    std::int64_t ping_sent_ = 0;
    std::int64_t drain_since_ = 0;
};

}  // namespace trimtab
