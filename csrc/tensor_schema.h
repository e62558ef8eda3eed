// The input tensors of a model that takes tensors as they are ("tensor model"), in contrast to Schema's typed columns.
//
// The first dimension of every tensor is the rows (the batch), the same for all inputs of a request; `dims` are those
// after it. A dimension of -1 takes any size from 1 on; it is fixed by each request for itself, and only requests that
// agree on all of them share a batch. Ragged batches were turned down: padding is the model's matter, and it would have
// to be told which values are padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "infer_message.h"

namespace trimtab {

// The protocol's datatypes, all of them.
enum class TensorType : std::uint8_t {
    boolean,
    uint8,
    uint16,
    uint32,
    uint64,
    int8,
    int16,
    int32,
    int64,
    fp16,
    bf16,
    fp32,
    fp64,
    bytes
};

struct TensorTypeTraits {
    TensorType type;
    std::string_view name;
    std::size_t width;  // of a raw element; 0: behind a length
    List list;          // of typed contents; kNoList: raw contents only
};

inline constexpr List kNoList = static_cast<List>(0);

const TensorTypeTraits& traits_of(TensorType type);
const TensorTypeTraits* find_tensor_type(std::string_view name);  // null: none of that name

struct TensorSpec {
    std::string name;
    TensorType type = TensorType::fp32;
    std::vector<std::int64_t> dims;  // after the rows; -1: any size from 1 on
};

// Immutable, shared by every slab and request of the model.
struct TensorSchema {
    std::vector<TensorSpec> inputs;
    bool variable = false;  // some dimension is -1

    // Throws std::invalid_argument on no inputs, an empty or repeated name, a dimension that is neither -1 nor
    // positive, more than kMaxRank - 1 of them, or a row beyond 2^40 elements.
    static std::shared_ptr<TensorSchema> make(std::vector<TensorSpec> inputs);

    std::optional<std::size_t> find(std::string_view name) const;
    bool operator==(const TensorSchema& other) const;

  private:
    std::unordered_map<std::string_view, std::size_t> index_;  // into the names of `inputs`
};

// "[n, 3, -1]": the shape that an input takes.
std::string shape_text(const TensorSpec& spec);

}  // namespace trimtab
