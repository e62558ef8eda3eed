#include "front_bed.h"

#include <poll.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "front_echo.h"

namespace trimtab {
namespace {

sockaddr_un address_of(const std::string& name, socklen_t& size) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name.data(), name.size());
    size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    return address;
}

Descriptor make_socket(int flags) { return Descriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0)); }

std::unique_ptr<HotRequest> answer_of(const std::unique_ptr<HotRequest>& message) {
    auto answer = std::make_unique<HotRequest>();
    if (message == nullptr || message->body.empty()) return answer;
    answer->answer.resize(message->body.size());
    std::memcpy(answer->answer.data(), message->body.data(), message->body.size());
    return answer;
}

Command make_command(CommandKind kind, std::uint64_t id) {
    Command command;
    command.kind = kind;
    command.id = id;
    return command;
}

}  // namespace

FrontBed::FrontBed(std::size_t threads, const FrontLimits& limits)
    : front_(limits, threads), name_("trimtab-bed-" + std::to_string(::getpid())) {
    auto offer = std::make_shared<Offer>();
    offer->streams = std::make_shared<PlainFactory>();
    const auto echo = std::make_shared<EchoTarget>();
    const char* kinds[] = {"Unary", "ClientStream", "ServerStream", "Duplex"};
    for (int kind = 0; kind < 4; ++kind) {
        const std::string name = kinds[kind];
        offer->routes.push_back({"/t.T/" + name, "T/" + name, static_cast<CallKind>(kind), true, kind, nullptr});
        if (kind == 0 || kind == 3)
            offer->routes.push_back({"/t.T/Hot" + name, "T/Hot" + name, static_cast<CallKind>(kind), true, -1, echo});
    }
    std::vector<Descriptor> sockets;
    sockets.push_back(make_socket(SOCK_NONBLOCK));
    socklen_t size = 0;
    const sockaddr_un address = address_of(name_, size);
    if (::bind(sockets[0].get(), reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
        ::listen(sockets[0].get(), 128) != 0)
        throw std::system_error(errno, std::generic_category(), "listen");
    // A Unix socket has no SO_REUSEPORT: all threads accept from copies of one descriptor.
    for (std::size_t i = 1; i < threads; ++i) sockets.emplace_back(::dup(sockets[0].get()));
    front_.listen(0, offer, std::move(sockets));
    front_.start();
    server_ = std::thread([this] { serve(); });
}

FrontBed::~FrontBed() {
    stop_ = true;
    server_.join();
    if (!front_.close(10'000'000'000)) std::abort();  // a request was lost
}

Descriptor FrontBed::connect() const {
    Descriptor made = make_socket(0);
    socklen_t size = 0;
    const sockaddr_un address = address_of(name_, size);
    if (::connect(made.get(), reinterpret_cast<const sockaddr*>(&address), size) != 0)
        throw std::system_error(errno, std::generic_category(), "connect");
    return made;
}

void FrontBed::serve() {
    while (!stop_) {
        pollfd waiting{front_.bridge().descriptor(), POLLIN, 0};
        ::poll(&waiting, 1, 20);
        std::vector<Command> commands;
        for (const Event& event : front_.bridge().take()) handle(event, commands);
        if (!commands.empty()) front_.command(std::move(commands));
    }
}

void FrontBed::handle(const Event& event, std::vector<Command>& commands) {
    if (event.kind == EventKind::call && event.message != nullptr) {  // of one message: an answer, or two and the end
        if (event.info->handler == 2) {
            commands.push_back(make_command(CommandKind::message, event.id));
            commands.back().message = answer_of(event.message);
        }
        commands.push_back(make_command(CommandKind::finish, event.id));
        commands.back().message = answer_of(event.message);
        commands.back().metadata = {{"last", "1"}, {"last-bin", std::string("\0\1", 2)}};
    } else if (event.kind == EventKind::call) {
        commands.push_back(make_command(CommandKind::headers, event.id));
    } else if (event.kind == EventKind::message) {
        commands.push_back(make_command(CommandKind::read, event.id));
        commands.back().number = static_cast<std::int64_t>(event.message->body.size()) + 64;
        commands.push_back(make_command(CommandKind::message, event.id));
        commands.back().compression = Compression::gzip;
        commands.back().message = answer_of(event.message);
    } else if (event.kind == EventKind::half_closed || event.kind == EventKind::cancelled) {
        commands.push_back(make_command(CommandKind::finish, event.id));
        commands.back().status = StatusCode::not_found;
        commands.back().text = "100 % ä";
    }
}

// --- frames

std::string http2_frame(unsigned type, unsigned flags, unsigned stream, const std::string& payload) {
    std::string frame;
    for (const unsigned shift : {16U, 8U, 0U}) frame.push_back(static_cast<char>(payload.size() >> shift));
    frame.push_back(static_cast<char>(type));
    frame.push_back(static_cast<char>(flags));
    for (const unsigned shift : {24U, 16U, 8U, 0U}) frame.push_back(static_cast<char>(stream >> shift));
    return frame + payload;
}

std::string http2_preface() { return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2_frame(4, 0, 0, ""); }

std::string http2_headers(unsigned stream, const std::string& path, bool end,
                          const std::vector<std::pair<std::string, std::string>>& more) {
    std::vector<std::pair<std::string, std::string>> fields{
        {":method", "POST"}, {":scheme", "http"},  {":path", path},
        {":authority", "t"}, {"te", "trailers"}, {"content-type", "application/grpc"},
    };
    fields.insert(fields.end(), more.begin(), more.end());
    std::string block;
    for (const auto& [name, value] : fields) {
        block += '\0';
        block += static_cast<char>(name.size()) + name;
        block += static_cast<char>(value.size()) + value;
    }
    return http2_frame(1, end ? 5 : 4, stream, block);
}

std::string grpc_message(const std::string& body, char flag) {
    std::string made(1, flag);
    for (const unsigned shift : {24U, 16U, 8U, 0U}) made.push_back(static_cast<char>(body.size() >> shift));
    return made + body;
}

}  // namespace trimtab
