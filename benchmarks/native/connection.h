// One HTTP/2 connection that sends one gRPC request again and again: framing by hand, HPACK by libnghttp2.
//
// All requests are equal, so what is sent of one is a copy of two frames with another stream id: the load core must
// never be what limits a server. What comes back is read in full: every header block goes through the HPACK decoder
// (a block of indexed fields that equals one seen since the table last changed means what that one meant), every
// answer has its gRPC status read, and its message bytes counted. Flow control, SETTINGS, PING, RST_STREAM, GOAWAY,
// CONTINUATION and padding are honoured; PRIORITY and unknown frames are ignored.
//
// One thread.
#pragma once

#include <nghttp2/nghttp2.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "socket.h"

namespace load {

// Beyond gRPC's own 0-16: how a call ended that brought no status.
enum Ending : int { kNoStatus = 100, kReset = 101, kLost = 102, kHttpError = 103 };

struct Call {
    std::string path, authority, scheme;
    std::string timeout;  // grpc-timeout, or empty
    std::string message;  // with gRPC's five bytes before it
};

class Connection;

class Sink {
  public:
    virtual ~Sink() = default;
    // `message` is empty unless the call was to be kept (see submit). May submit on the connection.
    virtual void answered(Connection& from, std::int64_t start, int status, std::size_t bytes,
                          std::string_view message, bool kept) = 0;
};

class Connection {
  public:
    Connection(const Call& call, std::unique_ptr<Socket> socket, Sink& sink);
    ~Connection();
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    // Writes a request to the buffer. `keep`: the answer's bytes are wanted.
    void submit(std::int64_t start, bool keep);
    bool read();   // one read, and what it brought; false: the connection is gone, and its calls were told so
    bool flush();  // true when all has left
    void abandon();

    bool ready() const { return ready_; }  // the server's settings have come
    bool open() const { return open_ && !going_; }
    std::size_t under_way() const { return under_way_; }
    std::size_t most_streams() const { return most_streams_; }
    int descriptor() const { return socket_->descriptor(); }
    bool pending() const { return socket_->pending(); }
    const std::string& refusal() const { return refusal_; }  // the message of the first status that was not OK

  private:
    struct Slot {
        std::int64_t start = 0;
        std::uint32_t stream = 0;  // 0: free
        std::uint32_t received = 0;
        std::int64_t window = 0;
        std::size_t sent = 0;
        int status = kNoStatus;
        bool keep = false;
        std::string message;
    };
    struct Block {
        std::string bytes;
        int status = kNoStatus;
        std::uint64_t table = 0;
    };

    Slot& claim(std::uint32_t stream);
    Slot* find(std::uint32_t stream);
    void send_rest(Slot& slot);
    void resume();
    void on_frame(std::uint8_t type, std::uint8_t flags, std::uint32_t stream, std::string_view payload);
    void on_data(Slot* slot, std::string_view payload);
    void on_settings(std::string_view payload);
    void on_window(std::uint32_t stream, std::uint32_t increment);
    int decode(std::string_view block);
    int inflate(std::string_view block);
    void finish(Slot& slot);
    void put(std::uint8_t type, std::uint8_t flags, std::uint32_t stream, std::string_view payload);
    void prepare();

    const Call& call_;
    std::unique_ptr<Socket> socket_;
    Sink& sink_;
    nghttp2_hd_inflater* inflater_ = nullptr;
    nghttp2_hd_deflater* deflater_ = nullptr;
    std::string first_headers_, headers_;  // of the first request, and of all others
    std::vector<Slot> slots_;              // by stream id, a power of two
    std::deque<std::uint32_t> blocked_;    // streams whose message waits for the server's windows
    std::vector<char> in_, out_;
    std::size_t in_size_ = 0, out_start_ = 0;
    std::string block_;  // of a header block under way
    std::uint32_t block_stream_ = 0;
    std::uint8_t block_flags_ = 0;
    std::array<Block, 4> known_;
    std::size_t next_known_ = 0;
    std::uint64_t table_ = 1;  // counts changes of the decoder's table
    std::uint32_t next_stream_ = 1;
    std::size_t under_way_ = 0, most_streams_ = 100;
    std::int64_t send_window_ = 65535, initial_window_ = 65535, consumed_ = 0;
    std::size_t most_frame_ = 16384;
    std::size_t table_size_ = 4096;
    bool ready_ = false, open_ = true, going_ = false;
    std::string refusal_;
};

}  // namespace load
