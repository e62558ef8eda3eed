#include "tensor_slab.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace trimtab {
namespace {

// a * b, or std::length_error where no memory could hold so much.
std::size_t product(std::size_t a, std::size_t b) {
    constexpr std::size_t limit = std::numeric_limits<std::size_t>::max() / 64;
    if (b != 0 && a > limit / b) throw std::length_error("a tensor of a slab is larger than memory");
    return a * b;
}

}  // namespace

TensorSlab::TensorSlab(std::shared_ptr<const TensorSchema> schema)
    : schema_(std::move(schema)), columns_(schema_->inputs.size()) {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
        const TensorSpec& spec = schema_->inputs[i];
        TensorColumn& column = columns_[i];
        column.dims.rank = spec.dims.size();
        column.row_elements = 1;
        for (std::size_t k = 0; k < spec.dims.size(); ++k) {
            column.dims.dims[k] = std::max<std::int64_t>(spec.dims[k], 0);
            column.row_elements *= static_cast<std::size_t>(column.dims.dims[k]);
        }
        if (spec.type == TensorType::bytes) column.offsets.push_back(0);
    }
}

void TensorSlab::truncate(std::size_t rows) {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
        TensorColumn& column = columns_[i];
        if (schema_->inputs[i].type == TensorType::bytes) {
            column.offsets.resize(rows * column.row_elements + 1, column.offsets.back());
            column.data.resize(static_cast<std::size_t>(column.offsets.back()));
        } else {
            column.data.resize(rows * column.row_elements * traits_of(schema_->inputs[i].type).width);
        }
    }
    rows_ = rows;
}

void TensorSlab::set_dims(std::size_t index, const Shape& dims) {
    TensorColumn& column = columns_[index];
    column.dims = dims;
    column.row_elements = 1;
    for (std::size_t k = 0; k < dims.rank; ++k) {
        column.row_elements = product(column.row_elements, static_cast<std::size_t>(dims.dims[k]));
    }
}

void TensorSlab::append_zeros(std::size_t rows, std::int64_t variable) {
    const std::size_t before = rows_;
    try {
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            const TensorSpec& spec = schema_->inputs[i];
            TensorColumn& column = columns_[i];
            if (before == 0 && schema_->variable) {
                Shape dims = column.dims;
                for (std::size_t k = 0; k < dims.rank; ++k) dims.dims[k] = spec.dims[k] == -1 ? variable : spec.dims[k];
                set_dims(i, dims);
            }
            const std::size_t elements = product(before + rows, column.row_elements);
            if (spec.type == TensorType::bytes) {
                column.offsets.resize(elements + 1, column.offsets.back());
            } else {
                const std::size_t start = column.data.size();
                column.data.resize(product(elements, traits_of(spec.type).width));
                if (column.data.size() > start) std::memset(column.data.data() + start, 0, column.data.size() - start);
            }
        }
    } catch (...) {
        truncate(before);
        throw;
    }
    commit(before + rows);
}

std::size_t TensorSlab::size_bytes() const {
    std::size_t size = 0;
    for (const TensorColumn& column : columns_) {
        size += column.data.size() + column.offsets.size() * sizeof(std::int64_t);
    }
    return size;
}

}  // namespace trimtab
