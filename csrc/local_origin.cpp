#include "local_origin.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "clock.h"
#include "tracing.h"

namespace trimtab {

LocalOrigin::LocalOrigin(HotTarget& target) : target_(target), event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (event_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
}

// Requests still under way are of no use to anybody: whoever closes the hub has had them delivered.
LocalOrigin::~LocalOrigin() {
    for (const auto& [token, request] : under_way_) delete request;
    close(event_);
}

void LocalOrigin::submit(std::uint64_t token, std::string_view body, std::int64_t deadline, bool in_stream,
                         std::string_view traceparent) {
    std::unique_ptr<HotRequest> request;
    if (spare_.empty()) {
        request = target_.make();
    } else {
        request = std::move(spare_.back());
        spare_.pop_back();
    }
    request->origin = this;
    request->call = token;
    request->body.resize(body.size());
    if (!body.empty()) std::memcpy(request->body.data(), body.data(), body.size());
    request->deadline = deadline;
    request->arrived = monotonic_ns();
    request->in_stream = in_stream;
    if (target_.traces()) request->traceparent = traceparent.substr(0, kLongestTraceparent + 1);
    if (!under_way_.emplace(token, request.get()).second) throw std::invalid_argument("token: expected a new one");
    target_.submit(request.release());
    target_.flush();
}

void LocalOrigin::cancel(std::uint64_t token) {
    const auto found = under_way_.find(token);
    if (found == under_way_.end()) return;
    HotRequest& request = *found->second;
    target_.cancel(&request, given_up(monotonic_ns(), request.deadline, request.deadline - request.arrived));
}

void LocalOrigin::deliver(std::span<HotRequest* const> requests) noexcept {
    bool first = false;
    {
        const std::lock_guard guard(lock_);
        first = answered_.empty();
        answered_.insert(answered_.end(), requests.begin(), requests.end());
    }
    const std::uint64_t one = 1;
    // It fails only where the counter is full, and then the loop is awake.
    if (first && write(event_, &one, sizeof(one)) < 0) return;
}

std::vector<HotRequest*> LocalOrigin::arrived() {
    std::uint64_t count = 0;
    const ssize_t got = read(event_, &count, sizeof(count));
    (void)got;  // nothing to read: nothing arrived
    const std::lock_guard guard(lock_);
    return std::exchange(answered_, {});
}

void LocalOrigin::take_back(HotRequest* request) {
    constexpr std::size_t most_spare = 1024;
    constexpr std::size_t most_bytes = std::size_t{1} << 18;
    under_way_.erase(request->call);
    std::unique_ptr<HotRequest> owned(request);
    if (request->answer.capacity() > most_bytes) Buffer<char>().swap(request->answer);
    if (request->body.capacity() <= most_bytes && spare_.size() < most_spare) spare_.push_back(std::move(owned));
}

}  // namespace trimtab
