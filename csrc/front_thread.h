// One I/O thread: its listening sockets, connections, calls, timers and free lists. Nothing here is shared but the
// mailbox (answers and commands from other threads, behind one lock) and what is atomic.
//
// A wake-up: events of the sockets → mailbox → timers → HotTarget::flush, and answers that came at once → each touched
// connection is flushed, once → events to Python. Connections are destroyed only at the end of one, so that
// nothing in it can look at one that is gone.
//
// A wake-up reads little (kTurn), and where many requests wait to be computed the thread then lets others run. On a core
// that it shares with the computing thread it would otherwise read for its whole time slice, some 3 ms: thousands of
// requests, more than fit the core's caches (each costs three times as much then) or the queue (the rest is refused).
// With both, open loops of 1-row requests reach what closed loops do; without, half of it. What is not read yet waits
// where it is packed best, in the socket.
//
// Turned down, measured on one core shared with a computing thread: asking Linux for shorter turns (sched_setattr), which
// made refusals no faster, and batches smaller.
#pragma once

#include <atomic>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "front_bridge.h"
#include "front_call.h"
#include "front_limits.h"
#include "front_timers.h"
#include "grpc_gzip.h"
#include "hot_request.h"
#include "http2_connection.h"
#include "http2_memory.h"
#include "net_socket.h"
#include "net_stream.h"

namespace trimtab {

// What threads share: numbers to bound, each written by one thread or by few events.
struct FrontTotals {
    struct alignas(64) Share {
        std::atomic<std::int64_t> bytes{0};
    };
    explicit FrontTotals(std::size_t threads) : shares(threads) {}
    std::vector<Share> shares;
    std::atomic<std::int64_t> connections{0};
};

// What a listener offers; shared by the threads, immutable.
struct Offer {
    std::vector<Route> routes;
    std::shared_ptr<StreamFactory> streams;
};

// A listener as one thread sees it.
struct LocalListener {
    std::uint64_t index = 0;
    std::shared_ptr<const Offer> offer;
    Descriptor socket;
    std::vector<std::unique_ptr<LocalRoute>> routes;
    std::unordered_map<std::string_view, LocalRoute*> paths;
    std::int64_t open = 0;          // connections
    std::int64_t resume_at = 0;     // accepting is put off until then; 0: it goes on
    std::int64_t stop_at = kNever;  // when calls of a stopping listener are ended
    bool stopping = false;
    bool stopped = false;  // Python was told
};

class IoThread final : public Origin {
  public:
    IoThread(std::size_t index, const FrontLimits& limits, std::shared_ptr<Bridge> bridge,
             std::shared_ptr<FrontTotals> totals);
    ~IoThread() override;  // after a join() that succeeded, or without start()

    void listen(std::uint64_t index, std::shared_ptr<const Offer> offer, Descriptor socket);  // before start()
    void start();
    // Whether the thread has ended within so many ns. Where it has not, it goes on, and this object must stay.
    bool join(std::int64_t timeout);

    // --- any thread
    void deliver(std::span<HotRequest* const> requests) noexcept override;
    void command(std::vector<Command> commands);
    const std::vector<std::unique_ptr<LocalListener>>& listeners() const { return listeners_; }

    // --- this thread, from its connections
    const FrontLimits& limits() const { return limits_; }
    std::int64_t now() const { return now_; }
    std::vector<std::uint8_t>& input() { return input_; }
    // Whether this wake-up may read more; where it may not, see read_again().
    bool may_read() const { return may_read_ > 0; }
    void count_read(std::size_t bytes) { may_read_ -= static_cast<std::int64_t>(bytes); }
    std::vector<std::uint8_t>& output() { return output_; }
    std::string& scratch() { return scratch_; }
    Gzip& gzip() { return gzip_; }
    Http2Memory& session_memory() { return session_memory_; }
    TimerWheel& timers() { return timers_; }
    LinkedList& stalled() { return stalled_; }

    Call& take_call();
    void give_call(Call& call);
    HotRequest* take_request(LocalRoute& local);
    void give_request(LocalRoute* local, HotRequest* request);
    void submit(LocalRoute& local, HotRequest* request);

    void touch(Connection& connection);       // flush it in this wake-up
    void read_again(Connection& connection);  // it has more to read than its turn allowed
    void doom(Connection& connection);        // destroy it at the end of this wake-up
    void charge(std::int64_t bytes);
    // Whether there are so many bytes more for a connection. Where there are not, the one that holds most gives way, so
    // that nobody can keep the others out by holding all there is; `asking` itself does not.
    bool find_room(const Connection& asking, std::int64_t more);
    void post(Event event) { events_.push_back(std::move(event)); }
    std::uint64_t name_call(Call& call);
    // The call is over, and Python has not said so yet: `held` counts it until then.
    void abandon_call(std::uint64_t id, std::shared_ptr<std::int64_t> held);
    LinkedList& fresh() { return fresh_; }
    LinkedList& idle() { return idle_; }

  private:
    void run();
    int wait_ms() const;
    void handle(void* tag, std::uint32_t events);
    void accept(LocalListener& listener);
    void adopt(LocalListener& listener, Accepted accepted);
    void watch(LocalListener& listener);
    static void* tag(LocalListener& listener);
    void pause_accepting(LocalListener& listener);
    bool make_room();
    bool over_budget(std::int64_t more) const;
    void take_mailbox();
    void handle_commands(std::vector<Command>& commands);
    void on_call_command(Command& command);
    void stop_listener(std::uint64_t index, std::int64_t grace);
    void handle_delivered(HotRequest* request);
    void deliver_local();
    void flush_targets();
    void flush_touched();
    void expire(Timer& timer);
    void sweep();
    void sweep_listeners();
    void end_listener(const LocalListener& listener);
    void bury();
    void tell_idle();
    void python_forgets(std::uint64_t id);
    void wake();

    const std::uint64_t index_;
    const FrontLimits limits_;
    const std::shared_ptr<Bridge> bridge_;
    const std::shared_ptr<FrontTotals> totals_;
    Descriptor epoll_, wake_;
    std::thread thread_;
    std::promise<void> ended_;

    // --- mailbox
    std::mutex mutex_;
    HotRequest* delivered_first_ = nullptr;
    HotRequest* delivered_last_ = nullptr;
    std::vector<Command> commands_;
    bool woken_ = false;
    std::atomic<int> delivering_{0};

    // --- this thread's own
    std::int64_t now_;
    std::int64_t next_sweep_ = 0;
    std::int64_t may_read_ = 0;  // bytes, until this wake-up's turn is over
    bool quitting_ = false;
    bool watching_idle_ = false;
    std::int64_t bytes_ = 0;
    std::int64_t under_way_ = 0;  // hot requests that are not home
    std::uint64_t next_id_ = 0;
    HotRequest* local_first_ = nullptr;  // delivered on this thread
    HotRequest* local_last_ = nullptr;
    std::vector<std::unique_ptr<LocalListener>> listeners_;
    Http2Memory session_memory_;  // before the connections, whose sessions live in it
    std::unordered_map<Connection*, std::unique_ptr<Connection>> connections_;
    std::vector<Connection*> touched_, again_, doomed_;
    std::vector<LocalRoute*> submitted_;
    std::vector<std::unique_ptr<Call>> calls_;
    std::vector<Call*> free_calls_;
    std::unordered_map<std::uint64_t, Call*> named_;
    std::unordered_map<std::uint64_t, std::shared_ptr<std::int64_t>> abandoned_;  // ended here, not in Python
    std::vector<Event> events_;
    std::vector<std::uint8_t> input_, output_;
    std::string scratch_;
    Gzip gzip_;
    TimerWheel timers_;
    LinkedList stalled_;  // calls with an incomplete message
    LinkedList fresh_;    // connections that have made no call yet, the oldest first
    LinkedList idle_;     // connections without calls, the one idle for longest first
};

}  // namespace trimtab
