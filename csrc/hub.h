// The hub: every model's requests from their bytes to their encoded answers, whichever transport they came by.
//
//   submit (a transport's thread)   parse in place -> check -> route -> admit -> queue; a refusal is answered at once
//   take   (a compute thread)       which model, which requests, which version -> rows into a slab -> a Batch
//   answer (a compute thread)       all answers of the batch encoded -> delivered to where they came from
//
// Threads: any number submit, any number take. One lock guards queues, versions and models; it is held for a request's
// admission and for a decision, never while rows are read, computed or encoded, and never while a transport is called.
// So a refusal does not wait for a forward pass, and nothing here ever needs the GIL.
//
// Models are looked up without the lock in a table that is replaced as a whole; old tables and removed models are kept
// until the hub goes (a load at run time costs some hundred bytes), so a reader never holds a dangling one.
//
// Fairness: among models with a batch to run, the one whose batches have used least device time goes first; one that was
// idle starts level with the others. A model has at most `instances` batches in flight, so one that stalls keeps its own
// requests waiting and no others, given a second compute thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "clock.h"
#include "hot_request.h"
#include "hub_model.h"
#include "metrics_text.h"

namespace trimtab {

// What take() gives: requests of one model for one version, their rows read. Answered or failed exactly once; a batch
// that is dropped unanswered fails.
struct TakenBatch {
    Model* model = nullptr;
    std::uint32_t version = 0;
    std::vector<HubRequest*> requests;
    std::vector<RequestId> ids;
    std::vector<std::uint32_t> counts;  // rows of each request
    std::vector<std::int64_t> times_us;  // data time: what the client said, or when it arrived
    BatchRows rows;
    BatchMarks marks;
};

// One output over all rows of a batch, in the protocol's raw form. Borrowed for the call.
struct BatchTensor {
    std::string_view raw;
    std::vector<std::int64_t> row_shape;
    std::size_t row_bytes = 0;            // 0: see ends
    std::vector<std::size_t> ends;        // BYTES: where each row ends in raw
};

class Hub final : public HotTarget, public std::enable_shared_from_this<Hub> {
  public:
    // `shared`: what requests may use of shared memory; null: none.
    explicit Hub(std::shared_ptr<const SharedMemory> shared = nullptr);
    ~Hub() override;

    // Before the first request: traces from then on.
    void trace(std::shared_ptr<Tracing> tracing);

    // --- any thread
    void add_model(std::string name, std::shared_ptr<const Schema> schema, std::shared_ptr<const TensorSchema> tensors,
                   std::vector<OutputSpec> outputs, BatchPolicy policy, std::uint32_t instances);
    // What waits is answered NOT_FOUND. False where there is no such model.
    bool remove_model(const std::string& name);
    // Throws std::invalid_argument where there is no such model.
    void install(const std::string& name, std::uint32_t live, std::vector<std::uint32_t> loaded,
                 const std::unordered_map<std::string, std::uint32_t>& aliases);
    // New requests of the model are refused with this, until it is `ok` again; what was admitted is computed. Throws
    // std::invalid_argument where there is no such model.
    void pause(const std::string& name, StatusCode status, std::string message);
    // Requests for the version wait from now on until wake_up; the first of them has take() return and wanted() name it.
    // False, and nothing changed, where a request waits for it already or a batch of it is being computed. Both throw
    // std::invalid_argument where there is no such model.
    bool put_to_sleep(const std::string& name, std::uint32_t version);
    void wake_up(const std::string& name, std::uint32_t version);
    // (model, version) of what is asleep and asked for, each once: until it is woken and asleep again, or `clear_version`.
    std::vector<std::pair<std::string, std::uint32_t>> wanted();
    // Answers what waits for one version of a model.
    void clear_version(const std::string& name, std::uint32_t version, StatusCode status, const std::string& message);
    // New requests are refused, and what waits no longer waits for company.
    void set_draining(bool draining);
    Model& model(const std::string& name);  // throws std::invalid_argument
    std::size_t waiting(const std::string& name);
    std::vector<ModelMetrics> metrics();  // of every model, by name

    // --- HotTarget
    std::unique_ptr<HotRequest> make() override { return std::make_unique<HubRequest>(); }
    void submit(HotRequest* request) noexcept override;
    void flush() noexcept override;
    void cancel(HotRequest* request, StatusCode why) noexcept override;
    bool copies() const noexcept override { return shared_ != nullptr && !shared_->empty(); }

    // --- compute threads
    // The next batch; null after `timeout_ns`, after wake(), where a version that is asleep is newly wanted, and where the
    // hub is closed and nothing waits.
    std::unique_ptr<TakenBatch> take(std::int64_t timeout_ns);
    // One tensor per output of the model, in its order.
    void answer(TakenBatch& batch, std::string_view weights, std::span<const BatchTensor> outputs);
    void fail(TakenBatch& batch, StatusCode status, const std::string& message);
    void release(TakenBatch& batch);  // gives the batch's memory back
    void wake();
    // Batches form without waiting for company from now on, and take() ends when nothing waits.
    void close();
    // Answers all that waits, or all that waits for one model.
    void clear(StatusCode status, const std::string& message, const std::string& name = {});
    std::uint32_t in_flight(const std::string& name);  // batches taken and not answered

  private:
    struct Refused {
        StatusCode status;
        Dropped why;
        std::string message;
    };
    struct Table {
        std::unordered_map<std::string_view, Model*> models;
        Model* only = nullptr;  // where there is one model
    };
    // Requests that leave the queue without having been computed.
    struct Leaving {
        std::vector<HubRequest*> expired;
        std::vector<HubRequest*> missed;
        std::vector<HubRequest*> orphaned;
        bool empty() const { return expired.empty() && missed.empty() && orphaned.empty(); }
    };

    Model* route(std::string_view name) const;
    void check(HubRequest& request);                // throws WireError
    std::optional<Refused> admit(HubRequest& request);  // no exception: overload refuses by the hundred thousand
    void rebuild_table();
    std::unique_ptr<TakenBatch> decide(std::int64_t now, std::int64_t& wait_until, Leaving& leaving);
    void send_off(Leaving& leaving);
    void read(TakenBatch& batch);
    bool read_packed(TakenBatch& batch);
    void read_each(TakenBatch& batch);
    void finish(TakenBatch& batch);                 // after its requests have been delivered
    void note_batch(const TakenBatch& batch) noexcept;  // in the spans of its requests
    void end_span(HubRequest& request) noexcept;
    void deliver(std::span<HubRequest* const> requests) noexcept;
    void deliver_now(std::span<HubRequest* const> requests) noexcept;
    void end_with(std::vector<HubRequest*>& requests, StatusCode status, const std::string& message) noexcept;

    const std::shared_ptr<const SharedMemory> shared_;
    std::shared_ptr<Tracing> tracing_;  // null: nothing is traced
    std::atomic<const Table*> table_;
    std::atomic<bool> draining_{false};
    std::vector<std::unique_ptr<Table>> tables_;  // all there ever were, the last in use
    std::vector<std::unique_ptr<Model>> models_;  // likewise

    std::mutex lock_;
    std::condition_variable arrived_;
    std::vector<Model*> serving_;  // those not removed
    Decision decision_;
    std::uint64_t news_ = 0;       // submits, wakes
    std::size_t sleeping_ = 0;     // compute threads that wait
    bool unflushed_ = false;
    bool woken_ = false;
    bool closed_ = false;
    std::vector<std::pair<std::string, std::uint32_t>> wanted_;
};

}  // namespace trimtab
