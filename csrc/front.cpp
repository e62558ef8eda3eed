#include "front.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "clock.h"

namespace trimtab {
namespace {

Command make_command(CommandKind kind, std::uint64_t id, std::int64_t number) {
    Command command;
    command.kind = kind;
    command.id = id;
    command.number = number;
    return command;
}

}  // namespace

Front::Front(const FrontLimits& limits, std::size_t threads)
    : bridge_(std::make_shared<Bridge>()), totals_(std::make_shared<FrontTotals>(threads)) {
    for (std::size_t i = 0; i < threads; ++i)
        threads_.push_back(std::make_unique<IoThread>(i, limits, bridge_, totals_));
}

void Front::listen(std::uint64_t index, std::shared_ptr<const Offer> offer, std::vector<Descriptor> sockets) {
    sockets.resize(threads_.size());
    for (std::size_t i = 0; i < threads_.size(); ++i) threads_[i]->listen(index, offer, std::move(sockets[i]));
}

void Front::start() {
    started_ = true;
    for (const auto& thread : threads_) thread->start();
}

void Front::tell(CommandKind kind, std::uint64_t id, std::int64_t number) {
    for (const auto& thread : threads_) {
        std::vector<Command> commands;
        commands.push_back(make_command(kind, id, number));
        thread->command(std::move(commands));
    }
}

void Front::stop(std::uint64_t index, std::int64_t grace) { tell(CommandKind::stop, index, grace); }

void Front::watch_idle() { tell(CommandKind::watch_idle, 0, 0); }

bool Front::close(std::int64_t timeout) {
    if (!std::exchange(started_, false)) return true;
    tell(CommandKind::quit, 0, 0);
    const std::int64_t end = monotonic_ns() + timeout;
    bool all = true;
    for (auto& thread : threads_) {
        if (thread->join(std::max<std::int64_t>(end - monotonic_ns(), 0))) continue;
        all = false;
        std::ignore = thread.release();
    }
    if (!all) std::erase(threads_, nullptr);
    return all;
}

void Front::command(std::vector<Command> commands) {
    std::vector<std::vector<Command>> sorted(threads_.size());
    for (Command& command : commands) {
        const std::size_t index = command.id & 0xFFU;
        if (index < sorted.size()) sorted[index].push_back(std::move(command));
    }
    for (std::size_t i = 0; i < sorted.size(); ++i) {
        if (!sorted[i].empty()) threads_[i]->command(std::move(sorted[i]));
    }
}

std::vector<Front::Ended> Front::ended() const {
    std::map<std::pair<std::string, std::size_t>, std::uint64_t> sums;
    for (const auto& thread : threads_) {
        for (const auto& listener : thread->listeners()) {
            for (const auto& local : listener->routes) {
                if (!local->route->hot()) continue;
                for (std::size_t status = 0; status < local->ended.size(); ++status) {
                    const auto count = local->ended[status].load(std::memory_order_relaxed);
                    if (count != 0) sums[{local->route->label, status}] += count;
                }
            }
        }
    }
    std::vector<Ended> result;
    for (const auto& [key, count] : sums) result.push_back({key.first, key.second, count});
    return result;
}

std::pair<std::int64_t, std::int64_t> Front::counted() const {
    std::int64_t begun = 0;
    std::int64_t closed = 0;
    for (const auto& thread : threads_) {
        for (const auto& listener : thread->listeners()) {
            for (const auto& local : listener->routes) {
                if (!local->route->hot()) continue;
                // In this order, so that a call is never seen to end before it began.
                closed += local->closed.load(std::memory_order_acquire);
                begun += local->begun.load(std::memory_order_acquire);
            }
        }
    }
    return {begun - closed, closed};
}

std::int64_t Front::bytes() const {
    std::int64_t sum = 0;
    for (const auto& share : totals_->shares) sum += share.bytes.load(std::memory_order_relaxed);
    return sum;
}

}  // namespace trimtab
