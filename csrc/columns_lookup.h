// Exact lookup of category values, a block at a time: value → id (kNull missing, kOov unknown, kFirst + position).
// Immutable once built; owns its values. Any number of threads.
//
// Open addressing, at most half full. Small vocabularies get a hash function, by trying some, under which no slot is
// wanted twice: then the first look decides, without a branch that a processor could guess wrong. Of a large table the
// slots that come next are asked for ahead, so that the looks wait for memory together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ops.h"

namespace trimtab {

class IntegerLookup {
  public:
    // False where a value occurs twice.
    bool build(std::vector<std::int64_t> values);

    std::size_t size() const { return values_.size(); }
    bool operator==(const IntegerLookup& other) const { return values_ == other.values_; }

    void find(const std::int64_t* values, std::size_t count, std::int32_t* ids) const;
    std::int32_t find(std::int64_t value) const;  // of a value that is not missing

  private:
    struct Slot {
        std::int64_t value = 0;
        std::int32_t id = static_cast<std::int32_t>(ops::kOov);  // an empty slot says so, too
    };

    bool place(std::uint64_t multiplier, bool perfect);
    std::size_t slot_of(std::int64_t value) const {
        return static_cast<std::size_t>((static_cast<std::uint64_t>(value) * multiplier_) >> shift_);
    }

    std::vector<std::int64_t> values_;
    std::vector<std::int32_t> dense_;  // ids of the values from first_ on, where these lie close together; else empty
    std::int64_t first_ = 0;
    std::vector<Slot> slots_ = std::vector<Slot>(2);
    std::uint64_t multiplier_ = 1;
    int shift_ = 63;
    bool perfect_ = true;
};

// A text of up to 16 bytes is its own key: two words, zeros behind it, and its length. A longer one's second word is a
// hash of all of it, and its bytes decide.
class TextLookup {
  public:
    TextLookup() = default;
    TextLookup(TextLookup&&) = default;  // not copied: slots point into the values
    TextLookup& operator=(TextLookup&&) = default;

    // False where a value occurs twice. At most 2 GiB of text.
    bool build(std::vector<std::string> values);

    std::size_t size() const { return values_.size(); }
    bool operator==(const TextLookup& other) const { return values_ == other.values_; }

    // Text i is bytes[offsets[i], offsets[i + 1]); an empty one is missing.
    void find(const std::int32_t* offsets, const char* bytes, std::size_t count, std::int32_t* ids) const;

  private:
    struct Key {
        std::uint64_t first = 0;
        std::uint64_t second = 0;
        std::size_t size = 0;
    };
    struct Slot {
        std::uint64_t first = 0;
        std::uint64_t second = 0;
        std::uint32_t size = 0;
        std::int32_t id = static_cast<std::int32_t>(ops::kOov);
        const char* text = nullptr;  // of values_
    };

    static Key key_of(const char* text, std::size_t size, const char* end);
    std::size_t slot_of(const Key& key) const;
    bool place(std::uint64_t seed, bool perfect);
    template <bool kPerfect>
    std::int32_t look(const Key& key, const char* text) const;
    template <bool kPerfect>
    void find_all(const std::int32_t* offsets, const char* bytes, std::size_t count, std::int32_t* ids) const;

    std::vector<std::string> values_;
    std::vector<Slot> slots_ = std::vector<Slot>(2);
    std::uint64_t seed_ = 0;
    int shift_ = 63;
    bool perfect_ = true;
};

}  // namespace trimtab
