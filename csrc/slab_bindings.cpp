// Schema and Slab for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "column_arrays.h"
#include "slab.h"

namespace py = pybind11;

namespace trimtab {
namespace {

// Whether copying so many rows takes long enough (some 100 us) that the GIL is worth handing over.
bool is_long(const Slab& slab, std::size_t rows) {
    constexpr std::size_t bytes = std::size_t{1} << 20;
    return rows > bytes / sizeof(float) / slab.schema().fields.size();
}

// A read-only view that holds its own count on the buffer.
template <class T>
py::array view(const Buffer<T>& buffer, std::size_t size) {
    using Element = std::conditional_t<std::is_same_v<T, char>, std::uint8_t, T>;
    if (buffer.data() == nullptr) {
        py::array_t<Element> empty(0);
        empty.attr("setflags")(py::arg("write") = false);
        return empty;
    }
    BufferHeader::retain(buffer.data());
    py::capsule owner(static_cast<const void*>(buffer.data()), [](void* data) { BufferHeader::release(data); });
    py::array array(py::dtype::of<Element>(), {static_cast<py::ssize_t>(size)}, buffer.data(), owner);
    py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return array;
}

// The column at a Python index; throws IndexError and, where its type is not one of the expected, ValueError.
const Column& column_at(const Slab& slab, py::ssize_t index, bool matches(Type), const char* expected) {
    const auto count = static_cast<py::ssize_t>(slab.schema().fields.size());
    if (index < 0 || index >= count) {
        throw std::out_of_range("expected a column within [0, " + std::to_string(count) + "), came " +
                                std::to_string(index));
    }
    const Field& field = slab.schema().fields[static_cast<std::size_t>(index)];
    if (!matches(field.type)) {
        throw std::invalid_argument("column \"" + field.name + "\" is " + type_name(field.type) + ", expected " +
                                    expected);
    }
    return slab.column(static_cast<std::size_t>(index));
}

std::shared_ptr<Schema> make_schema(const std::vector<std::string>& names, const std::vector<std::string>& types,
                                    std::size_t keys) {
    if (names.size() != types.size()) {
        throw std::invalid_argument("expected one type for each name, came " + std::to_string(names.size()) +
                                    " names and " + std::to_string(types.size()) + " types");
    }
    std::vector<Field> fields;
    fields.reserve(names.size());
    for (std::size_t i = 0; i < names.size(); ++i) fields.push_back({names[i], type_from_name(types[i])});
    return Schema::make(std::move(fields), keys);
}

std::vector<std::string> names_of(const Schema& schema) {
    std::vector<std::string> names;
    for (const Field& field : schema.fields) names.push_back(field.name);
    return names;
}

std::vector<std::string> types_of(const Schema& schema) {
    std::vector<std::string> types;
    for (const Field& field : schema.fields) types.emplace_back(type_name(field.type));
    return types;
}

std::string describe(const Schema& schema) {
    return py::str("Schema({}, {}, keys={})")
        .format(names_of(schema), types_of(schema), schema.keys)
        .cast<std::string>();
}

py::ssize_t hash_of(const Schema& schema) {
    return py::hash(
        py::make_tuple(py::tuple(py::cast(names_of(schema))), py::tuple(py::cast(types_of(schema))), schema.keys));
}

void extend(Slab& slab, const Slab& other, const std::optional<py::array>& indices, py::ssize_t start,
            py::ssize_t stop) {
    if (!indices) {
        const auto rows = static_cast<py::ssize_t>(other.rows());
        if (stop == -1) stop = rows;
        if (start < 0 || stop < start) {
            throw std::out_of_range("expected rows within [0, " + std::to_string(rows) + "), came [" +
                                    std::to_string(start) + ", " + std::to_string(stop) + ")");
        }
        const auto first = static_cast<std::size_t>(start);
        const auto last = static_cast<std::size_t>(stop);
        if (!is_long(slab, last - first)) return slab.extend(other, first, last);
        py::gil_scoped_release released;
        return slab.extend(other, first, last);
    }
    if (start != 0 || stop != -1) throw std::invalid_argument("expected either indices or start and stop, came both");
    if (!indices->dtype().equal(py::dtype::of<std::int32_t>()) || indices->ndim() != 1 ||
        !(indices->flags() & py::array::c_style)) {
        throw std::invalid_argument("indices: expected a contiguous int32 array of one dimension, came " +
                                    py::repr(indices->dtype()).cast<std::string>() + " of " +
                                    std::to_string(indices->ndim()));
    }
    const std::span<const std::int32_t> taken(static_cast<const std::int32_t*>(indices->data()),
                                              static_cast<std::size_t>(indices->size()));
    if (!is_long(slab, taken.size())) return slab.extend(other, taken);
    py::gil_scoped_release released;
    slab.extend(other, taken);
}

// --- append_columns: whole columns from NumPy ------------------------------------------------------------------------

void append_reals(const Field& field, Column& column, const py::handle& value) {
    const auto values = real_values(field, value);
    column.reals.insert(column.reals.end(), values.begin(), values.end());
}

void append_integers(const Field& field, Column& column, const py::handle& value) {
    const auto values = integer_values(field, value);
    column.integers.insert(column.integers.end(), values.begin(), values.end());
}

template <class Offset>
void append_texts(const Field& field, Column& column, std::span<const Offset> offsets,
                  std::span<const std::uint8_t> bytes) {
    const std::string_view text = checked_text(field, offsets, bytes);
    const std::int64_t base = static_cast<std::int64_t>(column.offsets.back()) - offsets.front();
    char* place = grow_text(column, text.size());
    if (!text.empty()) std::memcpy(place, text.data(), text.size());
    const std::size_t rows = column.offsets.size();
    column.offsets.resize(rows + offsets.size() - 1);
    for (std::size_t i = 1; i < offsets.size(); ++i) {
        column.offsets[rows + i - 1] = static_cast<std::int32_t>(base + offsets[i]);
    }
}

void append_strings(const Field& field, Column& column, const py::handle& value) {
    const auto [offsets, text] = text_arrays(field, value);
    if (py::isinstance<py::array>(offsets) &&
        py::reinterpret_borrow<py::array>(offsets).dtype().equal(py::dtype::of<std::int64_t>())) {
        append_texts(field, column, elements<std::int64_t>(field, offsets, kTextArrays), text);
    } else {
        append_texts(field, column, elements<std::int32_t>(field, offsets, kTextArrays), text);
    }
}

void append_columns(Slab& slab, const py::sequence& columns) {
    const Schema& schema = slab.schema();
    if (columns.size() != schema.fields.size()) {
        throw std::invalid_argument("expected " + std::to_string(schema.fields.size()) + " columns, came " +
                                    std::to_string(columns.size()));
    }
    const std::size_t before = slab.rows();
    std::size_t after = before;
    try {
        for (std::size_t i = 0; i < columns.size(); ++i) {
            const Field& field = schema.fields[i];
            Column& column = slab.column(i);
            std::size_t rows = 0;
            switch (field.type) {
                case Type::real:
                case Type::boolean:
                    append_reals(field, column, columns[i]);
                    rows = column.reals.size();
                    break;
                case Type::integer:
                    append_integers(field, column, columns[i]);
                    rows = column.integers.size();
                    break;
                case Type::string:
                    append_strings(field, column, columns[i]);
                    rows = column.offsets.size() - 1;
                    break;
            }
            if (i == 0) after = rows;
            if (rows != after)
                fail_column(field, std::to_string(after - before) + " rows as the first column",
                            std::to_string(rows - before));
        }
    } catch (...) {
        slab.truncate(before);
        throw;
    }
    slab.commit(after);
}

// Numbers of the rows [start, stop) to places in a buffer; all is checked before the first byte is written.
void copy_columns(const Slab& slab, py::array_t<std::uint8_t, py::array::c_style>& into,
                  const py::array_t<std::int64_t, py::array::c_style>& offsets, std::size_t start, std::size_t stop) {
    const std::vector<Field>& fields = slab.schema().fields;
    const std::span<const std::int64_t> places(offsets.data(), static_cast<std::size_t>(offsets.size()));
    if (places.size() != fields.size()) {
        throw std::invalid_argument("offsets: expected " + std::to_string(fields.size()) + ", one a column, came " +
                                    std::to_string(places.size()));
    }
    if (start > stop || stop > slab.rows()) {
        throw std::out_of_range("expected rows within [0, " + std::to_string(slab.rows()) + "), came [" +
                                std::to_string(start) + ", " + std::to_string(stop) + ")");
    }
    const std::size_t size = static_cast<std::size_t>(into.size()), rows = stop - start;
    std::uint8_t* const bytes = into.mutable_data();  // throws where it is not writeable
    for (std::size_t i = 0; i < fields.size(); ++i) {
        if (places[i] < 0) continue;
        if (fields[i].type == Type::string) {
            throw std::invalid_argument("column \"" + fields[i].name + "\" is string, which is not copied");
        }
        const std::size_t width = fields[i].type == Type::integer ? sizeof(std::int64_t) : sizeof(float);
        const auto at = static_cast<std::size_t>(places[i]);
        if (at > size || rows > (size - at) / width) {
            throw std::out_of_range("column \"" + fields[i].name + "\": " + std::to_string(rows * width) +
                                    " bytes at " + std::to_string(at) + " are not within the buffer's " +
                                    std::to_string(size));
        }
    }
    const auto copy = [&] {
        for (std::size_t i = 0; i < fields.size(); ++i) {
            if (places[i] < 0 || rows == 0) continue;
            const Column& column = slab.column(i);
            if (fields[i].type == Type::integer) {
                std::memcpy(bytes + places[i], column.integers.data() + start, rows * sizeof(std::int64_t));
            } else {
                std::memcpy(bytes + places[i], column.reals.data() + start, rows * sizeof(float));
            }
        }
    };
    if (!is_long(slab, rows)) return copy();
    py::gil_scoped_release released;
    copy();
}

bool is_reals(Type type) { return type == Type::real || type == Type::boolean; }
bool is_integers(Type type) { return type == Type::integer; }
bool is_strings(Type type) { return type == Type::string; }

}  // namespace

void bind_slab(py::module_& module) {
    py::class_<Schema, std::shared_ptr<Schema>>(module, "Schema",
                                                "The typed columns of a model's requests, in order; immutable.")
        .def(py::init(&make_schema), py::arg("names"), py::arg("types"), py::arg("keys") = 0)
        .def_property_readonly("names", &names_of)
        .def_property_readonly("types", &types_of)
        .def_readonly("keys", &Schema::keys)
        .def("__len__", [](const Schema& schema) { return schema.fields.size(); })
        .def("__eq__", [](const Schema& a,
                          const py::object& b) { return py::isinstance<Schema>(b) && a == b.cast<const Schema&>(); })
        .def("__hash__", &hash_of)
        .def("__repr__", &describe);

    py::class_<Slab, std::shared_ptr<Slab>>(module, "Slab", "Rows of a schema, column by column. One thread at a time may touch it.")
        .def(py::init([](std::shared_ptr<Schema> schema) { return Slab(std::move(schema)); }), py::arg("schema"))
        .def_property_readonly("rows", &Slab::rows)
        .def_property_readonly("schema",
                               [](const Slab& slab) { return std::const_pointer_cast<Schema>(slab.shared_schema()); })
        .def_property_readonly("nbytes", &Slab::size_bytes)
        .def("__len__", &Slab::rows)
        .def("clear", &Slab::clear)
        .def(
            "truncate",
            [](Slab& slab, std::size_t rows) {
                if (rows > slab.rows())
                    throw std::out_of_range("expected at most " + std::to_string(slab.rows()) + " rows, came " +
                                            std::to_string(rows));
                slab.truncate(rows);
            },
            py::arg("rows"))
        .def(
            "reals",
            [](const Slab& slab, py::ssize_t i) {
                return view(column_at(slab, i, is_reals, "real or boolean").reals, slab.rows());
            },
            py::arg("column"))
        .def(
            "integers",
            [](const Slab& slab, py::ssize_t i) {
                return view(column_at(slab, i, is_integers, "integer").integers, slab.rows());
            },
            py::arg("column"))
        .def(
            "strings",
            [](const Slab& slab, py::ssize_t i) {
                const Column& column = column_at(slab, i, is_strings, "string");
                return py::make_tuple(view(column.offsets, slab.rows() + 1), view(column.bytes, column.bytes.size()));
            },
            py::arg("column"))
        .def("extend", &extend, py::arg("other"), py::arg("indices") = py::none(), py::arg("start") = 0,
             py::arg("stop") = -1)
        .def("append_columns", &append_columns, py::arg("columns"))
        .def("copy_columns", &copy_columns, py::arg("into").noconvert(), py::arg("offsets").noconvert(),
             py::arg("start"), py::arg("stop"));
}

}  // namespace trimtab
