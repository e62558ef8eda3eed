// The native front for Python: FrontLimits, Front, EchoTarget, LoopTarget. Events and commands are tuples; see _native.pyi.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "front.h"
#include "front_echo.h"
#include "grpc_text.h"
#include "loop_target.h"
#include "net_tls.h"

namespace py = pybind11;

namespace trimtab {
namespace {

// --- limits

template <class Visit>
void each_limit(FrontLimits& limits, Visit&& visit) {
    visit("max_message_bytes", limits.max_message_bytes);
    visit("connection_bytes", limits.connection_bytes);
    visit("total_bytes", limits.total_bytes);
    visit("output_bytes", limits.output_bytes);
    visit("header_bytes", limits.header_bytes);
    visit("stream_window", limits.stream_window);
    visit("connection_window", limits.connection_window);
    visit("connections", limits.connections);
    visit("streams", limits.streams);
    visit("stream_requests", limits.stream_requests);
    visit("resets_per_second", limits.resets_per_second);
    visit("reset_burst", limits.reset_burst);
    visit("controls_per_second", limits.controls_per_second);
    visit("control_burst", limits.control_burst);
    visit("updates_per_second", limits.updates_per_second);
    visit("update_burst", limits.update_burst);
    visit("handshake_seconds", limits.handshake_seconds);
    visit("header_seconds", limits.header_seconds);
    visit("message_seconds", limits.message_seconds);
    visit("message_rate", limits.message_rate);
    visit("write_seconds", limits.write_seconds);
    visit("idle_seconds", limits.idle_seconds);
    visit("keepalive_seconds", limits.keepalive_seconds);
    visit("keepalive_timeout_seconds", limits.keepalive_timeout_seconds);
    visit("age_seconds", limits.age_seconds);
    visit("age_grace_seconds", limits.age_grace_seconds);
}

FrontLimits make_limits(const py::kwargs& given) {
    FrontLimits limits;
    std::size_t known = 0;
    each_limit(limits, [&](const char* name, auto& field) {
        if (!given.contains(name)) return;
        ++known;
        field = given[name].template cast<std::remove_reference_t<decltype(field)>>();
        if (!(field >= 0)) throw std::invalid_argument(std::string(name) + ": expected a number of at least 0");
    });
    if (known != given.size()) throw py::type_error("FrontLimits() has no such limit: " + std::string(py::str(given)));
    constexpr std::int64_t window = 0x7FFFFFFF;
    if (limits.stream_window > window || limits.connection_window > window || limits.max_message_bytes > 0xFFFFFFFF)
        throw std::invalid_argument("a window is at most 2**31 - 1 bytes, a message 2**32 - 1");
    return limits;
}

py::dict describe_limits(const FrontLimits& limits) {
    py::dict result;
    FrontLimits copy = limits;
    each_limit(copy, [&](const char* name, auto& field) { result[name] = field; });
    return result;
}

// --- metadata

py::tuple to_python(const Metadata& metadata) {
    py::tuple result(metadata.size());
    for (std::size_t i = 0; i < metadata.size(); ++i) {
        const auto& [name, value] = metadata[i];
        py::object text = name.ends_with("-bin")
                              ? py::object(py::bytes(value))
                              : py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
                                    value.data(), static_cast<py::ssize_t>(value.size()), "replace"));
        result[i] = py::make_tuple(name, std::move(text));
    }
    return result;
}

Metadata from_python(const py::handle& pairs) {
    Metadata metadata;
    for (const py::handle pair : pairs) {
        const auto [name, value] = pair.cast<std::pair<std::string, std::string>>();
        metadata.emplace_back(name, value);
    }
    return metadata;
}

py::object to_python(const PeerIdentity& identity) {
    py::dict result;
    for (const auto& [name, values] : identity.properties) {
        py::list list;
        for (const auto& value : values) list.append(py::bytes(value));
        result[py::str(name)] = std::move(list);
    }
    return result;
}

py::object body_of(const Event& event) {
    if (event.message == nullptr) return py::none();
    return py::bytes(event.message->body.data(), event.message->body.size());
}

// --- events and commands

py::tuple to_python(const Event& event) {
    const int kind = static_cast<int>(event.kind);
    if (event.kind == EventKind::call) {
        const CallInfo& info = *event.info;
        py::object deadline = info.deadline == kNever ? py::object(py::none()) : py::cast(info.deadline);
        return py::make_tuple(kind, event.id, info.handler, deadline, to_python(info.metadata), info.connection->peer,
                              to_python(info.connection->identity), body_of(event));
    }
    if (event.kind == EventKind::message) return py::make_tuple(kind, event.id, body_of(event));
    return py::make_tuple(kind, event.id, event.number);
}

py::list poll(Front& front) {
    const std::vector<Event> events = front.bridge().take();
    py::list result(events.size());
    for (std::size_t i = 0; i < events.size(); ++i) result[i] = to_python(events[i]);
    return result;
}

std::unique_ptr<HotRequest> message_from(const py::handle& bytes) {
    if (bytes.is_none()) return nullptr;
    char* data = nullptr;
    py::ssize_t size = 0;
    if (PyBytes_AsStringAndSize(bytes.ptr(), &data, &size) != 0) throw py::error_already_set();
    auto message = std::make_unique<HotRequest>();
    message->answer.resize(static_cast<std::size_t>(size));
    if (size > 0) std::memcpy(message->answer.data(), data, static_cast<std::size_t>(size));
    return message;
}

// The number of a Compression; 4 more: not this message.
void set_compression(Command& command, const py::handle& given) {
    const int number = given.cast<int>();
    if (number < 0 || (number & 3) > static_cast<int>(Compression::gzip))
        throw std::invalid_argument("no such compression");
    command.compression = static_cast<Compression>(number & 3);
    command.plain = (number & 4) != 0;
}

Command command_from(const py::tuple& given) {
    Command command;
    const int kind = given[0].cast<int>();
    if (kind < 0 || kind > static_cast<int>(CommandKind::finish)) throw std::invalid_argument("no such command");
    command.kind = static_cast<CommandKind>(kind);
    command.id = given[1].cast<std::uint64_t>();
    switch (command.kind) {
        case CommandKind::headers:
            command.metadata = from_python(given[2]);
            set_compression(command, given[3]);
            break;
        case CommandKind::message:
            command.message = message_from(given[2]);
            set_compression(command, given[3]);
            break;
        case CommandKind::read: command.number = given[2].cast<std::int64_t>(); break;
        default: {
            const int status = given[2].cast<int>();
            if (status < 0 || status > 16) throw std::invalid_argument("expected a status of 0 to 16");
            command.status = static_cast<StatusCode>(status);
            command.text = given[3].cast<std::string>();
            command.metadata = from_python(given[4]);
            command.message = message_from(given[5]);
            set_compression(command, given[6]);
        }
    }
    return command;
}

void command(Front& front, const py::list& given) {
    std::vector<Command> commands;
    commands.reserve(given.size());
    for (const py::handle item : given) commands.push_back(command_from(item.cast<py::tuple>()));
    front.command(std::move(commands));
}

// --- listening

using RouteTuple = std::tuple<std::string, std::string, int, bool, std::int64_t, std::shared_ptr<HotTarget>>;

void listen(Front& front, std::uint64_t index, const std::vector<int>& sockets, const std::vector<RouteTuple>& routes,
            std::shared_ptr<StreamFactory> streams) {
    std::vector<Descriptor> owned;
    for (const int socket : sockets) owned.emplace_back(socket);
    auto offer = std::make_shared<Offer>();
    for (const auto& [path, label, kind, accepted, handler, target] : routes)
        offer->routes.push_back({path, label, static_cast<CallKind>(kind), accepted, handler, target});
    offer->streams = streams != nullptr ? std::move(streams) : std::make_shared<PlainFactory>();
    front.listen(index, std::move(offer), std::move(owned));
}

py::list ended(const Front& front) {
    py::list result;
    for (const auto& row : front.ended()) result.append(py::make_tuple(row.label, row.status, row.count));
    return result;
}

// Joining needs the threads to go on, and the last of their work may wait for the GIL elsewhere.
struct CloseWithoutGil {
    void operator()(Front* front) const {
        const py::gil_scoped_release release;
        delete front;
    }
};

}  // namespace

void bind_front(py::module_& module) {
    py::class_<FrontLimits>(module, "FrontLimits", "What the native front lets a client take; see the type stub.")
        .def(py::init(&make_limits))
        .def("asdict", &describe_limits);

    module.def("valid_metadata", [](std::string_view name, const py::bytes& value) {
        return valid_metadata(name, std::string_view(value));
    });

    py::class_<StreamFactory, std::shared_ptr<StreamFactory>>(module, "StreamFactory",
                                                              "What wraps a connection's bytes.");

    py::class_<TlsFactory, StreamFactory, std::shared_ptr<TlsFactory>>(module, "TlsFactory", "TLS by OpenSSL.")
        .def(py::init([](std::string certificate, std::string key, std::string client_ca) {
                 return std::make_shared<TlsFactory>(
                     TlsFiles{std::move(certificate), std::move(key), std::move(client_ca)});
             }),
             py::arg("certificate"), py::arg("key"), py::arg("client_ca") = "")
        .def_property_readonly("reload_error", &TlsFactory::reload_error);

    py::class_<EchoTarget, HotTarget, std::shared_ptr<EchoTarget>>(module, "EchoTarget", "Answers with the message.")
        .def(py::init<>());

    py::class_<LoopTarget, HotTarget, std::shared_ptr<LoopTarget>>(module, "LoopTarget", "memcpy and a model.")
        .def(py::init([](std::size_t rows, std::size_t row_bytes, std::size_t output_bytes, const py::bytes& head) {
                 if (rows == 0) throw std::invalid_argument("rows: expected at least 1");
                 return std::make_shared<LoopTarget>(rows, row_bytes, output_bytes, std::string(head));
             }),
             py::arg("rows"), py::arg("row_bytes"), py::arg("output_bytes"), py::arg("head"))
        .def("take",
             [](LoopTarget& target, const py::buffer& to) {
                 const py::buffer_info space = to.request(true);
                 const auto bytes = static_cast<std::size_t>(space.size * space.itemsize);
                 if (bytes < target.request_bytes()) throw std::invalid_argument("no room for a request's rows");
                 const std::size_t most = bytes / target.request_bytes() * target.row_count();
                 const py::gil_scoped_release release;
                 return target.take(static_cast<char*>(space.ptr), most);
             })
        .def("answer",
             [](LoopTarget& target, const py::buffer& outputs) {
                 const py::buffer_info from = outputs.request();
                 if (static_cast<std::size_t>(from.size * from.itemsize) < target.taken() * target.output_bytes())
                     throw std::invalid_argument("fewer outputs than rows");
                 const py::gil_scoped_release release;
                 target.answer(static_cast<const char*>(from.ptr));
             })
        .def("close", &LoopTarget::close);

    py::class_<Front, std::unique_ptr<Front, CloseWithoutGil>>(module, "Front", "The native HTTP/2 front.")
        .def(py::init([](const FrontLimits& limits, std::size_t threads) {
                 if (threads < 1 || threads > 64) throw std::invalid_argument("threads: expected 1 to 64");
                 return std::unique_ptr<Front, CloseWithoutGil>(new Front(limits, threads));
             }),
             py::arg("limits"), py::arg("threads") = 1)
        .def("listen", &listen, py::arg("index"), py::arg("sockets"), py::arg("routes"),
             py::arg("streams") = py::none())
        .def("start", &Front::start)
        .def("fileno", [](Front& front) { return front.bridge().descriptor(); })
        .def("poll", &poll)
        .def("command", &command, py::arg("commands"))
        .def("stop", &Front::stop, py::arg("index"), py::arg("grace_ns"))
        .def("watch_idle", &Front::watch_idle)
        .def(
            "close", [](Front& front, double seconds) { return front.close(static_cast<std::int64_t>(seconds * 1e9)); },
            py::arg("seconds") = 5.0, py::call_guard<py::gil_scoped_release>())
        .def("ended", &ended)
        .def("counted", &Front::counted)
        .def_property_readonly("threads", &Front::threads)
        .def_property_readonly("connections", &Front::connections)
        .def_property_readonly("nbytes", &Front::bytes);
}

}  // namespace trimtab
