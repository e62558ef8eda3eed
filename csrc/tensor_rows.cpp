#include "tensor_rows.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "errors.h"
#include "wire.h"

namespace trimtab {
namespace {

using wire::load;

constexpr std::size_t kTooMany = std::numeric_limits<std::size_t>::max() / 64;  // elements that no message holds

// a * b for a, b >= 1, kTooMany where that is more.
std::size_t product(std::size_t a, std::size_t b) { return a > kTooMany / b ? kTooMany : a * b; }

std::string to_text(const Shape& shape) {
    std::string text = "[";
    for (std::size_t i = 0; i < shape.rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape.dims[i]);
    return text + "]";
}

std::string expected_inputs(const TensorSchema& schema) {
    constexpr std::size_t limit = 20;
    std::string text = "expected inputs ";
    for (std::size_t i = 0; i < std::min(schema.inputs.size(), limit); ++i) {
        const TensorSpec& spec = schema.inputs[i];
        text += (i == 0 ? "" : ", ") + quote(spec.name) + " (" + std::string(traits_of(spec.type).name) + " " +
                shape_text(spec) + ")";
    }
    if (schema.inputs.size() > limit) text += " and " + std::to_string(schema.inputs.size() - limit) + " more";
    return text;
}

[[noreturn]] void fail(const InputTensor& input, const std::string& expected, const std::string& came) {
    throw WireError("input " + quote(input.name) + ": expected " + expected + ", came " + came);
}

// Brings elements of 32 bits into Narrow, in place; returns the first that does not fit, or `count`.
template <class Wide, class Narrow>
std::size_t narrow(char* data, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const Wide value = load<Wide>(data + i * sizeof(Wide));
        const auto narrowed = static_cast<Narrow>(value);
        if (static_cast<Wide>(narrowed) != value) return i;
        std::memcpy(data + i * sizeof(Narrow), &narrowed, sizeof(Narrow));
    }
    return count;
}

std::size_t narrow(TensorType type, char* data, std::size_t count) {
    switch (type) {
        case TensorType::int8: return narrow<std::int32_t, std::int8_t>(data, count);
        case TensorType::int16: return narrow<std::int32_t, std::int16_t>(data, count);
        case TensorType::uint8: return narrow<std::uint32_t, std::uint8_t>(data, count);
        case TensorType::uint16: return narrow<std::uint32_t, std::uint16_t>(data, count);
        default: return count;
    }
}

bool equal_dims(const Shape& a, const Shape& b) {
    return a.rank == b.rank &&
           std::equal(a.dims.begin(), a.dims.begin() + static_cast<std::ptrdiff_t>(a.rank), b.dims.begin());
}

}  // namespace

// Fills the sources of a TensorRows; throws WireError.
class TensorRows::Checker {
  public:
    Checker(TensorRows& rows, const InferMessage& message) : rows_(rows), schema_(*rows.schema_), message_(message) {}

    void run() {
        const std::size_t raw = message_.raw_contents.size();
        if (raw != 0 && raw != message_.inputs.size()) {
            throw WireError("expected one raw_input_contents for each of the " +
                            std::to_string(message_.inputs.size()) + " inputs or none, came " + std::to_string(raw));
        }
        for (Source& source : rows_.sources_) source = {};
        for (std::size_t i = 0; i < message_.inputs.size(); ++i) {
            const std::string_view name = message_.inputs[i].name;
            // Clients send the inputs in the order of the metadata.
            const bool in_order = i < schema_.inputs.size() && schema_.inputs[i].name == name;
            const std::optional<std::size_t> input = in_order ? i : schema_.find(name);
            if (!input) throw WireError(expected_inputs(schema_) + ", came " + quote(name));
            // A checked input has at least one element a row.
            if (rows_.sources_[*input].row_elements != 0)
                throw WireError("input " + quote(name) + ": expected once, came again");
            check_input(*input, i);
        }
        for (std::size_t i = 0; i < schema_.inputs.size(); ++i) {
            if (rows_.sources_[i].row_elements != 0) continue;
            throw WireError(expected_inputs(schema_) + ", came " + std::to_string(message_.inputs.size()) +
                            " inputs without " + quote(schema_.inputs[i].name));
        }
    }

  private:
    void check_input(std::size_t index, std::size_t from) {
        const InputTensor& input = message_.inputs[from];
        const TensorSpec& spec = schema_.inputs[index];
        const TensorTypeTraits& traits = traits_of(spec.type);
        if (input.datatype != traits.name) {
            fail(input, "datatype " + std::string(traits.name),
                 input.datatype.empty() ? "none" : quote(input.datatype));
        }
        Source& source = rows_.sources_[index];
        check_shape(input, spec, source);
        const std::size_t count = product(rows_.rows_, source.row_elements);
        source.data = message_.raw_contents.empty() ? typed(input, traits, count, rows_.copies_[index])
                                                    : raw(input, traits, count, message_.raw_contents[from]);
        if (spec.type == TensorType::bytes) check_strings(input, source.data, count);
        if (spec.type == TensorType::boolean) check_booleans(input, source);
    }

    void check_shape(const InputTensor& input, const TensorSpec& spec, Source& source) {
        const Shape& shape = input.shape;
        bool same = shape.rank == spec.dims.size() + 1;
        source.dims.rank = spec.dims.size();
        std::size_t elements = 1;
        for (std::size_t k = 0; same && k < spec.dims.size(); ++k) {
            const std::int64_t dim = shape.dims[k + 1];
            same = spec.dims[k] == -1 ? dim >= 1 : dim == spec.dims[k];
            if (!same) break;
            source.dims.dims[k] = dim;
            elements = product(elements, static_cast<std::size_t>(dim));
        }
        if (!same) fail(input, "shape " + shape_text(spec), to_text(shape));
        if (shape.dims[0] < 1) fail(input, "at least one row", "shape " + to_text(shape));
        const auto rows = static_cast<std::size_t>(shape.dims[0]);
        if (counted_ == nullptr) {
            counted_ = &input;
            rows_.rows_ = rows;
        }
        if (rows != rows_.rows_) {
            fail(input, std::to_string(rows_.rows_) + " rows as input " + quote(counted_->name), std::to_string(rows));
        }
        source.row_elements = elements;
    }

    static std::string_view raw(const InputTensor& input, const TensorTypeTraits& traits, std::size_t count,
                                std::string_view bytes) {
        if (input.contents.size() != 0) fail(input, "no contents beside raw_input_contents", "both");
        if (traits.width != 0 && bytes.size() != count * traits.width) {
            fail(input,
                 (count == kTooMany ? "more bytes than a message holds"
                                    : std::to_string(count * traits.width) + " bytes") +
                     " for " + std::string(traits.name) + " of shape " + to_text(input.shape),
                 std::to_string(bytes.size()));
        }
        return bytes;
    }

    // Typed contents in raw form.
    std::string_view typed(const InputTensor& input, const TensorTypeTraits& traits, std::size_t count,
                           std::vector<char>& copy) const {
        if (traits.list == kNoList) fail(input, "raw_input_contents for " + std::string(traits.name), "none");
        const auto own = static_cast<std::size_t>(traits.list);
        for (std::size_t list = 1; list < kLists; ++list) {
            if (list == own || input.elements[list] == 0) continue;
            fail(input, std::string("only ") + kListNames[own] + " for " + std::string(traits.name), kListNames[list]);
        }
        if (input.elements[own] != count) {
            fail(input,
                 std::to_string(count) + " elements for " + std::string(traits.name) + " of shape " +
                     to_text(input.shape),
                 std::to_string(input.elements[own]));
        }
        const std::string_view elements = raw_elements(message_, input, traits.list, copy);
        const bool narrows = (traits.list == List::int32s || traits.list == List::uint32s) && traits.width < 4;
        if (!narrows) return elements;
        const std::size_t bad = narrow(traits.type, copy.data(), count);  // lists of varints are always copied
        if (bad != count) {
            fail(input, "values within " + std::string(traits.name),
                 traits.list == List::int32s ? std::to_string(load<std::int32_t>(copy.data() + bad * 4))
                                             : std::to_string(load<std::uint32_t>(copy.data() + bad * 4)));
        }
        return {copy.data(), count * traits.width};
    }

    static void check_strings(const InputTensor& input, std::string_view raw, std::size_t count) {
        std::size_t position = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t left = raw.size() - position;
            const std::size_t size = left < 4 ? 0 : load<std::uint32_t>(raw.data() + position);
            if (left < 4 || size > left - 4) {
                fail(input, std::to_string(count) + " strings, each behind its length in 4 bytes",
                     std::to_string(raw.size()) + " bytes that end in element " + std::to_string(i));
            }
            position += 4 + size;
        }
        if (position != raw.size()) {
            fail(input, std::to_string(count) + " strings",
                 std::to_string(raw.size() - position) + " bytes after the last");
        }
    }

    static void check_booleans(const InputTensor& input, const Source& source) {
        const auto bad =
            std::find_if(source.data.begin(), source.data.end(), [](char byte) { return (byte & ~1) != 0; });
        if (bad == source.data.end()) return;
        const auto row = static_cast<std::size_t>(bad - source.data.begin()) / source.row_elements;
        fail(input, "bytes 0 or 1",
             std::to_string(static_cast<unsigned char>(*bad)) + " in row " + std::to_string(row));
    }

    static constexpr const char* kListNames[kLists] = {
        "none",          "bool_contents", "int_contents",   "int64_contents", "uint_contents", "uint64_contents",
        "fp32_contents", "fp64_contents", "bytes_contents",
    };

    TensorRows& rows_;
    const TensorSchema& schema_;
    const InferMessage& message_;
    const InputTensor* counted_ = nullptr;  // the input that gave the number of rows
};

void TensorRows::assign(const InferMessage& message, std::shared_ptr<const TensorSchema> schema) {
    schema_ = std::move(schema);
    sources_.resize(schema_->inputs.size());
    copies_.resize(schema_->inputs.size());
    rows_ = 0;
    try {
        Checker(*this, message).run();
    } catch (...) {
        rows_ = 0;
        throw;
    }
}

bool TensorRows::fits(const TensorSlab& slab) const {
    if (!schema_ || slab.schema() != *schema_) return false;
    if (!schema_->variable || slab.rows() == 0) return true;
    for (std::size_t i = 0; i < sources_.size(); ++i) {
        if (!equal_dims(sources_[i].dims, slab.column(i).dims)) return false;
    }
    return true;
}

bool TensorRows::same_dims(const TensorRows& other) const {
    if (!schema_->variable) return true;
    return std::equal(sources_.begin(), sources_.end(), other.sources_.begin(), other.sources_.end(),
                      [](const Source& a, const Source& b) { return equal_dims(a.dims, b.dims); });
}

void TensorRows::append_to(TensorSlab& slab, std::size_t start, std::size_t stop) {
    if (!fits(slab))
        throw std::invalid_argument("expected a slab of the schema and the variable dimensions of the request");
    if (start > stop || stop > rows_) {
        throw std::out_of_range("expected rows within [0, " + std::to_string(rows_) + "), came [" +
                                std::to_string(start) + ", " + std::to_string(stop) + ")");
    }
    const std::size_t before = slab.rows();
    if (before == 0 && schema_->variable) {
        for (std::size_t i = 0; i < sources_.size(); ++i) slab.set_dims(i, sources_[i].dims);
    }
    try {
        for (std::size_t i = 0; i < sources_.size(); ++i) append_input(i, slab.column(i), start, stop);
    } catch (...) {
        slab.truncate(before);
        throw;
    }
    slab.commit(before + (stop - start));
}

void TensorRows::append_input(std::size_t index, TensorColumn& column, std::size_t start, std::size_t stop) {
    Source& source = sources_[index];
    const std::size_t width = traits_of(schema_->inputs[index].type).width;
    if (width != 0) {
        const std::size_t row_bytes = source.row_elements * width;
        const std::size_t at = column.data.size();
        column.data.resize(at + (stop - start) * row_bytes);
        if (stop != start)
            std::memcpy(column.data.data() + at, source.data.data() + start * row_bytes, (stop - start) * row_bytes);
        return;
    }
    if (start < source.row) source.row = source.position = 0;
    const auto size_at = [&](std::size_t position) {
        return std::size_t{load<std::uint32_t>(source.data.data() + position)};
    };
    for (std::size_t skip = (start - source.row) * source.row_elements; skip > 0; --skip)
        source.position += 4 + size_at(source.position);
    source.row = start;

    const std::size_t elements = (stop - start) * source.row_elements;
    std::size_t end = source.position;
    for (std::size_t i = 0; i < elements; ++i) end += 4 + size_at(end);
    const std::size_t text = column.data.size();
    std::size_t at = column.offsets.size();
    column.offsets.resize(at + elements);
    column.data.resize(text + (end - source.position - 4 * elements));
    char* out = column.data.data() + text;
    std::int64_t offset = column.offsets[at - 1];
    for (; source.position < end;) {
        const std::size_t size = size_at(source.position);
        if (size != 0) std::memcpy(out, source.data.data() + source.position + 4, size);
        out += size;
        offset += static_cast<std::int64_t>(size);
        column.offsets[at++] = offset;
        source.position += 4 + size;
    }
    source.row = stop;
}

}  // namespace trimtab
