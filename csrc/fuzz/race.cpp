// Drives a front of several I/O threads from several clients at once, for ThreadSanitizer: hot calls, calls that another
// thread answers, streams, resets, connections that break off, and counters that are read meanwhile.
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "front_bed.h"

namespace {

using namespace trimtab;

void client(const FrontBed& bed, unsigned seed, unsigned rounds) {
    const char* names[] = {"Unary", "HotUnary", "ClientStream", "ServerStream", "Duplex", "HotDuplex"};
    for (unsigned round = 0; round < rounds; ++round) {
        const Descriptor socket = bed.connect();
        std::string out = http2_preface();
        for (unsigned i = 0; i < 60; ++i) {
            const unsigned stream = 1 + 2 * i;
            const std::string name = names[(seed + round + i) % 6];
            const std::string body(i * 7 % 300, 'x');
            out += http2_headers(stream, "/t.T/" + name, false, {{"grpc-timeout", i % 5 == 0 ? "1m" : "9S"}});
            out += http2_frame(0, i % 7 == 0 ? 0 : 1, stream, grpc_message(body));
            if (i % 7 == 0) out += http2_frame(3, 0, stream, std::string("\0\0\0\10", 4));
        }
        out += http2_frame(6, 0, 0, "12345678");
        if (::send(socket.get(), out.data(), out.size(), MSG_NOSIGNAL) < 0) std::abort();
        if (round % 3 == 0) continue;  // breaks off
        // Half of the rounds read all there is, until the front ends the connection behind our end.
        if (round % 3 == 1) ::shutdown(socket.get(), SHUT_WR);
        std::array<char, 65536> in{};
        std::size_t got = 0;
        while (round % 3 == 1 || got < 1000) {
            const ssize_t count = ::recv(socket.get(), in.data(), in.size(), 0);
            if (count <= 0) break;
            got += static_cast<std::size_t>(count);
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const auto rounds = static_cast<unsigned>(argc > 1 ? std::atoi(argv[1]) : 60);
    FrontLimits limits;
    limits.reset_burst = limits.control_burst = 1e9;
    FrontBed bed(3, limits);
    std::vector<std::thread> clients;
    for (unsigned seed = 0; seed < 6; ++seed) clients.emplace_back([&bed, seed, rounds] { client(bed, seed, rounds); });
    std::int64_t seen = 0;
    for (unsigned i = 0; i < 200; ++i) {
        bed.front().watch_idle();
        seen += bed.front().connections() + bed.front().bytes() + bed.front().counted().second;
        for (const auto& row : bed.front().ended()) seen += static_cast<std::int64_t>(row.count);
        ::usleep(1000);
    }
    for (std::thread& each : clients) each.join();
    bed.front().stop(0, 1'000'000'000);
    std::printf("race: %u rounds of 6 clients, %s\n", rounds, seen > 0 ? "served" : "nothing was served");
    return seen > 0 ? 0 : 1;
}
