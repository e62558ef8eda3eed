#include "columns_lookup.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace trimtab {
namespace {

constexpr auto kNull = static_cast<std::int32_t>(ops::kNull);
constexpr auto kOov = static_cast<std::int32_t>(ops::kOov);
constexpr auto kFirst = static_cast<std::int32_t>(ops::kFirst);
constexpr std::int64_t kMissing = -__INT64_MAX__ - 1;

constexpr std::size_t kSmall = 128;  // up to so many values a table without collisions is looked for
// Up to so many values take a quarter of the slots, so that the first look decides mostly.
constexpr std::size_t kSparse = 2048;
constexpr int kTries = 200;
constexpr std::size_t kCached = std::size_t{256} << 10;  // bytes of slots beyond which they are asked for ahead
constexpr std::size_t kAhead = 16;                       // so many values

// The log2 of the number of slots. A table without collisions takes more of them: of n values in m slots, thrown at
// random, none collides with probability exp(-n² / 2m).
int bits_for(std::size_t values, bool perfect) {
    const std::size_t wanted = perfect ? values * values / 8 : (values <= kSparse ? values * 4 : 0);
    int bits = 1;
    while (std::size_t{1} << bits < std::max(values * 2, wanted)) ++bits;
    return bits;
}

std::uint64_t odd(int attempt) { return ops::mix(static_cast<std::uint64_t>(attempt)) | 1U; }

std::uint64_t load(const char* from) {
    std::uint64_t word;
    std::memcpy(&word, from, sizeof(word));
    return word;
}

struct Masks {
    std::uint64_t first[17];
    std::uint64_t second[17];
    constexpr Masks() : first{}, second{} {
        for (unsigned size = 0; size <= 16; ++size) {
            first[size] = size >= 8 ? ~0ULL : (1ULL << (8 * size)) - 1;
            second[size] = size <= 8 ? 0 : (size == 16 ? ~0ULL : (1ULL << (8 * (size - 8))) - 1);
        }
    }
};
constexpr Masks kMasks;

// Of more than 16 bytes, the last word over the one before. Whoever chose texts that collide would only make them
// slower.
std::uint64_t hash_long(const char* text, std::size_t size) {
    std::uint64_t h = size * ops::kGolden;
    for (std::size_t i = 0; i + 8 <= size; i += 8) {
        h = (h ^ load(text + i)) * 0x9fb21c651e98df25ULL;
        h ^= h >> 32;
    }
    return ops::mix(h ^ load(text + size - 8));
}

}  // namespace

// --- integers -------------------------------------------------------------------------------------------------------

bool IntegerLookup::build(std::vector<std::int64_t> values) {
    values_ = std::move(values);
    if (values_.empty()) return true;
    const auto [least, most] = std::minmax_element(values_.begin(), values_.end());
    const std::uint64_t span = static_cast<std::uint64_t>(*most) - static_cast<std::uint64_t>(*least);
    if (span < std::max<std::uint64_t>(256, 4 * values_.size())) {
        first_ = *least;
        dense_.assign(span + 2, kOov);  // the last for whatever lies outside
        for (std::size_t i = 0; i < values_.size(); ++i) {
            std::int32_t& id = dense_[static_cast<std::uint64_t>(values_[i]) - static_cast<std::uint64_t>(first_)];
            if (id != kOov) return false;
            id = kFirst + static_cast<std::int32_t>(i);
        }
        return true;
    }
    if (values_.size() <= kSmall) {
        for (int attempt = 0; attempt < kTries; ++attempt) {
            if (place(odd(attempt), true)) return true;
        }
    }
    return place(ops::kGolden, false);
}

bool IntegerLookup::place(std::uint64_t multiplier, bool perfect) {
    const int bits = bits_for(values_.size(), perfect);
    multiplier_ = multiplier;
    shift_ = 64 - bits;
    perfect_ = perfect;
    slots_.assign(std::size_t{1} << bits, Slot{});
    for (std::size_t i = 0; i < values_.size(); ++i) {
        std::size_t at = slot_of(values_[i]);
        for (; slots_[at].id != kOov; at = (at + 1) & (slots_.size() - 1)) {
            if (perfect || slots_[at].value == values_[i]) return false;
        }
        slots_[at] = {values_[i], kFirst + static_cast<std::int32_t>(i)};
    }
    return true;
}

std::int32_t IntegerLookup::find(std::int64_t value) const {
    if (!dense_.empty()) {
        const std::uint64_t at = static_cast<std::uint64_t>(value) - static_cast<std::uint64_t>(first_);
        return dense_[std::min<std::uint64_t>(at, dense_.size() - 1)];
    }
    std::size_t at = slot_of(value);
    if (!perfect_) {
        while (slots_[at].value != value && slots_[at].id != kOov) at = (at + 1) & (slots_.size() - 1);
    }
    return slots_[at].value == value ? slots_[at].id : kOov;
}

void IntegerLookup::find(const std::int64_t* values, std::size_t count, std::int32_t* ids) const {
    const auto each = [&](auto id_of) {
        for (std::size_t i = 0; i < count; ++i) {
            const std::int32_t id = id_of(i);
            ids[i] = values[i] == kMissing ? kNull : id;
        }
    };
    if (!dense_.empty()) return each([&](std::size_t i) {
        const std::uint64_t at = static_cast<std::uint64_t>(values[i]) - static_cast<std::uint64_t>(first_);
        return dense_[std::min<std::uint64_t>(at, dense_.size() - 1)];
    });
    if (perfect_) return each([&](std::size_t i) {
        const Slot& slot = slots_[slot_of(values[i])];
        return slot.value == values[i] ? slot.id : kOov;
    });
    const bool ahead = slots_.size() * sizeof(Slot) > kCached;
    each([&](std::size_t i) {
        if (ahead) __builtin_prefetch(&slots_[slot_of(values[std::min(i + kAhead, count - 1)])]);
        return find(values[i]);
    });
}

// --- texts ----------------------------------------------------------------------------------------------------------

// end: up to where bytes may be read.
TextLookup::Key TextLookup::key_of(const char* text, std::size_t size, const char* end) {
    if (size > 16) return {load(text), hash_long(text, size), size};
    char few[16] = {};
    if (end - text < 16) {
        if (size > 0) std::memcpy(few, text, size);
        text = few;
    }
    return {load(text) & kMasks.first[size], load(text + 8) & kMasks.second[size], size};
}

std::size_t TextLookup::slot_of(const Key& key) const {
    std::uint64_t h = (key.first ^ seed_) * 0xff51afd7ed558ccdULL;
    h = (h ^ (h >> 32) ^ key.second ^ (key.size << 56)) * 0x9fb21c651e98df25ULL;
    h = (h ^ (h >> 32)) * ops::kGolden;
    return static_cast<std::size_t>(h >> shift_);
}

bool TextLookup::build(std::vector<std::string> values) {
    values_ = std::move(values);
    if (values_.empty()) return true;
    if (values_.size() <= kSmall) {
        for (int attempt = 0; attempt < kTries; ++attempt) {
            if (place(odd(attempt), true)) return true;
        }
    }
    return place(0, false);
}

bool TextLookup::place(std::uint64_t seed, bool perfect) {
    const int bits = bits_for(values_.size(), perfect);
    seed_ = seed;
    shift_ = 64 - bits;
    perfect_ = perfect;
    slots_.assign(std::size_t{1} << bits, Slot{});
    for (std::size_t i = 0; i < values_.size(); ++i) {
        const std::string& value = values_[i];
        const Key key = key_of(value.data(), value.size(), value.data() + value.size());
        std::size_t at = slot_of(key);
        for (; slots_[at].id != kOov; at = (at + 1) & (slots_.size() - 1)) {
            if (perfect || values_[static_cast<std::size_t>(slots_[at].id - kFirst)] == value) return false;
        }
        slots_[at] = {key.first, key.second, static_cast<std::uint32_t>(value.size()),
                      kFirst + static_cast<std::int32_t>(i), value.data()};
    }
    return true;
}

template <bool kPerfect>
std::int32_t TextLookup::look(const Key& key, const char* text) const {
    for (std::size_t at = slot_of(key);; at = (at + 1) & (slots_.size() - 1)) {
        const Slot& slot = slots_[at];
        bool same = (slot.first == key.first) & (slot.second == key.second) & (slot.size == key.size);
        if (key.size > 16 && same) same = std::memcmp(slot.text, text, key.size) == 0;
        if (kPerfect) return same ? slot.id : kOov;
        if (same || slot.id == kOov) return slot.id;
    }
}

template <bool kPerfect>
void TextLookup::find_all(const std::int32_t* offsets, const char* bytes, std::size_t count, std::int32_t* ids) const {
    constexpr std::size_t kTogether = 64;
    Key keys[kTogether];
    const char* const end = bytes + offsets[count];
    const bool ahead = slots_.size() * sizeof(Slot) > kCached;
    for (std::size_t i = 0; i < count; i += kTogether) {
        const std::size_t some = std::min(kTogether, count - i);
        for (std::size_t j = 0; j < some; ++j) {
            const std::int32_t offset = offsets[i + j];
            keys[j] = key_of(bytes + offset, static_cast<std::size_t>(offsets[i + j + 1] - offset), end);
            if (ahead) __builtin_prefetch(&slots_[slot_of(keys[j])]);
        }
        for (std::size_t j = 0; j < some; ++j) {
            const std::int32_t id = look<kPerfect>(keys[j], bytes + offsets[i + j]);
            ids[i + j] = keys[j].size == 0 ? kNull : id;
        }
    }
}

void TextLookup::find(const std::int32_t* offsets, const char* bytes, std::size_t count, std::int32_t* ids) const {
    return perfect_ ? find_all<true>(offsets, bytes, count, ids) : find_all<false>(offsets, bytes, count, ids);
}

}  // namespace trimtab
