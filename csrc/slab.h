// The raw rows of a batch, column by column: what a request is decoded into, what a column program reads, what a capture keeps.
//
// A slab owns its memory. One thread at a time may touch it; whoever holds it hands it on whole. Rows are appended at the end
// and dropped all at once, so that the buffers are allocated once and reused for every batch.
//
// Storage by type:   real, boolean  float32, NaN = missing (a boolean holds 0 or 1)
//                    integer        int64, INT64_MIN = missing
//                    string         UTF-8 bytes behind int32 offsets (rows + 1 of them), an empty string = missing
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace trimtab {

enum class Type : std::uint8_t { real, boolean, integer, string };

inline constexpr std::int64_t kMissingInteger = std::numeric_limits<std::int64_t>::min();

struct Field {
    std::string name;
    Type type = Type::real;
};

// The columns of a model's requests, in order. Immutable, shared by every slab, request and program of the model.
struct Schema {
    std::vector<Field> fields;
    bool all_real = false;  // a packed [n, fields] tensor is possible
};

struct Column {
    std::vector<float> reals;            // real, boolean
    std::vector<std::int64_t> integers;  // integer
    std::vector<std::int32_t> offsets;   // string: starts as {0}
    std::vector<char> bytes;             // string

    std::string_view text(std::size_t row) const {
        return {bytes.data() + offsets[row], static_cast<std::size_t>(offsets[row + 1] - offsets[row])};
    }
};

class Slab {
  public:
    explicit Slab(std::shared_ptr<const Schema> schema) : schema_(std::move(schema)), columns_(schema_->fields.size()) { clear(); }

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

    // Called by a writer once every column has `rows` rows.
    void commit(std::size_t rows) { rows_ = rows; }

  private:
    std::shared_ptr<const Schema> schema_;
    std::vector<Column> columns_;
    std::size_t rows_ = 0;
};

}  // namespace trimtab
