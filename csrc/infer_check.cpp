// Checks a request against a schema: the constructor of InferRows.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <string>
#include <type_traits>

#include "errors.h"
#include "infer_rows.h"
#include "utf8.h"
#include "wire.h"

namespace trimtab {
namespace {

using wire::load;

const DatatypeTraits* find_datatype(std::string_view name) {
    const auto* found = std::find_if(std::begin(kDatatypes), std::end(kDatatypes),
                                     [&](const auto& traits) { return traits.name == name; });
    return found == std::end(kDatatypes) ? nullptr : found;
}

bool takes(Type type, Datatype datatype) { return (type == Type::string) == (datatype == Datatype::bytes); }

const char* datatypes_of(Type type) { return type == Type::string ? "BYTES" : "FP32, FP64, INT32, INT64 or BOOL"; }

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
    char text[40] = "";
    with_type(datatype, [&](auto zero) {
        const auto value = load<decltype(zero)>(data);
        if constexpr (std::is_floating_point_v<decltype(zero)>) {
            std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(value));
        } else {
            std::snprintf(text, sizeof(text), "%lld", static_cast<long long>(value));
        }
    });
    return text;
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
    Checker(InferRows& rows, const InferMessage& message)
        : rows_(rows), schema_(*rows.schema_), message_(message), inputs_(rows.inputs_) {}

    void run() {
        const bool alone = message_.inputs.size() == 1 && message_.inputs.front().name == kPackedInput;
        if (rows_.packs_ && alone) return run_packed();
        match_names();
        check_raw_count();
        rows_.sources_.resize(schema_.fields.size());
        // Views into copies are held: the vector must not move them.
        if (message_.raw_contents.empty()) rows_.copies_.reserve(message_.inputs.size());
        if (packed_ != kNone) check_packed(packed_);
        for (std::size_t field = 0; field < schema_.fields.size(); ++field) {
            if (inputs_[field] != kNone) check_field(field, inputs_[field]);
        }
        for (std::size_t field = 0; field < schema_.fields.size(); ++field) check_values(field);
    }

  private:
    static constexpr std::size_t kNone = static_cast<std::size_t>(-1);

    // The whole request is one tensor, as most are: the same checks, but for values, as any float is a real.
    void run_packed() {
        check_raw_count();
        if (message_.raw_contents.empty()) rows_.copies_.reserve(1);
        packed_ = 0;
        check_packed(0);
    }

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
                throw WireError(expected_inputs(schema_) + ", came " + std::to_string(message_.inputs.size()) +
                                " inputs without " + quote(schema_.fields[field].name));
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
            fail(input, std::string("datatype ") + datatypes_of(type),
                 input.datatype.empty() ? "none" : quote(input.datatype));
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
        if (traits->datatype == Datatype::fp32 && rows_.packs_) {
            rows_.packed_ = data.data();
            return;
        }
        rows_.sources_.resize(schema_.fields.size());
        for (std::size_t field = 0; field < width; ++field) {
            rows_.sources_[field] = {.datatype = traits->datatype,
                                     .data = data.data() + field * traits->width,
                                     .stride = width * traits->width};
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
        rows_.sources_[field] = {.datatype = traits.datatype, .data = data.data(), .stride = traits.width};
        if (traits.datatype == Datatype::bytes) check_strings(input, data);
    }

    // The elements of an input in raw form, of the right number and size.
    std::string_view elements(std::size_t index, const DatatypeTraits& traits, std::size_t width) {
        const InputTensor& input = message_.inputs[index];
        // Every element takes at least a byte of a message of less than 2^63: more rows than that are refused before
        // they are multiplied.
        const std::size_t count = rows_.rows_ > kMaxElements / width ? kMaxElements : rows_.rows_ * width;
        if (!message_.raw_contents.empty()) {
            if (input.contents.size() != 0) fail(input, "no contents beside raw_input_contents", "both");
            const std::string_view raw = message_.raw_contents[index];
            if (traits.width != 0 && raw.size() != count * traits.width) {
                fail(input,
                     std::to_string(count * traits.width) + " bytes for " + std::string(traits.name) + " of shape " +
                         to_text(input.shape),
                     std::to_string(raw.size()));
            }
            return raw;
        }
        for (std::size_t list = 1; list < kLists; ++list) {
            const bool its_own = static_cast<List>(list) == traits.list;
            const std::size_t came = input.elements[list];
            if (its_own && came != count) {
                fail(input,
                     std::to_string(count) + " elements for " + std::string(traits.name) + " of shape " +
                         to_text(input.shape),
                     std::to_string(came));
            }
            if (!its_own && came != 0) {
                fail(input,
                     std::string("only ") + kListNames[static_cast<std::size_t>(traits.list)] + " for " +
                         std::string(traits.name),
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
            if (!is_utf8(raw.substr(position + 4, size)))
                fail(input, "UTF-8", "other bytes in row " + std::to_string(row));
            position += 4 + size;
        }
        if (position != raw.size()) {
            fail(input, std::to_string(rows_.rows_) + " strings",
                 std::to_string(raw.size() - position) + " bytes after the last");
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
        fail(message_.inputs[input], expected,
             to_text(source.datatype, source.data + bad * source.stride) + " in row " + std::to_string(bad));
    }

    static constexpr std::size_t kMaxElements = std::size_t{1} << 48;
    static constexpr const char* kListNames[kLists] = {
        "none",          "bool_contents", "int_contents",   "int64_contents", "uint_contents", "uint64_contents",
        "fp32_contents", "fp64_contents", "bytes_contents",
    };

    InferRows& rows_;
    const Schema& schema_;
    const InferMessage& message_;
    std::vector<std::size_t>& inputs_;
    std::size_t packed_ = kNone;
    const InputTensor* counted_ = nullptr;  // the input that gave the number of rows
};

void InferRows::assign(const InferMessage& message, const std::shared_ptr<const Schema>& schema) {
    if (schema_ != schema) {
        schema_ = schema;
        packs_ = schema->all_real && schema->keys == 0 && !schema->find(kPackedInput);
    }
    rows_ = 0;
    packed_ = nullptr;
    copies_.clear();
    Checker(*this, message).run();
}

}  // namespace trimtab
