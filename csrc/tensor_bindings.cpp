// TensorSchema, TensorSlab and TensorRequest for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bindings.h"
#include "errors.h"
#include "infer_message.h"
#include "tensor_rows.h"
#include "tensor_slab.h"

namespace py = pybind11;

namespace trimtab {
namespace {

using NamedSpec = std::tuple<std::string, std::string, std::vector<std::int64_t>>;  // name, datatype, dims

std::shared_ptr<TensorSchema> make_schema(const std::vector<NamedSpec>& inputs) {
    std::vector<TensorSpec> specs;
    specs.reserve(inputs.size());
    for (const auto& [name, datatype, dims] : inputs) {
        const TensorTypeTraits* traits = find_tensor_type(datatype);
        if (traits == nullptr)
            throw std::invalid_argument("input \"" + name + "\": expected a datatype of the protocol, came " +
                                        quote(datatype));
        specs.push_back({name, traits->type, dims});
    }
    return TensorSchema::make(std::move(specs));
}

py::list inputs_of(const TensorSchema& schema) {
    py::list inputs;
    for (const TensorSpec& spec : schema.inputs) {
        inputs.append(py::make_tuple(spec.name, traits_of(spec.type).name, py::tuple(py::cast(spec.dims))));
    }
    return inputs;
}

py::dtype dtype_of(TensorType type) {
    switch (type) {
        case TensorType::boolean: return py::dtype::of<bool>();
        case TensorType::uint8: return py::dtype::of<std::uint8_t>();
        case TensorType::uint16:
        case TensorType::bf16: return py::dtype::of<std::uint16_t>();  // NumPy has no bfloat16: its bits
        case TensorType::uint32: return py::dtype::of<std::uint32_t>();
        case TensorType::uint64: return py::dtype::of<std::uint64_t>();
        case TensorType::int8: return py::dtype::of<std::int8_t>();
        case TensorType::int16: return py::dtype::of<std::int16_t>();
        case TensorType::int32: return py::dtype::of<std::int32_t>();
        case TensorType::int64: return py::dtype::of<std::int64_t>();
        case TensorType::fp16: return py::dtype("float16");
        case TensorType::fp32: return py::dtype::of<float>();
        case TensorType::fp64: return py::dtype::of<double>();
        case TensorType::bytes: break;
    }
    throw std::invalid_argument("BYTES have no fixed width: take strings()");
}

std::size_t checked(const TensorSlab& slab, py::ssize_t index) {
    const auto count = static_cast<py::ssize_t>(slab.schema().inputs.size());
    if (index < 0 || index >= count) {
        throw std::out_of_range("expected an input within [0, " + std::to_string(count) + "), came " +
                                std::to_string(index));
    }
    return static_cast<std::size_t>(index);
}

// A view that holds its own count on the buffer. Writable, because torch takes no read-only memory; a model that writes
// into its inputs changes what is kept of the batch, and nothing else.
template <class T>
py::array view(const Buffer<T>& buffer, const py::dtype& dtype, const std::vector<py::ssize_t>& shape) {
    if (buffer.data() == nullptr) return py::array(dtype, shape);
    BufferHeader::retain(buffer.data());
    py::capsule owner(static_cast<const void*>(buffer.data()), [](void* data) { BufferHeader::release(data); });
    return py::array(dtype, shape, buffer.data(), owner);
}

std::vector<py::ssize_t> shape_of(const TensorSlab& slab, const TensorColumn& column) {
    std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(slab.rows())};
    for (std::size_t k = 0; k < column.dims.rank; ++k) shape.push_back(static_cast<py::ssize_t>(column.dims.dims[k]));
    return shape;
}

py::array array_of(const TensorSlab& slab, py::ssize_t input) {
    const std::size_t index = checked(slab, input);
    const TensorSpec& spec = slab.schema().inputs[index];
    if (spec.type == TensorType::bytes)
        throw std::invalid_argument("input \"" + spec.name + "\" is BYTES, expected another datatype");
    return view(slab.column(index).data, dtype_of(spec.type), shape_of(slab, slab.column(index)));
}

py::tuple strings_of(const TensorSlab& slab, py::ssize_t input) {
    const std::size_t index = checked(slab, input);
    const TensorSpec& spec = slab.schema().inputs[index];
    if (spec.type != TensorType::bytes)
        throw std::invalid_argument("input \"" + spec.name + "\" is " + std::string(traits_of(spec.type).name) +
                                    ", expected BYTES");
    const TensorColumn& column = slab.column(index);
    return py::make_tuple(
        view(column.offsets, py::dtype::of<std::int64_t>(), {static_cast<py::ssize_t>(column.offsets.size())}),
        view(column.data, py::dtype::of<std::uint8_t>(), {static_cast<py::ssize_t>(column.data.size())}));
}

py::tuple shape_at(const TensorSlab& slab, py::ssize_t input) {
    return py::tuple(py::cast(shape_of(slab, slab.column(checked(slab, input)))));
}

void append_zeros(TensorSlab& slab, std::size_t rows, std::int64_t variable) {
    if (variable < 1) throw std::invalid_argument("variable: expected 1 or more, came " + std::to_string(variable));
    py::gil_scoped_release released;
    slab.append_zeros(rows, variable);
}

// A message checked against a schema; keeps the bytes that its parts are views into.
class TensorRequest {
  public:
    TensorRequest(py::bytes body, std::shared_ptr<TensorSchema> schema) : body_(std::move(body)) {
        assign(body_, std::move(schema));
    }

    void assign(py::bytes body, std::shared_ptr<TensorSchema> schema) {
        const std::string_view bytes{PyBytes_AS_STRING(body.ptr()),
                                     static_cast<std::size_t>(PyBytes_GET_SIZE(body.ptr()))};
        const InferMessage message = parse_infer_message(bytes);
        rows_.assign(message, std::move(schema));
        body_ = std::move(body);
    }
    const TensorRows& rows() const { return rows_; }
    void append_to(TensorSlab& slab, py::ssize_t start, py::ssize_t stop) {
        const auto rows = static_cast<py::ssize_t>(rows_.rows());
        if (stop == -1) stop = rows;
        if (start < 0 || stop < start) throw std::out_of_range("expected rows within the request");
        rows_.append_to(slab, static_cast<std::size_t>(start), static_cast<std::size_t>(stop));
    }

  private:
    py::bytes body_;
    TensorRows rows_;
};

}  // namespace

void bind_tensors(py::module_& module) {
    py::class_<TensorSchema, std::shared_ptr<TensorSchema>>(module, "TensorSchema",
                                                            "The input tensors of a model, in order; immutable.")
        .def(py::init(&make_schema), py::arg("inputs"))
        .def_property_readonly("inputs", &inputs_of)
        .def_readonly("variable", &TensorSchema::variable)
        .def("__len__", [](const TensorSchema& schema) { return schema.inputs.size(); })
        .def("__eq__",
             [](const TensorSchema& a, const py::object& b) {
                 return py::isinstance<TensorSchema>(b) && a == b.cast<const TensorSchema&>();
             })
        .def("__hash__", [](const TensorSchema& schema) { return py::hash(py::tuple(inputs_of(schema))); })
        .def("__repr__",
             [](const TensorSchema& schema) { return py::str("TensorSchema({})").format(inputs_of(schema)); });

    py::class_<TensorSlab, std::shared_ptr<TensorSlab>>(module, "TensorSlab", "Rows of a TensorSchema. One thread at a time may touch it.")
        .def(py::init([](std::shared_ptr<TensorSchema> schema) { return TensorSlab(std::move(schema)); }),
             py::arg("schema"))
        .def_property_readonly("rows", &TensorSlab::rows)
        .def_property_readonly(
            "schema",
            [](const TensorSlab& slab) { return std::const_pointer_cast<TensorSchema>(slab.shared_schema()); })
        .def_property_readonly("nbytes", &TensorSlab::size_bytes)
        .def("__len__", &TensorSlab::rows)
        .def("clear", &TensorSlab::clear)
        .def("shape", &shape_at, py::arg("input"))
        .def("array", &array_of, py::arg("input"))
        .def("strings", &strings_of, py::arg("input"))
        .def("append_zeros", &append_zeros, py::arg("rows"), py::arg("variable") = 1);

    py::class_<TensorRequest>(module, "TensorRequest", "A ModelInferRequest that was checked against a TensorSchema.")
        .def(py::init<py::bytes, std::shared_ptr<TensorSchema>>(), py::arg("body"), py::arg("schema"))
        .def("assign", &TensorRequest::assign, py::arg("body"), py::arg("schema"))
        .def_property_readonly("rows", [](const TensorRequest& request) { return request.rows().rows(); })
        .def(
            "fits", [](const TensorRequest& request, const TensorSlab& slab) { return request.rows().fits(slab); },
            py::arg("slab"))
        .def("append_to", &TensorRequest::append_to, py::arg("slab"), py::arg("start") = 0, py::arg("stop") = -1);
}

}  // namespace trimtab
