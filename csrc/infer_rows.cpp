#include "infer_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "wire.h"

namespace trimtab {
namespace {

using wire::load;

template <class T>
std::int64_t to_integer(T value) {
    if constexpr (std::is_floating_point_v<T>) {
        if (std::isnan(value)) return kMissingInteger;
    }
    return static_cast<std::int64_t>(value);
}

}  // namespace

void InferRows::append_to(Slab& slab, std::size_t start, std::size_t stop) {
    if (slab.schema() != *schema_)
        throw std::invalid_argument("expected a slab of the schema that was checked, came one of another");
    if (start > stop || stop > rows_) {
        throw std::out_of_range("expected rows within [0, " + std::to_string(rows_) + "), came [" +
                                std::to_string(start) + ", " + std::to_string(stop) + ")");
    }
    const std::size_t before = slab.rows();
    const std::size_t count = stop - start;
    const std::size_t fields = schema_->fields.size();
    try {
        for (std::size_t i = 0; i < fields; ++i) {
            Column& column = slab.column(i);
            switch (schema_->fields[i].type) {
                case Type::real:
                case Type::boolean: column.reals.resize(before + count); break;
                case Type::integer: column.integers.resize(before + count); break;
                case Type::string: append_strings(sources_[i], column, start, stop); break;
            }
        }
    } catch (...) {
        slab.truncate(before);
        throw;
    }
    // A packed tensor is row after row: in blocks, so that its lines are still in the cache for the next column.
    constexpr std::size_t block = 64;
    for (std::size_t first = 0; first < count; first += block) {
        const std::size_t rows = std::min(block, count - first);
        for (std::size_t i = 0; i < fields; ++i) {
            const Source source = packed_ == nullptr
                                      ? sources_[i]
                                      : Source{.data = packed_ + i * sizeof(float), .stride = fields * sizeof(float)};
            const Type type = schema_->fields[i].type;
            const char* data = source.data + (start + first) * source.stride;
            with_type(source.datatype, [&](auto zero) {
                using T = decltype(zero);
                if (type == Type::integer) {
                    std::int64_t* out = slab.column(i).integers.data() + before + first;
                    for (std::size_t row = 0; row < rows; ++row)
                        out[row] = to_integer(load<T>(data + row * source.stride));
                } else {
                    float* out = slab.column(i).reals.data() + before + first;
                    for (std::size_t row = 0; row < rows; ++row)
                        out[row] = static_cast<float>(load<T>(data + row * source.stride));
                }
            });
        }
    }
    slab.commit(before + count);
}

void InferRows::append_strings(Source& source, Column& column, std::size_t start, std::size_t stop) const {
    if (start < source.row) source.row = source.position = 0;
    const auto size_at = [&](std::size_t position) { return std::size_t{load<std::uint32_t>(source.data + position)}; };
    for (; source.row < start; ++source.row) source.position += 4 + size_at(source.position);

    std::size_t end = source.position;
    for (std::size_t row = start; row < stop; ++row) end += 4 + size_at(end);
    char* out = grow_text(column, end - source.position - 4 * (stop - start));
    std::int32_t offset = column.offsets.back();
    std::size_t at = column.offsets.size();
    column.offsets.resize(at + (stop - start));
    for (; source.row < stop; ++source.row) {
        const std::size_t size = size_at(source.position);
        if (size != 0) std::memcpy(out, source.data + source.position + 4, size);
        out += size;
        offset += static_cast<std::int32_t>(size);
        column.offsets[at++] = offset;
        source.position += 4 + size;
    }
}

}  // namespace trimtab
