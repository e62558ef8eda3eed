#include "socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <stdexcept>

namespace load {
namespace {

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what + ": " + std::strerror(errno)); }

int connect_unix(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) throw std::runtime_error("a socket path too long");
    std::memcpy(address.sun_path, path.data(), path.size());
    const int descriptor = ::socket(AF_UNIX, SOCK_STREAM, 0);
    if (descriptor < 0 || ::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0)
        fail("connecting to " + path);
    return descriptor;
}

int connect_tcp(const std::string& host, const std::string& port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(port)));
    if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1)
        throw std::runtime_error("expected an IPv4 address, got " + host);
    const int descriptor = ::socket(AF_INET, SOCK_STREAM, 0);
    if (descriptor < 0 || ::connect(descriptor, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0)
        fail("connecting to " + host + ":" + port);
    const int on = 1;
    ::setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return descriptor;
}

}  // namespace

Socket::Socket(const std::string& address, SSL_CTX* tls) {
    if (address.starts_with("unix:")) {
        descriptor_ = connect_unix(address.substr(5));
    } else {
        const auto colon = address.rfind(':');
        if (colon == std::string::npos) throw std::runtime_error("expected host:port, got " + address);
        descriptor_ = connect_tcp(address.substr(0, colon), address.substr(colon + 1));
    }
    if (tls != nullptr) {
        tls_ = SSL_new(tls);
        SSL_set_fd(tls_, descriptor_);
        if (SSL_connect(tls_) != 1) throw std::runtime_error("the TLS handshake failed");
        const unsigned char* protocol = nullptr;
        unsigned size = 0;
        SSL_get0_alpn_selected(tls_, &protocol, &size);
        if (std::string(reinterpret_cast<const char*>(protocol), size) != "h2")
            throw std::runtime_error("the server did not choose h2 by ALPN");
    }
    ::fcntl(descriptor_, F_SETFL, O_NONBLOCK);
}

Socket::~Socket() {
    if (tls_ != nullptr) SSL_free(tls_);
    if (descriptor_ >= 0) ::close(descriptor_);
}

long Socket::read(char* data, std::size_t size) {
    if (tls_ == nullptr) {
        const auto got = ::recv(descriptor_, data, size, 0);
        if (got > 0) return got;
        return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
    }
    std::size_t done = 0;
    while (done < size) {  // a record at a time
        const int got = SSL_read(tls_, data + done, static_cast<int>(std::min<std::size_t>(size - done, INT_MAX)));
        if (got > 0) {
            done += static_cast<std::size_t>(got);
            continue;
        }
        const int error = SSL_get_error(tls_, got);
        if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) break;
        return done > 0 ? static_cast<long>(done) : -1;
    }
    return static_cast<long>(done);
}

long Socket::write(const char* data, std::size_t size) {
    if (tls_ == nullptr) {
        const auto sent = ::send(descriptor_, data, size, MSG_NOSIGNAL);
        if (sent >= 0) return sent;
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    }
    const int sent = SSL_write(tls_, data, static_cast<int>(std::min<std::size_t>(size, INT_MAX)));
    if (sent > 0) return sent;
    const int error = SSL_get_error(tls_, sent);
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? 0 : -1;
}

SSL_CTX* make_tls() {
    SSL_CTX* context = SSL_CTX_new(TLS_client_method());
    if (context == nullptr) throw std::runtime_error("no TLS context");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    const unsigned char offered[] = {2, 'h', '2'};
    SSL_CTX_set_alpn_protos(context, offered, sizeof offered);
    return context;
}

}  // namespace load
