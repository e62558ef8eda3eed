// Rows for a column program, wherever they lie: in a slab, in columns that somebody else owns, or row by row. Borrowed
// throughout: nothing here owns or copies values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "slab.h"

namespace trimtab {

// A column's storage, as slab.h has it by type.
struct ColumnView {
    const float* reals = nullptr;
    const std::int64_t* integers = nullptr;
    const std::int32_t* offsets = nullptr;
    const char* bytes = nullptr;

    std::string_view text(std::size_t row) const {
        return {bytes + offsets[row], static_cast<std::size_t>(offsets[row + 1] - offsets[row])};
    }
};

class ColumnSource {
  public:
    ColumnSource(const Slab& slab) : slab_(&slab), rows_(slab.rows()) {}  // NOLINT: a slab is one

    // One view a field.
    ColumnSource(std::span<const ColumnView> columns, std::size_t rows) : columns_(columns), rows_(rows) {}

    // Row-major [rows, width]; all fields are real.
    ColumnSource(const float* matrix, std::size_t width, std::size_t rows)
        : matrix_(matrix), width_(width), rows_(rows) {}

    std::size_t rows() const { return rows_; }
    const float* matrix() const { return matrix_; }  // null: there are columns
    std::size_t width() const { return width_; }

    ColumnView column(std::size_t field) const {
        if (slab_ == nullptr) return columns_[field];
        const Column& column = slab_->column(field);
        return {column.reals.data(), column.integers.data(), column.offsets.data(), column.bytes.data()};
    }

  private:
    const Slab* slab_ = nullptr;
    std::span<const ColumnView> columns_;
    const float* matrix_ = nullptr;
    std::size_t width_ = 0;
    std::size_t rows_ = 0;
};

}  // namespace trimtab
