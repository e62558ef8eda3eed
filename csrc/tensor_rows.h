// The rows of a request for a model that takes tensors: a ModelInferRequest checked against a TensorSchema, ready to be
// copied into slabs. The sibling of InferRows, with the same promises: all that can be wrong is found by assign(), each
// value is copied once.
//
// Every input must come, once, in any order, with its datatype and shape [n, dims...] exactly. Values are taken as they
// are, but for BOOL, which is 0 or 1. BYTES may be any bytes (an image, say), not only text. Typed contents are taken
// as well as raw ones, where the protocol has a list for the datatype (FP16 and BF16 come raw only); values of
// int_contents and uint_contents must fit into INT8, INT16, UINT8 and UINT16. Each row takes at least a byte of the
// message, so the number of rows is bounded by its size.
#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "infer_message.h"
#include "tensor_schema.h"
#include "tensor_slab.h"

namespace trimtab {

class TensorRows {
  public:
    TensorRows() = default;
    // As assign() on a new object.
    TensorRows(const InferMessage& message, std::shared_ptr<const TensorSchema> schema) {
        assign(message, std::move(schema));
    }

    // Checks a request and takes its rows in place of the last one's; memory is reused. Throws WireError, and then
    // holds no rows. Borrows the message's bytes and raw_contents' views (not the message).
    void assign(const InferMessage& message, std::shared_ptr<const TensorSchema> schema);

    std::size_t rows() const { return rows_; }
    const TensorSchema& schema() const { return *schema_; }
    // The dimensions after the rows of an input, as they came.
    const Shape& dims(std::size_t input) const { return sources_[input].dims; }

    // Whether the slab can take rows of this request: an equal schema, and it is empty or has the same variable
    // dimensions. A batch ends where this says no.
    bool fits(const TensorSlab& slab) const;
    // The same between two requests of one schema: whether they may share a batch.
    bool same_dims(const TensorRows& other) const;

    // Copies rows [start, stop) to the end of a slab; on an exception the slab is as before. Throws
    // std::invalid_argument where it does not fit, std::out_of_range, std::bad_alloc. Not const: it remembers where it
    // is in the strings, so that a request split over batches is read once.
    void append_to(TensorSlab& slab, std::size_t start, std::size_t stop);

  private:
    // Where an input's values lie.
    struct Source {
        Shape dims;                    // after the rows
        std::size_t row_elements = 0;  // product of dims
        std::string_view data;         // raw form
        std::size_t row = 0;           // BYTES: the row at `position`
        std::size_t position = 0;
    };

    class Checker;  // tensor_rows.cpp

    void append_input(std::size_t index, TensorColumn& column, std::size_t start, std::size_t stop);

    std::shared_ptr<const TensorSchema> schema_;
    std::vector<Source> sources_;            // one an input of the schema
    std::vector<std::vector<char>> copies_;  // typed contents in raw form; likewise
    std::size_t rows_ = 0;
};

}  // namespace trimtab
