// Hub, Batch, BatchPolicy and LocalOrigin for Python. Nothing here is called per request but LocalOrigin's part.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.h"
#include "errors.h"
#include "hub.h"
#include "hub_outputs.h"
#include "local_origin.h"

namespace py = pybind11;

namespace trimtab {
namespace {

constexpr double kNs = 1e9;

std::int64_t to_ns(double seconds) {
    if (!(seconds < 9e9)) return kNever;
    return seconds <= 0 ? 0 : static_cast<std::int64_t>(seconds * kNs);
}

// --- batches ---------------------------------------------------------------------------------------------------------

class Batch {
  public:
    Batch(std::shared_ptr<Hub> hub, std::unique_ptr<TakenBatch> taken)
        : hub_(std::move(hub)),
          taken_(std::move(taken)),
          model_(taken_->model->name),
          requests_(taken_->requests.size()),
          rows_(taken_->rows.rows()) {}
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;
    ~Batch() {
        py::gil_scoped_release released;
        hub_->release(*taken_);
    }

    const std::string& model() const { return model_; }
    std::uint32_t version() const { return taken_->version; }
    std::size_t requests() const { return requests_; }
    std::size_t rows() const { return rows_; }

    py::object slab() const {
        if (taken_->rows.slab) return py::cast(taken_->rows.slab);
        return py::cast(taken_->rows.tensors);
    }
    py::array ids() const {
        py::array_t<std::uint8_t> array({static_cast<py::ssize_t>(taken_->ids.size()), py::ssize_t{16}});
        if (!taken_->ids.empty()) std::memcpy(array.mutable_data(), taken_->ids.data(), taken_->ids.size() * 16);
        return array;
    }
    py::array counts() const {
        py::array_t<std::int32_t> array(static_cast<py::ssize_t>(taken_->counts.size()));
        std::copy(taken_->counts.begin(), taken_->counts.end(), array.mutable_data());
        return array;
    }
    py::array times_us() const {
        py::array_t<std::int64_t> array(static_cast<py::ssize_t>(taken_->times_us.size()));
        std::copy(taken_->times_us.begin(), taken_->times_us.end(), array.mutable_data());
        return array;
    }

    void answer(const std::string& weights, const py::sequence& outputs) {
        if (taken_->requests.empty()) throw std::invalid_argument("expected a batch that is not answered yet");
        const std::vector<OutputSpec>& specs = taken_->model->outputs;
        if (outputs.size() != specs.size()) {
            throw std::invalid_argument("expected " + std::to_string(specs.size()) + " outputs, came " +
                                        std::to_string(outputs.size()));
        }
        std::vector<OutputArray> arrays;  // hold the values
        std::vector<BatchTensor> tensors;
        arrays.reserve(specs.size());
        for (std::size_t i = 0; i < specs.size(); ++i) {
            arrays.emplace_back(specs[i], outputs[i], rows_);
            tensors.push_back(arrays.back().tensor());
        }
        py::gil_scoped_release released;
        hub_->answer(*taken_, weights, tensors);
    }

    void fail(int status, const std::string& message) {
        py::gil_scoped_release released;
        hub_->fail(*taken_, static_cast<StatusCode>(status), message);
    }

  private:
    std::shared_ptr<Hub> hub_;
    std::unique_ptr<TakenBatch> taken_;
    std::string model_;
    std::size_t requests_;
    std::size_t rows_;
};

// --- the hub ---------------------------------------------------------------------------------------------------------

void add_model(Hub& hub, const std::string& name, const py::object& schema,
               const std::vector<std::tuple<std::string, std::string, std::vector<std::int64_t>>>& outputs,
               const BatchPolicy& policy, std::uint32_t instances,
               const std::map<std::string, std::vector<std::string>>& labels) {
    std::vector<OutputSpec> specs;
    for (const auto& [output, datatype, dims] : outputs) {
        const auto found = labels.find(output);
        specs.push_back({output, datatype, dims, found == labels.end() ? std::vector<std::string>{} : found->second});
    }
    std::shared_ptr<const Schema> columns;
    std::shared_ptr<const TensorSchema> tensors;
    if (py::isinstance<Schema>(schema)) {
        columns = schema.cast<std::shared_ptr<Schema>>();
    } else {
        tensors = schema.cast<std::shared_ptr<TensorSchema>>();
    }
    hub.add_model(name, std::move(columns), std::move(tensors), std::move(specs), policy, instances);
}

std::unique_ptr<Batch> take(const std::shared_ptr<Hub>& hub, double timeout) {
    std::unique_ptr<TakenBatch> taken;
    {
        py::gil_scoped_release released;
        taken = hub->take(to_ns(timeout));
    }
    return taken ? std::make_unique<Batch>(hub, std::move(taken)) : nullptr;
}

py::tuple to_python(const Stage& stage) { return py::make_tuple(stage.count, stage.ns); }

template <std::size_t N>
py::tuple to_python(const Histogram<N>& histogram) {
    return py::make_tuple(std::vector<std::uint64_t>(histogram.buckets.begin(), histogram.buckets.end()),
                          histogram.total);
}

py::dict statistics_of(Hub& hub, const std::string& name) {
    const StatisticsData data = hub.model(name).statistics.copy();
    py::dict versions;
    for (const auto& [number, counts] : data.versions) {
        py::dict sizes;
        for (const auto& [rows, size] : counts.sizes)
            sizes[py::int_(rows)] = py::make_tuple(to_python(size.input), to_python(size.infer), to_python(size.output));
        py::dict item;
        item["requests"] = counts.requests;
        item["rows"] = counts.rows;
        item["batches"] = counts.batches;
        item["last_ms"] = counts.last_ms;
        item["success"] = to_python(counts.success);
        item["fail"] = to_python(counts.fail);
        item["queue"] = to_python(counts.queue);
        item["input"] = to_python(counts.input);
        item["infer"] = to_python(counts.infer);
        item["output"] = to_python(counts.output);
        item["sizes"] = sizes;
        versions[py::int_(number)] = item;
    }
    static constexpr const char* names[] = {"invalid", "not_found", "queue_full", "expired",
                                            "missed",  "cancelled", "unavailable"};
    static_assert(std::size(names) == static_cast<std::size_t>(Dropped::count));
    py::dict dropped;
    for (std::size_t i = 0; i < std::size(names); ++i) dropped[names[i]] = data.dropped[i];
    py::dict all;
    all["versions"] = versions;
    all["queue"] = to_python(data.queue);
    all["compute"] = to_python(data.compute);
    all["total"] = to_python(data.total);
    all["batch_rows"] = to_python(data.sizes);
    all["failed"] = data.failed;
    all["dropped"] = dropped;
    return all;
}

py::bytes latencies_of(Hub& hub, const std::string& name) {
    const FineHistogram counts = hub.model(name).statistics.latencies();
    return {reinterpret_cast<const char*>(counts.buckets.data()), sizeof counts.buckets};
}

std::string rendered(Hub& hub) {
    py::gil_scoped_release released;
    return render_metrics(hub.metrics());
}

// A LocalOrigin that keeps its hub, and is kept by it: see local_origin.h.
class HubOrigin {
  public:
    explicit HubOrigin(std::shared_ptr<HotTarget> target)
        : target_(std::move(target)), origin_(std::make_shared<LocalOrigin>(*target_)) {
        target_->keep(origin_);
    }

    int fileno() const { return origin_->descriptor(); }
    void submit(std::uint64_t token, const py::bytes& body, std::optional<double> timeout, bool in_stream,
                const std::string& traceparent) {
        const std::string_view bytes(PyBytes_AS_STRING(body.ptr()),
                                     static_cast<std::size_t>(PyBytes_GET_SIZE(body.ptr())));
        const std::int64_t now = monotonic_ns();
        const std::int64_t left = timeout ? to_ns(*timeout) : kNever;
        const std::int64_t deadline = left < kNever - now ? now + left : kNever;
        constexpr std::size_t long_bytes = std::size_t{1} << 18;
        if (bytes.size() < long_bytes && !target_->copies()) {
            origin_->submit(token, bytes, deadline, in_stream, traceparent);
            return;
        }
        py::gil_scoped_release released;
        origin_->submit(token, bytes, deadline, in_stream, traceparent);
    }
    void cancel(std::uint64_t token) {
        py::gil_scoped_release released;
        origin_->cancel(token);
    }
    py::list drain() {
        py::list answers;
        origin_->drain([&](const HotRequest& request) {
            py::str message = py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(
                request.message.data(), static_cast<py::ssize_t>(request.message.size()), "replace"));
            answers.append(py::make_tuple(request.call, static_cast<int>(request.status),
                                          py::bytes(request.answer.data(), request.answer.size()), message));
        });
        return answers;
    }

  private:
    std::shared_ptr<HotTarget> target_;
    std::shared_ptr<LocalOrigin> origin_;
};

BatchPolicy make_policy(std::uint32_t max_batch_size, double max_queue_delay, std::vector<std::uint32_t> preferred,
                        bool split_oversize, bool preserve_ordering, std::uint64_t max_queue_bytes,
                        std::vector<QueuePolicy> levels, std::uint32_t default_level) {
    BatchPolicy policy;
    policy.max_batch_size = max_batch_size;
    policy.max_queue_delay = to_ns(max_queue_delay);
    policy.preferred = std::move(preferred);
    policy.split_oversize = split_oversize;
    policy.preserve_ordering = preserve_ordering;
    policy.max_queue_bytes = max_queue_bytes;
    if (!levels.empty()) policy.levels = std::move(levels);
    policy.default_level = default_level;
    BatchQueue checked(policy);  // throws on what could not be served by
    return policy;
}

// The allocator gives large freed blocks back to the system and takes them again, page fault by page fault, for every
// batch. A server keeps them: what one batch needed the next one needs.
void keep_freed_memory() {
#ifdef __GLIBC__
    constexpr int threshold = 32 << 20;
    mallopt(M_MMAP_THRESHOLD, threshold);
    mallopt(M_TRIM_THRESHOLD, 4 * threshold);
#endif
}

}  // namespace

void bind_hub(py::module_& module) {
    py::class_<QueuePolicy>(module, "QueuePolicy", "How requests of one priority level wait; Triton's ModelQueuePolicy.")
        .def(py::init([](bool delay, double default_timeout, bool allow_timeout_override, std::uint32_t max_queue_size) {
                 return QueuePolicy{delay, to_ns(default_timeout), allow_timeout_override, max_queue_size};
             }),
             py::arg("delay") = false, py::arg("default_timeout") = 0.0, py::arg("allow_timeout_override") = true,
             py::arg("max_queue_size") = 4096);
    py::class_<BatchPolicy>(module, "BatchPolicy", "How waiting requests become batches.")
        .def(py::init(&make_policy), py::kw_only(), py::arg("max_batch_size") = 256, py::arg("max_queue_delay") = 0.0,
             py::arg("preferred") = std::vector<std::uint32_t>{}, py::arg("split_oversize") = true,
             py::arg("preserve_ordering") = false, py::arg("max_queue_bytes") = std::uint64_t{1} << 30,
             py::arg("levels") = std::vector<QueuePolicy>{}, py::arg("default_level") = 0);

    py::class_<Batch>(module, "Batch", "Requests of one model for one version, their rows read; made by Hub.take().")
        .def_property_readonly("model", &Batch::model)
        .def_property_readonly("version", &Batch::version)
        .def_property_readonly("requests", &Batch::requests)
        .def_property_readonly("rows", &Batch::rows)
        .def_property_readonly("slab", &Batch::slab)
        .def_property_readonly("request_ids", &Batch::ids)
        .def_property_readonly("counts", &Batch::counts)
        .def_property_readonly("times_us", &Batch::times_us)
        .def("answer", &Batch::answer, py::arg("weights"), py::arg("outputs"))
        .def("fail", &Batch::fail, py::arg("status"), py::arg("message"));

    py::class_<HubOrigin>(module, "LocalOrigin", "Requests that come from the asyncio side.")
        .def(py::init<std::shared_ptr<HotTarget>>(), py::arg("target"))
        .def("fileno", &HubOrigin::fileno)
        .def("submit", &HubOrigin::submit, py::arg("token"), py::arg("body"), py::arg("timeout"),
             py::arg("in_stream") = false, py::arg("traceparent") = "")
        .def("cancel", &HubOrigin::cancel, py::arg("token"))
        .def("drain", &HubOrigin::drain);

    module.def("keep_freed_memory", &keep_freed_memory);

    using Released = py::call_guard<py::gil_scoped_release>;
    py::class_<Hub, HotTarget, std::shared_ptr<Hub>>(module, "Hub", "Every model's requests, from bytes to answers.")
        .def(py::init<std::shared_ptr<SharedMemory>>(), py::arg("shared_memory") = nullptr)
        .def("trace", &Hub::trace, py::arg("tracing"))
        .def("add_model", &add_model, py::arg("name"), py::arg("schema"), py::arg("outputs"), py::arg("policy"),
             py::arg("instances") = 1, py::arg("labels") = std::map<std::string, std::vector<std::string>>{})
        .def("remove_model", &Hub::remove_model, py::arg("name"), Released())
        .def(
            "install",
            [](Hub& hub, const std::string& name, std::uint32_t live, std::vector<std::uint32_t> loaded,
               const std::unordered_map<std::string, std::uint32_t>& aliases) {
                py::gil_scoped_release released;
                hub.install(name, live, std::move(loaded), aliases);
            },
            py::arg("name"), py::arg("live"), py::arg("loaded"), py::arg("aliases"))
        .def("set_draining", &Hub::set_draining, py::arg("draining"), Released())
        .def("waiting", &Hub::waiting, py::arg("name"), Released())
        .def("take", &take, py::arg("timeout"))
        .def("wake", &Hub::wake, Released())
        .def("close", &Hub::close, Released())
        .def(
            "clear",
            [](Hub& hub, int status, const std::string& message, const std::string& model) {
                hub.clear(static_cast<StatusCode>(status), message, model);
            },
            py::arg("status"), py::arg("message"), py::arg("model") = "", Released())
        .def(
            "pause",
            [](Hub& hub, const std::string& name, int status, std::string message) {
                hub.pause(name, static_cast<StatusCode>(status), std::move(message));
            },
            py::arg("name"), py::arg("status"), py::arg("message") = "", Released())
        .def("put_to_sleep", &Hub::put_to_sleep, py::arg("name"), py::arg("version"), Released())
        .def("wake_up", &Hub::wake_up, py::arg("name"), py::arg("version"), Released())
        .def("wanted", &Hub::wanted, Released())
        .def(
            "clear_version",
            [](Hub& hub, const std::string& name, std::uint32_t version, int status, const std::string& message) {
                hub.clear_version(name, version, static_cast<StatusCode>(status), message);
            },
            py::arg("name"), py::arg("version"), py::arg("status"), py::arg("message"), Released())
        .def("in_flight", &Hub::in_flight, py::arg("name"), Released())
        .def("render", [](Hub& hub) { return py::bytes(rendered(hub)); })
        .def("statistics", &statistics_of, py::arg("name"))
        .def("latencies", &latencies_of, py::arg("name"));
}

}  // namespace trimtab
