// ColumnTable, and ColumnTable for Python.
#include "column_table.h"

#include <optional>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "column_arrays.h"

namespace py = pybind11;

namespace trimtab {

ColumnTable::ColumnTable(std::shared_ptr<const Schema> schema, const py::sequence& columns)
    : schema_(std::move(schema)), kept_(py::tuple(columns)), source_(std::span<const ColumnView>(), 0) {
    const auto kept = py::reinterpret_borrow<py::tuple>(kept_);
    const auto& fields = schema_->fields;
    if (kept.size() != fields.size()) {
        throw std::invalid_argument("expected " + std::to_string(fields.size()) + " columns, came " +
                                    std::to_string(kept.size()));
    }
    std::optional<std::size_t> rows;
    for (std::size_t i = 0; i < fields.size(); ++i) {
        const Field& field = fields[i];
        const py::object value = kept[i];
        ColumnView view;
        std::size_t count = 0;
        switch (field.type) {
            case Type::real:
            case Type::boolean: {
                const auto values = real_values(field, value);
                view.reals = values.data();
                count = values.size();
                break;
            }
            case Type::integer: {
                const auto values = integer_values(field, value);
                view.integers = values.data();
                count = values.size();
                break;
            }
            case Type::string: {
                const auto [array, bytes] = text_arrays(field, value);
                const auto offsets = elements<std::int32_t>(field, array, "int32 offsets [rows + 1]");
                checked_text(field, offsets, bytes);
                view.offsets = offsets.data();
                view.bytes = reinterpret_cast<const char*>(bytes.data());
                count = offsets.size() - 1;
                break;
            }
        }
        if (count != rows.value_or(count))
            fail_column(field, std::to_string(*rows) + " rows as the first column", std::to_string(count));
        rows = count;
        views_.push_back(view);
    }
    source_ = ColumnSource(views_, rows.value_or(0));
}

ColumnTable::ColumnTable(std::shared_ptr<const Schema> schema, const py::array& matrix)
    : schema_(std::move(schema)), kept_(matrix), source_(std::span<const ColumnView>(), 0) {
    const std::size_t width = schema_->fields.size();
    if (!schema_->all_real || schema_->keys != 0)
        throw std::invalid_argument("expected columns, came a matrix: not every field of the schema is real");
    if (!matrix.dtype().equal(py::dtype::of<float>()) || matrix.ndim() != 2 || !(matrix.flags() & py::array::c_style) ||
        static_cast<std::size_t>(matrix.shape(1)) != width) {
        throw std::invalid_argument(
            py::str("expected a contiguous float32 array [rows, {}], came {} of shape {}")
                .format(width, matrix.dtype(), py::object(matrix.attr("shape")))
                .cast<std::string>());
    }
    source_ = ColumnSource(static_cast<const float*>(matrix.data()), width, static_cast<std::size_t>(matrix.shape(0)));
}

void bind_column_table(py::module_& module) {
    py::class_<ColumnTable>(module, "ColumnTable", "Rows of a schema in arrays that are borrowed, not copied.")
        .def(py::init<std::shared_ptr<const Schema>, const py::array&>(), py::arg("schema"), py::arg("values"))
        .def(py::init<std::shared_ptr<const Schema>, const py::sequence&>(), py::arg("schema"), py::arg("values"))
        .def_property_readonly("schema",
                               [](const ColumnTable& table) { return std::const_pointer_cast<Schema>(table.schema()); })
        .def_property_readonly("values", &ColumnTable::values)
        .def_property_readonly("rows", [](const ColumnTable& table) { return table.source().rows(); })
        .def("__len__", [](const ColumnTable& table) { return table.source().rows(); });
}

}  // namespace trimtab
