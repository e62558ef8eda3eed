// Exact lookup of category values: value → position, or nothing. Immutable once built; owns its values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ops.h"

namespace trimtab {

// Open addressing with linear probing, at most half full. The hash is that of the hash ops, so a value is hashed in one way only.
template <class Stored, class Key>
class Lookup {
  public:
    Lookup() = default;

    // False where a value occurs twice.
    bool build(std::vector<Stored> values) {
        values_ = std::move(values);
        std::size_t slots = 2;
        while (slots < values_.size() * 2) slots *= 2;
        mask_ = slots - 1;
        slots_.assign(slots, Slot{});
        for (std::size_t i = 0; i < values_.size(); ++i) {
            const std::uint64_t h = hash(Key(values_[i]));
            if (find(Key(values_[i]), h) >= 0) return false;
            std::size_t at = h & mask_;
            while (slots_[at].position >= 0) at = (at + 1) & mask_;
            slots_[at] = {h, static_cast<std::int64_t>(i)};
        }
        return true;
    }

    std::size_t size() const { return values_.size(); }
    bool operator==(const Lookup& other) const { return values_ == other.values_; }

    // The value's position, or -1.
    std::int64_t find(Key key) const { return find(key, hash(key)); }

    static std::uint64_t hash(std::int64_t value) { return ops::hash_integer(value); }
    static std::uint64_t hash(std::string_view value) { return ops::hash_bytes(value.data(), value.size()); }

  private:
    struct Slot {
        std::uint64_t hash = 0;
        std::int64_t position = -1;
    };

    std::int64_t find(Key key, std::uint64_t h) const {
        for (std::size_t at = h & mask_; slots_[at].position >= 0; at = (at + 1) & mask_) {
            if (slots_[at].hash == h && Key(values_[static_cast<std::size_t>(slots_[at].position)]) == key) return slots_[at].position;
        }
        return -1;
    }

    std::vector<Stored> values_;
    std::vector<Slot> slots_{Slot{}};  // never empty, so that an unbuilt lookup finds nothing
    std::size_t mask_ = 0;
};

using IntegerLookup = Lookup<std::int64_t, std::int64_t>;
using TextLookup = Lookup<std::string, std::string_view>;

}  // namespace trimtab
