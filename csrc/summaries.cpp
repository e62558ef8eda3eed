// Summaries of endless columns, for Python: HeavyHitters, RowSample and what fills these and quantile sketches.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "heavy_hitters.h"
#include "row_sample.h"
#include "team.h"

namespace py = pybind11;

namespace trimtab {
namespace {

using Offsets = py::array_t<std::int32_t, py::array::c_style>;
using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Integers = py::array_t<std::int64_t, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Counts = py::array_t<std::uint32_t, py::array::c_style>;
using Priorities = py::array_t<std::uint64_t, py::array::c_style>;

constexpr std::size_t kMost = std::size_t{1} << 24;
constexpr std::size_t kQuantileBuckets = 65536;
constexpr std::uint16_t kNotANumber = 0x7FC0;

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

std::uint16_t bucket(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return value != value ? kNotANumber : static_cast<std::uint16_t>(bits >> 16);
}

// The upper half of a float is a bucket; all that is no number is in one. Buckets of a few values at a time, which the
// compiler finds in one go.
void count_values(std::span<const float> values, std::uint32_t* to) {
    std::array<std::uint16_t, 8> buckets;
    std::size_t i = 0;
    for (; i + buckets.size() <= values.size(); i += buckets.size()) {
        for (std::size_t j = 0; j < buckets.size(); ++j) buckets[j] = bucket(values[i + j]);
        std::array<std::uint64_t, 2> words;
        std::memcpy(words.data(), buckets.data(), sizeof(words));
        for (std::uint64_t word : words) {
            for (int j = 0; j < 4; ++j, word >>= 16) ++to[word & 0xFFFF];
        }
    }
    for (; i < values.size(); ++i) ++to[bucket(values[i])];
}

std::span<const float> span_of(const Floats& values) {
    if (values.ndim() != 1) throw std::invalid_argument("expected values [n]");
    return {values.data(), static_cast<std::size_t>(values.size())};
}

// Columns side by side; the lists were made by pybind11 and hold the arrays.
void count_quantiles(const std::vector<Floats>& columns, std::vector<Counts> counts, std::size_t threads) {
    if (columns.size() != counts.size()) throw std::invalid_argument("expected as many counts as columns");
    std::vector<std::pair<std::span<const float>, std::uint32_t*>> tasks;
    for (std::size_t i = 0; i < columns.size(); ++i) {
        if (counts[i].ndim() != 1 || static_cast<std::size_t>(counts[i].size()) != kQuantileBuckets) {
            throw std::invalid_argument("expected " + std::to_string(kQuantileBuckets) + " counts");
        }
        tasks.emplace_back(span_of(columns[i]), counts[i].mutable_data());
    }
    const py::gil_scoped_release release;
    share(tasks.size(), threads, [&](std::size_t i) { count_values(tasks[i].first, tasks[i].second); });
}

// The same rows of several columns, each into its sample.
void sample_rows(const std::vector<RowSample*>& samples, const std::vector<Floats>& columns,
                 const Priorities& priorities, const std::optional<Integers>& rows, std::size_t threads) {
    if (columns.size() != samples.size()) throw std::invalid_argument("expected as many samples as columns");
    if (priorities.ndim() != 1) throw std::invalid_argument("expected priorities [n]");
    const std::span<const std::uint64_t> their{priorities.data(), static_cast<std::size_t>(priorities.size())};
    std::vector<std::span<const float>> values;
    for (const Floats& column : columns) {
        values.push_back(span_of(column));
        if (values.back().size() != their.size()) throw std::invalid_argument("expected as many values as priorities");
    }
    std::span<const std::int64_t> chosen;
    if (rows) chosen = {rows->data(), static_cast<std::size_t>(rows->size())};
    for (const std::int64_t row : chosen) {
        if (row < 0 || row >= priorities.size()) throw std::invalid_argument("expected rows within the values");
    }
    const py::gil_scoped_release release;
    share(samples.size(), threads, [&](std::size_t i) {
        rows ? samples[i]->add(values[i], their, chosen) : samples[i]->add(values[i], their);
    });
}

Floats sampled(RowSample& sample) {
    const std::vector<float> values = sample.values();
    return Floats(static_cast<py::ssize_t>(values.size()), values.data());
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
    py::class_<RowSample>(module, "RowSample", "A uniform sample of a column's finite values; one thread at a time.")
        .def(py::init([](std::size_t size) {
                 if (size < 1 || size > kMost) throw std::invalid_argument("expected a size in [1, 2^24]");
                 return RowSample(size);
             }),
             py::arg("size"))
        .def_property_readonly("limit", &RowSample::limit)
        .def_property_readonly("minimum", &RowSample::minimum)
        .def_property_readonly("maximum", &RowSample::maximum)
        .def("values", &sampled);
    module.def("sample_rows", &sample_rows, py::arg("samples"), py::arg("columns").noconvert(),
               py::arg("priorities").noconvert(), py::arg("rows").noconvert() = py::none(), py::arg("threads") = 1,
               "Adds the same rows of several columns, each to its sample.");
    module.def("count_quantiles", &count_quantiles, py::arg("columns").noconvert(), py::arg("counts").noconvert(),
               py::arg("threads") = 1, "Adds columns to quantile sketches' 65,536 counts each, in place.");
}

}  // namespace trimtab
