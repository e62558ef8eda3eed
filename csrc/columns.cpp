// CompiledProgram and sketch_values for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings.h"
#include "buffer.h"
#include "column_table.h"
#include "columns_levels.h"
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
using SketchTuple =
    std::tuple<std::string, std::vector<double>, std::vector<std::int64_t>, std::vector<py::bytes>, std::size_t>;

// Below this a run is shorter than handing the GIL over and back under load.
constexpr std::size_t kReleaseValues = 4096;

std::vector<std::string> texts_of(const std::vector<py::bytes>& values) { return {values.begin(), values.end()}; }

const hot::Table& level_of(const std::optional<std::string>& name) { return name ? cpu_level(*name) : cpu_level(); }

std::shared_ptr<CompiledProgram> make_program(std::shared_ptr<Schema> schema, const std::vector<ChainTuple>& chains,
                                              const std::vector<SketchTuple>& sketch,
                                              const std::optional<std::string>& level) {
    std::vector<ChainSpec> chain_specs;
    for (const auto& [field, ops] : chains) {
        ChainSpec chain{field, {}};
        for (const auto& [name, reals, integers, texts] : ops)
            chain.ops.push_back({name, reals, integers, texts_of(texts)});
        chain_specs.push_back(std::move(chain));
    }
    std::vector<SketchFieldSpec> sketch_specs;
    for (const auto& [kind, reals, integers, texts, counted] : sketch) {
        if (kind != "real" && kind != "category") throw std::invalid_argument("column program: unknown sketch kind");
        sketch_specs.push_back({kind == "category", reals, integers, texts_of(texts), counted});
    }
    return std::make_shared<CompiledProgram>(std::move(schema), chain_specs, sketch_specs, level_of(level));
}

template <class Array>
void require_length(const Array& array, std::size_t least, const char* what) {
    if (array.ndim() != 1 || static_cast<std::size_t>(array.size()) < least) {
        throw std::invalid_argument(std::string("expected at least ") + std::to_string(least) + " " + what + ", came " +
                                    std::to_string(array.size()));
    }
}

// An array that native code may fill. Looked at by hand: pybind11's own conversion of four arrays takes longer than a
// small batch does.
template <class T>
const py::detail::PyArray_Proxy& fillable(py::handle object, const char* what) {
    using py::detail::npy_api;
    constexpr int kFlags = npy_api::NPY_ARRAY_C_CONTIGUOUS_ | npy_api::NPY_ARRAY_ALIGNED_;
    constexpr int kNumber = py::detail::npy_format_descriptor<T>::value;
    const auto& array = *py::detail::array_proxy(object.ptr());
    const auto usual = [&] {
        const auto& type = *py::detail::array_descriptor_proxy(array.descr);
        return type.type_num == kNumber && type.byteorder == '=';
    };
    if (!npy_api::get().PyArray_Check_(object.ptr()) || (array.flags & kFlags) != kFlags ||
        !(usual() || py::array_t<T, py::array::c_style>::check_(object))) {
        throw py::type_error("expected a contiguous array of " + std::string(py::str(py::dtype::of<T>())) + " for " +
                             what);
    }
    if ((array.flags & npy_api::NPY_ARRAY_WRITEABLE_) == 0)
        throw std::invalid_argument(std::string(what) + ": the array is not writeable");
    return array;
}

template <class T>
T* fillable_values(py::handle object, std::size_t least, const char* what) {
    const auto& array = fillable<T>(object, what);
    if (array.nd != 1 || static_cast<std::size_t>(array.dimensions[0]) < least) {
        throw std::invalid_argument("expected at least " + std::to_string(least) + " " + what + " in one dimension");
    }
    return reinterpret_cast<T*>(array.data);
}

// A large one begins with a cache line, so that it may be written past the caches.
template <class T>
py::object new_table(py::ssize_t rows, py::ssize_t width) {
    constexpr std::size_t kLarge = std::size_t{1} << 20;
    const std::size_t size = static_cast<std::size_t>(rows) * static_cast<std::size_t>(width);
    if (size * sizeof(T) < kLarge) return py::array_t<T, py::array::c_style>({rows, width});
    auto buffer = std::make_unique<Buffer<T>>(size);
    T* const values = buffer->data();
    py::capsule owner(buffer.get(), [](void* kept) { delete static_cast<Buffer<T>*>(kept); });
    buffer.release();
    return py::array_t<T, py::array::c_style>({rows, width}, values, owner);
}

// None makes a new one.
template <class T>
T* output_table(py::object& object, py::ssize_t rows, std::size_t columns, const char* what) {
    const auto width = static_cast<py::ssize_t>(columns);
    if (object.is_none()) object = new_table<T>(rows, width);
    const auto& array = fillable<T>(object, what);
    if (array.nd != 2 || array.dimensions[0] != rows || array.dimensions[1] != width) {
        throw std::invalid_argument("expected " + std::string(what) + " [" + std::to_string(rows) + ", " +
                                    std::to_string(columns) + "]");
    }
    return reinterpret_cast<T*>(array.data);
}

py::tuple run(const CompiledProgram& program, const Schema& schema, const ColumnSource& source, py::handle counts,
              py::handle moments, py::ssize_t start, py::ssize_t stop, py::object features, py::object ids,
              std::size_t threads) {
    if (!program.reads(schema)) throw std::invalid_argument("expected rows of the program's schema, came of another");
    const auto rows = static_cast<py::ssize_t>(source.rows());
    if (stop == -1) stop = rows;
    if (start < 0 || stop < start || stop > rows) {
        throw std::out_of_range("expected rows within [0, " + std::to_string(rows) + "), came [" +
                                std::to_string(start) + ", " + std::to_string(stop) + ")");
    }
    if (threads == 0) throw std::invalid_argument("expected at least one thread, came 0");
    if (counts.is_none() != moments.is_none())
        throw std::invalid_argument("expected both counts and moments, or neither");
    ColumnOutput output;
    if (!counts.is_none()) {
        output.counts = fillable_values<std::uint64_t>(counts, program.n_counts(), "counts");
        output.moments = fillable_values<double>(moments, program.n_moments(), "moments");
    }
    output.features = output_table<float>(features, stop - start, program.n_features(), "features");
    output.ids = output_table<std::int64_t>(ids, stop - start, program.n_ids(), "ids");
    const auto first = static_cast<std::size_t>(start);
    const auto last = static_cast<std::size_t>(stop);
    {
        std::optional<py::gil_scoped_release> release;
        if ((last - first) * (program.n_features() + program.n_ids() + 1) > kReleaseValues) release.emplace();
        program.run(source, first, last, output, threads);
    }
    return py::make_tuple(std::move(features), std::move(ids));
}

py::tuple run_slab(const CompiledProgram& program, const Slab& slab, py::handle counts, py::handle moments,
                   py::ssize_t start, py::ssize_t stop, py::object features, py::object ids, std::size_t threads) {
    return run(program, slab.schema(), slab, counts, moments, start, stop, std::move(features), std::move(ids), threads);
}

py::tuple run_table(const CompiledProgram& program, const ColumnTable& table, py::handle counts, py::handle moments,
                    py::ssize_t start, py::ssize_t stop, py::object features, py::object ids, std::size_t threads) {
    return run(program, *table.schema(), table.source(), counts, moments, start, stop, std::move(features),
               std::move(ids), threads);
}

using Phases = py::array_t<std::uint16_t, py::array::c_style>;

void sum_rows(const CompiledProgram& program, const Schema& schema, const ColumnSource& source, const Ids& rows,
              const Phases& phases, py::handle sums) {
    if (!program.reads(schema)) throw std::invalid_argument("expected rows of the program's schema, came of another");
    if (rows.ndim() != 1) throw std::invalid_argument("expected row numbers [k]");
    const std::span<std::int64_t, kJointLength> to{fillable_values<std::int64_t>(sums, kJointLength, "joint sums"),
                                                   kJointLength};
    const std::span<const std::int64_t> taken{rows.data(), static_cast<std::size_t>(rows.size())};
    const std::span<const std::uint16_t> turns{phases.data(), static_cast<std::size_t>(phases.size())};
    std::optional<py::gil_scoped_release> release;
    if (taken.size() * program.n_counts() > kReleaseValues) release.emplace();
    program.sum_jointly(source, taken, turns, to);
}

// One value a row: the row's largest where it has several, NaN where one of them is.
float of_row(const float* row, py::ssize_t width) {
    float most = row[0];
    for (py::ssize_t i = 1; i < width; ++i) most = row[i] > most || std::isnan(row[i]) ? row[i] : most;
    return most;
}

void add_values(const Features& values, const Features& edges, float low, float high, float shift, Counts counts,
                Moments moments, const std::optional<std::string>& level) {
    const auto count = static_cast<std::size_t>(edges.size());
    require_length(edges, 0, "edges");
    if (values.ndim() < 1 || values.ndim() > 2) throw std::invalid_argument("expected values [n] or [n, width]");
    require_length(counts, kSketchPrefix + count + 1, "counts");
    require_length(moments, kSketchMoments, "moments");
    const hot::Sketch field = make_sketch({edges.data(), count}, low, high, shift);
    const auto rows = static_cast<std::size_t>(values.shape(0));
    const py::ssize_t width = values.ndim() == 2 ? values.shape(1) : 1;
    std::vector<float> each;
    std::span<const float> taken{values.data(), width == 1 ? rows : 0};
    if (width > 1) {
        each.resize(rows);
        for (std::size_t i = 0; i < rows; ++i)
            each[i] = of_row(values.data() + i * static_cast<std::size_t>(width), width);
        taken = each;
    }
    sketch_values(level_of(level), field, taken, counts.mutable_data(), moments.mutable_data());
}

}  // namespace

void bind_columns(py::module_& module) {
    bind_column_table(module);
    try {
        choose_cpu_level();
    } catch (const std::invalid_argument& error) {
        throw py::import_error(error.what());
    }
    py::list levels;
    for (const hot::Table* level : cpu_levels()) levels.append(level->name);
    module.attr("CPU_LEVELS") = py::tuple(levels);
    module.attr("CPU_LEVEL") = cpu_level().name;
    py::class_<CompiledProgram, std::shared_ptr<CompiledProgram>>(
        module, "CompiledProgram", "A column program for the CPU; immutable, any number of threads.")
        .def(py::init(&make_program), py::arg("schema"), py::arg("chains"), py::arg("sketch"),
             py::arg("level") = py::none())
        .def_property_readonly("n_features", &CompiledProgram::n_features)
        .def_property_readonly("n_ids", &CompiledProgram::n_ids)
        .def("run", &run_slab, py::arg("rows"), py::arg("counts"), py::arg("moments"), py::arg("start") = 0,
             py::arg("stop") = -1, py::arg("features") = py::none(), py::arg("ids") = py::none(),
             py::arg("threads") = 1)
        .def("run", &run_table, py::arg("rows"), py::arg("counts"), py::arg("moments"), py::arg("start") = 0,
             py::arg("stop") = -1, py::arg("features") = py::none(), py::arg("ids") = py::none(),
             py::arg("threads") = 1)
        .def("sum_jointly",
             [](const CompiledProgram& program, const Slab& rows, const Ids& taken, const Phases& phases,
                py::handle sums) { sum_rows(program, rows.schema(), rows, taken, phases, sums); },
             py::arg("rows"), py::arg("taken").noconvert(), py::arg("phases").noconvert(), py::arg("sums"))
        .def("sum_jointly",
             [](const CompiledProgram& program, const ColumnTable& rows, const Ids& taken, const Phases& phases,
                py::handle sums) { sum_rows(program, *rows.schema(), rows.source(), taken, phases, sums); },
             py::arg("rows"), py::arg("taken").noconvert(), py::arg("phases").noconvert(), py::arg("sums"));
    module.def("sketch_values", &add_values, py::arg("values").noconvert(), py::arg("edges").noconvert(),
               py::arg("low"), py::arg("high"), py::arg("shift"), py::arg("counts").noconvert(),
               py::arg("moments").noconvert(), py::arg("level") = py::none(),
               "Adds values (of [n, width] each row's largest) to one field's part of a sketch's counts and moments, "
               "in place.");
}

}  // namespace trimtab
