// CompiledProgram and sketch_values for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings.h"
#include "columns_program.h"

namespace py = pybind11;

namespace trimtab {
namespace {

using Counts = py::array_t<std::uint64_t, py::array::c_style>;
using Moments = py::array_t<double, py::array::c_style>;
using Features = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<std::int64_t, py::array::c_style>;
using OpTuple = std::tuple<std::string, std::vector<double>, std::vector<std::int64_t>, std::vector<py::bytes>>;
using ChainTuple = std::tuple<std::size_t, std::vector<OpTuple>>;
using SketchTuple = std::tuple<std::string, std::vector<double>, std::vector<std::int64_t>, std::vector<py::bytes>, std::size_t>;

// Below this a run is shorter than handing the GIL over and back under load.
constexpr std::size_t kReleaseValues = 4096;

std::vector<std::string> texts_of(const std::vector<py::bytes>& values) { return {values.begin(), values.end()}; }

std::shared_ptr<CompiledProgram> make_program(std::shared_ptr<Schema> schema, const std::vector<ChainTuple>& chains,
                                              const std::vector<SketchTuple>& sketch) {
    std::vector<ChainSpec> chain_specs;
    for (const auto& [field, ops] : chains) {
        ChainSpec chain{field, {}};
        for (const auto& [name, reals, integers, texts] : ops) chain.ops.push_back({name, reals, integers, texts_of(texts)});
        chain_specs.push_back(std::move(chain));
    }
    std::vector<SketchFieldSpec> sketch_specs;
    for (const auto& [kind, reals, integers, texts, counted] : sketch) {
        if (kind != "real" && kind != "category") throw std::invalid_argument("column program: unknown sketch kind");
        sketch_specs.push_back({kind == "category", reals, integers, texts_of(texts), counted});
    }
    return std::make_shared<CompiledProgram>(std::move(schema), chain_specs, sketch_specs);
}

template <class Array>
void require_length(const Array& array, std::size_t least, const char* what) {
    if (array.ndim() != 1 || static_cast<std::size_t>(array.size()) < least) {
        throw std::invalid_argument(std::string("expected at least ") + std::to_string(least) + " " + what + ", came " +
                                    std::to_string(array.size()));
    }
}

void require_shape(const py::array& array, py::ssize_t rows, std::size_t columns, const char* what) {
    if (array.ndim() != 2 || array.shape(0) != rows || array.shape(1) != static_cast<py::ssize_t>(columns)) {
        throw std::invalid_argument("expected " + std::string(what) + " [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
    }
}

py::tuple run(const CompiledProgram& program, const Slab& slab, std::optional<Counts> counts, std::optional<Moments> moments,
              py::ssize_t start, py::ssize_t stop, std::optional<Features> into_features, std::optional<Ids> into_ids) {
    if (!program.reads(slab.schema())) throw std::invalid_argument("expected a slab of the program's schema, came one of another");
    const auto rows = static_cast<py::ssize_t>(slab.rows());
    if (stop == -1) stop = rows;
    if (start < 0 || stop < start || stop > rows) {
        throw std::out_of_range("expected rows within [0, " + std::to_string(rows) + "), came [" + std::to_string(start) + ", " +
                                std::to_string(stop) + ")");
    }
    if (counts.has_value() != moments.has_value()) throw std::invalid_argument("expected both counts and moments, or neither");
    Features features = into_features ? *into_features : Features({stop - start, static_cast<py::ssize_t>(program.n_features())});
    Ids ids = into_ids ? *into_ids : Ids({stop - start, static_cast<py::ssize_t>(program.n_ids())});
    require_shape(features, stop - start, program.n_features(), "features");
    require_shape(ids, stop - start, program.n_ids(), "ids");
    ColumnOutput output{features.mutable_data(), ids.mutable_data(), nullptr, nullptr};
    if (counts) {
        require_length(*counts, program.n_counts(), "counts");
        require_length(*moments, program.n_moments(), "moments");
        output.counts = counts->mutable_data();
        output.moments = moments->mutable_data();
    }
    const auto first = static_cast<std::size_t>(start);
    const auto last = static_cast<std::size_t>(stop);
    {
        std::optional<py::gil_scoped_release> release;
        if ((last - first) * (program.n_features() + program.n_ids() + 1) > kReleaseValues) release.emplace();
        program.run(slab, first, last, output);
    }
    return py::make_tuple(std::move(features), std::move(ids));
}

// One value a row: the row's largest where it has several, NaN where one of them is.
float of_row(const float* row, py::ssize_t width) {
    float most = row[0];
    for (py::ssize_t i = 1; i < width; ++i) most = row[i] > most || std::isnan(row[i]) ? row[i] : most;
    return most;
}

void add_values(const Features& values, const Features& edges, float low, float high, double shift, Counts counts, Moments moments) {
    const auto count = static_cast<std::size_t>(edges.size());
    require_length(edges, 0, "edges");
    if (values.ndim() < 1 || values.ndim() > 2) throw std::invalid_argument("expected values [n] or [n, width]");
    require_length(counts, kSketchPrefix + count + 1, "counts");
    require_length(moments, kSketchMoments, "moments");
    SketchLanes lanes;
    const SketchEdges field{{edges.data(), edges.data() + count}, low, high, shift};
    const auto rows = static_cast<std::size_t>(values.shape(0));
    const py::ssize_t width = values.ndim() == 2 ? values.shape(1) : 1;
    if (width == 1) {
        sketch_values(field, {values.data(), rows}, 0, counts.mutable_data(), moments.mutable_data(), lanes);
    } else if (width > 1) {
        std::vector<float> each(rows);
        for (std::size_t i = 0; i < rows; ++i) each[i] = of_row(values.data() + i * static_cast<std::size_t>(width), width);
        sketch_values(field, each, 0, counts.mutable_data(), moments.mutable_data(), lanes);
    }
    lanes.finish(moments.mutable_data());
}

}  // namespace

void bind_columns(py::module_& module) {
    py::class_<CompiledProgram, std::shared_ptr<CompiledProgram>>(module, "CompiledProgram",
                                                                  "A column program for the CPU; immutable, any number of threads.")
        .def(py::init(&make_program), py::arg("schema"), py::arg("chains"), py::arg("sketch"))
        .def_property_readonly("n_features", &CompiledProgram::n_features)
        .def_property_readonly("n_ids", &CompiledProgram::n_ids)
        .def("run", &run, py::arg("slab"), py::arg("counts").noconvert(), py::arg("moments").noconvert(), py::arg("start") = 0,
             py::arg("stop") = -1, py::arg("features").noconvert() = py::none(), py::arg("ids").noconvert() = py::none());
    module.def("sketch_values", &add_values, py::arg("values").noconvert(), py::arg("edges").noconvert(), py::arg("low"), py::arg("high"),
               py::arg("shift"), py::arg("counts").noconvert(), py::arg("moments").noconvert(),
               "Adds values (of [n, width] each row's largest) to one field's part of a sketch's counts and moments, in place.");
}

}  // namespace trimtab
