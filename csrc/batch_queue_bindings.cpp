// The batching policy for tests and simulations: BatchQueue with requests named by numbers. The hub uses the C++ object.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

#include "batch_queue.h"
#include "bindings.h"

namespace py = pybind11;

namespace trimtab {
namespace {

struct Named : Waiting {
    std::uint64_t name = 0;
};

// Lanes that stand for what a mapping says; all others for nothing.
class Mapped final : public Versions {
  public:
    Mapped(const std::unordered_map<Lane, std::uint32_t>& versions, const std::vector<std::uint32_t>& asleep)
        : versions_(versions), asleep_(asleep) {}
    std::uint32_t resolve(Lane lane) const override {
        const auto found = versions_.find(lane);
        return found == versions_.end() ? 0 : found->second;
    }
    bool asleep(std::uint32_t version) const override {
        return std::find(asleep_.begin(), asleep_.end(), version) != asleep_.end();
    }

  private:
    const std::unordered_map<Lane, std::uint32_t>& versions_;
    const std::vector<std::uint32_t>& asleep_;
};

class TestQueue {
  public:
    explicit TestQueue(const BatchPolicy& policy) : queue_(policy) {}

    std::string admit(std::uint64_t name, std::int64_t now, std::uint32_t rows, Lane lane, std::optional<std::int64_t> deadline,
                      std::optional<std::uint64_t> timeout_us, std::uint32_t priority, std::uint64_t size) {
        auto request = std::make_unique<Named>();
        request->name = name;
        request->rows = rows;
        request->lane = lane;
        request->arrived = now;
        request->deadline = deadline.value_or(kForever);
        request->timeout_us = timeout_us;
        request->priority = priority;
        request->size = size;
        static constexpr const char* names[] = {"",          "queue_full",      "deadline_passed", "would_miss_deadline",
                                                "too_large", "no_such_priority"};
        const Refusal refusal = queue_.admit(*request, now);
        if (refusal == Refusal::none) {
            if (requests_.contains(name)) throw std::invalid_argument("name: expected a new one");
            queue_.add(*request);
            requests_.emplace(name, std::move(request));
        }
        return names[static_cast<std::size_t>(refusal)];
    }

    bool remove(std::uint64_t name) {
        const auto found = requests_.find(name);
        if (found == requests_.end() || !queue_.remove(*found->second)) return false;
        requests_.erase(found);
        return true;
    }

    py::tuple decide(std::int64_t now, const std::unordered_map<Lane, std::uint32_t>& versions, bool flush,
                     const std::vector<std::uint32_t>& asleep) {
        Decision decision;
        queue_.decide(now, Mapped(versions, asleep), flush, decision);
        wanted_ = decision.asleep;
        const std::optional<std::int64_t> wait =
            decision.wait_until == kForever ? std::nullopt : std::optional(decision.wait_until);
        const std::uint32_t version = decision.version;
        return py::make_tuple(take(decision.batch), version, wait, take(decision.expired), take(decision.missed), take(decision.orphaned));
    }

    void computed(std::uint32_t rows, std::int64_t ns, std::int64_t now) { queue_.computed(rows, ns, now); }
    const std::vector<std::uint32_t>& wanted() const { return wanted_; }
    std::size_t size() const { return queue_.waiting(); }
    std::uint64_t rows() const { return queue_.rows(); }
    std::uint64_t bytes() const { return queue_.size(); }
    std::vector<std::uint64_t> clear() { return take(queue_.clear()); }
    std::vector<std::uint64_t> clear_version(std::uint32_t version, const std::unordered_map<Lane, std::uint32_t>& versions) {
        return take(queue_.clear(version, Mapped(versions, {})));
    }
    bool waits_for(std::uint32_t version, const std::unordered_map<Lane, std::uint32_t>& versions) const {
        return queue_.waits_for(version, Mapped(versions, {}));
    }

  private:
    std::vector<std::uint64_t> take(const std::vector<Waiting*>& gone) {
        std::vector<std::uint64_t> names;
        for (Waiting* request : gone) {
            names.push_back(static_cast<Named*>(request)->name);
            requests_.erase(names.back());
        }
        return names;
    }

    BatchQueue queue_;
    std::vector<std::uint32_t> wanted_;
    std::unordered_map<std::uint64_t, std::unique_ptr<Named>> requests_;
};

}  // namespace

void bind_batch_queue(py::module_& module) {
    py::class_<TestQueue>(module, "BatchQueue", "The batching policy of one model, for tests; requests are numbers.")
        .def(py::init<const BatchPolicy&>(), py::arg("policy"))
        .def("admit", &TestQueue::admit, py::arg("name"), py::arg("now"), py::kw_only(), py::arg("rows") = 1,
             py::arg("lane") = 0, py::arg("deadline") = py::none(), py::arg("timeout_us") = py::none(),
             py::arg("priority") = 0, py::arg("size") = 0)
        .def("remove", &TestQueue::remove, py::arg("name"))
        .def("decide", &TestQueue::decide, py::arg("now"), py::arg("versions"), py::arg("flush") = false,
             py::arg("asleep") = std::vector<std::uint32_t>{})
        .def("clear_version", &TestQueue::clear_version, py::arg("version"), py::arg("versions"))
        .def("waits_for", &TestQueue::waits_for, py::arg("version"), py::arg("versions"))
        .def("computed", &TestQueue::computed, py::arg("rows"), py::arg("ns"), py::arg("now"))
        .def("clear", &TestQueue::clear)
        .def("__len__", &TestQueue::size)
        .def_property_readonly("wanted", &TestQueue::wanted)
        .def_property_readonly("rows", &TestQueue::rows)
        .def_property_readonly("bytes", &TestQueue::bytes);
}

}  // namespace trimtab
