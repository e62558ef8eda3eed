#include "heavy_hitters.h"

#include <algorithm>
#include <cstring>

#include "ops.h"

namespace trimtab {
namespace {

constexpr std::size_t kLeastSlots = 64;
constexpr std::int64_t kMissing = -__INT64_MAX__ - 1;

std::uint64_t hash_of(std::string_view value) {
    std::uint64_t h = value.size() * ops::kGolden;
    const char* from = value.data();
    std::size_t left = value.size();
    for (; left >= 8; from += 8, left -= 8) {
        std::uint64_t word;
        std::memcpy(&word, from, 8);
        h = (h ^ word) * 0x9fb21c651e98df25ULL;
        h ^= h >> 32;
    }
    std::uint64_t rest = 0;
    if (left > 0) std::memcpy(&rest, from, left);
    return ops::mix(h ^ rest);
}

}  // namespace

HeavyHitters::HeavyHitters(std::size_t capacity) : capacity_(std::max<std::size_t>(capacity, 1)), slots_(kLeastSlots) {}

void HeavyHitters::add(std::string_view value, std::uint64_t count) {
    total_ += count;
    count_up(value, hash_of(value), count);
    if (used_ > capacity_) purge();
}

void HeavyHitters::count_up(std::string_view value, std::uint64_t hash, std::uint64_t count) {
    if (count == 0) return;
    std::size_t at = hash & (slots_.size() - 1);
    for (; slots_[at].count > 0; at = (at + 1) & (slots_.size() - 1)) {
        if (slots_[at].hash == hash && text(slots_[at]) == value) {
            slots_[at].count += count;
            return;
        }
    }
    slots_[at] = {hash, count, bytes_.size(), value.size()};
    bytes_.append(value);
    if (++used_ * 2 > slots_.size()) rebuild(slots_.size() * 2, 0);
}

void HeavyHitters::add_texts(const std::int32_t* offsets, const char* bytes, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const auto size = static_cast<std::size_t>(offsets[i + 1] - offsets[i]);
        if (size > 0) add({bytes + offsets[i], size});
    }
}

void HeavyHitters::add_integers(const std::int64_t* values, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        if (values[i] != kMissing) add({reinterpret_cast<const char*>(values + i), sizeof(values[i])});
    }
}

void HeavyHitters::merge(const HeavyHitters& other) {
    const std::vector<Slot> theirs = other.slots_;  // it may be this one
    const std::string bytes = other.bytes_;
    total_ += other.total_;
    error_ += other.error_;
    for (const Slot& slot : theirs) count_up({bytes.data() + slot.offset, slot.size}, slot.hash, slot.count);
    while (used_ > capacity_) purge();
}

// Takes the median count off all.
void HeavyHitters::purge() {
    std::vector<std::uint64_t> counts;
    counts.reserve(used_);
    for (const Slot& slot : slots_) {
        if (slot.count > 0) counts.push_back(slot.count);
    }
    const auto middle = counts.begin() + static_cast<std::ptrdiff_t>(counts.size() / 2);
    std::nth_element(counts.begin(), middle, counts.end());
    error_ += *middle;
    rebuild(slots_.size(), *middle);
}

void HeavyHitters::rebuild(std::size_t slots, std::uint64_t less) {
    const std::vector<Slot> before = std::exchange(slots_, std::vector<Slot>(slots));
    const std::string bytes = std::exchange(bytes_, {});
    bytes_.reserve(bytes.size());
    used_ = 0;
    for (const Slot& slot : before) {
        if (slot.count <= less) continue;
        std::size_t at = slot.hash & (slots - 1);
        while (slots_[at].count > 0) at = (at + 1) & (slots - 1);
        slots_[at] = {slot.hash, slot.count - less, bytes_.size(), slot.size};
        bytes_.append(bytes, slot.offset, slot.size);
        ++used_;
    }
}

std::vector<std::pair<std::string_view, std::uint64_t>> HeavyHitters::entries() const {
    std::vector<std::pair<std::string_view, std::uint64_t>> found;
    for (const Slot& slot : slots_) {
        if (slot.count > 0) found.emplace_back(text(slot), slot.count);
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
        return a.second != b.second ? a.second > b.second : a.first < b.first;
    });
    return found;
}

}  // namespace trimtab
