// Messages that are served in groups by Python: unary Feedback, whose labels are stored in one transaction a group.
//
// submit queues a message, or refuses it where too many bytes wait or the server drains; take() gives all that is queued
// at once, and answer() sends a whole group's answers in one call. The group that was taken belongs to the taker until
// it is answered. Threads: any number submit; one takes and answers. One lock, held for list operations only.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "hot_request.h"

namespace trimtab {

struct GroupAnswer {
    StatusCode status = StatusCode::ok;
    std::string message;  // of a status other than ok
    std::string body;
};

class GroupQueue final : public HotTarget {
  public:
    explicit GroupQueue(std::size_t max_bytes, std::size_t max_group) : max_bytes_(max_bytes), max_group_(max_group) {}
    ~GroupQueue() override;

    // --- HotTarget
    std::unique_ptr<HotRequest> make() override { return std::make_unique<HotRequest>(); }
    void submit(HotRequest* request) noexcept override;
    void flush() noexcept override;
    void cancel(HotRequest* request, StatusCode why) noexcept override;

    // --- the thread that serves
    // All that waits, but at most max_group; nothing after `timeout_ns` or once closed and empty. What has expired
    // meanwhile is answered and not given.
    std::vector<HotRequest*> take(std::int64_t timeout_ns);
    // Answers requests that take() gave; one answer each.
    void answer(const std::vector<HotRequest*>& requests, std::vector<GroupAnswer> answers);

    void set_draining(bool draining);
    void close();  // what waits is still taken
    bool ended();  // closed, and nothing waits

  private:
    static void refuse(HotRequest* request, StatusCode status, const char* message) noexcept;
    static void deliver(const std::vector<HotRequest*>& requests) noexcept;

    const std::size_t max_bytes_;
    const std::size_t max_group_;
    std::mutex lock_;
    std::condition_variable news_;
    std::vector<HotRequest*> waiting_;
    std::size_t bytes_ = 0;
    bool draining_ = false;
    bool closed_ = false;
};

}  // namespace trimtab
