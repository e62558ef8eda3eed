// What the front asks of the system's sockets beyond reading and writing.
#pragma once

#include <sys/socket.h>

#include <string>

#include "net_stream.h"

namespace trimtab {

struct Accepted {
    Descriptor socket;
    std::string peer;  // as grpc names it: "ipv4:127.0.0.1:50000", "ipv6:%5B::1%5D:50000", "unix:"
    int error = 0;     // errno where there is no socket
};

// The next connection of a listening socket, nonblocking and without delay (Nagle).
Accepted accept_next(int listener);

Descriptor make_epoll();    // throws std::system_error
Descriptor make_eventfd();  // likewise

// What was written and not sent yet is thrown away at close, and the peer is told by a reset.
void reset_on_close(int socket);

}  // namespace trimtab
