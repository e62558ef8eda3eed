// sample_ids for Python.
#include "sampling.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "bindings.h"

namespace py = pybind11;

namespace trimtab {
namespace {

py::tuple sample_ids(const py::array_t<std::uint8_t, py::array::c_style>& ids, std::uint64_t seed, double inclusion,
                     double policy) {
    if (ids.ndim() != 2 || ids.shape(1) != 16) throw std::invalid_argument("ids: expected [n, 16]");
    const py::ssize_t rows = ids.shape(0);
    const std::uint8_t* id = ids.data();
    py::array_t<std::int32_t> all(rows);
    std::int32_t* kept = all.mutable_data();
    py::ssize_t count = 0;
    std::int64_t wanted = 0;
    for (py::ssize_t row = 0; row < rows; ++row, id += 16) {
        const double unit = hash_unit(id, seed);
        wanted += unit < policy ? 1 : 0;
        if (unit < inclusion) kept[count++] = static_cast<std::int32_t>(row);
    }
    return py::make_tuple(all[py::slice(0, count, 1)], wanted);
}

}  // namespace

void bind_sampling(py::module_& module) {
    module.def("sample_ids", &sample_ids, py::arg("ids").noconvert(), py::arg("seed"), py::arg("inclusion"),
               py::arg("policy"));
}

}  // namespace trimtab
