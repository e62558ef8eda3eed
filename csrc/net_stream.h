// A connection's bytes: what lies between a socket and its HTTP/2 session. PlainStream is TCP or a Unix socket as it
// is; TLS implements the same interface. One thread, the I/O thread that accepted the connection, touches a stream.
//
// All calls are nonblocking. The descriptor is registered edge-triggered for both directions once, so `again` names no
// direction: after any event on the descriptor, the owner tries whatever it wants to do again. That is also all that
// TLS needs when a read must write first or the other way round.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace trimtab {

// Owns a descriptor.
class Descriptor {
  public:
    Descriptor() = default;
    explicit Descriptor(int number) : number_(number) {}
    Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(number_, other.number_);
        return *this;
    }
    ~Descriptor();
    int get() const { return number_; }
    explicit operator bool() const { return number_ >= 0; }

  private:
    int number_ = -1;
};

enum class IoState : std::uint8_t {
    done,    // as much as was asked for, or less: ask again
    again,   // no more before the next event on the descriptor
    closed,  // the peer has ended its side in order
    failed,  // the connection is of no more use; see error()
};

struct IoResult {
    std::size_t bytes = 0;  // moved, also where the state is not `done`
    IoState state = IoState::again;
};

// What a stream knows of who is at the other end, in the words of grpc's auth_context(): "transport_security_type",
// "x509_common_name", "x509_subject_alternative_name", "x509_pem_cert", each with its values.
struct PeerIdentity {
    std::vector<std::pair<std::string, std::vector<std::string>>> properties;
};

class NetStream {
  public:
    NetStream() = default;
    NetStream(const NetStream&) = delete;
    NetStream& operator=(const NetStream&) = delete;
    virtual ~NetStream() = default;  // closes the descriptor

    virtual int descriptor() const = 0;
    // Until this has returned `done` once, neither read() nor write() may be called. `failed` is final.
    virtual IoState handshake() = 0;
    // Fills the front of the buffer. `again` may come together with bytes, and saves the call that would find nothing.
    virtual IoResult read(std::span<std::uint8_t> buffer) = 0;
    // Whether the handshake has settled that the peer speaks HTTP/2: if not, its first bytes tell.
    virtual bool agreed_on_http2() const { return false; }
    // Takes bytes from the front. What was not taken is offered again by the next call as the front of its bytes,
    // possibly at another address and followed by more.
    virtual IoResult write(std::span<const std::uint8_t> bytes) = 0;
    // Says goodbye if that takes no waiting (TLS close_notify, FIN). No reads or writes after it.
    virtual void shutdown() = 0;
    // Valid after the handshake.
    virtual const PeerIdentity& identity() const = 0;
    virtual std::string error() const = 0;
};

// Makes a stream of each accepted connection; one per listener, shared by all I/O threads (thread-safe).
class StreamFactory {
  public:
    virtual ~StreamFactory() = default;
    virtual std::unique_ptr<NetStream> make(Descriptor socket) = 0;
};

class PlainStream final : public NetStream {
  public:
    explicit PlainStream(Descriptor socket) : socket_(std::move(socket)) {}

    int descriptor() const override { return socket_.get(); }
    IoState handshake() override { return IoState::done; }
    IoResult read(std::span<std::uint8_t> buffer) override;
    IoResult write(std::span<const std::uint8_t> bytes) override;
    void shutdown() override;
    const PeerIdentity& identity() const override { return identity_; }
    std::string error() const override;

  private:
    Descriptor socket_;
    PeerIdentity identity_;
    int error_ = 0;
};

class PlainFactory final : public StreamFactory {
  public:
    std::unique_ptr<NetStream> make(Descriptor socket) override {
        return std::make_unique<PlainStream>(std::move(socket));
    }
};

}  // namespace trimtab
