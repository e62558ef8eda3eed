// Which values are frequent in a stream, when nobody knows them beforehand: counts of the most frequent ones in bounded
// memory, that merge across batches, processes and nodes.
//
// Misra and Gries (1982) with the purge of Anderson et al. (2017): a table of at most `capacity` counters; when one
// more is needed, the median count is taken off every counter and those that have nothing left go. So a count is never
// too large, and too small by at most error() <= 2 total() / capacity; up to `capacity` different values are counted
// exactly. What is kept depends on the order of the rows, not on how they are cut into calls; merging two is
// commutative.
//
// Owns its values. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trimtab {

class HeavyHitters {
  public:
    explicit HeavyHitters(std::size_t capacity);

    void add(std::string_view value, std::uint64_t count = 1);

    // Text i is bytes[offsets[i], offsets[i + 1]); empty ones are missing and passed over.
    void add_texts(const std::int32_t* offsets, const char* bytes, std::size_t count);

    // Each as its eight bytes; missing ones are passed over.
    void add_integers(const std::int64_t* values, std::size_t count);

    void merge(const HeavyHitters& other);

    std::uint64_t total() const { return total_; }  // values added
    std::uint64_t error() const { return error_; }
    std::size_t capacity() const { return capacity_; }

    // Values and counts, the most frequent first, ties by value; true while nothing is added.
    std::vector<std::pair<std::string_view, std::uint64_t>> entries() const;

  private:
    struct Slot {
        std::uint64_t hash = 0;
        std::uint64_t count = 0;  // 0: empty
        std::size_t offset = 0;
        std::size_t size = 0;
    };

    std::string_view text(const Slot& slot) const { return {bytes_.data() + slot.offset, slot.size}; }
    void count_up(std::string_view value, std::uint64_t hash, std::uint64_t count);
    void rebuild(std::size_t slots, std::uint64_t less);
    void purge();

    std::size_t capacity_;
    std::vector<Slot> slots_;
    std::string bytes_;  // of all values
    std::size_t used_ = 0;
    std::uint64_t total_ = 0;
    std::uint64_t error_ = 0;
};

}  // namespace trimtab
