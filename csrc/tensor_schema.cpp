#include "tensor_schema.h"

#include <algorithm>
#include <stdexcept>

namespace trimtab {
namespace {

constexpr TensorTypeTraits kTensorTypes[] = {
    {TensorType::boolean, "BOOL", 1, List::booleans}, {TensorType::uint8, "UINT8", 1, List::uint32s},
    {TensorType::uint16, "UINT16", 2, List::uint32s}, {TensorType::uint32, "UINT32", 4, List::uint32s},
    {TensorType::uint64, "UINT64", 8, List::uint64s}, {TensorType::int8, "INT8", 1, List::int32s},
    {TensorType::int16, "INT16", 2, List::int32s},    {TensorType::int32, "INT32", 4, List::int32s},
    {TensorType::int64, "INT64", 8, List::int64s},    {TensorType::fp16, "FP16", 2, kNoList},
    {TensorType::bf16, "BF16", 2, kNoList},           {TensorType::fp32, "FP32", 4, List::fp32s},
    {TensorType::fp64, "FP64", 8, List::fp64s},       {TensorType::bytes, "BYTES", 0, List::bytes},
};

constexpr std::int64_t kMaxRowElements = std::int64_t{1} << 40;

void check_dims(const TensorSpec& spec) {
    const auto refuse = [&](const std::string& why) {
        throw std::invalid_argument("input \"" + spec.name + "\": " + why);
    };
    if (spec.dims.size() > kMaxRank - 1) {
        refuse("expected at most " + std::to_string(kMaxRank - 1) + " dimensions after the rows, came " +
               std::to_string(spec.dims.size()));
    }
    std::int64_t elements = 1;
    for (const std::int64_t dim : spec.dims) {
        if (dim == -1) continue;
        if (dim < 1) refuse("expected dimensions from 1 on, or -1 for any, came " + std::to_string(dim));
        if (dim > kMaxRowElements / elements) refuse("a row has more than 2^40 elements");
        elements *= dim;
    }
}

}  // namespace

const TensorTypeTraits& traits_of(TensorType type) { return kTensorTypes[static_cast<std::size_t>(type)]; }

const TensorTypeTraits* find_tensor_type(std::string_view name) {
    const auto* found = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                     [&](const auto& traits) { return traits.name == name; });
    return found == std::end(kTensorTypes) ? nullptr : found;
}

std::shared_ptr<TensorSchema> TensorSchema::make(std::vector<TensorSpec> inputs) {
    if (inputs.empty()) throw std::invalid_argument("expected at least one input, came none");
    auto schema = std::make_shared<TensorSchema>();
    schema->inputs = std::move(inputs);
    for (std::size_t i = 0; i < schema->inputs.size(); ++i) {
        const TensorSpec& spec = schema->inputs[i];
        if (spec.name.empty())
            throw std::invalid_argument("input " + std::to_string(i) + ": expected a name, came an empty string");
        if (!schema->index_.emplace(spec.name, i).second)
            throw std::invalid_argument("input \"" + spec.name + "\" occurs twice");
        check_dims(spec);
        schema->variable |= std::find(spec.dims.begin(), spec.dims.end(), -1) != spec.dims.end();
    }
    return schema;
}

std::optional<std::size_t> TensorSchema::find(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end()) return std::nullopt;
    return found->second;
}

bool TensorSchema::operator==(const TensorSchema& other) const {
    return this == &other || std::equal(inputs.begin(), inputs.end(), other.inputs.begin(), other.inputs.end(),
                                        [](const TensorSpec& a, const TensorSpec& b) {
                                            return a.type == b.type && a.name == b.name && a.dims == b.dims;
                                        });
}

std::string shape_text(const TensorSpec& spec) {
    std::string text = "[n";
    for (const std::int64_t dim : spec.dims) text += ", " + std::to_string(dim);
    return text + "]";
}

}  // namespace trimtab
