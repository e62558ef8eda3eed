#include "slab.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace trimtab {
namespace {

constexpr std::size_t kMaxText = static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max());

template <class T>
void append_range(Buffer<T>& to, const Buffer<T>& from, std::size_t start, std::size_t stop) {
    to.insert(to.end(), from.begin() + static_cast<std::ptrdiff_t>(start),
              from.begin() + static_cast<std::ptrdiff_t>(stop));
}

template <class T>
void append_taken(Buffer<T>& to, const Buffer<T>& from, std::span<const std::int32_t> indices) {
    const std::size_t rows = to.size();
    to.resize(rows + indices.size());
    for (std::size_t i = 0; i < indices.size(); ++i) to[rows + i] = from[static_cast<std::size_t>(indices[i])];
}

void append_text_range(Column& to, const Column& from, std::size_t start, std::size_t stop) {
    const std::int32_t first = from.offsets[start];
    const std::size_t size = static_cast<std::size_t>(from.offsets[stop] - first);
    const std::int32_t base = to.offsets.back();
    char* bytes = grow_text(to, size);
    if (size != 0) std::memcpy(bytes, from.bytes.data() + first, size);
    const std::size_t rows = to.offsets.size();
    to.offsets.resize(rows + (stop - start));
    for (std::size_t i = 0; i < stop - start; ++i) to.offsets[rows + i] = base + (from.offsets[start + i + 1] - first);
}

void append_text_taken(Column& to, const Column& from, std::span<const std::int32_t> indices) {
    std::size_t size = 0;
    for (const std::int32_t index : indices) size += from.text(static_cast<std::size_t>(index)).size();
    std::int32_t end = to.offsets.back();
    char* bytes = grow_text(to, size);
    const std::size_t rows = to.offsets.size();
    to.offsets.resize(rows + indices.size());
    for (std::size_t i = 0; i < indices.size(); ++i) {
        const std::string_view text = from.text(static_cast<std::size_t>(indices[i]));
        bytes = std::copy(text.begin(), text.end(), bytes);
        end += static_cast<std::int32_t>(text.size());
        to.offsets[rows + i] = end;
    }
}

}  // namespace

char* grow_text(Column& column, std::size_t count) {
    const std::size_t size = column.bytes.size();
    if (count > kMaxText - size) throw std::length_error("a string column of a slab holds at most 2 GiB");
    column.bytes.resize(size + count);
    return column.bytes.data() + size;
}

std::shared_ptr<Schema> Schema::make(std::vector<Field> fields, std::size_t keys) {
    if (fields.empty()) throw std::invalid_argument("expected at least one field, came none");
    if (keys >= fields.size()) {
        throw std::invalid_argument("expected at least one field that is no key, came " +
                                    std::to_string(fields.size()) + " fields of which " + std::to_string(keys) +
                                    " are keys");
    }
    auto schema = std::make_shared<Schema>();
    schema->fields = std::move(fields);
    schema->keys = keys;
    schema->all_real = std::all_of(schema->fields.begin(), schema->fields.end() - static_cast<std::ptrdiff_t>(keys),
                                   [](const Field& field) { return field.type == Type::real; });
    for (std::size_t i = 0; i < schema->fields.size(); ++i) {
        const std::string& name = schema->fields[i].name;
        if (name.empty())
            throw std::invalid_argument("field " + std::to_string(i) + ": expected a name, came an empty string");
        if (!schema->index_.emplace(name, i).second) throw std::invalid_argument("field \"" + name + "\" occurs twice");
    }
    return schema;
}

std::optional<std::size_t> Schema::find(std::string_view name) const {
    const auto found = index_.find(name);
    if (found == index_.end()) return std::nullopt;
    return found->second;
}

bool Schema::operator==(const Schema& other) const {
    return this == &other || (keys == other.keys && std::equal(fields.begin(), fields.end(), other.fields.begin(),
                                                               other.fields.end(), [](const Field& a, const Field& b) {
                                                                   return a.type == b.type && a.name == b.name;
                                                               }));
}

void Slab::require_same_schema(const Slab& other) const {
    if (this == &other) throw std::invalid_argument("a slab cannot be extended by itself");
    if (schema() != other.schema())
        throw std::invalid_argument("expected a slab of an equal schema, came one of another");
}

void Slab::extend(const Slab& other, std::size_t start, std::size_t stop) {
    require_same_schema(other);
    if (start > stop || stop > other.rows()) {
        throw std::out_of_range("expected rows within [0, " + std::to_string(other.rows()) + "), came [" +
                                std::to_string(start) + ", " + std::to_string(stop) + ")");
    }
    const std::size_t before = rows_;
    try {
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            switch (schema_->fields[i].type) {
                case Type::real:
                case Type::boolean: append_range(columns_[i].reals, other.columns_[i].reals, start, stop); break;
                case Type::integer: append_range(columns_[i].integers, other.columns_[i].integers, start, stop); break;
                case Type::string: append_text_range(columns_[i], other.columns_[i], start, stop); break;
            }
        }
    } catch (...) {
        truncate(before);
        throw;
    }
    commit(before + (stop - start));
}

void Slab::extend(const Slab& other, std::span<const std::int32_t> indices) {
    require_same_schema(other);
    for (const std::int32_t index : indices) {
        if (index < 0 || static_cast<std::size_t>(index) >= other.rows()) {
            throw std::out_of_range("expected row indices within [0, " + std::to_string(other.rows()) + "), came " +
                                    std::to_string(index));
        }
    }
    const std::size_t before = rows_;
    try {
        for (std::size_t i = 0; i < columns_.size(); ++i) {
            switch (schema_->fields[i].type) {
                case Type::real:
                case Type::boolean: append_taken(columns_[i].reals, other.columns_[i].reals, indices); break;
                case Type::integer: append_taken(columns_[i].integers, other.columns_[i].integers, indices); break;
                case Type::string: append_text_taken(columns_[i], other.columns_[i], indices); break;
            }
        }
    } catch (...) {
        truncate(before);
        throw;
    }
    commit(before + indices.size());
}

std::size_t Slab::size_bytes() const {
    std::size_t size = 0;
    for (const Column& column : columns_) {
        size += column.reals.size() * sizeof(float) + column.integers.size() * sizeof(std::int64_t) +
                column.offsets.size() * sizeof(std::int32_t) + column.bytes.size();
    }
    return size;
}

const char* type_name(Type type) {
    switch (type) {
        case Type::real: return "real";
        case Type::boolean: return "boolean";
        case Type::integer: return "integer";
        case Type::string: return "string";
    }
    return "";
}

Type type_from_name(std::string_view name) {
    for (const Type type : {Type::real, Type::boolean, Type::integer, Type::string}) {
        if (name == type_name(type)) return type;
    }
    throw std::invalid_argument("expected type real, boolean, integer or string, came \"" + std::string(name) + "\"");
}

}  // namespace trimtab
