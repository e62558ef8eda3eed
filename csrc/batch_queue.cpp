#include "batch_queue.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace trimtab {

void BatchTimes::add(std::uint32_t rows, std::uint32_t max_batch_size, std::int64_t ns, std::int64_t now) {
    if (now - last_ >= kLapse) any_ = full_ = {};
    last_ = now;
    any_.add(ns);
    if (rows >= (max_batch_size + 1) / 2) full_.add(ns);
}

void BatchTimes::Window::add(std::int64_t value) {
    ns[count++ % kWindow] = value;
    std::array<std::int64_t, kWindow> sorted = ns;
    const auto end = sorted.begin() + static_cast<std::ptrdiff_t>(std::min(count, kWindow));
    std::sort(sorted.begin(), end);
    least = sorted.front();
    mostly = sorted[static_cast<std::size_t>(end - sorted.begin() - 1) * 3 / 4];
}

void Decision::clear() {
    batch.clear();
    expired.clear();
    missed.clear();
    orphaned.clear();
    asleep.clear();
    version = 0;
    wait_until = kForever;
}

BatchQueue::BatchQueue(BatchPolicy policy) : policy_(std::move(policy)) {
    if (policy_.max_batch_size == 0) throw std::invalid_argument("max_batch_size: expected at least 1, came 0");
    if (policy_.levels.empty() || policy_.default_level >= policy_.levels.size())
        throw std::invalid_argument("expected a default priority among the levels");
    std::sort(policy_.preferred.begin(), policy_.preferred.end());
    levels_.resize(policy_.levels.size() + 1);
}

Refusal BatchQueue::admit(Waiting& request, std::int64_t now) {
    if (request.priority > policy_.levels.size()) return Refusal::no_such_priority;
    const std::uint32_t level = request.priority == 0 ? policy_.default_level : request.priority - 1;
    const QueuePolicy& own = policy_.levels[level];
    if (request.deadline <= now) return Refusal::deadline_passed;
    if (request.rows > policy_.max_batch_size && !policy_.split_oversize) return Refusal::too_large;
    const bool full = own.max_queue_size != 0 && levels_[level].count >= own.max_queue_size;
    // A message that is larger than the bound by itself may wait alone.
    if (full || (count_ != 0 && size_ + request.size > policy_.max_queue_bytes)) return Refusal::queue_full;
    std::int64_t timeout = own.default_timeout;
    if (request.timeout_us && own.allow_timeout_override) {
        constexpr std::uint64_t most = std::uint64_t{kForever} / 4000;
        timeout = static_cast<std::int64_t>(std::min(*request.timeout_us, most)) * 1000;
    }
    const std::int64_t expires = timeout > 0 && timeout < kForever - now ? now + timeout : kForever;
    // Delayed requests are late already: for them nothing is foretold.
    const std::int64_t limit = own.delay ? request.deadline : std::min(request.deadline, expires);
    if (limit != kForever && times_.known(now)) {
        std::uint64_t ahead = 0;
        for (std::uint32_t i = 0; i <= level; ++i) ahead += levels_[i].rows_ahead();
        const auto batches = static_cast<std::int64_t>(ahead / policy_.max_batch_size);
        if (times_.one() > limit - now || batches > (limit - now - times_.one()) / std::max<std::int64_t>(times_.full(), 1))
            return Refusal::would_miss_deadline;
    }
    request.level = level;
    request.expires = expires;
    const std::int64_t half = limit == kForever ? kForever : (limit - now) / 2;
    request.due = now + std::min(policy_.max_queue_delay, half);
    return Refusal::none;
}

BatchQueue::NamedList& BatchQueue::lane_of(const Waiting& request) {
    std::vector<NamedList>& lanes = levels_[request.level].lanes;
    for (NamedList& lane : lanes) {
        if (lane.lane == request.lane) return lane;
    }
    lanes.emplace_back().lane = request.lane;
    return lanes.back();
}

void BatchQueue::link(NamedList& list, Waiting& request) {
    request.queued = true;
    request.turn = ++turns_;
    request.before = list.tail;
    request.after = nullptr;
    (list.tail != nullptr ? list.tail->after : list.head) = &request;
    list.tail = &request;
    list.rows += request.rows;
    ++list.count;
    list.due = std::min(list.due, request.due);
    Level& level = levels_[request.level];
    ++level.count;
    level.rows += request.rows;
    ++count_;
    rows_ += request.rows;
    size_ += request.size;
}

void BatchQueue::unlink(NamedList& list, Waiting& request) {
    (request.before != nullptr ? request.before->after : list.head) = request.after;
    (request.after != nullptr ? request.after->before : list.tail) = request.before;
    request.before = request.after = nullptr;
    request.queued = false;
    list.rows -= request.rows;
    if (--list.count == 0) list.due = kForever;
    Level& level = levels_[request.level];
    --level.count;
    level.rows -= request.rows;
    --count_;
    rows_ -= request.rows;
    size_ -= request.size;
}

void BatchQueue::add(Waiting& request) {
    link(lane_of(request), request);
    soonest_ = std::min({soonest_, request.deadline, request.expires});
}

bool BatchQueue::remove(Waiting& request) {
    if (!request.queued) return false;
    unlink(lane_of(request), request);
    return true;
}

// Finds what has expired, puts back what is only delayed, and finds the next instant to look at.
void BatchQueue::expire(std::int64_t now, Decision& decision) {
    soonest_ = kForever;
    const auto last = static_cast<std::uint32_t>(levels_.size() - 1);
    for (std::uint32_t i = 0; i < levels_.size(); ++i) {
        for (std::size_t l = 0; l < levels_[i].lanes.size(); ++l) {
            for (Waiting *request = levels_[i].lanes[l].head, *next = nullptr; request != nullptr; request = next) {
                next = request->after;
                const bool timed_out = request->expires <= now;
                if (request->deadline <= now || (timed_out && !policy_.levels[i].delay)) {
                    unlink(levels_[i].lanes[l], *request);
                    decision.expired.push_back(request);
                } else if (timed_out) {
                    unlink(levels_[i].lanes[l], *request);
                    delayed_.push_back(request);
                } else {
                    soonest_ = std::min({soonest_, request->deadline, request->expires});
                }
            }
        }
    }
    std::sort(delayed_.begin(), delayed_.end(), [](const Waiting* a, const Waiting* b) { return a->turn < b->turn; });
    for (Waiting* request : delayed_) {
        request->level = last;
        request->expires = kForever;
        request->due = now;
        link(lane_of(*request), *request);
        soonest_ = std::min(soonest_, request->deadline);
    }
    delayed_.clear();
}

// The request that should go first: of the most urgent level that has any, the one that came first. Resolves all lanes;
// those that stand for nothing are emptied, and those whose version is asleep are left as they are.
Waiting* BatchQueue::find_head(const Versions& versions, Decision& decision) {
    Waiting* head = nullptr;
    for (Level& level : levels_) {
        Waiting* first = nullptr;
        for (std::size_t i = 0; i < level.lanes.size();) {
            NamedList& lane = level.lanes[i];
            lane.version = lane.head != nullptr ? versions.resolve(lane.lane) : 0;
            if (lane.version == 0) {
                while (lane.head != nullptr) {
                    decision.orphaned.push_back(lane.head);
                    unlink(lane, *lane.head);
                }
                lane = level.lanes.back();
                level.lanes.pop_back();
                continue;
            }
            lane.held = versions.asleep(lane.version);
            if (lane.held) {
                std::vector<std::uint32_t>& found = decision.asleep;
                if (std::find(found.begin(), found.end(), lane.version) == found.end()) found.push_back(lane.version);
            } else if (first == nullptr || lane.head->turn < first->turn) {
                first = lane.head;
            }
            ++i;
        }
        if (head == nullptr) head = first;
    }
    return head;
}

// What waits for a version; lanes are resolved.
std::uint64_t BatchQueue::rows_of(std::uint32_t version) const {
    std::uint64_t rows = 0;
    for (const Level& level : levels_) {
        for (const NamedList& lane : level.lanes) rows += lane.version == version ? lane.rows : 0;
    }
    return rows;
}

// The size of a batch that need not wait; 0 where waiting may still fill it.
std::uint32_t BatchQueue::target(std::uint32_t version, const Waiting& head) const {
    const std::uint64_t rows = rows_of(version);
    if (policy_.max_queue_delay == 0 || rows >= policy_.max_batch_size) return policy_.max_batch_size;
    std::uint32_t best = 0;
    for (const std::uint32_t size : policy_.preferred) {
        // A preferred size smaller than the head alone would take nothing.
        if (head.rows <= size && size <= rows) best = size;
    }
    return best;
}

// When the batch of a version must go. A list's bound may be of a request that has gone: then it is found anew.
std::int64_t BatchQueue::due(std::uint32_t version, std::int64_t now) {
    std::int64_t soonest = kForever;
    for (Level& level : levels_) {
        for (NamedList& lane : level.lanes) {
            if (lane.version != version) continue;
            if (lane.due <= now) {
                lane.due = kForever;
                for (const Waiting* request = lane.head; request != nullptr; request = request->after)
                    lane.due = std::min(lane.due, request->due);
            }
            soonest = std::min(soonest, lane.due);
        }
    }
    return soonest;
}

// When a batch of the version that is taken now will mostly be answered; 0 where nothing is foretold of it: it will not
// be full.
std::int64_t BatchQueue::answered(std::uint32_t version, std::uint32_t most, std::int64_t now) const {
    if (times_.full_mostly() == 0 || !times_.known(now) || rows_ < most) return 0;
    return rows_of(version) < most ? 0 : now + times_.full_mostly();
}

void BatchQueue::take(std::uint32_t version, std::uint32_t most, std::int64_t now, Decision& decision,
                      bool (*same_batch)(const Waiting&, const Waiting&)) {
    const std::int64_t answer = most >= (policy_.max_batch_size + 1) / 2 ? answered(version, most, now) : 0;
    std::uint64_t rows = 0;
    for (Level& level : levels_) {
        while (level.count != 0) {
            NamedList* oldest = nullptr;
            for (NamedList& lane : level.lanes) {
                const bool candidate = lane.version == version && lane.head != nullptr;
                if (candidate && (oldest == nullptr || lane.head->turn < oldest->head->turn)) oldest = &lane;
            }
            if (oldest == nullptr) break;
            Waiting* request = oldest->head;
            if (request->deadline < answer) {
                unlink(*oldest, *request);
                decision.missed.push_back(request);
                continue;
            }
            const bool first = decision.batch.empty();
            if (!first && rows + request->rows > most) return;
            if (!first && same_batch != nullptr && !same_batch(*decision.batch.front(), *request)) return;
            unlink(*oldest, *request);
            decision.batch.push_back(request);
            rows += request->rows;
            if (rows >= most) return;
        }
    }
}

void BatchQueue::decide(std::int64_t now, const Versions& versions, bool flush, Decision& decision,
                        bool (*same_batch)(const Waiting& first, const Waiting& next)) {
    decision.clear();
    if (now >= soonest_) expire(now, decision);
    if (count_ == 0) return;
    const Waiting* head = find_head(versions, decision);
    if (head == nullptr) {
        if (count_ != 0) decision.wait_until = soonest_;  // all that waits waits for what is asleep
        return;
    }
    const std::uint32_t version = versions.resolve(head->lane);
    const std::uint32_t size = target(version, *head);
    if (size == 0 && !flush) {
        const std::int64_t when = std::min(due(version, now), soonest_);
        if (when > now) {
            decision.wait_until = when;
            return;
        }
    }
    decision.version = version;
    take(version, size != 0 ? size : policy_.max_batch_size, now, decision, same_batch);
}

bool BatchQueue::waits_for(std::uint32_t version, const Versions& versions) const {
    for (const Level& level : levels_) {
        for (const NamedList& lane : level.lanes) {
            if (lane.head != nullptr && versions.resolve(lane.lane) == version) return true;
        }
    }
    return false;
}

std::vector<Waiting*> BatchQueue::clear(std::uint32_t version, const Versions& versions) {
    std::vector<Waiting*> all;
    for (Level& level : levels_) {
        for (NamedList& lane : level.lanes) {
            if (lane.head == nullptr || versions.resolve(lane.lane) != version) continue;
            while (lane.head != nullptr) {
                all.push_back(lane.head);
                unlink(lane, *lane.head);
            }
        }
    }
    return all;
}

std::vector<Waiting*> BatchQueue::clear() {
    std::vector<Waiting*> all;
    for (Level& level : levels_) {
        for (NamedList& lane : level.lanes) {
            while (lane.head != nullptr) {
                all.push_back(lane.head);
                unlink(lane, *lane.head);
            }
        }
    }
    soonest_ = kForever;
    return all;
}

}  // namespace trimtab
