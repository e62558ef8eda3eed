// Target: all that a client may send, from its preface on, to a front with real threads and sockets. Each input is a
// connection of its own; a front that does not end it after the client has is stuck, which is a defect, too.
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cstdlib>

#include "front_bed.h"
#include "fuzz.h"

namespace {

using namespace trimtab;

FrontBed& bed() {
    static FrontBed made(1, [] {
        FrontLimits limits;
        limits.max_message_bytes = 100'000;
        return limits;
    }());
    return made;
}

std::string call(unsigned stream, const std::string& path, const std::string& data,
                 const std::vector<std::pair<std::string, std::string>>& more = {}) {
    return http2_headers(stream, path, false, more) + http2_frame(0, 1, stream, data);
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
    const std::string hello = http2_preface();
    const std::string text = grpc_message("some text");
    std::string all = hello;
    unsigned stream = 1;
    for (const char* name : {"Unary", "HotUnary", "ClientStream", "ServerStream", "Duplex", "HotDuplex"}) {
        all += call(stream, std::string("/t.T/") + name, text, {{"grpc-timeout", "5S"}, {"blob-bin", "AAE"}});
        stream += 2;
    }
    const std::string settings = http2_frame(4, 0, 0, std::string("\0\4\0\0\0\1", 6));
    const std::string update = http2_frame(8, 0, 0, std::string("\0\0\1\0", 4));
    const std::string reset = http2_frame(3, 0, 1, std::string("\0\0\0\10", 4));
    return {
        all,
        hello + call(1, "/t.T/HotDuplex", text + text + text, {{"grpc-accept-encoding", "gzip"}}),
        hello + http2_headers(1, "/t.T/Duplex", false) + http2_frame(0, 0, 1, text) + reset + call(3, "/t.T/No", text),
        hello + settings + call(1, "/t.T/Unary", text) + update + http2_frame(6, 0, 0, "12345678"),
        hello + call(1, "/t.T/HotUnary", grpc_message("no gzip", 1), {{"grpc-encoding", "gzip"}}),
        hello + http2_frame(1, 1, 1, "\x83\x86") + http2_frame(9, 4, 1, std::string("\0\1a\1b", 5)),
        "GET / HTTP/1.1\r\n\r\n",
    };
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const Descriptor client = bed().connect();
    std::size_t sent = 0;
    while (sent < size) {
        const ssize_t count = ::send(client.get(), data + sent, size - sent, MSG_NOSIGNAL);
        if (count <= 0) break;  // it has had enough
        sent += static_cast<std::size_t>(count);
    }
    ::shutdown(client.get(), SHUT_WR);
    std::array<char, 65536> answer{};
    for (;;) {
        pollfd waiting{client.get(), POLLIN, 0};
        if (::poll(&waiting, 1, 30'000) == 0) std::abort();
        if (::recv(client.get(), answer.data(), answer.size(), 0) <= 0) return 0;
    }
}
