#include "infer_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "errors.h"
#include "utf8.h"
#include "wire.h"

namespace trimtab {
namespace {

using wire::load;

// --- datatypes -------------------------------------------------------------------------------------------------------

struct DatatypeTraits {
    Datatype datatype;
    std::string_view name;
    std::size_t width;  // of a raw element; 0: behind a length
    List list;          // of typed contents
};

constexpr DatatypeTraits kDatatypes[] = {
    {Datatype::boolean, "BOOL", 1, List::booleans}, {Datatype::int32, "INT32", 4, List::int32s},
    {Datatype::int64, "INT64", 8, List::int64s},    {Datatype::fp32, "FP32", 4, List::fp32s},
    {Datatype::fp64, "FP64", 8, List::fp64s},       {Datatype::bytes, "BYTES", 0, List::bytes},
};

const DatatypeTraits* find_datatype(std::string_view name) {
    const auto* found = std::find_if(std::begin(kDatatypes), std::end(kDatatypes), [&](const auto& traits) { return traits.name == name; });
    return found == std::end(kDatatypes) ? nullptr : found;
}

bool takes(Type type, Datatype datatype) { return (type == Type::string) == (datatype == Datatype::bytes); }

const char* datatypes_of(Type type) { return type == Type::string ? "BYTES" : "FP32, FP64, INT32, INT64 or BOOL"; }

// Calls use(value) with a number of the type that lies at `data`.
template <class Use>
decltype(auto) with_number(Datatype datatype, const char* data, const Use& use) {
    switch (datatype) {
        case Datatype::boolean: return use(load<std::uint8_t>(data));
        case Datatype::int32: return use(load<std::int32_t>(data));
        case Datatype::int64: return use(load<std::int64_t>(data));
        case Datatype::fp64: return use(load<double>(data));
        default: return use(load<float>(data));
    }
}

// Calls loop(zero) with a zero of the type: the type is chosen once, outside the rows.
template <class Loop>
void with_type(Datatype datatype, const Loop& loop) {
    switch (datatype) {
        case Datatype::boolean: return loop(std::uint8_t{});
        case Datatype::int32: return loop(std::int32_t{});
        case Datatype::int64: return loop(std::int64_t{});
        case Datatype::fp32: return loop(float{});
        case Datatype::fp64: return loop(double{});
        case Datatype::bytes: return;
    }
}

// --- values ----------------------------------------------------------------------------------------------------------

template <class T>
bool is_boolean(T value) {
    if constexpr (std::is_floating_point_v<T>) {
        if (std::isnan(value)) return true;
    }
    return value == T{0} || value == T{1};
}

template <class T>
bool is_integer(T value) {
    if constexpr (std::is_floating_point_v<T>) {
        if (std::isnan(value)) return true;
        return value >= T{-0x1p63} && value < T{0x1p63} && std::trunc(value) == value;
    }
    return true;
}

template <class T>
std::int64_t to_integer(T value) {
    if constexpr (std::is_floating_point_v<T>) {
        if (std::isnan(value)) return kMissingInteger;
    }
    return static_cast<std::int64_t>(value);
}

// The first row that `valid` refuses, or `rows`.
template <class T, class Valid>
std::size_t first_invalid(const char* data, std::size_t stride, std::size_t rows, const Valid& valid) {
    std::size_t row = 0;
    while (row < rows && valid(load<T>(data + row * stride))) ++row;
    return row;
}

// --- words -----------------------------------------------------------------------------------------------------------

std::string to_text(const Shape& shape) {
    std::string text = "[";
    for (std::size_t i = 0; i < shape.rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape.dims[i]);
    return text + "]";
}

std::string to_text(Datatype datatype, const char* data) {
    return with_number(datatype, data, [](auto value) {
        if constexpr (std::is_floating_point_v<decltype(value)>) {
            char text[40];
            std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(value));
            return std::string(text);
        } else {
            return std::to_string(value);
        }
    });
}

std::string expected_inputs(const Schema& schema) {
    constexpr std::size_t limit = 20;
    std::string text = "expected inputs ";
    for (std::size_t i = 0; i < std::min(schema.fields.size(), limit); ++i) {
        text += (i == 0 ? "" : ", ") + quote(schema.fields[i].name) + " (" + type_name(schema.fields[i].type) + ")";
    }
    if (schema.fields.size() > limit) text += " and " + std::to_string(schema.fields.size() - limit) + " more";
    if (schema.all_real && !schema.find(kPackedInput)) {
        text += ", or the features as one \"features\" of shape [n, " + std::to_string(schema.features()) + "]";
    }
    return text;
}

}  // namespace

// Builds the sources of an InferRows; throws WireError.
class InferRows::Checker {
  public:
    Checker(InferRows& rows, const InferMessage& message) : rows_(rows), schema_(*rows.schema_), message_(message) {}

    void run() {
        match_names();
        check_raw_count();
        rows_.sources_.resize(schema_.fields.size());
        rows_.copies_.reserve(message_.inputs.size());
        if (packed_ != kNone) check_packed(packed_);
        for (std::size_t field = 0; field < schema_.fields.size(); ++field) {
            if (inputs_[field] != kNone) check_field(field, inputs_[field]);
        }
        for (std::size_t field = 0; field < schema_.fields.size(); ++field) check_values(field);
    }

  private:
    static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

    // Which input brings which field: each exactly once, or the features packed and the keys on their own.
    void match_names() {
        inputs_.assign(schema_.fields.size(), kNone);
        for (std::size_t i = 0; i < message_.inputs.size(); ++i) {
            const std::string_view name = message_.inputs[i].name;
            // Clients send the inputs in the order of the metadata.
            const bool in_order = i < schema_.fields.size() && schema_.fields[i].name == name;
            const std::optional<std::size_t> field = in_order ? i : schema_.find(name);
            if (!field && !(schema_.all_real && name == kPackedInput)) {
                throw WireError(expected_inputs(schema_) + ", came " + quote(name));
            }
            std::size_t& input = field ? inputs_[*field] : packed_;
            if (input != kNone) throw WireError("input " + quote(name) + ": expected once, came again");
            input = i;
        }
        for (std::size_t field = 0; field < schema_.fields.size(); ++field) {
            const bool in_packed = packed_ != kNone && field < schema_.features();
            if (in_packed && inputs_[field] != kNone) {
                throw WireError("expected either one input per feature or one \"features\", came \"features\" and " +
                                quote(schema_.fields[field].name));
            }
            if (!in_packed && inputs_[field] == kNone) {
                throw WireError(expected_inputs(schema_) + ", came " + std::to_string(message_.inputs.size()) + " inputs without " +
                                quote(schema_.fields[field].name));
            }
        }
    }

    void check_raw_count() const {
        if (message_.raw_contents.empty() || message_.raw_contents.size() == message_.inputs.size()) return;
        throw WireError("expected one raw_input_contents for each of the " + std::to_string(message_.inputs.size()) +
                        " inputs or none, came " + std::to_string(message_.raw_contents.size()));
    }

    [[noreturn]] static void fail(const InputTensor& input, const std::string& expected, const std::string& came) {
        throw WireError("input " + quote(input.name) + ": expected " + expected + ", came " + came);
    }

    const DatatypeTraits& check_datatype(const InputTensor& input, Type type) const {
        const DatatypeTraits* traits = find_datatype(input.datatype);
        if (traits == nullptr || !takes(type, traits->datatype)) {
            fail(input, std::string("datatype ") + datatypes_of(type), input.datatype.empty() ? "none" : quote(input.datatype));
        }
        return *traits;
    }

    void check_rows(const InputTensor& input) {
        const std::int64_t rows = input.shape.dims[0];
        if (rows < 1) fail(input, "at least one row", "shape " + to_text(input.shape));
        if (rows_.rows_ == 0) {
            rows_.rows_ = static_cast<std::size_t>(rows);
            counted_ = &input;
        }
        if (rows_.rows_ != static_cast<std::size_t>(rows)) {
            fail(input, std::to_string(rows_.rows_) + " rows as input " + quote(counted_->name), std::to_string(rows));
        }
    }

    void check_packed(std::size_t index) {
        const InputTensor& input = message_.inputs[index];
        const std::size_t width = schema_.features();
        const DatatypeTraits* traits = find_datatype(input.datatype);
        if (traits == nullptr || (traits->datatype != Datatype::fp32 && traits->datatype != Datatype::fp64)) {
            fail(input, "datatype FP32 or FP64", input.datatype.empty() ? "none" : quote(input.datatype));
        }
        if (input.shape.rank != 2 || input.shape.dims[1] != static_cast<std::int64_t>(width)) {
            fail(input, "shape [n, " + std::to_string(width) + "]", to_text(input.shape));
        }
        check_rows(input);
        const std::string_view data = elements(index, *traits, width);
        for (std::size_t field = 0; field < width; ++field) {
            rows_.sources_[field] = {traits->datatype, data.data() + field * traits->width, width * traits->width, 0, 0};
        }
    }

    void check_field(std::size_t field, std::size_t index) {
        const InputTensor& input = message_.inputs[index];
        const DatatypeTraits& traits = check_datatype(input, schema_.fields[field].type);
        if (!(input.shape.rank == 1 || (input.shape.rank == 2 && input.shape.dims[1] == 1))) {
            fail(input, "shape [n] or [n, 1]", to_text(input.shape));
        }
        check_rows(input);
        const std::string_view data = elements(index, traits, 1);
        rows_.sources_[field] = {traits.datatype, data.data(), traits.width, 0, 0};
        if (traits.datatype == Datatype::bytes) check_strings(input, data);
    }

    // The elements of an input in raw form, of the right number and size.
    std::string_view elements(std::size_t index, const DatatypeTraits& traits, std::size_t width) {
        const InputTensor& input = message_.inputs[index];
        // Every element takes at least a byte of a message of less than 2^63: more rows than that are refused before they are multiplied.
        const std::size_t count = rows_.rows_ > kMaxElements / width ? kMaxElements : rows_.rows_ * width;
        if (!message_.raw_contents.empty()) {
            if (input.contents.size() != 0) fail(input, "no contents beside raw_input_contents", "both");
            const std::string_view raw = message_.raw_contents[index];
            if (traits.width != 0 && raw.size() != count * traits.width) {
                fail(input, std::to_string(count * traits.width) + " bytes for " + std::string(traits.name) + " of shape " + to_text(input.shape),
                     std::to_string(raw.size()));
            }
            return raw;
        }
        for (std::size_t list = 1; list < kLists; ++list) {
            const bool its_own = static_cast<List>(list) == traits.list;
            const std::size_t came = input.elements[list];
            if (its_own && came != count) {
                fail(input, std::to_string(count) + " elements for " + std::string(traits.name) + " of shape " + to_text(input.shape),
                     std::to_string(came));
            }
            if (!its_own && came != 0) {
                fail(input, std::string("only ") + kListNames[static_cast<std::size_t>(traits.list)] + " for " + std::string(traits.name),
                     kListNames[list]);
            }
        }
        return raw_elements(message_, input, traits.list, rows_.copies_.emplace_back());
    }

    void check_strings(const InputTensor& input, std::string_view raw) const {
        std::size_t position = 0;
        for (std::size_t row = 0; row < rows_.rows_; ++row) {
            const std::size_t left = raw.size() - position;
            const std::size_t size = left < 4 ? 0 : load<std::uint32_t>(raw.data() + position);
            if (left < 4 || size > left - 4) {
                fail(input, std::to_string(rows_.rows_) + " strings, each behind its length in 4 bytes",
                     std::to_string(raw.size()) + " bytes that end in row " + std::to_string(row));
            }
            if (!is_utf8(raw.substr(position + 4, size))) fail(input, "UTF-8", "other bytes in row " + std::to_string(row));
            position += 4 + size;
        }
        if (position != raw.size()) {
            fail(input, std::to_string(rows_.rows_) + " strings", std::to_string(raw.size() - position) + " bytes after the last");
        }
    }

    void check_values(std::size_t field) const {
        const Type type = schema_.fields[field].type;
        const Source& source = rows_.sources_[field];
        const std::size_t rows = rows_.rows_;
        std::size_t bad = rows;
        const char* expected = "";
        with_type(source.datatype, [&](auto zero) {
            using T = decltype(zero);
            if constexpr (std::is_same_v<T, std::uint8_t>) {
                bad = first_invalid<T>(source.data, source.stride, rows, is_boolean<T>);
                expected = "bytes 0 or 1";
            } else if (type == Type::boolean) {
                bad = first_invalid<T>(source.data, source.stride, rows, is_boolean<T>);
                expected = "0, 1 or NaN";
            } else if (std::is_floating_point_v<T> && type == Type::integer) {
                bad = first_invalid<T>(source.data, source.stride, rows, is_integer<T>);
                expected = "whole numbers within 64 bits or NaN";
            }
        });
        if (bad == rows) return;
        const std::size_t input = inputs_[field] == kNone ? packed_ : inputs_[field];
        fail(message_.inputs[input], expected, to_text(source.datatype, source.data + bad * source.stride) + " in row " + std::to_string(bad));
    }

    static constexpr std::size_t kMaxElements = std::size_t{1} << 48;
    static constexpr const char* kListNames[kLists] = {"",              "bool_contents", "int_contents",  "int64_contents", "uint_contents",
                                                       "uint64_contents", "fp32_contents", "fp64_contents", "bytes_contents"};

    InferRows& rows_;
    const Schema& schema_;
    const InferMessage& message_;
    std::vector<std::size_t> inputs_;  // of each field
    std::size_t packed_ = kNone;
    const InputTensor* counted_ = nullptr;  // the input that gave the number of rows
};

InferRows::InferRows(const InferMessage& message, std::shared_ptr<const Schema> schema) : schema_(std::move(schema)) {
    Checker(*this, message).run();
}

// --- copying ---------------------------------------------------------------------------------------------------------

void InferRows::append_to(Slab& slab, std::size_t start, std::size_t stop) {
    if (slab.schema() != *schema_) throw std::invalid_argument("expected a slab of the schema that was checked, came one of another");
    if (start > stop || stop > rows_) {
        throw std::out_of_range("expected rows within [0, " + std::to_string(rows_) + "), came [" + std::to_string(start) + ", " +
                                std::to_string(stop) + ")");
    }
    const std::size_t before = slab.rows();
    const std::size_t count = stop - start;
    try {
        for (std::size_t i = 0; i < sources_.size(); ++i) {
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
        for (std::size_t i = 0; i < sources_.size(); ++i) {
            const Source& source = sources_[i];
            const Type type = schema_->fields[i].type;
            const char* data = source.data + (start + first) * source.stride;
            with_type(source.datatype, [&](auto zero) {
                using T = decltype(zero);
                if (type == Type::integer) {
                    std::int64_t* out = slab.column(i).integers.data() + before + first;
                    for (std::size_t row = 0; row < rows; ++row) out[row] = to_integer(load<T>(data + row * source.stride));
                } else {
                    float* out = slab.column(i).reals.data() + before + first;
                    for (std::size_t row = 0; row < rows; ++row) out[row] = static_cast<float>(load<T>(data + row * source.stride));
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

// --- parameters ------------------------------------------------------------------------------------------------------

namespace {

bool is_zero(const Parameter& parameter) {
    return std::visit(
        [](const auto& value) {
            using T = std::decay_t<decltype(value)>;
            if constexpr (std::is_same_v<T, std::monostate>) {
                return false;
            } else if constexpr (std::is_same_v<T, std::string_view>) {
                return value.empty();
            } else {
                return value == T{};
            }
        },
        parameter.value);
}

[[noreturn]] void fail_parameter(const Parameter& parameter, const std::string& expected) {
    throw WireError("parameter " + quote(parameter.key) + ": expected " + expected);
}

void require_value(const Parameter& parameter) {
    if (std::holds_alternative<std::monostate>(parameter.value)) fail_parameter(parameter, "a value, came none");
}

std::optional<std::int64_t> check_request_parameters(const std::vector<Parameter>& parameters) {
    std::optional<std::int64_t> time_us;
    for (const Parameter& parameter : parameters) {
        require_value(parameter);
        const std::string_view key = parameter.key;
        if (key == "trimtab_time_us") {
            const auto* value = std::get_if<std::int64_t>(&parameter.value);
            if (value == nullptr) fail_parameter(parameter, "microseconds as int64_param, came another type");
            time_us = *value;
        } else if (key.starts_with("trimtab_")) {
            fail_parameter(parameter, "trimtab_time_us as the only one of that prefix");
        } else if (key.starts_with("triton_")) {
            fail_parameter(parameter, "none with Triton's reserved prefix, as none is supported");
        } else if ((key == "sequence_id" || key == "sequence_start" || key == "sequence_end") && !is_zero(parameter)) {
            fail_parameter(parameter, "none, as sequences are not supported");
        } else if (key == "timeout" || key == "priority") {
            const auto* value = std::get_if<std::int64_t>(&parameter.value);
            if ((value == nullptr || *value < 0) && !std::holds_alternative<std::uint64_t>(parameter.value)) {
                fail_parameter(parameter, "an integer from 0, came another value");
            }
        }
    }
    return time_us;
}

}  // namespace

std::optional<std::int64_t> check_parameters(const InferMessage& message) {
    for (const Parameter& parameter : message.tensor_parameters) {
        require_value(parameter);
        if (parameter.key.starts_with("shared_memory_")) fail_parameter(parameter, "none, as shared memory is not supported");
        if (parameter.key == "classification" && !is_zero(parameter)) {
            fail_parameter(parameter, "none, as the classification extension is not supported");
        }
    }
    return check_request_parameters(message.parameters);
}

void check_requested_outputs(const InferMessage& message) {
    std::vector<std::string_view> names;
    names.reserve(message.outputs.size());
    for (const RequestedOutput& output : message.outputs) names.push_back(output.name);
    std::sort(names.begin(), names.end());
    const auto repeated = std::adjacent_find(names.begin(), names.end());
    if (repeated != names.end()) throw WireError("requested output " + quote(*repeated) + ": expected once, came again");
}

}  // namespace trimtab
