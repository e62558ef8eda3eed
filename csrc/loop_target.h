// What the front and a model cost with nothing else: a limit to measure the serving pass against, not a server.
//
// A request's last bytes are taken for its rows, unread and unchecked: one memcpy of them into the batch, one forward
// pass over all that waits, and one memcpy of a ready-made answer and the outputs' bytes. No names, versions, ids,
// deadlines, columns, drift, captures or statistics.
//
// Threads: I/O threads submit, one thread takes and answers.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "hot_request.h"

namespace trimtab {

class LoopTarget final : public HotTarget {
  public:
    // Every request has `rows` rows; every answer is `head` and the outputs.
    LoopTarget(std::size_t rows, std::size_t row_bytes, std::size_t output_bytes, std::string head)
        : row_count_(rows), bytes_(rows * row_bytes), output_bytes_(rows * output_bytes), head_(std::move(head)) {}

    std::unique_ptr<HotRequest> make() override { return std::make_unique<HotRequest>(); }

    void submit(HotRequest* request) noexcept override {
        {
            const std::lock_guard lock(mutex_);
            if (!closed_ && request->body.size() >= bytes_) {
                waiting_.push_back(request);
                return;
            }
        }
        request->status = StatusCode::invalid_argument;
        request->origin->deliver({&request, 1});
    }

    void flush() noexcept override { some_.notify_one(); }
    void cancel(HotRequest*, StatusCode) noexcept override {}  // it is computed and thrown away

    // Waits for requests, takes at most so many rows, and copies them to `to`; the rows, 0 once closed.
    std::size_t take(char* to, std::size_t most_rows) {
        std::unique_lock lock(mutex_);
        some_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
        const std::size_t count = std::min(waiting_.size(), std::max<std::size_t>(most_rows / row_count_, 1));
        taken_.assign(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(count));
        waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(count));
        lock.unlock();
        for (HotRequest* request : taken_) {
            std::memcpy(to, request->body.data() + (request->body.size() - bytes_), bytes_);
            to += bytes_;
        }
        return count * row_count_;
    }

    void answer(const char* outputs) {
        for (HotRequest* request : taken_) {
            request->answer.resize(head_.size() + output_bytes_);
            std::memcpy(request->answer.data(), head_.data(), head_.size());
            std::memcpy(request->answer.data() + head_.size(), outputs, output_bytes_);
            request->status = StatusCode::ok;
            outputs += output_bytes_;
        }
        for (std::size_t start = 0; start < taken_.size();) {
            std::size_t stop = start + 1;
            while (stop < taken_.size() && taken_[stop]->origin == taken_[start]->origin) ++stop;
            taken_[start]->origin->deliver({taken_.data() + start, stop - start});
            start = stop;
        }
        taken_.clear();
    }

    std::size_t row_count() const { return row_count_; }
    std::size_t request_bytes() const { return bytes_; }
    std::size_t output_bytes() const { return output_bytes_; }
    std::size_t taken() const { return taken_.size(); }

    void close() {
        const std::lock_guard lock(mutex_);
        closed_ = true;
        some_.notify_all();
    }

  private:
    const std::size_t row_count_, bytes_, output_bytes_;
    const std::string head_;
    std::mutex mutex_;
    std::condition_variable some_;
    std::vector<HotRequest*> waiting_, taken_;
    bool closed_ = false;
};

}  // namespace trimtab
