#include "group_queue.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace trimtab {
namespace {

std::int64_t now_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

GroupQueue::~GroupQueue() {
    for (HotRequest* request : std::exchange(waiting_, {})) refuse(request, StatusCode::unavailable, "the server stops");
}

void GroupQueue::refuse(HotRequest* request, StatusCode status, const char* message) noexcept {
    request->status = status;
    request->message = message;
    request->answer.clear();
    request->origin->deliver({&request, 1});
}

void GroupQueue::submit(HotRequest* request) noexcept {
    bool draining = false;
    {
        const std::lock_guard guard(lock_);
        draining = draining_ || closed_;
        // A message that is larger than the bound by itself may wait alone.
        if (!draining && (waiting_.empty() || bytes_ + request->body.size() <= max_bytes_)) {
            waiting_.push_back(request);
            bytes_ += request->body.size();
            return;
        }
    }
    if (draining) {
        refuse(request, StatusCode::unavailable, "the server is stopping; send this again later");
    } else {
        refuse(request, StatusCode::resource_exhausted, "too much waits to be stored; try again later");
    }
}

void GroupQueue::flush() noexcept { news_.notify_one(); }

void GroupQueue::cancel(HotRequest* request, StatusCode why) noexcept {
    {
        const std::lock_guard guard(lock_);
        const auto found = std::find(waiting_.begin(), waiting_.end(), request);
        if (found == waiting_.end()) return;
        waiting_.erase(found);
        bytes_ -= request->body.size();
    }
    refuse(request, why, "");
}

std::vector<HotRequest*> GroupQueue::take(std::int64_t timeout_ns) {
    const std::int64_t start = now_ns();
    const std::int64_t end = timeout_ns < kNever - start ? start + timeout_ns : kNever;
    std::vector<HotRequest*> group;
    std::vector<HotRequest*> expired;
    {
        std::unique_lock guard(lock_);
        const auto ready = [&] { return !waiting_.empty() || closed_; };
        if (end == kNever) {
            news_.wait(guard, ready);
        } else {
            news_.wait_until(guard, std::chrono::steady_clock::time_point(std::chrono::nanoseconds(end)), ready);
        }
        const std::size_t count = std::min(waiting_.size(), max_group_);
        const std::int64_t now = now_ns();
        for (std::size_t i = 0; i < count; ++i) {
            bytes_ -= waiting_[i]->body.size();
            (waiting_[i]->deadline <= now ? expired : group).push_back(waiting_[i]);
        }
        waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(count));
    }
    for (HotRequest* request : expired) {
        refuse(request, StatusCode::deadline_exceeded, "the deadline passed in the queue; the work was not done");
    }
    return group;
}

void GroupQueue::answer(const std::vector<HotRequest*>& requests, std::vector<GroupAnswer> answers) {
    for (std::size_t i = 0; i < requests.size(); ++i) {
        HotRequest& request = *requests[i];
        request.status = answers[i].status;
        request.message = std::move(answers[i].message);
        request.answer.assign(answers[i].body.begin(), answers[i].body.end());
    }
    deliver(requests);
}

// By origin: all of a group for one in one call.
void GroupQueue::deliver(const std::vector<HotRequest*>& requests) noexcept {
    std::vector<HotRequest*> rest = requests;
    while (!rest.empty()) {
        Origin* origin = rest.front()->origin;
        const auto others = std::stable_partition(rest.begin(), rest.end(),
                                                  [&](const HotRequest* request) { return request->origin == origin; });
        const std::vector<HotRequest*> group(rest.begin(), others);
        rest.erase(rest.begin(), others);
        origin->deliver(group);
    }
}

void GroupQueue::set_draining(bool draining) {
    const std::lock_guard guard(lock_);
    draining_ = draining;
}

bool GroupQueue::ended() {
    const std::lock_guard guard(lock_);
    return closed_ && waiting_.empty();
}

void GroupQueue::close() {
    {
        const std::lock_guard guard(lock_);
        closed_ = true;
    }
    news_.notify_all();
}

}  // namespace trimtab
