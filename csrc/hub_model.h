// A model as the hub serves it: what its requests are checked against, which versions it has, what waits for it.
//
// Owned by the hub, which never frees one while a request or batch refers to it. `schema`, `tensors`, `outputs` are
// immutable; `statistics` locks for itself; everything else is guarded by the hub's lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "batch_queue.h"
#include "hot_request.h"
#include "infer_forms.h"
#include "infer_message.h"
#include "infer_rows.h"
#include "request_ids.h"
#include "slab.h"
#include "statistics.h"
#include "tensor_rows.h"
#include "tensor_slab.h"
#include "tracing.h"

namespace trimtab {

class Model;

// A request of the hub: a message, what it means for its model, and its place in the queue.
struct HubRequest final : HotRequest {
    HubRequest() { place.request = this; }

    struct Place : Waiting {
        HubRequest* request = nullptr;
    };

    InferMessage parsed;  // views into body, and into shared
    Buffer<char> shared;  // copies of inputs that lie in shared memory
    std::vector<OutputForm> forms;  // of the requested outputs; empty: all as they are
    InferRows rows;       // of a model with columns
    TensorRows tensors;   // of a model with tensors
    Model* model = nullptr;
    std::optional<std::int64_t> time_us;  // data time of its rows, where the client says it
    Place place;
    std::unique_ptr<Span> span;  // of a request that is traced; null: it is not
    bool done = false;  // answered, and held back by preserve_ordering
};

struct OutputSpec {
    std::string name;
    std::string datatype;
    std::vector<std::int64_t> dims;   // after the rows; -1: any size
    std::vector<std::string> labels{};  // of its elements, for classification; may be fewer
};

// The memory of one batch's rows: of columns or of tensors, never both.
struct BatchRows {
    std::shared_ptr<Slab> slab;
    std::shared_ptr<TensorSlab> tensors;
    std::size_t rows() const { return slab ? slab->rows() : tensors->rows(); }
};

class Model final : public Versions {
  public:
    Model(std::string model_name, std::shared_ptr<const Schema> columns, std::shared_ptr<const TensorSchema> inputs,
          std::vector<OutputSpec> specs, BatchPolicy policy);

    const std::string name;
    const std::shared_ptr<const Schema> schema;         // null: a model with tensors
    const std::shared_ptr<const TensorSchema> tensors;  // null: a model with columns
    const std::vector<OutputSpec> outputs;
    Statistics statistics;
    std::mutex sending;  // preserve_ordering: held while answers leave; before the hub's lock

    // --- under the hub's lock
    BatchQueue queue;
    std::uint32_t live = 0;  // 0: nothing serves yet
    std::vector<std::uint32_t> loaded;
    bool removed = false;
    StatusCode paused = StatusCode::ok;  // other than ok: what new requests are refused with
    std::string paused_message;
    std::uint32_t in_flight = 0;   // batches taken and not answered
    std::uint32_t instances = 1;   // most of these at a time
    std::vector<std::uint32_t> computing;  // the versions of those batches
    std::int64_t used_ns = 0;      // device time, for fairness between models
    std::vector<HubRequest*> held; // preserve_ordering: admitted requests in order of arrival

    void install(std::uint32_t now_live, std::vector<std::uint32_t> now_loaded,
                 const std::unordered_map<std::string, std::uint32_t>& now_aliases);
    // The lane for a request's model_version; none where there is no such version or alias now.
    std::optional<Lane> lane_of(std::string_view version);
    std::uint32_t resolve(Lane lane) const override;
    bool asleep(std::uint32_t version) const override;
    // False where a request waits for the version, or a batch of it is being computed.
    bool put_to_sleep(std::uint32_t version);
    void wake_up(std::uint32_t version);
    // Of versions that requests wait for: whether this one is heard of for the first time since it fell asleep, or since
    // `forget_wanted`.
    bool newly_wanted(std::uint32_t version);
    void forget_wanted(std::uint32_t version);
    std::string known_versions() const;  // "1, 4, champion"

    BatchRows take_rows();             // cleared
    void give_back(BatchRows rows);    // memory of an unusually large batch is let go

  private:
    struct Alias {
        Lane lane = 0;
        std::uint32_t version = 0;  // 0: stands for nothing now
    };
    bool is_loaded(std::uint32_t version) const;

    std::unordered_map<std::string, Alias> aliases_;
    std::vector<std::uint32_t> alias_versions_;  // by lane - kFirstAlias
    struct Sleeper {
        std::uint32_t version = 0;
        bool wanted = false;
    };
    std::vector<Sleeper> sleepers_;
    std::vector<BatchRows> spare_;
};

}  // namespace trimtab
