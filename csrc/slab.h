// The raw rows of a batch, column by column: what a request is decoded into, what a column program reads, what a
// capture keeps.
//
// A slab owns its memory. One thread at a time may touch it; whoever holds it hands it on whole. Rows are appended at
// the end and dropped all at once, so that the buffers are allocated once and reused for every batch.
//
// Storage by type:   real, boolean  float32, NaN = missing (a boolean holds 0 or 1)
//                    integer        int64, INT64_MIN = missing
//                    string         UTF-8 bytes behind int32 offsets (rows + 1 of them), an empty string = missing
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "buffer.h"

namespace trimtab {

enum class Type : std::uint8_t { real, boolean, integer, string };

inline constexpr std::int64_t kMissingInteger = std::numeric_limits<std::int64_t>::min();

struct Field {
    std::string name;
    Type type = Type::real;
};

// The columns of a model's requests, in order: the features, then the `keys` key columns, which are captured but are no
// features. Immutable, shared by every slab, request and program of the model.
struct Schema {
    std::vector<Field> fields;
    std::size_t keys = 0;
    bool all_real = false;  // all features are real: a packed [n, features] tensor is possible

    // Throws std::invalid_argument on no features, an empty or repeated name.
    static std::shared_ptr<Schema> make(std::vector<Field> fields, std::size_t keys);

    std::size_t features() const { return fields.size() - keys; }
    std::optional<std::size_t> find(std::string_view name) const;
    bool operator==(const Schema& other) const;

  private:
    std::unordered_map<std::string_view, std::size_t> index_;  // into the names of `fields`
};

struct Column {
    Buffer<float> reals;            // real, boolean
    Buffer<std::int64_t> integers;  // integer
    Buffer<std::int32_t> offsets;   // string: starts as {0}
    Buffer<char> bytes;             // string

    std::string_view text(std::size_t row) const {
        return {bytes.data() + offsets[row], static_cast<std::size_t>(offsets[row + 1] - offsets[row])};
    }
};

class Slab {
  public:
    explicit Slab(std::shared_ptr<const Schema> schema) : schema_(std::move(schema)), columns_(schema_->fields.size()) {
        clear();
    }

    const Schema& schema() const { return *schema_; }
    const std::shared_ptr<const Schema>& shared_schema() const { return schema_; }
    std::size_t rows() const { return rows_; }
    Column& column(std::size_t index) { return columns_[index]; }
    const Column& column(std::size_t index) const { return columns_[index]; }

    // Drops all rows and keeps the memory.
    void clear() { truncate(0); }

    // Drops the rows from `rows` on; also undoes columns that were only partly appended.
    void truncate(std::size_t rows) {
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            Column& column = columns_[i];
            switch (schema_->fields[i].type) {
                case Type::real:
                case Type::boolean: column.reals.resize(rows); break;
                case Type::integer: column.integers.resize(rows); break;
                case Type::string:
                    if (column.offsets.empty()) column.offsets.push_back(0);
                    column.offsets.resize(rows + 1, column.offsets.back());
                    column.bytes.resize(static_cast<std::size_t>(column.offsets[rows]));
                    break;
            }
        }
        rows_ = rows;
    }

    // Makes room for so many rows more in columns that are all real or boolean, and gives where each column's values
    // begin; the caller fills them, then commits.
    void grow_reals(std::size_t rows, std::vector<float*>& begins) {
        begins.clear();
        for (Column& column : columns_) {
            column.reals.resize(rows_ + rows);
            begins.push_back(column.reals.data());
        }
    }

    // Called by a writer once every column has `rows` rows.
    void commit(std::size_t rows) { rows_ = rows; }

    // Appends rows of another slab of an equal schema: [start, stop), or those at `indices`, in their order. On an
    // exception the slab is as before. Throws std::invalid_argument (schemas differ, itself), std::out_of_range,
    // std::length_error (a string column beyond 2 GiB).
    void extend(const Slab& other, std::size_t start, std::size_t stop);
    void extend(const Slab& other, std::span<const std::int32_t> indices);

    // Bytes that the rows take, without spare capacity.
    std::size_t size_bytes() const;

  private:
    void require_same_schema(const Slab& other) const;

    std::shared_ptr<const Schema> schema_;
    std::vector<Column> columns_;
    std::size_t rows_ = 0;
};

// Grows a string column's bytes by `count` and returns where they start; throws std::length_error where int32 offsets
// end.
char* grow_text(Column& column, std::size_t count);

const char* type_name(Type type);
Type type_from_name(std::string_view name);  // throws std::invalid_argument

}  // namespace trimtab
