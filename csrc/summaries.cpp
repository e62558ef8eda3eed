// Summaries of endless columns, for Python: HeavyHitters and count_quantiles.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "heavy_hitters.h"

namespace py = pybind11;

namespace trimtab {
namespace {

using Offsets = py::array_t<std::int32_t, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Integers = py::array_t<std::int64_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Counts = py::array_t<std::uint64_t, py::array::c_style>;

constexpr std::size_t kMost = std::size_t{1} << 24;
constexpr std::size_t kQuantileBuckets = 65536;
constexpr std::size_t kNotANumber = 0x7FC0;

void add_texts(HeavyHitters& found, const Offsets& offsets, const Bytes& bytes) {
    if (offsets.ndim() != 1 || offsets.size() == 0) throw std::invalid_argument("expected offsets [n + 1]");
    const std::int32_t* const from = offsets.data();
    const auto rows = static_cast<std::size_t>(offsets.size() - 1);
    bool right = from[0] >= 0 && from[rows] <= bytes.size();
    for (std::size_t i = 0; i < rows; ++i) right &= from[i] <= from[i + 1];
    if (!right) throw std::invalid_argument("expected offsets that do not decrease, within the bytes");
    const char* const data = reinterpret_cast<const char*>(bytes.data());
    const py::gil_scoped_release release;
    found.add_texts(from, data, rows);
}

void add_integers(HeavyHitters& found, const Integers& values) {
    const std::int64_t* const from = values.data();
    const auto rows = static_cast<std::size_t>(values.size());
    const py::gil_scoped_release release;
    found.add_integers(from, rows);
}

py::list entries(const HeavyHitters& found) {
    py::list result;
    for (const auto& [value, count] : found.entries()) {
        result.append(py::make_tuple(py::bytes(value.data(), value.size()), count));
    }
    return result;
}

// The upper half of a float is a bucket; all that is no number is in one.
void count_quantiles(const Floats& values, Counts counts) {
    if (counts.ndim() != 1 || static_cast<std::size_t>(counts.size()) != kQuantileBuckets) {
        throw std::invalid_argument("expected " + std::to_string(kQuantileBuckets) + " counts");
    }
    const float* const from = values.data();
    const auto rows = static_cast<std::size_t>(values.size());
    std::uint64_t* const to = counts.mutable_data();
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < rows; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, from + i, sizeof(bits));
        ++to[from[i] != from[i] ? kNotANumber : bits >> 16];
    }
}

}  // namespace

void bind_summaries(py::module_& module) {
    py::class_<HeavyHitters>(module, "HeavyHitters", "The most frequent values of a stream; one thread at a time.")
        .def(py::init([](std::size_t capacity) {
                 if (capacity < 1 || capacity > kMost) throw std::invalid_argument("expected a capacity in [1, 2^24]");
                 return HeavyHitters(capacity);
             }),
             py::arg("capacity"))
        .def_property_readonly("capacity", &HeavyHitters::capacity)
        .def_property_readonly("total", &HeavyHitters::total)
        .def_property_readonly("error", &HeavyHitters::error)
        .def("add_texts", &add_texts, py::arg("offsets").noconvert(), py::arg("bytes").noconvert())
        .def("add_integers", &add_integers, py::arg("values").noconvert())
        .def("merge", &HeavyHitters::merge, py::arg("other"))
        .def("entries", &entries);
    module.def("count_quantiles", &count_quantiles, py::arg("values").noconvert(), py::arg("counts").noconvert(),
               "Adds values to a quantile sketch's 65,536 counts, in place.");
}

}  // namespace trimtab
