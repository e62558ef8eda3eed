#include "hub_outputs.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string_view>

#include "errors.h"

namespace py = pybind11;

namespace trimtab {
namespace {

struct NumpyDatatype {
    std::string_view name;
    char kind;  // NumPy's
    py::ssize_t width;
};

// NumPy has no bfloat16: its bits come as uint16.
constexpr NumpyDatatype kNumpyDatatypes[] = {
    {"BOOL", 'b', 1},  {"UINT8", 'u', 1}, {"UINT16", 'u', 2}, {"UINT32", 'u', 4}, {"UINT64", 'u', 8},
    {"INT8", 'i', 1},  {"INT16", 'i', 2}, {"INT32", 'i', 4},  {"INT64", 'i', 8},  {"FP16", 'f', 2},
    {"FP32", 'f', 4},  {"FP64", 'f', 8},  {"BF16", 'u', 2},
};

bool is_datatype(const py::dtype& dtype, std::string_view wanted) {
    const bool native = dtype.byteorder() == '=' || dtype.byteorder() == '|';
    return native && std::any_of(std::begin(kNumpyDatatypes), std::end(kNumpyDatatypes), [&](const auto& type) {
               return type.name == wanted && type.kind == dtype.kind() && type.width == dtype.itemsize();
           });
}

[[noreturn]] void fail(const OutputSpec& spec, const std::string& expected, const py::object& came) {
    std::string text = py::str(py::type::of(came)).cast<std::string>();
    if (py::isinstance<py::array>(came))
        text = py::str("{} of shape {}").format(came.attr("dtype"), came.attr("shape")).cast<std::string>();
    throw std::invalid_argument("output " + quote(spec.name) + ": expected " + expected + ", came " + text);
}

std::string shape_text(const OutputSpec& spec, std::size_t rows) {
    std::string text = "[" + std::to_string(rows);
    for (const std::int64_t dim : spec.dims) text += ", " + (dim < 0 ? std::string("any") : std::to_string(dim));
    return text + "]";
}

bool fits(const OutputSpec& spec, const py::array& array, std::size_t rows) {
    if (static_cast<std::size_t>(array.ndim()) != spec.dims.size() + 1) return false;
    if (static_cast<std::size_t>(array.shape(0)) != rows) return false;
    for (std::size_t i = 0; i < spec.dims.size(); ++i) {
        if (spec.dims[i] >= 0 && array.shape(static_cast<py::ssize_t>(i) + 1) != spec.dims[i]) return false;
    }
    return true;
}

}  // namespace

OutputArray::OutputArray(const OutputSpec& spec, const py::object& values, std::size_t rows) {
    if (spec.datatype == "BYTES") {
        take_bytes(spec, values, rows);
        return;
    }
    const std::string expected = spec.datatype + " of shape " + shape_text(spec, rows) + ", contiguous";
    if (!py::isinstance<py::array>(values)) fail(spec, expected, values);
    array_ = py::reinterpret_borrow<py::array>(values);
    const bool contiguous = (array_.flags() & py::array::c_style) != 0;
    if (!is_datatype(array_.dtype(), spec.datatype) || !contiguous || !fits(spec, array_, rows))
        fail(spec, expected, values);
    row_bytes_ = static_cast<std::size_t>(array_.itemsize());
    for (py::ssize_t i = 1; i < array_.ndim(); ++i) {
        row_shape_.push_back(array_.shape(i));
        row_bytes_ *= static_cast<std::size_t>(array_.shape(i));
    }
}

void OutputArray::take_bytes(const OutputSpec& spec, const py::object& values, std::size_t rows) {
    const std::string expected = "bytes or str of shape " + shape_text(spec, rows);
    const py::object numpy = py::module_::import("numpy");
    array_ = py::reinterpret_borrow<py::array>(
        numpy.attr("ascontiguousarray")(values, py::arg("dtype") = py::dtype("O")));
    if (!fits(spec, array_, rows)) fail(spec, expected, array_);
    std::size_t row_elements = 1;
    for (py::ssize_t i = 1; i < array_.ndim(); ++i) {
        row_shape_.push_back(array_.shape(i));
        row_elements *= static_cast<std::size_t>(array_.shape(i));
    }
    const auto* items = static_cast<PyObject* const*>(array_.data());
    for (std::size_t row = 0; row < rows; ++row) {
        for (std::size_t i = 0; i < row_elements; ++i) {
            const py::handle item(items[row * row_elements + i]);
            std::string_view text;
            if (PyBytes_Check(item.ptr())) {
                text = {PyBytes_AS_STRING(item.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(item.ptr()))};
            } else if (PyUnicode_Check(item.ptr())) {
                Py_ssize_t size = 0;
                const char* data = PyUnicode_AsUTF8AndSize(item.ptr(), &size);
                if (data == nullptr) throw py::error_already_set();
                text = {data, static_cast<std::size_t>(size)};
            } else {
                fail(spec, expected, py::reinterpret_borrow<py::object>(item));
            }
            if (text.size() > std::numeric_limits<std::uint32_t>::max()) fail(spec, "less than 4 GiB an element", array_);
            const auto size = static_cast<std::uint32_t>(text.size());
            raw_.append(reinterpret_cast<const char*>(&size), sizeof(size));
            raw_.append(text);
        }
        ends_.push_back(raw_.size());
    }
}

BatchTensor OutputArray::tensor() const {
    if (!ends_.empty()) return {raw_, row_shape_, 0, ends_};
    return {{static_cast<const char*>(array_.data()), static_cast<std::size_t>(array_.nbytes())}, row_shape_, row_bytes_, {}};
}

}  // namespace trimtab
