// The wire codec for Python: ModelInferRequest in, ModelInferResponse out, without protobuf objects.
//
// An InferRequest keeps the bytes that it was decoded from; all its parts are views into them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "errors.h"
#include "infer_message.h"
#include "infer_parameters.h"
#include "infer_response.h"
#include "infer_rows.h"

namespace py = pybind11;

namespace trimtab {
namespace {

// Requests below this are handled faster than the GIL is handed over and back.
constexpr std::size_t kReleaseBytes = std::size_t{1} << 20;

template <class Work>
decltype(auto) maybe_released(std::size_t bytes, const Work& work) {
    if (bytes < kReleaseBytes) return work();
    py::gil_scoped_release released;
    return work();
}

std::string_view view(const py::bytes& bytes) {
    return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

// --- requests --------------------------------------------------------------------------------------------------------

class InferRequest {
  public:
    explicit InferRequest(py::bytes body)
        : body_(std::move(body)),
          message_(maybe_released(view(body_).size(), [&] { return parse_infer_message(view(body_)); })) {}

    const InferMessage& message() const { return message_; }
    std::size_t rows() const { return rows_ ? rows_->rows() : 0; }
    std::optional<std::int64_t> time_us() const { return time_us_; }

    std::size_t check(const std::shared_ptr<Schema>& schema) {
        rows_.reset();
        time_us_ = check_parameters(message_);
        check_requested_outputs(message_);
        maybe_released(view(body_).size(), [&] { rows_.emplace(message_, schema); });
        return rows_->rows();
    }

    void append_to(Slab& slab, py::ssize_t start, py::ssize_t stop) {
        if (!rows_) throw std::invalid_argument("expected check() before append_to()");
        const auto rows = static_cast<py::ssize_t>(rows_->rows());
        if (stop == -1) stop = rows;
        if (start < 0 || stop < start || stop > rows) {
            throw std::out_of_range("expected rows within [0, " + std::to_string(rows) + "), came [" +
                                    std::to_string(start) + ", " + std::to_string(stop) + ")");
        }
        const std::size_t bytes =
            static_cast<std::size_t>(stop - start) * rows_->schema().fields.size() * sizeof(float);
        maybe_released(
            bytes, [&] { rows_->append_to(slab, static_cast<std::size_t>(start), static_cast<std::size_t>(stop)); });
    }

  private:
    py::bytes body_;
    InferMessage message_;
    std::optional<InferRows> rows_;
    std::optional<std::int64_t> time_us_;
};

py::dict parameters_of(const InferRequest& request) {
    py::dict parameters;
    for (const Parameter& parameter : request.message().parameters) {
        const py::str key(parameter.key.data(), parameter.key.size());
        std::visit(
            [&](const auto& value) {
                using T = std::decay_t<decltype(value)>;
                if constexpr (!std::is_same_v<T, std::monostate>) parameters[key] = py::cast(value);
            },
            parameter.value);
    }
    return parameters;
}

py::list inputs_of(const InferRequest& request) {
    py::list inputs;
    for (const InputTensor& input : request.message().inputs) {
        py::tuple shape(input.shape.rank);
        for (std::size_t i = 0; i < input.shape.rank; ++i) shape[i] = input.shape.dims[i];
        inputs.append(py::make_tuple(input.name, input.datatype, shape));
    }
    return inputs;
}

std::vector<std::string_view> requested_outputs_of(const InferRequest& request) {
    std::vector<std::string_view> names;
    for (const RequestedOutput& output : request.message().outputs) names.push_back(output.name);
    return names;
}

// --- responses -------------------------------------------------------------------------------------------------------

// An output over all rows of a batch. Holds the array, borrows its values.
struct BatchOutput {
    std::string name;
    std::string datatype;
    py::array array;
    std::vector<std::int64_t> row_shape;
    std::size_t rows = 0;
    std::size_t row_bytes = 0;

    OutputTensor slice(std::size_t first, std::size_t count) const {
        const char* data = static_cast<const char*>(array.data()) + first * row_bytes;
        return {name, datatype, static_cast<std::int64_t>(count), row_shape, {data, count * row_bytes}};
    }
};

struct NumpyDatatype {
    std::string_view name;
    char kind;  // NumPy's
    py::ssize_t width;
};

constexpr NumpyDatatype kNumpyDatatypes[] = {
    {"BOOL", 'b', 1},  {"UINT8", 'u', 1}, {"UINT16", 'u', 2}, {"UINT32", 'u', 4}, {"UINT64", 'u', 8}, {"INT8", 'i', 1},
    {"INT16", 'i', 2}, {"INT32", 'i', 4}, {"INT64", 'i', 8},  {"FP16", 'f', 2},   {"FP32", 'f', 4},   {"FP64", 'f', 8},
};

using NamedArray = std::tuple<std::string, std::string, py::array>;  // name, datatype, values

BatchOutput to_output(const NamedArray& item) {
    const auto& [name, datatype, array] = item;
    const py::dtype dtype = array.dtype();
    const bool known = std::any_of(
        std::begin(kNumpyDatatypes), std::end(kNumpyDatatypes), [&, &wanted = datatype](const NumpyDatatype& type) {
            return type.name == wanted && type.kind == dtype.kind() && type.width == dtype.itemsize();
        });
    const bool native = dtype.byteorder() == '=' || dtype.byteorder() == '|';
    if (!known || !native || array.ndim() < 1 || (array.flags() & py::array::c_style) == 0) {
        throw std::invalid_argument("output " + quote(name) + ": expected a contiguous array [rows, ...] of " +
                                    datatype + ", came " +
                                    py::str("{} of shape {}").format(dtype, array.attr("shape")).cast<std::string>());
    }
    BatchOutput output{name, datatype, array, {}, static_cast<std::size_t>(array.shape(0)), 0};
    output.row_bytes = static_cast<std::size_t>(array.itemsize());
    for (py::ssize_t i = 1; i < array.ndim(); ++i) {
        output.row_shape.push_back(array.shape(i));
        output.row_bytes *= static_cast<std::size_t>(array.shape(i));
    }
    return output;
}

std::vector<BatchOutput> to_outputs(const std::vector<NamedArray>& items) {
    std::vector<BatchOutput> outputs;
    outputs.reserve(items.size());
    for (const NamedArray& item : items) outputs.push_back(to_output(item));
    return outputs;
}

py::bytes to_bytes(const Response& response) {
    const std::size_t size = response_size(response);
    if (size > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
        throw std::length_error("a protobuf message holds at most 2 GiB, the answer has " + std::to_string(size) +
                                " bytes");
    }
    auto bytes = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(size)));
    if (!bytes) throw py::error_already_set();
    write_response(response, PyBytes_AS_STRING(bytes.ptr()));
    return bytes;
}

py::bytes encode_infer_response(const std::string& model_name, const std::string& model_version, const std::string& id,
                                const std::string& weights, const std::string& request_id,
                                const std::vector<NamedArray>& outputs) {
    const ResponseHead head{model_name, model_version, weights};
    const std::vector<BatchOutput> tensors = to_outputs(outputs);
    Response response{&head, id, request_id, false, {}};
    for (const BatchOutput& output : tensors) response.outputs.push_back(output.slice(0, output.rows));
    return to_bytes(response);
}

// The outputs that a request wants: by name and in its order, or all.
std::vector<const BatchOutput*> select(const std::vector<BatchOutput>& outputs,
                                       const std::optional<std::vector<std::string>>& wanted) {
    std::vector<const BatchOutput*> selected;
    if (!wanted || wanted->empty()) {
        for (const BatchOutput& output : outputs) selected.push_back(&output);
        return selected;
    }
    for (const std::string& name : *wanted) {
        const auto found = std::find_if(outputs.begin(), outputs.end(),
                                        [&](const BatchOutput& output) { return output.name == name; });
        if (found == outputs.end()) throw std::invalid_argument("expected the name of an output, came " + quote(name));
        selected.push_back(&*found);
    }
    return selected;
}

py::list encode_infer_responses(const std::string& model_name, const std::string& model_version,
                                const std::string& weights, const std::vector<std::string>& ids,
                                const std::vector<std::string>& request_ids, const std::vector<std::size_t>& counts,
                                const std::vector<NamedArray>& outputs,
                                const std::vector<std::optional<std::vector<std::string>>>& wanted) {
    const std::size_t answers = ids.size();
    if (request_ids.size() != answers || counts.size() != answers || wanted.size() != answers) {
        throw std::invalid_argument("expected as many request_ids, counts and wanted as ids (" +
                                    std::to_string(answers) + "), came " + std::to_string(request_ids.size()) + ", " +
                                    std::to_string(counts.size()) + " and " + std::to_string(wanted.size()));
    }
    const std::vector<BatchOutput> tensors = to_outputs(outputs);
    std::size_t rows = 0;
    for (const std::size_t count : counts) {
        if (count > std::numeric_limits<std::size_t>::max() / 2 - rows)
            throw std::invalid_argument("counts: came more rows than exist");
        rows += count;
    }
    for (const BatchOutput& output : tensors) {
        if (output.rows != rows) {
            throw std::invalid_argument("output " + quote(output.name) + ": expected the " + std::to_string(rows) +
                                        " rows of counts, came " + std::to_string(output.rows));
        }
    }
    const ResponseHead head{model_name, model_version, weights};
    py::list encoded(answers);
    std::size_t first = 0;
    for (std::size_t i = 0; i < answers; ++i) {
        Response response{&head, ids[i], request_ids[i], false, {}};
        for (const BatchOutput* output : select(tensors, wanted[i]))
            response.outputs.push_back(output->slice(first, counts[i]));
        encoded[i] = to_bytes(response);
        first += counts[i];
    }
    return encoded;
}

}  // namespace

void bind_codec(py::module_& module) {
    py::register_exception<WireError>(module, "WireError", PyExc_ValueError);

    py::class_<InferRequest>(module, "InferRequest", "A decoded ModelInferRequest; made by decode_infer().")
        .def_property_readonly("model_name", [](const InferRequest& request) { return request.message().model_name; })
        .def_property_readonly("model_version",
                               [](const InferRequest& request) { return request.message().model_version; })
        .def_property_readonly("id", [](const InferRequest& request) { return request.message().id; })
        .def_property_readonly("rows", &InferRequest::rows)
        .def_property_readonly("time_us", &InferRequest::time_us)
        .def_property_readonly("parameters", &parameters_of)
        .def_property_readonly("inputs", &inputs_of)
        .def_property_readonly("requested_outputs", &requested_outputs_of)
        .def("check", &InferRequest::check, py::arg("schema"))
        .def("append_to", &InferRequest::append_to, py::arg("slab"), py::arg("start") = 0, py::arg("stop") = -1);

    module.def("decode_infer", [](py::bytes body) { return InferRequest(std::move(body)); }, py::arg("body"));
    module.def("encode_infer_response", &encode_infer_response, py::arg("model_name"), py::arg("model_version"),
               py::arg("id"), py::arg("weights"), py::arg("request_id"), py::arg("outputs"));
    module.def("encode_infer_responses", &encode_infer_responses, py::arg("model_name"), py::arg("model_version"),
               py::arg("weights"), py::arg("ids"), py::arg("request_ids"), py::arg("counts"), py::arg("outputs"),
               py::arg("wanted"));
}

}  // namespace trimtab
