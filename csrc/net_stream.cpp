#include "net_stream.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace trimtab {

Descriptor::~Descriptor() {
    if (number_ >= 0) ::close(number_);
}

IoResult PlainStream::read(std::span<std::uint8_t> buffer) {
    for (;;) {
        const ssize_t count = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
        if (count > 0) {
            const auto bytes = static_cast<std::size_t>(count);
            // A short read has emptied the socket: whatever comes later is a new edge.
            return {bytes, bytes < buffer.size() ? IoState::again : IoState::done};
        }
        if (count == 0) return {0, IoState::closed};
        if (errno == EINTR) continue;
        if (errno == EAGAIN || errno == EWOULDBLOCK) return {0, IoState::again};
        error_ = errno;
        return {0, IoState::failed};
    }
}

IoResult PlainStream::write(std::span<const std::uint8_t> bytes) {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
        const ssize_t count = ::send(socket_.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
        if (count >= 0) {
            sent += static_cast<std::size_t>(count);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            return {sent, IoState::again};
        } else if (errno != EINTR) {
            error_ = errno;
            return {sent, IoState::failed};
        }
    }
    return {sent, IoState::done};
}

void PlainStream::shutdown() { ::shutdown(socket_.get(), SHUT_WR); }

std::string PlainStream::error() const { return error_ == 0 ? "" : std::strerror(error_); }

}  // namespace trimtab
