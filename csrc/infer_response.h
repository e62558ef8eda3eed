// ModelInferResponse messages, written straight into memory of their exact size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace trimtab {

// What all answers of a batch have in common.
struct ResponseHead {
    std::string_view model_name;
    std::string_view model_version;
    std::string_view weights;  // parameter trimtab_weights
};

// A tensor of one answer; borrows its values.
struct OutputTensor {
    std::string_view name;
    std::string_view datatype;
    std::int64_t rows = 0;
    std::span<const std::int64_t> row_shape;  // the dimensions after the rows
    std::string_view raw;
    // Of values that were written into shared memory instead (raw is empty then): parameters of the tensor.
    std::string_view region{};
    std::uint64_t region_bytes = 0;
    std::uint64_t region_offset = 0;
};

struct Response {
    const ResponseHead* head = nullptr;
    std::string_view id;          // the client's, given back
    std::string_view request_id;  // parameter trimtab_request_id
    bool final_response = false;  // parameter triton_final_response, of answers in a stream: each has one
    std::vector<OutputTensor> outputs;
};

std::size_t response_size(const Response& response);
void write_response(const Response& response, char* out);  // response_size() bytes

}  // namespace trimtab
