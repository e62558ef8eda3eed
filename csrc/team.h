// Work shared by threads that live for one call: starting one takes some 30 us.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace trimtab {

// Joins what was started, also when starting another one fails.
class Team {
  public:
    Team() = default;
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;
    ~Team() { join(); }

    // Calls work(member) on `members` threads, one of which is the caller's, member 0; on fewer where the machine has
    // no more. `work` does not throw.
    template <class Work>
    static void run(std::size_t members, const Work& work) {
        Team team;
        try {
            for (std::size_t member = 1; member < members; ++member) team.start([&work, member] { work(member); });
        } catch (const std::system_error&) {
            // Those that there are do it all.
        }
        work(0);
    }

  private:
    template <class Work>
    void start(const Work& work) {
        members_.emplace_back(work);
    }
    void join() {
        for (std::thread& member : members_) member.join();
        members_.clear();
    }

    std::vector<std::thread> members_;
};

// Calls task(i) once for each i below `count`, on up to `threads` threads; rethrows what one of them threw, and then
// not every task was done.
template <class Task>
void share(std::size_t count, std::size_t threads, const Task& task) {
    if (threads > count) threads = count;
    if (threads <= 1) {
        for (std::size_t i = 0; i < count; ++i) task(i);
        return;
    }
    std::atomic<std::size_t> next{0};
    std::vector<std::exception_ptr> failures(threads);
    Team::run(threads, [&](std::size_t member) noexcept {
        try {
            for (std::size_t i = next++; i < count; i = next++) task(i);
        } catch (...) {
            failures[member] = std::current_exception();
            next = count;
        }
    });
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
}

}  // namespace trimtab
