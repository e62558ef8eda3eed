// TLS for the front: streams over OpenSSL, and the factory that holds a listener's certificate.
//
// TLS 1.2 and 1.3 with forward secrecy and authenticated encryption only, no compression, no renegotiation. ALPN must
// come to "h2". Sessions are resumed by tickets, so that the server keeps nothing for clients that have gone. With a
// client CA every client must show a certificate that it signed.
//
// The factory is shared by all I/O threads: each connection takes the context of the moment it was accepted in. The
// files are looked at again at most once a second, when a client comes, and read again when any has changed; while they
// do not fit together (a certificate was replaced and its key was not yet) the last ones that did stay in use. Tickets
// of an earlier context are not taken any more, so a change of the client CA holds for whoever comes back, too.
#pragma once

#include <openssl/ssl.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "net_stream.h"

namespace trimtab {

// Paths of PEM files. `client_ca` empty: clients need no certificate.
struct TlsFiles {
    std::string certificate;  // the server's, and those between it and its root
    std::string key;
    std::string client_ca;
};

using TlsContext = std::shared_ptr<SSL_CTX>;

class TlsFactory final : public StreamFactory {
  public:
    explicit TlsFactory(TlsFiles files);  // throws std::runtime_error: what is wrong with which file

    std::unique_ptr<NetStream> make(Descriptor socket) override;
    std::string reload_error() const;  // why changed files are not in use; empty: they are

  private:
    TlsContext context();

    const TlsFiles files_;
    mutable std::mutex mutex_;
    TlsContext context_;
    std::string stamp_;  // what the files looked like when they were read
    std::string reload_error_;
    std::int64_t looked_ = 0;
};

class TlsStream final : public NetStream {
  public:
    TlsStream(Descriptor socket, TlsContext context);
    ~TlsStream() override;

    int descriptor() const override { return socket_.get(); }
    IoState handshake() override;
    bool agreed_on_http2() const override { return true; }  // ALPN, or there is no connection
    IoResult read(std::span<std::uint8_t> buffer) override;
    IoResult write(std::span<const std::uint8_t> bytes) override;
    void shutdown() override;
    const PeerIdentity& identity() const override { return identity_; }
    std::string error() const override { return error_; }

  private:
    IoState state_of(int result);
    IoState fail(std::string reason);

    Descriptor socket_;
    TlsContext context_;  // which outlives the factory's, if that changes
    SSL* ssl_ = nullptr;
    PeerIdentity identity_;
    std::string error_;
    bool broken_ = false;  // after a fatal error, when nothing may be said any more
};

}  // namespace trimtab
