// Tracing for Python: made and drained by server/tracing.py; begin and end are for the hub, and for tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "tracing.h"

namespace py = pybind11;

namespace trimtab {
namespace {

template <std::size_t N>
py::bytes to_bytes(const std::array<std::uint8_t, N>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), N};
}

template <std::size_t N>
bool some(const std::array<std::uint8_t, N>& bytes) {
    return std::any_of(bytes.begin(), bytes.end(), [](std::uint8_t byte) { return byte != 0; });
}

py::object to_python(const Span& span) {
    const py::object parent = some(span.context.parent) ? py::object(to_bytes(span.context.parent)) : py::none();
    std::string id;
    if (some(span.id)) {
        id.resize(kIdText);
        write_request_id(span.id, id.data());
    }
    return py::make_tuple(to_bytes(span.context.trace), parent, span.model, span.version, span.rows, span.batch_rows,
                          span.in_stream, static_cast<int>(span.status), id, span.arrived, span.marks.begun,
                          span.marks.computed, span.marks.encoded, span.ended);
}

py::list drain(Tracing& tracing) {
    std::vector<std::unique_ptr<Span>> ended;
    {
        py::gil_scoped_release released;
        ended = tracing.drain();
    }
    py::list spans;
    for (const auto& span : ended) spans.append(to_python(*span));
    return spans;
}

// A request from its arrival to its end in one call: whether it was traced.
bool trace(Tracing& tracing, const py::bytes& traceparent, std::int64_t now) {
    std::unique_ptr<Span> span = tracing.begin(std::string_view(traceparent), now);
    if (!span) return false;
    span->ended = now;
    tracing.end(std::move(span));
    return true;
}

}  // namespace

void bind_tracing(py::module_& module) {
    py::class_<Tracing, std::shared_ptr<Tracing>>(module, "Tracing", "Which requests are traced, and those that were.")
        .def(py::init<double, std::uint32_t, std::size_t>(), py::arg("ratio"), py::arg("per_second"),
             py::arg("capacity"))
        .def("drain", &drain)
        .def("trace", &trace, py::arg("traceparent"), py::arg("now"))
        .def_property_readonly("over_rate", &Tracing::over_rate)
        .def_property_readonly("over_capacity", &Tracing::over_capacity);
}

}  // namespace trimtab
