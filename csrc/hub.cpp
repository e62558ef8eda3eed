#include "hub.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>
#include <utility>

#include "errors.h"
#include "hub_answer.h"
#include "infer_classes.h"
#include "infer_forms.h"
#include "infer_parameters.h"
#include "packed_rows.h"

namespace trimtab {
namespace {

constexpr const char* kMissed = "the answer would come after the deadline; the work was not begun";

HubRequest& request_of(Waiting& place) { return *static_cast<HubRequest::Place&>(place).request; }

bool share_batch(const Waiting& first, const Waiting& next) {
    const HubRequest& one = *static_cast<const HubRequest::Place&>(first).request;
    const HubRequest& other = *static_cast<const HubRequest::Place&>(next).request;
    return one.tensors.same_dims(other.tensors);
}

// Memory that an unusually large message left behind goes before the request waits to be used again.
void trim(HubRequest& request) {
    constexpr std::size_t most = std::size_t{1} << 18;
    if (request.body.capacity() > most) {
        request.parsed.clear();
        Buffer<char>().swap(request.body);
    }
    if (request.shared.capacity() > most) Buffer<char>().swap(request.shared);
    request.forms.clear();  // lets go of regions
}

}  // namespace

Hub::Hub(std::shared_ptr<const SharedMemory> shared) : shared_(std::move(shared)) { rebuild_table(); }

Hub::~Hub() { clear(StatusCode::unavailable, "the server stops"); }

// --- tracing: one branch a request where it is off ------------------------------------------------------------------

void Hub::trace(std::shared_ptr<Tracing> tracing) {
    tracing_ = std::move(tracing);
    traces_ = tracing_ != nullptr;
}

void Hub::note_batch(const TakenBatch& batch) noexcept {
    for (std::size_t i = 0; i < batch.requests.size(); ++i) {
        Span* span = batch.requests[i]->span.get();
        if (span == nullptr) continue;
        span->version = batch.version;
        span->batch_rows = static_cast<std::uint32_t>(batch.rows.rows());
        span->marks = batch.marks;
        if (i < batch.ids.size()) span->id = batch.ids[i];
    }
}

void Hub::end_span(HubRequest& request) noexcept {
    if (!request.span) return;
    Span& span = *request.span;
    if (span.status == StatusCode::ok) span.status = request.status;
    span.in_stream = request.in_stream;
    span.ended = monotonic_ns();
    tracing_->end(std::move(request.span));
}

// --- models ----------------------------------------------------------------------------------------------------------

void Hub::rebuild_table() {
    auto table = std::make_unique<Table>();
    for (Model* model : serving_) table->models.emplace(model->name, model);
    table->only = serving_.size() == 1 ? serving_.front() : nullptr;
    table_.store(table.get(), std::memory_order_release);
    tables_.push_back(std::move(table));
}

void Hub::add_model(std::string name, std::shared_ptr<const Schema> schema,
                    std::shared_ptr<const TensorSchema> tensors, std::vector<OutputSpec> outputs, BatchPolicy policy,
                    std::uint32_t instances) {
    auto model = std::make_unique<Model>(std::move(name), std::move(schema), std::move(tensors), std::move(outputs),
                                         std::move(policy));
    model->instances = std::max(instances, 1U);
    const std::lock_guard guard(lock_);
    for (const Model* other : serving_) {
        if (other->name == model->name) throw std::invalid_argument("model " + quote(model->name) + " is there already");
    }
    serving_.push_back(model.get());
    models_.push_back(std::move(model));
    rebuild_table();
}

bool Hub::remove_model(const std::string& name) {
    std::vector<HubRequest*> gone;
    {
        const std::lock_guard guard(lock_);
        const auto found = std::find_if(serving_.begin(), serving_.end(), [&](Model* m) { return m->name == name; });
        if (found == serving_.end()) return false;
        (*found)->removed = true;
        for (Waiting* place : (*found)->queue.clear()) gone.push_back(&request_of(*place));
        serving_.erase(found);
        rebuild_table();
    }
    end_with(gone, StatusCode::not_found, "model " + quote(name) + " was unloaded");
    return true;
}

Model& Hub::model(const std::string& name) {
    const std::lock_guard guard(lock_);
    for (Model* model : serving_) {
        if (model->name == name) return *model;
    }
    throw std::invalid_argument("expected the name of a model, came " + quote(name));
}

void Hub::install(const std::string& name, std::uint32_t live, std::vector<std::uint32_t> loaded,
                  const std::unordered_map<std::string, std::uint32_t>& aliases) {
    Model& chosen = model(name);
    {
        const std::lock_guard guard(lock_);
        chosen.install(live, std::move(loaded), aliases);
        woken_ = true;  // requests may wait for a version that has gone
    }
    arrived_.notify_all();
}

void Hub::pause(const std::string& name, StatusCode status, std::string message) {
    Model& chosen = model(name);
    const std::lock_guard guard(lock_);
    chosen.paused = status;
    chosen.paused_message = std::move(message);
}

bool Hub::put_to_sleep(const std::string& name, std::uint32_t version) {
    Model& chosen = model(name);
    const std::lock_guard guard(lock_);
    return chosen.put_to_sleep(version);
}

void Hub::wake_up(const std::string& name, std::uint32_t version) {
    Model& chosen = model(name);
    {
        const std::lock_guard guard(lock_);
        chosen.wake_up(version);
        ++news_;
    }
    arrived_.notify_all();
}

std::vector<std::pair<std::string, std::uint32_t>> Hub::wanted() {
    const std::lock_guard guard(lock_);
    return std::exchange(wanted_, {});
}

void Hub::clear_version(const std::string& name, std::uint32_t version, StatusCode status, const std::string& message) {
    Model& chosen = model(name);
    std::vector<HubRequest*> gone;
    {
        const std::lock_guard guard(lock_);
        chosen.forget_wanted(version);
        for (Waiting* place : chosen.queue.clear(version, chosen)) gone.push_back(&request_of(*place));
        ++news_;  // take() may be waiting for the deadline of one of them
    }
    arrived_.notify_all();
    for (const HubRequest* request : gone) request->model->statistics.drop(Dropped::unavailable);
    end_with(gone, status, message);
}

std::uint32_t Hub::in_flight(const std::string& name) {
    Model& chosen = model(name);
    const std::lock_guard guard(lock_);
    return chosen.in_flight;
}

std::size_t Hub::waiting(const std::string& name) {
    Model& chosen = model(name);
    const std::lock_guard guard(lock_);
    return chosen.queue.waiting();
}

std::vector<ModelMetrics> Hub::metrics() {
    std::vector<std::pair<Model*, ModelMetrics>> found;
    {
        const std::lock_guard guard(lock_);
        for (Model* model : serving_) found.push_back({model, {model->name, model->live, model->queue.waiting(), {}}});
    }
    std::vector<ModelMetrics> models;
    for (auto& [model, metrics] : found) {
        metrics.data = model->statistics.copy();
        models.push_back(std::move(metrics));
    }
    std::sort(models.begin(), models.end(), [](const auto& one, const auto& other) { return one.name < other.name; });
    return models;
}

// --- requests --------------------------------------------------------------------------------------------------------

namespace {

// A classification of what has no order is refused; of labels that a schema names, it is not.
void check_classes(const OutputForm& form, const RequestedOutput& wanted, const Model& model) {
    if (form.classes == 0) return;
    for (const OutputSpec& output : model.outputs) {
        if (output.name == wanted.name && !can_classify(output.datatype)) {
            throw WireError("output " + quote(wanted.name) + ", parameter \"classification\": expected it for numbers, came " +
                            output.datatype);
        }
    }
}

}  // namespace

Model* Hub::route(std::string_view name) const {
    const Table* table = table_.load(std::memory_order_acquire);
    if (name.empty() && table->only != nullptr) return table->only;
    const auto found = table->models.find(name);
    if (found != table->models.end()) return found->second;
    std::vector<std::string> names;
    for (const auto& [known, model] : table->models) names.push_back(quote(known));
    std::sort(names.begin(), names.end());
    std::string text;
    for (const std::string& known : names) text += (text.empty() ? "" : ", ") + known;
    throw Refused{StatusCode::not_found, Dropped::not_found,
                  "no model " + quote(name) + "; this server has " + (text.empty() ? "none" : text)};
}

void Hub::check(HubRequest& request) {
    InferMessage& parsed = request.parsed;
    Model& model = *request.model;
    HubRequest::Place& place = request.place;
    request.time_us = check_parameters(parsed, true);
    place.priority = 0;
    place.timeout_us.reset();
    for (const Parameter& parameter : parsed.parameters) {
        if (parameter.key != "timeout" && parameter.key != "priority") continue;
        // That it is an integer from 0 was checked.
        const auto* whole = std::get_if<std::int64_t>(&parameter.value);
        const std::uint64_t value =
            whole != nullptr ? static_cast<std::uint64_t>(*whole) : std::get<std::uint64_t>(parameter.value);
        if (parameter.key == "timeout") {
            place.timeout_us = value;
        } else {
            place.priority = static_cast<std::uint32_t>(std::min<std::uint64_t>(value, 0xFFFFFFFF));
        }
    }
    check_requested_outputs(parsed);
    for (const RequestedOutput& wanted : parsed.outputs) {
        const bool known = std::any_of(model.outputs.begin(), model.outputs.end(),
                                       [&](const OutputSpec& output) { return output.name == wanted.name; });
        if (known) continue;
        std::string names;
        for (const OutputSpec& output : model.outputs) names += (names.empty() ? "" : ", ") + quote(output.name);
        throw WireError("output " + quote(wanted.name) + ": expected one of " + names);
    }
    read_output_forms(parsed, shared_.get(), request.forms);
    for (std::size_t i = 0; i < request.forms.size(); ++i) check_classes(request.forms[i], parsed.outputs[i], model);
    request.shared.clear();
    read_shared_inputs(parsed, shared_.get(), request.shared);
    if (model.schema) {
        request.rows.assign(parsed, model.schema);
        place.rows = static_cast<std::uint32_t>(request.rows.rows());
    } else {
        request.tensors.assign(parsed, model.tensors);
        place.rows = static_cast<std::uint32_t>(request.tensors.rows());
    }
    place.size = request.body.size() + request.shared.size();
    place.arrived = request.arrived;
    place.deadline = request.deadline;
}

std::optional<Hub::Refused> Hub::admit(HubRequest& request) {
    Model& model = *request.model;
    HubRequest::Place& place = request.place;
    const std::lock_guard guard(lock_);
    if (model.removed) {
        return Refused{StatusCode::not_found, Dropped::not_found, "model " + quote(model.name) + " was unloaded"};
    }
    if (model.paused != StatusCode::ok) return Refused{model.paused, Dropped::unavailable, model.paused_message};
    if (model.live == 0) {
        return Refused{StatusCode::not_found, Dropped::not_found, "model " + quote(model.name) + " has no version yet"};
    }
    const std::optional<Lane> lane = model.lane_of(request.parsed.model_version);
    if (!lane) {
        return Refused{StatusCode::not_found, Dropped::not_found,
                      "model " + quote(model.name) + " has no version " + quote(request.parsed.model_version) +
                          " loaded; loaded: " + model.known_versions()};
    }
    place.lane = *lane;
    const BatchPolicy& policy = model.queue.policy();
    const bool idle = model.queue.waiting() == 0 && model.in_flight == 0;
    switch (model.queue.admit(place, request.arrived)) {
        case Refusal::none: break;
        case Refusal::queue_full:
            return Refused{StatusCode::resource_exhausted, Dropped::queue_full,
                          "model " + quote(model.name) + ": " + std::to_string(model.queue.waiting()) +
                              " requests wait (max_queue_size); try again later"};
        case Refusal::deadline_passed:
            return Refused{StatusCode::deadline_exceeded, Dropped::expired,
                          "the deadline passed before the request was queued"};
        case Refusal::would_miss_deadline:
            return Refused{StatusCode::deadline_exceeded, Dropped::missed, kMissed};
        case Refusal::too_large:
            return Refused{StatusCode::invalid_argument, Dropped::invalid,
                          "expected at most " + std::to_string(policy.max_batch_size) + " rows (max_batch_size), came " +
                              std::to_string(place.rows)};
        case Refusal::no_such_priority:
            return Refused{StatusCode::invalid_argument, Dropped::invalid,
                          "parameter \"priority\": expected at most " + std::to_string(policy.levels.size()) +
                              " (priority_levels), came " + std::to_string(place.priority)};
    }
    if (idle) {
        // It starts level with the least of the others: time it did not use is not saved up.
        std::int64_t least = kForever;
        for (const Model* other : serving_) {
            if (other != &model && (other->queue.waiting() != 0 || other->in_flight != 0))
                least = std::min(least, other->used_ns);
        }
        if (least != kForever) model.used_ns = std::max(model.used_ns, least);
    }
    model.queue.add(place);
    request.done = false;
    if (policy.preserve_ordering) model.held.push_back(&request);
    unflushed_ = true;
    return std::nullopt;
}

void Hub::submit(HotRequest* hot) noexcept {
    auto& request = static_cast<HubRequest&>(*hot);
    request.model = nullptr;
    if (request.arrived == 0) request.arrived = monotonic_ns();
    if (tracing_) request.span = tracing_->begin(request.traceparent, request.arrived);
    StatusCode status = StatusCode::internal;
    Dropped why = Dropped::invalid;
    try {
        request.parsed.clear();
        if (draining_.load(std::memory_order_relaxed)) {
            throw Refused{StatusCode::unavailable, Dropped::unavailable,
                          "the server is stopping; send this request to another one, or again later"};
        }
        parse_infer_message({request.body.data(), request.body.size()}, request.parsed);
        request.model = route(request.parsed.model_name);
        if (request.span) request.span->model = request.model->name;
        check(request);
        if (request.span) request.span->rows = request.place.rows;
        std::optional<Refused> refused = admit(request);
        if (!refused) return;
        status = refused->status;
        why = refused->why;
        request.message = std::move(refused->message);
    } catch (Refused& refused) {
        status = refused.status;
        why = refused.why;
        request.message = std::move(refused.message);
    } catch (const WireError& error) {
        status = StatusCode::invalid_argument;
        request.message = error.what();
    } catch (const DeviceError& error) {
        status = StatusCode::unavailable;
        why = Dropped::unavailable;
        request.message = error.what();
    } catch (const std::bad_alloc&) {
        status = StatusCode::resource_exhausted;
        why = Dropped::queue_full;
        request.message = "not enough memory for this request";
    } catch (const std::exception& error) {
        request.message = error.what();
    }
    if (request.model != nullptr) request.model->statistics.drop(why);
    request.status = status;
    HotRequest* one = &request;
    if (request.in_stream) write_stream_error(request);
    if (tracing_) end_span(request);
    trim(request);
    request.origin->deliver({&one, 1});
}

void Hub::flush() noexcept {
    bool notify = false;
    {
        const std::lock_guard guard(lock_);
        notify = unflushed_ && sleeping_ != 0;
        unflushed_ = false;
        if (notify) ++news_;
    }
    if (notify) arrived_.notify_one();
}

void Hub::cancel(HotRequest* hot, StatusCode why) noexcept {
    auto& request = static_cast<HubRequest&>(*hot);
    if (request.model == nullptr) return;
    {
        const std::lock_guard guard(lock_);
        if (!request.model->queue.remove(request.place)) return;
    }
    const bool late = why == StatusCode::deadline_exceeded;
    request.model->statistics.drop(late ? Dropped::expired : Dropped::cancelled);
    request.status = why;
    request.message.clear();
    HubRequest* one = &request;
    deliver({&one, 1});
}

// --- answers ---------------------------------------------------------------------------------------------------------

// Sends requests home, by origin. Nothing of a request may be touched afterwards.
void Hub::deliver_now(std::span<HubRequest* const> requests) noexcept {
    if (tracing_) {
        for (HubRequest* request : requests) end_span(*request);
    }
    std::vector<HotRequest*> group;
    std::size_t first = 0;
    while (first < requests.size()) {
        Origin* origin = requests[first]->origin;
        group.clear();
        bool mixed = false;
        for (std::size_t i = first; i < requests.size(); ++i) {
            if (requests[i]->origin == origin) {
                group.push_back(requests[i]);
            } else {
                mixed = true;
            }
        }
        if (!mixed) {
            origin->deliver(group);
            return;
        }
        // Several origins: the rest is grouped in the same way.
        std::vector<HubRequest*> rest;
        for (std::size_t i = first; i < requests.size(); ++i) {
            if (requests[i]->origin != origin) rest.push_back(requests[i]);
        }
        origin->deliver(group);
        deliver_now(rest);
        return;
    }
}

// Requests of one model that are answered: they leave now, or where order is preserved once all before them have.
void Hub::deliver(std::span<HubRequest* const> requests) noexcept {
    if (requests.empty()) return;
    Model& model = *requests.front()->model;
    for (HubRequest* request : requests) trim(*request);
    std::vector<HubRequest*> ready;
    // Held until what is ready has left, so that two threads cannot overtake each other.
    std::unique_lock<std::mutex> order(model.sending, std::defer_lock);
    if (model.queue.policy().preserve_ordering) order.lock();
    {
        const std::lock_guard guard(lock_);
        if (model.queue.policy().preserve_ordering) {
            for (HubRequest* request : requests) request->done = true;
            std::size_t count = 0;
            while (count < model.held.size() && model.held[count]->done) ++count;
            ready.assign(model.held.begin(), model.held.begin() + static_cast<std::ptrdiff_t>(count));
            model.held.erase(model.held.begin(), model.held.begin() + static_cast<std::ptrdiff_t>(count));
        }
    }
    deliver_now(model.queue.policy().preserve_ordering ? std::span<HubRequest* const>(ready) : requests);
}

void Hub::end_with(std::vector<HubRequest*>& requests, StatusCode status, const std::string& message) noexcept {
    for (HubRequest* request : requests) {
        request->status = status;
        request->message = message;
        if (request->in_stream) write_stream_error(*request);
    }
    // Several models may be among them.
    while (!requests.empty()) {
        Model* model = requests.front()->model;
        const auto others = std::stable_partition(requests.begin(), requests.end(),
                                                  [&](const HubRequest* request) { return request->model == model; });
        const std::vector<HubRequest*> group(requests.begin(), others);
        requests.erase(requests.begin(), others);
        deliver(group);
    }
}

void Hub::answer(TakenBatch& batch, std::string_view weights, std::span<const BatchTensor> outputs) {
    const std::int64_t computed = monotonic_ns();
    AnswerWriter writer(batch, weights, outputs);
    std::size_t first = 0;
    std::vector<bool> failed(batch.requests.size());
    const auto fail_one = [&](std::size_t index, StatusCode status, const char* message) {
        HubRequest& request = *batch.requests[index];
        failed[index] = true;
        request.status = status;
        request.message = message;
        request.answer.clear();
        batch.model->statistics.failure(batch.version, {&request.arrived, 1}, monotonic_ns());
        if (request.in_stream) write_stream_error(request);
    };
    for (std::size_t i = 0; i < batch.requests.size(); ++i) {
        batch.requests[i]->status = StatusCode::ok;
        batch.requests[i]->message.clear();
        try {
            writer.write(i, first);
        } catch (const WireError& error) {
            // Its place in shared memory is too small, or gone: it fails alone.
            fail_one(i, StatusCode::invalid_argument, error.what());
        } catch (const DeviceError& error) {
            fail_one(i, StatusCode::unavailable, error.what());
        }
        first += batch.counts[i];
    }
    const auto fail_unsettled = [&](StatusCode status, const char* message) {
        for (std::size_t i = 0; i < batch.requests.size(); ++i) {
            if (!failed[i] && AnswerWriter::settles(*batch.requests[i])) fail_one(i, status, message);
        }
    };
    try {
        writer.settle();
    } catch (const WireError& error) {
        fail_unsettled(StatusCode::invalid_argument, error.what());
    } catch (const DeviceError& error) {
        fail_unsettled(StatusCode::unavailable, error.what());
    }
    std::vector<std::int64_t> arrived;
    arrived.reserve(batch.requests.size());
    for (std::size_t i = 0; i < batch.requests.size(); ++i) {
        if (!failed[i]) arrived.push_back(batch.requests[i]->arrived);
    }
    batch.marks.computed = computed;
    batch.marks.encoded = monotonic_ns();
    if (tracing_) note_batch(batch);
    // Counted first, so that whoever has an answer finds it in the statistics.
    batch.model->statistics.batch(batch.version, static_cast<std::uint32_t>(batch.rows.rows()), arrived, batch.marks);
    const std::vector<HubRequest*> requests = std::move(batch.requests);
    batch.requests.clear();
    finish(batch);
    deliver(requests);
}

void Hub::fail(TakenBatch& batch, StatusCode status, const std::string& message) {
    if (batch.requests.empty()) return;
    std::vector<std::int64_t> arrived;
    for (const HubRequest* request : batch.requests) arrived.push_back(request->arrived);
    batch.model->statistics.failure(batch.version, arrived, monotonic_ns());
    if (tracing_) note_batch(batch);
    std::vector<HubRequest*> requests = std::move(batch.requests);
    batch.requests.clear();
    finish(batch);
    end_with(requests, status, message);
}

// The batch's device is free again.
void Hub::finish(TakenBatch& batch) {
    const std::int64_t ns = monotonic_ns() - batch.marks.begun;
    bool notify = false;
    {
        const std::lock_guard guard(lock_);
        Model& model = *batch.model;
        --model.in_flight;
        model.computing.erase(std::find(model.computing.begin(), model.computing.end(), batch.version));
        model.used_ns += ns;
        if (batch.marks.encoded != 0)
            model.queue.computed(static_cast<std::uint32_t>(batch.rows.rows()), ns, batch.marks.begun + ns);
        notify = sleeping_ != 0 && model.queue.waiting() != 0;
        if (notify) ++news_;
    }
    if (notify) arrived_.notify_one();
}

void Hub::release(TakenBatch& batch) {
    if (batch.model == nullptr) return;
    if (!batch.requests.empty()) fail(batch, StatusCode::internal, "the batch was not answered");
    const std::lock_guard guard(lock_);
    // Whoever still looks at the rows keeps them.
    if ((batch.rows.slab && batch.rows.slab.use_count() == 1) ||
        (batch.rows.tensors && batch.rows.tensors.use_count() == 1)) {
        batch.model->give_back(std::move(batch.rows));
    }
    batch.rows = {};
    batch.model = nullptr;
}

// --- batches ---------------------------------------------------------------------------------------------------------

// Under the lock: a batch of the model that has used least, or when to look again.
std::unique_ptr<TakenBatch> Hub::decide(std::int64_t now, std::int64_t& wait_until, Leaving& leaving) {
    if (serving_.size() > 1) {
        std::sort(serving_.begin(), serving_.end(),
                  [](const Model* one, const Model* other) { return one->used_ns < other->used_ns; });
    }
    for (Model* model : serving_) {
        if (model->queue.waiting() == 0) continue;
        if (model->in_flight >= model->instances) continue;  // finish() wakes us
        model->queue.decide(now, *model, closed_ || draining_.load(std::memory_order_relaxed), decision_, model->schema ? nullptr : share_batch);
        for (Waiting* place : decision_.expired) leaving.expired.push_back(&request_of(*place));
        for (Waiting* place : decision_.missed) leaving.missed.push_back(&request_of(*place));
        for (Waiting* place : decision_.orphaned) leaving.orphaned.push_back(&request_of(*place));
        for (const std::uint32_t version : decision_.asleep) {
            if (model->newly_wanted(version)) wanted_.emplace_back(model->name, version);
        }
        if (decision_.batch.empty()) {
            wait_until = std::min(wait_until, decision_.wait_until);
            continue;
        }
        auto batch = std::make_unique<TakenBatch>();
        batch->model = model;
        batch->version = decision_.version;
        batch->marks.begun = now;
        batch->rows = model->take_rows();
        batch->requests.reserve(decision_.batch.size());
        for (Waiting* place : decision_.batch) batch->requests.push_back(&request_of(*place));
        ++model->in_flight;
        model->computing.push_back(batch->version);
        return batch;
    }
    return nullptr;
}

// Answers those that will not be computed.
void Hub::send_off(Leaving& leaving) {
    for (HubRequest* request : leaving.expired) request->model->statistics.drop(Dropped::expired);
    end_with(leaving.expired, StatusCode::deadline_exceeded, "the deadline passed in the queue; the work was not done");
    for (HubRequest* request : leaving.missed) request->model->statistics.drop(Dropped::missed);
    end_with(leaving.missed, StatusCode::deadline_exceeded, kMissed);
    for (HubRequest* request : leaving.orphaned) {
        const std::string version(request->parsed.model_version);
        std::vector<HubRequest*> one{request};
        end_with(one, StatusCode::not_found,
                 "model " + quote(request->model->name) + ": version " + version + " is not loaded any more");
    }
    leaving = {};
}

std::unique_ptr<TakenBatch> Hub::take(std::int64_t timeout_ns) {
    const std::int64_t start = monotonic_ns();
    const std::int64_t give_up = timeout_ns < kForever - start ? start + timeout_ns : kForever;
    Leaving leaving;
    while (true) {
        std::unique_ptr<TakenBatch> batch;
        bool done = false;
        {
            std::unique_lock guard(lock_);
            const std::int64_t now = monotonic_ns();
            std::int64_t wait_until = give_up;
            if (wanted_.empty()) batch = decide(now, wait_until, leaving);
            if (!batch && leaving.empty()) {
                const bool idle = std::all_of(serving_.begin(), serving_.end(),
                                              [](const Model* model) { return model->queue.waiting() == 0; });
                if (woken_ || !wanted_.empty() || now >= give_up || (closed_ && idle)) {
                    woken_ = false;
                    done = true;
                } else {
                    const std::uint64_t before = news_;
                    const auto news = [&] { return news_ != before || woken_; };
                    ++sleeping_;
                    if (wait_until == kForever) {
                        arrived_.wait(guard, news);
                    } else {
                        arrived_.wait_until(
                            guard,
                            std::chrono::steady_clock::time_point(std::chrono::nanoseconds(wait_until)), news);
                    }
                    --sleeping_;
                }
            }
        }
        if (!leaving.empty()) send_off(leaving);
        if (batch) {
            try {
                read(*batch);
            } catch (const std::exception& error) {  // no memory, no random bytes: these requests fail, others go on
                fail(*batch, StatusCode::resource_exhausted, std::string("the batch could not be read: ") + error.what());
                release(*batch);
                continue;
            }
            if (!batch->requests.empty()) return batch;
            finish(*batch);
            release(*batch);
        }
        if (done) return nullptr;
    }
}

// Copies packed requests' rows into the batch's slab, all of them at once; false where they are not all packed.
bool Hub::read_packed(TakenBatch& batch) {
    std::size_t rows = 0;
    for (const HubRequest* request : batch.requests) {
        if (request->rows.packed() == nullptr) return false;
        rows += request->place.rows;
    }
    thread_local std::vector<float*> columns;
    thread_local std::vector<const char*> places;  // of rows
    Slab& slab = *batch.rows.slab;
    try {
        places.reserve(rows);
        slab.grow_reals(rows, columns);
    } catch (const std::bad_alloc&) {
        slab.truncate(0);
        return false;  // one by one, so that what fits is served
    }
    places.clear();
    const std::size_t row_bytes = columns.size() * sizeof(float);
    for (const HubRequest* request : batch.requests) {
        for (std::uint32_t row = 0; row < request->place.rows; ++row)
            places.push_back(request->rows.packed() + row * row_bytes);
    }
    copy_packed_rows(places, columns);
    slab.commit(rows);
    return true;
}

// Copies the requests' rows into the batch's slab; a request that cannot be read fails alone.
void Hub::read(TakenBatch& batch) {
    if (!batch.rows.slab || !read_packed(batch)) read_each(batch);
    const std::size_t requests = batch.requests.size();
    batch.counts.reserve(requests);
    batch.times_us.reserve(requests);
    const std::int64_t since = since_1970();
    for (const HubRequest* request : batch.requests) {
        batch.counts.push_back(request->place.rows);
        batch.times_us.push_back(request->time_us ? *request->time_us : (request->arrived + since) / 1000);
    }
    batch.ids.resize(requests);
    make_request_ids(batch.ids);
    batch.marks.read = monotonic_ns();
}

void Hub::read_each(TakenBatch& batch) {
    std::vector<HubRequest*> bad;
    std::size_t kept = 0;
    for (HubRequest* request : batch.requests) {
        const std::uint32_t rows = request->place.rows;
        try {
            if (batch.rows.slab) {
                request->rows.append_to(*batch.rows.slab, 0, rows);
            } else {
                request->tensors.append_to(*batch.rows.tensors, 0, rows);
            }
        } catch (const std::exception& error) {
            request->message = error.what();
            bad.push_back(request);
            continue;
        }
        batch.requests[kept++] = request;
    }
    batch.requests.resize(kept);
    const std::int64_t now = monotonic_ns();
    for (HubRequest* request : bad) {
        const std::int64_t arrived = request->arrived;
        batch.model->statistics.failure(batch.version, {&arrived, 1}, now);
        const std::string message = request->message;
        std::vector<HubRequest*> one{request};
        end_with(one, StatusCode::invalid_argument, message);
    }
}

void Hub::set_draining(bool draining) {
    {
        const std::lock_guard guard(lock_);
        draining_.store(draining, std::memory_order_relaxed);
        ++news_;
    }
    arrived_.notify_all();
}

void Hub::wake() {
    {
        const std::lock_guard guard(lock_);
        woken_ = true;
    }
    arrived_.notify_all();
}

void Hub::close() {
    {
        const std::lock_guard guard(lock_);
        closed_ = true;
        ++news_;
    }
    arrived_.notify_all();
}

void Hub::clear(StatusCode status, const std::string& message, const std::string& name) {
    std::vector<HubRequest*> gone;
    {
        const std::lock_guard guard(lock_);
        for (Model* model : serving_) {
            if (!name.empty() && model->name != name) continue;
            for (Waiting* place : model->queue.clear()) gone.push_back(&request_of(*place));
        }
    }
    end_with(gone, status, message);
}

}  // namespace trimtab
