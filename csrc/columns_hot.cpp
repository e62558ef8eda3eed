// The inner loops of the column executor: compiled once per dispatch level, of which TRIMTAB_LEVEL names one. See
// columns_hot.h for what they promise, columns_simd_*.h for how each level takes sixteen values at a time.
//
// Each raw value is read once: what becomes of it as a feature and what the sketch wants of it are worked out together,
// in registers; only its bin is put aside as a byte. The bytes of a block are counted when it ends, bin by bin, so that
// a column in which one value dominates takes no longer than any other.
#include "columns_hot.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace trimtab::hot::TRIMTAB_LEVEL {
namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#include "columns_simd_avx512.h"
#elif defined(__AVX2__)
#include "columns_simd_avx2.h"
#else
#include "columns_simd_any.h"
#endif

constexpr std::size_t kPrefix = 4;  // missing, unseen, negative and positive infinite, then the bins
constexpr std::uint8_t kNoCode = 255;

enum class Feature { none, affine, clipped };

constexpr int kNoSketch = -1;
constexpr int kManyEdges = 0;

TRIMTAB_INLINE std::size_t whole(std::size_t count, std::size_t of) { return (count + of - 1) / of * of; }

// How many edges are <= x, which is not NaN. Without a branch on x, as no value tells the next.
TRIMTAB_INLINE std::size_t bin_of(float x, const float* edges, std::size_t count) {
    std::size_t first = 0;
    for (; count > 1; count -= count / 2) first += (edges[first + count / 2 - 1] <= x ? count / 2 : 0);
    return first + (edges[first] <= x ? 1 : 0);
}

// The code of a bin, and the bin of a code.
template <int kLevels>
constexpr std::size_t code_of(std::size_t bin) {
    if (!kCodesReverse) return bin;
    std::size_t code = 0;
    for (int level = 0; level < kLevels; ++level) code |= ((bin >> (kLevels - 1 - level)) & 1U) << level;
    return code;
}

template <int kLevels>
struct Order {
    std::uint8_t code[std::size_t{1} << kLevels];
    constexpr Order() : code{} {
        for (std::size_t bin = 0; bin < sizeof(code); ++bin)
            code[bin] = static_cast<std::uint8_t>(code_of<kLevels>(bin));
    }
};
template <int kLevels>
constexpr Order<kLevels> kOrder{};

// Adds a block's codes, of which there is room for whole groups of kScanned, to the histogram.
template <int kLevels>
TRIMTAB_INLINE void count_codes(std::uint8_t* codes, std::size_t count, std::size_t bins, std::uint64_t* histogram) {
    const std::size_t there = whole(count, kWide);
    if (count >= kScanFrom) {
        const std::size_t size = whole(there, kScanned);
        for (std::size_t i = there; i < size; i += kWide) __builtin_memset(codes + i, kNoCode, kWide);
        for (std::size_t bin = 0; bin < bins; ++bin) histogram[bin] += scan(codes, size, kOrder<kLevels>.code[bin]);
        return;
    }
    if (count < 64) {  // a code's code is its bin again
        for (std::size_t i = 0; i < count; ++i) {
            if (codes[i] != kNoCode) ++histogram[kOrder<kLevels>.code[codes[i]]];
        }
        return;
    }
    // Four copies, for an addition waits for the one before it to the same place; the last place of each takes NaN.
    std::uint32_t copies[4][256];
    for (auto& copy : copies) {
        for (std::size_t code = 0; code < (std::size_t{1} << kLevels); ++code) copy[code] = 0;
        copy[kNoCode] = 0;
    }
    for (std::size_t i = 0; i < there; i += 4) {
        for (std::size_t j = 0; j < 4; ++j) ++copies[j][codes[i + j]];
    }
    for (std::size_t bin = 0; bin < bins; ++bin) {
        const std::size_t code = kOrder<kLevels>.code[bin];
        histogram[bin] += std::uint64_t{copies[0][code]} + copies[1][code] + copies[2][code] + copies[3][code];
    }
}

TRIMTAB_INLINE double total(const double* lane) {
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

TRIMTAB_INLINE void add_moments(const double* sum, const double* square, float minimum, float maximum,
                                double* moments) {
    const double least = static_cast<double>(minimum) + 0.0;  // -0 becomes +0
    const double most = static_cast<double>(maximum) + 0.0;
    moments[0] = least < moments[0] ? least : moments[0];
    moments[1] = most > moments[1] ? most : moments[1];
    moments[2] += total(sum);
    moments[3] += total(square);
}

void finish(const State& state, double* moments) {
    add_moments(state.sum, state.square, state.minimum, state.maximum, moments);
}

template <Feature kFeature, int kLevels>
void field_as(const Column* column, const Sketch* sketch, const Block& block) {
    constexpr bool kSketch = kLevels != kNoSketch;
    constexpr float kMost = __FLT_MAX__;
    constexpr float kInfinity = __builtin_huge_valf();
    const float* const raw = block.raw;
    const std::size_t rows = block.count;
    const float* const ahead = block.ahead;
    float* const values = block.values;
    float* const flags = block.flags;
    alignas(64) std::uint8_t codes[kSketch ? kRows : 1];
    const F most = splat(kMost);
    const F least = splat(-kMost);
    const F infinity = splat(kInfinity);
    const F nothing = splat(__builtin_nanf(""));
    F clip_low{}, clip_high{}, fill{};
    D8 shift{}, inverse{};
    if constexpr (kFeature != Feature::none) {
        clip_low = splat(column->low);
        clip_high = splat(column->high);
        fill = splat(column->fill);
        shift = splat_double(column->shift);
        inverse = splat_double(column->inverse);
    }
    F range_low{}, range_high{}, center{}, minimum{}, maximum{};
    D8 sketch_shift{}, sum{}, square{};
    Counter missing, known;
    std::size_t negative = 0;
    std::size_t positive = 0;
    if constexpr (kSketch) {
        range_low = splat(sketch->low);
        range_high = splat(sketch->high);
        center = splat(sketch->shift);
        sketch_shift = splat_double(static_cast<double>(sketch->shift));
        minimum = infinity;
        maximum = splat(-kInfinity);
        if (block.state != nullptr) {
            sum = load_double(block.state->sum);
            square = load_double(block.state->square);
        } else {
            sum = square = splat_double(0.0);
        }
    }
    for (std::size_t i = 0; i < rows; i += kWide) {
        __builtin_prefetch(ahead + i);
        const F x = rows - i >= kWide ? load(raw + i) : load_few(raw + i, rows - i);
        const M nan = is_nan(x);
        D wide{};
        F feature = x;
        if constexpr (kSketch) {
            const M odd = not_finite(x);
            const M infinite = both_not(odd, nan);
            wide = widen(select(odd, center, x));  // what is not finite adds exactly 0 to the moments
            if constexpr (kFeature == Feature::affine) {
                feature = narrow(
                    {multiply(subtract(wide.low, shift), inverse), multiply(subtract(wide.high, shift), inverse)});
            }
            F finite = x;
            if (any(infinite)) [[unlikely]] {
                Counter below, above;
                count(below, equal(x, splat(-kInfinity)));
                count(above, equal(x, infinity));
                negative += total(below);
                positive += total(above);
                finite = select(infinite, nothing, x);
                if constexpr (kFeature == Feature::affine) feature = select(infinite, x, feature);
            }
            minimum = smaller(finite, minimum);
            maximum = larger(finite, maximum);
            count(missing, nan);
            count(known, within(x, range_low, range_high));
            const D8 low = subtract(wide.low, sketch_shift);
            const D8 high = subtract(wide.high, sketch_shift);
            sum = add(add(sum, low), high);
            square = add(add(square, multiply(low, low)), multiply(high, high));
            if constexpr (kLevels != kManyEdges) store_codes(codes + i, search<kLevels>(x, *sketch), nan);
        }
        if constexpr (kFeature != Feature::none) {
            if constexpr (kFeature == Feature::clipped || !kSketch) {
                if constexpr (kFeature == Feature::clipped) feature = smaller(clip_high, larger(clip_low, x));
                wide = widen(feature);
                feature = narrow(
                    {multiply(subtract(wide.low, shift), inverse), multiply(subtract(wide.high, shift), inverse)});
            }
            store(values + i, select(nan, fill, smaller(most, larger(least, feature))));
            if (flags != nullptr) store(flags + i, select(nan, splat(1.0F), splat(0.0F)));
        }
    }
    if constexpr (kSketch) {
        const float least_value = least_of(minimum);
        const float most_value = most_of(maximum);
        if (block.state != nullptr) {
            State& state = *block.state;
            state.minimum = least_value < state.minimum ? least_value : state.minimum;
            state.maximum = most_value > state.maximum ? most_value : state.maximum;
            store_double(state.sum, sum);
            store_double(state.square, square);
        } else {
            double lanes[2][8];
            store_double(lanes[0], sum);
            store_double(lanes[1], square);
            add_moments(lanes[0], lanes[1], least_value, most_value, block.moments);
        }
        std::uint64_t* const counts = block.counts;
        const std::size_t absent = total(missing) - (whole(rows, kWide) - rows);
        counts[0] += absent;
        counts[1] += rows - absent - total(known);
        counts[2] += negative;
        counts[3] += positive;
        if constexpr (kLevels != kManyEdges) {
            count_codes<kLevels>(codes, rows, sketch->n_edges + 1, counts + kPrefix);
        } else {
            for (std::size_t i = 0; i < rows; ++i) {
                if (raw[i] == raw[i]) ++counts[kPrefix + bin_of(raw[i], sketch->edges, sketch->n_edges)];
            }
        }
    }
}

template <Feature kFeature>
void field_of(const Column* column, const Sketch* sketch, const Block& block) {
    if (sketch == nullptr) {
        if constexpr (kFeature != Feature::none) field_as<kFeature, kNoSketch>(column, sketch, block);
        return;
    }
    switch (sketch->levels) {
        case 4: return field_as<kFeature, 4>(column, sketch, block);
        case 5: return field_as<kFeature, 5>(column, sketch, block);
        case 6: return field_as<kFeature, 6>(column, sketch, block);
        default: return field_as<kFeature, kManyEdges>(column, sketch, block);
    }
}

void field(const Column* column, const Sketch* sketch, const Block& block) {
    if (column == nullptr) return field_of<Feature::none>(column, sketch, block);
    if (column->clips) return field_of<Feature::clipped>(column, sketch, block);
    return field_of<Feature::affine>(column, sketch, block);
}

void transpose(const float* tile, std::size_t stride, std::size_t columns, std::size_t rows, float* out,
               std::size_t step) {
    if (rows < 3) {
        for (std::size_t r = 0; r < rows; ++r) {
            for (std::size_t c = 0; c < columns; ++c) out[r * step + c] = tile[c * stride + r];
        }
        return;
    }
    for (std::size_t r = 0; r < rows; r += kWide) {
        turn(tile + r, stride, columns, rows - r < kWide ? rows - r : kWide, out + r * step, step);
    }
}

#define TRIMTAB_TEXT(x) #x
#define TRIMTAB_NAME(x) TRIMTAB_TEXT(x)

}  // namespace

extern const Table kTable{TRIMTAB_NAME(TRIMTAB_LEVEL), &field, &finish, &transpose};

}  // namespace trimtab::hot::TRIMTAB_LEVEL
