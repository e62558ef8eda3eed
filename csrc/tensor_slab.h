// The rows of a batch for a model that takes tensors: one contiguous, 64-byte aligned buffer [rows, dims...] an input.
//
// As Slab: owns its memory, one thread at a time may touch it, rows are appended at the end and dropped all at once,
// the buffers are kept from batch to batch. BYTES are kept as int64 offsets (rows x elements + 1 of them) into one run
// of bytes. Where the schema has variable dimensions, the first request appended to an empty slab fixes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "buffer.h"
#include "infer_message.h"
#include "tensor_schema.h"

namespace trimtab {

struct TensorColumn {
    Shape dims;                    // after the rows; of a variable dimension: the slab's present size, 0 while empty
    std::size_t row_elements = 0;  // the product of dims
    Buffer<char> data;             // rows x row_elements raw elements; of BYTES: the strings, one after the other
    Buffer<std::int64_t> offsets;  // BYTES: starts as {0}
};

class TensorSlab {
  public:
    explicit TensorSlab(std::shared_ptr<const TensorSchema> schema);

    const TensorSchema& schema() const { return *schema_; }
    const std::shared_ptr<const TensorSchema>& shared_schema() const { return schema_; }
    std::size_t rows() const { return rows_; }
    TensorColumn& column(std::size_t index) { return columns_[index]; }
    const TensorColumn& column(std::size_t index) const { return columns_[index]; }

    // Drops all rows and keeps the memory.
    void clear() { truncate(0); }

    // Drops the rows from `rows` on; also undoes columns that were only partly appended.
    void truncate(std::size_t rows);

    // Called by a writer once every column has `rows` rows.
    void commit(std::size_t rows) { rows_ = rows; }

    // Sets the variable dimensions of an empty slab's column; `dims` are those after the rows.
    void set_dims(std::size_t index, const Shape& dims);

    // Appends rows of zeros and empty strings, variable dimensions being `variable` in an empty slab: for warming up.
    // Throws std::bad_alloc, std::length_error.
    void append_zeros(std::size_t rows, std::int64_t variable = 1);

    // Bytes that the rows take, without spare capacity.
    std::size_t size_bytes() const;

  private:
    std::shared_ptr<const TensorSchema> schema_;
    std::vector<TensorColumn> columns_;
    std::size_t rows_ = 0;
};

}  // namespace trimtab
