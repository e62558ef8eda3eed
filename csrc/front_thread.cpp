#include "front_thread.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>

#include "clock.h"
#include "net_socket.h"

namespace trimtab {
namespace {

constexpr std::size_t kInput = 64 << 10;
constexpr std::int64_t kTurn = 64 << 10;  // bytes read in a wake-up, over all connections
constexpr std::int64_t kCrowd = 512;      // hot requests under way from which computing them is more urgent than more
constexpr std::size_t kOutput = 384 << 10;      // to begin with
constexpr std::size_t kKeptBuffer = 256 << 10;  // of a request that waits to be used again
constexpr std::size_t kKeptRequests = 8192;
constexpr std::int64_t kMillisecond = 1'000'000;

thread_local IoThread* current = nullptr;

template <class T>
void trim(T& buffer) {
    if (buffer.capacity() > kKeptBuffer) T().swap(buffer);
}

}  // namespace

IoThread::IoThread(std::size_t index, const FrontLimits& limits, std::shared_ptr<Bridge> bridge,
                   std::shared_ptr<FrontTotals> totals)
    : index_(index),
      limits_(limits),
      bridge_(std::move(bridge)),
      totals_(std::move(totals)),
      epoll_(make_epoll()),
      wake_(make_eventfd()),
      now_(monotonic_ns()),
      input_(kInput),
      timers_(now_) {
    output_.reserve(kOutput);
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;  // each write is an edge: it need not be read
    event.data.ptr = nullptr;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event);
}

IoThread::~IoThread() {
    connections_.clear();
    for (const auto& listener : listeners_) {
        for (const auto& local : listener->routes) {
            while (local->free != nullptr) {
                const std::unique_ptr<HotRequest> request(std::exchange(local->free, local->free->next));
            }
        }
    }
}

void IoThread::listen(std::uint64_t index, std::shared_ptr<const Offer> offer, Descriptor socket) {
    auto listener = std::make_unique<LocalListener>();
    listener->index = index;
    listener->offer = std::move(offer);
    listener->socket = std::move(socket);
    for (const Route& route : listener->offer->routes) {
        auto& local = listener->routes.emplace_back(std::make_unique<LocalRoute>());
        local->route = &route;
        listener->paths.emplace(route.path, local.get());
    }
    if (listener->socket) watch(*listener);
    listeners_.push_back(std::move(listener));
}

void IoThread::start() {
    // Signals are for the interpreter's main thread: this one inherits a mask that blocks them.
    sigset_t all, before;
    sigfillset(&all);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&all, fault);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    thread_ = std::thread([this] {
        run();
        ended_.set_value();
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

bool IoThread::join(std::int64_t timeout) {
    if (!thread_.joinable()) return true;
    if (ended_.get_future().wait_for(std::chrono::nanoseconds(timeout)) != std::future_status::ready) {
        thread_.detach();
        return false;
    }
    thread_.join();
    // Whoever delivered last may not have returned yet.
    while (delivering_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    return true;
}

// --- any thread

void IoThread::wake() { ::eventfd_write(wake_.get(), 1); }

void IoThread::deliver(std::span<HotRequest* const> requests) noexcept {
    if (requests.empty()) return;
    for (std::size_t i = 0; i + 1 < requests.size(); ++i) requests[i]->next = requests[i + 1];
    requests.back()->next = nullptr;
    const auto add = [&requests](HotRequest*& first, HotRequest*& last) {
        (first == nullptr ? first : last->next) = requests.front();
        last = requests.back();
    };
    if (current == this) return add(local_first_, local_last_);
    delivering_.fetch_add(1, std::memory_order_relaxed);
    bool sleeping = false;
    {
        const std::lock_guard lock(mutex_);
        add(delivered_first_, delivered_last_);
        sleeping = !std::exchange(woken_, true);
    }
    if (sleeping) wake();
    delivering_.fetch_sub(1, std::memory_order_release);  // the last that this thread touches
}

void IoThread::command(std::vector<Command> commands) {
    bool sleeping = false;
    {
        const std::lock_guard lock(mutex_);
        commands_.insert(commands_.end(), std::make_move_iterator(commands.begin()),
                         std::make_move_iterator(commands.end()));
        sleeping = !std::exchange(woken_, true);
    }
    if (sleeping) wake();
}

// --- the loop

void IoThread::run() {
    current = this;
    ::pthread_setname_np(::pthread_self(), ("trimtab-io-" + std::to_string(index_)).substr(0, 15).c_str());
    std::array<epoll_event, 256> events{};
    while (!(quitting_ && under_way_ == 0 && connections_.empty())) {
        const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), wait_ms());
        now_ = monotonic_ns();
        may_read_ = kTurn;
        // Those that the last turn was too short for come first.
        const std::size_t waiting = again_.size();
        std::size_t read = 0;
        for (; read < waiting && may_read(); ++read) {
            again_[read]->reading_again = false;
            again_[read]->on_ready();
        }
        again_.erase(again_.begin(), again_.begin() + static_cast<std::ptrdiff_t>(read));
        for (int i = 0; i < count; ++i) handle(events[static_cast<std::size_t>(i)].data.ptr, events[static_cast<std::size_t>(i)].events);
        take_mailbox();
        timers_.advance(now_, [this](Timer& timer) { expire(timer); });
        if (now_ >= next_sweep_) sweep();
        flush_targets();
        flush_touched();
        if (watching_idle_) tell_idle();
        bury();
        bridge_->post(events_);
        if (under_way_ >= kCrowd) ::sched_yield();
    }
    current = nullptr;
}

int IoThread::wait_ms() const {
    if (!again_.empty() || !touched_.empty() || local_first_ != nullptr) return 0;
    int wait = timers_.wait(now_);
    const bool stopping = std::any_of(listeners_.begin(), listeners_.end(), [](const auto& listener) {
        return listener->resume_at != 0 || (listener->stopping && !listener->stopped);
    });
    if (!connections_.empty() || stopping) {
        const auto sweep = static_cast<int>(std::max<std::int64_t>((next_sweep_ - now_) / kMillisecond + 1, 0));
        wait = wait < 0 ? sweep : std::min(wait, sweep);
    }
    return wait;
}

void IoThread::handle(void* tagged, std::uint32_t events) {
    if (tagged == nullptr) return;  // the mailbox
    const auto bits = reinterpret_cast<std::uintptr_t>(tagged);
    if ((bits & 1U) != 0) {
        accept(*reinterpret_cast<LocalListener*>(bits & ~std::uintptr_t{1}));
    } else {
        if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) static_cast<Connection*>(tagged)->on_hang_up();
        static_cast<Connection*>(tagged)->on_ready();
    }
}

void* IoThread::tag(LocalListener& listener) {
    return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(&listener) | 1U);
}

void IoThread::take_mailbox() {
    HotRequest* delivered = nullptr;
    std::vector<Command> commands;
    {
        const std::lock_guard lock(mutex_);
        if (!woken_) return;
        woken_ = false;
        delivered = std::exchange(delivered_first_, nullptr);
        commands.swap(commands_);
    }
    while (delivered != nullptr) handle_delivered(std::exchange(delivered, delivered->next));
    handle_commands(commands);
}

void IoThread::handle_delivered(HotRequest* request) {
    Call& call = *reinterpret_cast<Call*>(static_cast<std::uintptr_t>(request->call));
    --under_way_;
    auto& under_way = call.under_way;
    const auto place = std::find(under_way.begin(), under_way.end(), request);
    if (place != under_way.end()) under_way.erase(place);
    if (call.connection != nullptr) {
        call.connection->on_answer(call, request);
    } else {
        give_request(call.local, request);
        if (under_way.empty()) give_call(call);
    }
}

void IoThread::deliver_local() {
    while (local_first_ != nullptr) handle_delivered(std::exchange(local_first_, local_first_->next));
}

void IoThread::flush_targets() {
    for (LocalRoute* local : submitted_) {
        local->submitted = false;
        local->route->target->flush();
    }
    submitted_.clear();
    deliver_local();
}

void IoThread::flush_touched() {
    // By index: flushing may touch others.
    for (std::size_t i = 0; i < touched_.size(); ++i) {
        touched_[i]->touched = false;
        touched_[i]->flush();
    }
    touched_.clear();
}

void IoThread::bury() {
    // A connection that dies cancels its calls; what that delivers finds calls without a connection.
    deliver_local();
    for (Connection* connection : doomed_) {
        std::erase(touched_, connection);
        std::erase(again_, connection);
        --connection->listener().open;
        totals_->connections.fetch_sub(1, std::memory_order_relaxed);
        connections_.erase(connection);
    }
    doomed_.clear();
}

void IoThread::expire(Timer& timer) {
    auto& call = static_cast<Call&>(timer);
    call.connection->expire(call);
}

// --- for connections

void IoThread::touch(Connection& connection) {
    if (std::exchange(connection.touched, true)) return;
    touched_.push_back(&connection);
}

void IoThread::read_again(Connection& connection) {
    if (std::exchange(connection.reading_again, true)) return;
    again_.push_back(&connection);
}

void IoThread::doom(Connection& connection) { doomed_.push_back(&connection); }

Call& IoThread::take_call() {
    if (free_calls_.empty()) {
        calls_.push_back(std::make_unique<Call>());
        return *calls_.back();
    }
    Call& call = *free_calls_.back();
    free_calls_.pop_back();
    return call;
}

void IoThread::give_call(Call& call) {
    call.reset();
    free_calls_.push_back(&call);
}

HotRequest* IoThread::take_request(LocalRoute& local) {
    if (!local.route->hot()) return new HotRequest;
    if (local.free == nullptr) return local.route->target->make().release();
    --local.free_count;
    return std::exchange(local.free, local.free->next);
}

void IoThread::give_request(LocalRoute* local, HotRequest* request) {
    if (local == nullptr || !local->route->hot() || local->free_count >= kKeptRequests) {
        delete request;
        return;
    }
    trim(request->body);
    trim(request->answer);
    request->status = StatusCode::ok;
    request->next = local->free;
    local->free = request;
    ++local->free_count;
}

void IoThread::submit(LocalRoute& local, HotRequest* request) {
    request->origin = this;
    ++under_way_;
    if (!std::exchange(local.submitted, true)) submitted_.push_back(&local);
    local.route->target->submit(request);
}

void IoThread::charge(std::int64_t bytes) {
    bytes_ += bytes;
    totals_->shares[index_].bytes.store(bytes_, std::memory_order_relaxed);
}

bool IoThread::over_budget(std::int64_t more) const {
    for (const auto& share : totals_->shares) more += share.bytes.load(std::memory_order_relaxed);
    return more > limits_.total_bytes;
}

void IoThread::abandon_call(std::uint64_t id, std::shared_ptr<std::int64_t> held) {
    named_.erase(id);
    charge(kCallCost);
    abandoned_.emplace(id, std::move(held));
}

void IoThread::python_forgets(std::uint64_t id) {
    const auto found = abandoned_.find(id);
    if (found == abandoned_.end()) return;
    --*found->second;
    charge(-kCallCost);
    abandoned_.erase(found);
}

std::uint64_t IoThread::name_call(Call& call) {
    const std::uint64_t id = (++next_id_ << 8) | index_;
    named_.emplace(id, &call);
    return id;
}

}  // namespace trimtab
