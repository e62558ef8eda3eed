// The slower half of an I/O thread: accepting, commands from Python, what is looked at once in a while, stopping.
#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <utility>

#include "front_thread.h"
#include "net_socket.h"

namespace trimtab {
namespace {

constexpr int kAccepts = 64;  // in one wake-up
constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kSweep = 1000 * kMillisecond;
constexpr std::int64_t kBusySweep = 20 * kMillisecond;     // while a listener is stopping
constexpr std::int64_t kAcceptPause = 100 * kMillisecond;  // after the system has run out of descriptors
constexpr std::int64_t kPoliteness = 1000 * kMillisecond;  // after the grace, for what was said last to arrive

}  // namespace

// --- accepting

void IoThread::accept(LocalListener& listener) {
    for (int i = 0; i < kAccepts && !listener.stopping && listener.resume_at == 0; ++i) {
        Accepted next = accept_next(listener.socket.get());
        if (next.socket) {
            adopt(listener, std::move(next));
        } else if (next.error == EMFILE || next.error == ENFILE || next.error == ENOBUFS || next.error == ENOMEM) {
            // The connection stays in the backlog, and would wake us without end if nothing made room for it.
            if (!make_room()) pause_accepting(listener);
            return;
        } else if (next.error != EINTR && next.error != ECONNABORTED) {
            return;
        }
    }
}

void IoThread::adopt(LocalListener& listener, Accepted accepted) {
    if (totals_->connections.load(std::memory_order_relaxed) >= limits_.connections && !make_room()) return;
    const int descriptor = accepted.socket.get();
    std::unique_ptr<Connection> made;
    try {
        made = std::make_unique<Connection>(*this, listener, listener.offer->streams->make(std::move(accepted.socket)),
                                            std::move(accepted.peer));
    } catch (const std::exception&) {
        return;  // there is no memory for it, or TLS is out of order: it is closed, the others go on
    }
    Connection* connection = made.get();
    totals_->connections.fetch_add(1, std::memory_order_relaxed);
    ++listener.open;
    connections_.emplace(connection, std::move(made));
    epoll_event event{};
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    event.data.ptr = connection;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, descriptor, &event) != 0) connection->abandon();
}

// At the bound of connections, the oldest that never made a call makes room, else the one without calls for longest.
bool IoThread::make_room() {
    LinkedList& list = fresh_.empty() ? idle_ : fresh_;
    if (list.empty()) return false;
    static_cast<Connection*>(list.first())->abandon();
    return true;
}

bool IoThread::find_room(const Connection& asking, std::int64_t more) {
    while (over_budget(more)) {
        Connection* largest = nullptr;
        std::int64_t most = asking.weight() + more;
        for (const auto& [connection, owner] : connections_) {
            if (connection->weight() <= most) continue;
            largest = connection;
            most = connection->weight();
        }
        if (largest == nullptr || largest == &asking) return false;
        largest->give_way();
        if (largest->weight() >= most) return false;
    }
    return true;
}

void IoThread::pause_accepting(LocalListener& listener) {
    listener.resume_at = now_ + kAcceptPause;
    next_sweep_ = std::min(next_sweep_, listener.resume_at);
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener.socket.get(), nullptr);
}

void IoThread::watch(LocalListener& listener) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLEXCLUSIVE;
    event.data.ptr = tag(listener);
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener.socket.get(), &event) != 0 && errno != EEXIST)
        listener.resume_at = now_ + kAcceptPause;
}

// --- commands

void IoThread::handle_commands(std::vector<Command>& commands) {
    for (Command& command : commands) {
        switch (command.kind) {
            case CommandKind::stop: stop_listener(command.id, command.number); break;
            case CommandKind::watch_idle: watching_idle_ = true; break;
            case CommandKind::quit:
                quitting_ = true;
                for (const auto& listener : listeners_) stop_listener(listener->index, 0);
                break;
            default: on_call_command(command);
        }
    }
}

void IoThread::on_call_command(Command& command) {
    const auto found = named_.find(command.id);
    if (found == named_.end()) {  // it ended meanwhile
        if (command.kind == CommandKind::finish) python_forgets(command.id);
        return;
    }
    Call& call = *found->second;
    Connection& connection = *call.connection;
    if (command.kind != CommandKind::read) {
        call.compression = command.compression;
        call.plain = command.plain;
    }
    switch (command.kind) {
        case CommandKind::headers: connection.send_headers(call, std::move(command.metadata)); break;
        case CommandKind::message: connection.send(call, command.message.release()); break;
        case CommandKind::read: connection.on_read(call, static_cast<std::size_t>(command.number)); break;
        case CommandKind::finish:
            // Python forgets the call now.
            named_.erase(found);
            connection.python_forgets();
            call.handed_over = false;
            call.trailing = std::move(command.metadata);
            if (command.message != nullptr) connection.send(call, command.message.release());
            connection.finish(call, command.status, command.text);
            break;
        default: break;
    }
}

void IoThread::stop_listener(std::uint64_t index, std::int64_t grace) {
    for (const auto& listener : listeners_) {
        if (listener->index != index) continue;
        if (!std::exchange(listener->stopping, true)) {
            listener->socket = Descriptor();  // which takes it out of the epoll set, too
            for (const auto& [connection, owner] : connections_) {
                if (&connection->listener() == listener.get()) connection->drain();
            }
        }
        listener->stop_at = std::min(listener->stop_at, now_ + grace);
        next_sweep_ = now_;
    }
}

// --- once in a while

void IoThread::sweep() {
    const auto longest = static_cast<std::int64_t>(limits_.message_seconds * 1e9);
    while (longest > 0 && !stalled_.empty()) {
        const auto& link = *static_cast<CallLink*>(stalled_.first());
        if (now_ - link.since < longest) break;
        link.call->stall.unlink();
        link.call->connection->on_stall(*link.call);
    }
    for (const auto& [connection, owner] : connections_) connection->sweep(now_);
    next_sweep_ = now_ + kSweep;
    sweep_listeners();
}

void IoThread::sweep_listeners() {
    for (const auto& listener : listeners_) {
        if (listener->resume_at != 0 && now_ >= listener->resume_at && !listener->stopping) {
            listener->resume_at = 0;
            watch(*listener);
        }
        if (listener->resume_at != 0) next_sweep_ = std::min(next_sweep_, listener->resume_at);
        if (!listener->stopping || listener->stopped) continue;
        next_sweep_ = std::min(next_sweep_, now_ + kBusySweep);
        if (listener->open == 0) {
            listener->stopped = true;
            post({EventKind::stopped, 0, static_cast<std::int64_t>(listener->index), nullptr, nullptr});
        } else if (now_ >= listener->stop_at) {
            end_listener(*listener);
        }
    }
}

// The grace is over: calls are told so, then connections go, politely for as long as they linger.
void IoThread::end_listener(const LocalListener& listener) {
    for (const auto& [connection, owner] : connections_) {
        if (&connection->listener() != &listener) continue;
        if (now_ > listener.stop_at + kPoliteness) {
            connection->abandon();
            continue;
        }
        connection->end_calls(StatusCode::unavailable, "the server is stopping");
        connection->last_goaway();
        touch(*connection);
    }
}

void IoThread::tell_idle() {
    std::int64_t under_way = 0;
    for (const auto& listener : listeners_) {
        for (const auto& local : listener->routes) {
            if (local->route->hot()) {
                under_way +=
                    local->begun.load(std::memory_order_relaxed) - local->closed.load(std::memory_order_relaxed);
            }
        }
    }
    if (under_way != 0) return;
    watching_idle_ = false;
    post({EventKind::idle, 0, static_cast<std::int64_t>(index_), nullptr, nullptr});
}

}  // namespace trimtab
