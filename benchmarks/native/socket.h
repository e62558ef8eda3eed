// A non-blocking byte stream to the server: TCP or a Unix socket, with or without TLS. One thread.
#pragma once

#include <openssl/ssl.h>

#include <cstddef>
#include <string>

namespace load {

class Socket {
  public:
    // "host:port" (a numeric host) or "unix:PATH". Connects and shakes hands before it returns; throws
    // std::runtime_error. `tls` null: none; the server's certificate is not checked.
    Socket(const std::string& address, SSL_CTX* tls);
    Socket(const Socket&) = delete;
    Socket& operator=(const Socket&) = delete;
    ~Socket();

    int descriptor() const { return descriptor_; }
    // Bytes moved; 0: not now; -1: the connection is gone.
    long read(char* data, std::size_t size);
    long write(const char* data, std::size_t size);
    // Bytes that were read from the system and wait in the TLS layer.
    bool pending() const { return tls_ != nullptr && SSL_pending(tls_) > 0; }

  private:
    int descriptor_ = -1;
    SSL* tls_ = nullptr;
};

SSL_CTX* make_tls();

}  // namespace load
