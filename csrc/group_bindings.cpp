// GroupQueue for Python: one crossing takes a group, one answers it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "group_queue.h"

namespace py = pybind11;

namespace trimtab {
namespace {

// Messages that were taken; those that are not answered when it goes are answered with INTERNAL.
class Group {
  public:
    Group(std::shared_ptr<GroupQueue> queue, std::vector<HotRequest*> requests)
        : queue_(std::move(queue)), requests_(std::move(requests)) {
        for (const HotRequest* request : requests_) bodies_.append(py::bytes(request->body.data(), request->body.size()));
    }
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;
    ~Group() {
        std::vector<GroupAnswer> answers(requests_.size(), {StatusCode::internal, "the message was not answered", {}});
        py::gil_scoped_release released;
        queue_->answer(requests_, std::move(answers));
    }

    const py::list& bodies() const { return bodies_; }

    void answer(const std::vector<std::tuple<int, std::string, py::bytes>>& given) {
        if (given.size() != requests_.size()) {
            throw std::invalid_argument("expected " + std::to_string(requests_.size()) + " answers, came " +
                                        std::to_string(given.size()));
        }
        std::vector<GroupAnswer> answers;
        for (const auto& [status, message, body] : given)
            answers.push_back({static_cast<StatusCode>(status), message, std::string(body)});
        const std::vector<HotRequest*> requests = std::exchange(requests_, {});
        py::gil_scoped_release released;
        queue_->answer(requests, std::move(answers));
    }

  private:
    std::shared_ptr<GroupQueue> queue_;
    std::vector<HotRequest*> requests_;
    py::list bodies_;
};

std::unique_ptr<Group> take(const std::shared_ptr<GroupQueue>& queue) {
    std::vector<HotRequest*> requests;
    {
        py::gil_scoped_release released;
        while (requests.empty() && !queue->ended()) requests = queue->take(kNever);
    }
    return requests.empty() ? nullptr : std::make_unique<Group>(queue, std::move(requests));
}

}  // namespace

void bind_groups(py::module_& module) {
    using Released = py::call_guard<py::gil_scoped_release>;
    py::class_<Group>(module, "Group", "Messages that are served together; made by GroupQueue.take().")
        .def_property_readonly("bodies", &Group::bodies)
        .def("answer", &Group::answer, py::arg("answers"));
    py::class_<GroupQueue, HotTarget, std::shared_ptr<GroupQueue>>(module, "GroupQueue",
                                                                   "Messages that are served in groups by Python.")
        .def(py::init<std::size_t, std::size_t>(), py::arg("max_bytes"), py::arg("max_group"))
        .def("take", &take)
        .def("set_draining", &GroupQueue::set_draining, py::arg("draining"), Released())
        .def("close", &GroupQueue::close, Released());
}

}  // namespace trimtab
