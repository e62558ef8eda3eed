// The rows of a request for a model: a ModelInferRequest checked against a schema, ready to be copied into slabs.
//
// All that can be wrong with a request is found when it is built (names, datatypes, shapes, sizes, values, text), so
// that copying, which happens while a batch forms, has nothing left to refuse but a slab that is full. Typed contents
// are brought into raw form then; raw contents are read where they lie, and each value is copied once, into its column.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "datatypes.h"
#include "infer_message.h"
#include "slab.h"

namespace trimtab {

// The name under which an all-real schema takes its features as one tensor [n, features].
inline constexpr std::string_view kPackedInput = "features";

class InferRows {
  public:
    InferRows() = default;
    // As assign() on a new object.
    InferRows(const InferMessage& message, const std::shared_ptr<const Schema>& schema) { assign(message, schema); }

    // Checks a request and takes its rows in place of the last one's; memory is reused. Throws WireError, and then holds
    // nothing that may be used. Borrows the message's bytes (not the message).
    void assign(const InferMessage& message, const std::shared_ptr<const Schema>& schema);

    std::size_t rows() const { return rows_; }
    const Schema& schema() const { return *schema_; }

    // Copies rows [start, stop) to the end of a slab of an equal schema; on an exception the slab is as before. Throws
    // std::invalid_argument, std::out_of_range, std::length_error. Not const: it remembers where it is in the strings,
    // so that a request split over batches is read once.
    void append_to(Slab& slab, std::size_t start, std::size_t stop);

    // Where all fields are real and came as one FP32 tensor: its values, row after row; else null. Many small requests
    // are copied faster from here, by whoever has made room for all of them (packed_rows.h).
    const char* packed() const { return packed_; }

  private:
    // Where a field's values lie.
    struct Source {
        Datatype datatype = Datatype::fp32;
        const char* data = nullptr;
        std::size_t stride = 0;  // bytes from row to row; 0 for bytes
        std::size_t row = 0;     // bytes: the row at `position`
        std::size_t position = 0;
    };

    class Checker;  // infer_check.cpp

    void append_strings(Source& source, Column& column, std::size_t start, std::size_t stop) const;

    std::shared_ptr<const Schema> schema_;
    std::vector<Source> sources_;            // one a field
    std::vector<std::vector<char>> copies_;  // typed contents in raw form
    std::vector<std::size_t> inputs_;        // of each field; the checker's
    bool packs_ = false;             // of the schema: all fields are real, none is a key or named as the packed input
    const char* packed_ = nullptr;   // then there are no sources
    std::size_t rows_ = 0;
};

}  // namespace trimtab
