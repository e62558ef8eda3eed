// A ModelInferRequest as it came: parsed in place, every part a view into the request's bytes, which the caller keeps.
//
// Knows the protocol and nothing of models; what a request means for a schema is infer_rows.h. Parsing is what protobuf
// does, or a WireError: fields in any order, unknown ones skipped, the last of a singular field wins, repeated scalars
// packed or not, pieces of `contents` joined. What is allocated is bounded by the limits below, not by what the bytes
// claim.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <variant>
#include <vector>

namespace trimtab {

// Far above any real request; they keep a message of a few MiB from costing hundreds.
inline constexpr std::size_t kMaxTensors =
    65'536;  // inputs, requested outputs, raw contents, pieces of typed contents: each
inline constexpr std::size_t kMaxParameters = 65'536;  // in all maps together
inline constexpr std::size_t kMaxParametersOfOne = 1'024;
inline constexpr std::size_t kMaxRank = 8;

struct Parameter {
    std::string_view key;
    std::variant<std::monostate, bool, std::int64_t, std::string_view, double, std::uint64_t> value;
};

struct Shape {
    std::array<std::int64_t, kMaxRank> dims{};
    std::size_t rank = 0;
};

// [first, last) of a vector of the message.
struct Range {
    std::size_t first = 0;
    std::size_t last = 0;
    std::size_t size() const { return last - first; }
};

// The lists of InferTensorContents by field number, 1 to 8.
enum class List : std::uint8_t { booleans = 1, int32s, int64s, uint32s, uint64s, fp32s, fp64s, bytes };
inline constexpr std::size_t kLists = 9;  // 0 is none

struct InputTensor {
    std::string_view name;
    std::string_view datatype;
    Shape shape;
    Range parameters;                              // of tensor_parameters
    Range contents;                                // of content_pieces; empty: none came
    std::array<std::uint32_t, kLists> elements{};  // of each list, over all pieces
};

struct RequestedOutput {
    std::string_view name;
    Range parameters;  // of tensor_parameters
};

struct InferMessage {
    std::string_view model_name;
    std::string_view model_version;
    std::string_view id;
    std::vector<Parameter> parameters;
    std::vector<InputTensor> inputs;
    std::vector<RequestedOutput> outputs;
    std::vector<std::string_view> raw_contents;

    std::vector<Parameter> tensor_parameters;
    std::vector<std::string_view> content_pieces;  // each an encoded InferTensorContents, well-formed

    void clear();  // keeps the memory
};

// Throws WireError. The views last as long as `body`. The second form takes the place of what the message held and
// keeps its memory; after an exception it holds a part.
InferMessage parse_infer_message(std::string_view body);
void parse_infer_message(std::string_view body, InferMessage& message);

// The elements of one list of an input, in the raw form of the protocol: little-endian values one after the other,
// BYTES behind 4-byte lengths. Floating-point lists that came in one run are not copied; all else goes to `copy`, which
// must outlive the view.
std::string_view raw_elements(const InferMessage& message, const InputTensor& input, List list,
                              std::vector<char>& copy);

}  // namespace trimtab
