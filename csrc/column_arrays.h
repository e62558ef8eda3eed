// A field's values as NumPy arrays, checked: what Slab.append_columns copies and ColumnTable borrows. Everything throws
// std::invalid_argument that names the field, what was expected and what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "slab.h"
#include "utf8.h"

namespace trimtab {

inline constexpr const char* kTextArrays = "a pair of int32 or int64 offsets [rows + 1] and uint8 bytes, contiguous";

[[noreturn]] inline void fail_column(const Field& field, const std::string& expected, const std::string& came) {
    throw std::invalid_argument("column \"" + field.name + "\" (" + type_name(field.type) + "): expected " + expected +
                                ", came " + came);
}

// The elements of a contiguous array of one dimension.
template <class T>
std::span<const T> elements(const Field& field, const pybind11::handle& value, const char* expected) {
    namespace py = pybind11;
    if (!py::isinstance<py::array>(value)) fail_column(field, expected, py::str(py::type::of(value).attr("__name__")));
    const auto array = py::reinterpret_borrow<py::array>(value);
    if (!array.dtype().equal(py::dtype::of<T>()) || array.ndim() != 1 || !(array.flags() & py::array::c_style)) {
        fail_column(field, expected, py::str("{} of shape {}").format(array.dtype(), array.attr("shape")));
    }
    return {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
}

// Of a real or boolean field.
inline std::span<const float> real_values(const Field& field, const pybind11::handle& value) {
    const auto values = elements<float>(field, value, "a contiguous float32 array");
    if (field.type == Type::boolean) {
        for (const float number : values) {
            if (!(number == 0.0F || number == 1.0F || std::isnan(number)))
                fail_column(field, "0, 1 or NaN", std::to_string(number));
        }
    }
    return values;
}

inline std::span<const std::int64_t> integer_values(const Field& field, const pybind11::handle& value) {
    return elements<std::int64_t>(field, value, "a contiguous int64 array");
}

// The offsets, still of either width, and the bytes.
inline std::pair<pybind11::object, std::span<const std::uint8_t>> text_arrays(const Field& field,
                                                                              const pybind11::handle& value) {
    namespace py = pybind11;
    if (!py::isinstance<py::tuple>(value) || py::len(value) != 2)
        fail_column(field, kTextArrays, py::str(py::type::of(value).attr("__name__")));
    const auto pair = py::reinterpret_borrow<py::tuple>(value);
    const py::object bytes = pair[1];
    return {pair[0], elements<std::uint8_t>(field, bytes, kTextArrays)};
}

// The bytes from the first offset to the last: rows of valid UTF-8 within them.
template <class Offset>
std::string_view checked_text(const Field& field, std::span<const Offset> offsets,
                              std::span<const std::uint8_t> bytes) {
    if (offsets.empty()) fail_column(field, "rows + 1 offsets", "none");
    const auto size = static_cast<std::int64_t>(bytes.size());
    for (std::size_t i = 0; i < offsets.size(); ++i) {
        const std::int64_t low = i == 0 ? 0 : offsets[i - 1];
        if (offsets[i] < low || offsets[i] > size) {
            fail_column(field, "ascending offsets within " + std::to_string(size) + " bytes",
                        std::to_string(offsets[i]) + " at " + std::to_string(i));
        }
    }
    const auto first = static_cast<std::size_t>(offsets.front());
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + first,
                                static_cast<std::size_t>(offsets.back()) - first);
    // Valid as a whole and no offset inside a character: then every row is valid.
    const auto splits = [&](Offset offset) {
        return offset < offsets.back() && (bytes[static_cast<std::size_t>(offset)] & 0xC0U) == 0x80U;
    };
    if (!is_utf8(text) || std::any_of(offsets.begin(), offsets.end(), splits)) {
        fail_column(field, "UTF-8", "other bytes");
    }
    return text;
}

}  // namespace trimtab
