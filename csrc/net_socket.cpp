#include "net_socket.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace trimtab {
namespace {

std::string describe(const sockaddr_storage& address) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (address.ss_family == AF_INET) {
        sockaddr_in in{};
        std::memcpy(&in, &address, sizeof(in));
        inet_ntop(AF_INET, &in.sin_addr, text.data(), text.size());
        return "ipv4:" + std::string(text.data()) + ":" + std::to_string(ntohs(in.sin_port));
    }
    if (address.ss_family == AF_INET6) {
        sockaddr_in6 in{};
        std::memcpy(&in, &address, sizeof(in));
        inet_ntop(AF_INET6, &in.sin6_addr, text.data(), text.size());
        return "ipv6:%5B" + std::string(text.data()) + "%5D:" + std::to_string(ntohs(in.sin6_port));
    }
    return "unix:";
}

}  // namespace

Accepted accept_next(int listener) {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    Descriptor socket(::accept4(listener, reinterpret_cast<sockaddr*>(&address), &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket) return {Descriptor(), "", errno};
    if (address.ss_family != AF_UNIX) {
        const int on = 1;
        ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    return {std::move(socket), describe(address), 0};
}

Descriptor make_epoll() {
    Descriptor made(::epoll_create1(EPOLL_CLOEXEC));
    if (!made) throw std::system_error(errno, std::generic_category(), "epoll_create1");
    return made;
}

Descriptor make_eventfd() {
    Descriptor made(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!made) throw std::system_error(errno, std::generic_category(), "eventfd");
    return made;
}

void reset_on_close(int socket) {
    const linger none{1, 0};
    ::setsockopt(socket, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
}

}  // namespace trimtab
