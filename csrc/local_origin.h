// Requests that come from the asyncio side (grpc.aio, REST): bytes in with a token, answers out in bursts.
//
// submit, cancel and drain are called on one thread, the loop's. deliver comes from any; it wakes the loop through an
// eventfd, once until the answers are drained. Held by the hub, so it outlives every request that it made.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hot_request.h"

namespace trimtab {

class LocalOrigin final : public Origin {
  public:
    explicit LocalOrigin(HotTarget& target);  // throws std::system_error
    ~LocalOrigin() override;
    LocalOrigin(const LocalOrigin&) = delete;
    LocalOrigin& operator=(const LocalOrigin&) = delete;

    int descriptor() const { return event_; }  // readable while answers wait
    // `deadline`: ns of the monotonic clock. Throws std::invalid_argument on a token that is under way.
    void submit(std::uint64_t token, std::string_view body, std::int64_t deadline, bool in_stream,
                std::string_view traceparent);
    void cancel(std::uint64_t token);
    // Calls visit(request) for each answer and takes the request back.
    template <class Visit>
    void drain(const Visit& visit) {
        for (HotRequest* request : arrived()) {
            visit(*request);
            take_back(request);
        }
    }

    void deliver(std::span<HotRequest* const> requests) noexcept override;

  private:
    std::vector<HotRequest*> arrived();
    void take_back(HotRequest* request);

    HotTarget& target_;
    int event_ = -1;
    std::unordered_map<std::uint64_t, HotRequest*> under_way_;
    std::vector<std::unique_ptr<HotRequest>> spare_;

    std::mutex lock_;
    std::vector<HotRequest*> answered_;
};

}  // namespace trimtab
