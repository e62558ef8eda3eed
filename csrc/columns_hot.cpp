// The inner loops of the column executor: compiled once per dispatch level, of which TRIMTAB_LEVEL names one. See
// columns_hot.h for what they promise, columns_simd_*.h for how each level takes sixteen values at a time.
//
// Each raw value is read once: what becomes of it as a feature and what the sketch wants of it are worked out together,
// in registers; only what tells its bin is put aside. The bins are counted when a block ends, each over all values, so
// that a column in which one value dominates takes no longer than any other.
#include "columns_hot.h"

#include "columns_ops.h"

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

constexpr float kMost = __FLT_MAX__;
constexpr float kInfinity = __builtin_huge_valf();

enum class Feature { none, affine, clipped };

constexpr int kNoSketch = -1;
constexpr int kManyEdges = 0;

// How many edges are <= x, which is not NaN. Without a branch on x, as no value tells the next.
TRIMTAB_INLINE std::size_t bin_of(float x, const float* edges, std::size_t count) {
    std::size_t first = 0;
    for (; count > 1; count -= count / 2) first += (edges[first + count / 2 - 1] <= x ? count / 2 : 0);
    return first + (edges[first] <= x ? 1 : 0);
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

// What a block holds beside ordinary values: found in a second look, which few blocks need.
struct Rare {
    std::size_t unseen = 0;
    std::size_t negative = 0;  // infinite
    std::size_t positive = 0;
    float minimum = 0.0F;  // of finite values
    float maximum = 0.0F;
};

TRIMTAB_INLINE void begin_moments(const Block& block, D8& sum, D8& square) {
    if (block.state != nullptr) {
        sum = load_double(block.state->sum);
        square = load_double(block.state->square);
    } else {
        sum = square = splat_double(0.0);
    }
}

TRIMTAB_INLINE void add_moments(D x, D8 shift, D8& sum, D8& square) {
    const D8 low = subtract(x.low, shift);
    const D8 high = subtract(x.high, shift);
    sum = add(add(sum, low), high);
    square = add(add(square, multiply(low, low)), multiply(high, high));
}

// The moments of a block that holds infinities, which add 0 as NaN does.
void sum_finite(const Sketch& sketch, const float* raw, std::size_t rows, D8& sum, D8& square) {
    const F center = splat(sketch.shift);
    const D8 shift = splat_double(static_cast<double>(sketch.shift));
    for (std::size_t i = 0; i < rows; i += kWide) {
        const F x = rows - i >= kWide ? load(raw + i) : load_few(raw + i, rows - i);
        add_moments(widen(select(not_finite(x), center, x)), shift, sum, square);
    }
}

// `values`: features that are to be clamped where x is infinite; null where that is done.
Rare look_again(const Sketch& sketch, const float* raw, std::size_t rows, float* values) {
    const F infinity = splat(kInfinity);
    const F low = splat(sketch.low);
    const F high = splat(sketch.high);
    F minimum = infinity;
    F maximum = splat(-kInfinity);
    Counter missing, within, negative, positive;
    for (std::size_t i = 0; i < rows; i += kWide) {
        const F x = rows - i >= kWide ? load(raw + i) : load_few(raw + i, rows - i);
        const M nan = is_nan(x);
        const M infinite = both_not(not_finite(x), nan);
        count(missing, nan);
        count(within, is_within(x, low, high));
        count(negative, equal(x, splat(-kInfinity)));
        count(positive, equal(x, infinity));
        const F finite = select(infinite, splat(__builtin_nanf("")), x);
        minimum = smaller(finite, minimum);
        maximum = larger(finite, maximum);
        if (values != nullptr) {
            store(values + i, select(infinite, smaller(splat(kMost), larger(splat(-kMost), x)), load(values + i)));
        }
    }
    const std::size_t places = (rows + kWide - 1) / kWide * kWide;
    return {places - total(missing) - total(within), total(negative), total(positive), least_of(minimum),
            most_of(maximum)};
}

template <Feature kFeature, int kLevels>
void field_as(const Column* column, const Sketch* sketch, const Block& block) {
    constexpr bool kSketch = kLevels != kNoSketch;
    const float* const raw = block.raw;
    const std::size_t rows = block.count;
    const float* const ahead = block.ahead;
    float* const values = block.values;
    float* const flags = block.flags;
    F clip_low{}, clip_high{}, fill{};
    D8 shift{}, inverse{};
    if constexpr (kFeature != Feature::none) {
        clip_low = splat(column->low);
        clip_high = splat(column->high);
        fill = splat(column->fill);
        shift = splat_double(column->shift);
        inverse = splat_double(column->inverse);
    }
    Bins<(kLevels > 0 ? kLevels : 1)> bins;
    F center{}, minimum{}, maximum{};
    D8 sketch_shift{}, sum{}, square{};
    if constexpr (kSketch) {
        center = splat(sketch->shift);
        sketch_shift = splat_double(static_cast<double>(sketch->shift));
        minimum = splat(kInfinity);
        maximum = splat(-kInfinity);
        begin_moments(block, sum, square);
    }
    for (std::size_t i = 0; i < rows; i += kWide) {
        __builtin_prefetch(ahead + i);
        const F x = rows - i >= kWide ? load(raw + i) : load_few(raw + i, rows - i);
        const M nan = is_nan(x);
        D wide{};
        if constexpr (kSketch) {
            wide = widen(select(nan, center, x));  // NaN adds exactly 0 to the moments; infinity, if any, see below
            minimum = smaller(x, minimum);
            maximum = larger(x, maximum);
            add_moments(wide, sketch_shift, sum, square);
            if constexpr (kLevels > 0) bins.put(i, x, nan, *sketch);
        }
        if constexpr (kFeature != Feature::none) {
            if constexpr (kFeature == Feature::clipped) {
                wide = widen(smaller(clip_high, larger(clip_low, x)));
            } else if constexpr (!kSketch) {
                wide = widen(x);
            }
            F feature =
                narrow({multiply(subtract(wide.low, shift), inverse), multiply(subtract(wide.high, shift), inverse)});
            if constexpr (kFeature == Feature::affine) feature = smaller(splat(kMost), larger(splat(-kMost), feature));
            store(values + i, select(nan, fill, feature));
            if (flags != nullptr) store(flags + i, select(nan, splat(1.0F), splat(0.0F)));
        }
    }
    if constexpr (kSketch) {
        std::uint64_t* const counts = block.counts;
        float least = least_of(minimum);
        float most = most_of(maximum);
        if (least < sketch->low || most > sketch->high) [[unlikely]] {  // the range is finite
            const bool infinite = least == -kInfinity || most == kInfinity;
            const Rare rare =
                look_again(*sketch, raw, rows, kFeature == Feature::affine && infinite ? values : nullptr);
            counts[1] += rare.unseen;
            counts[2] += rare.negative;
            counts[3] += rare.positive;
            least = rare.minimum;
            most = rare.maximum;
            if (infinite) {
                begin_moments(block, sum, square);
                sum_finite(*sketch, raw, rows, sum, square);
            }
        }
        if (block.state != nullptr) {
            State& state = *block.state;
            state.minimum = least < state.minimum ? least : state.minimum;
            state.maximum = most > state.maximum ? most : state.maximum;
            store_double(state.sum, sum);
            store_double(state.square, square);
        } else {
            double lanes[2][8];
            store_double(lanes[0], sum);
            store_double(lanes[1], square);
            add_moments(lanes[0], lanes[1], least, most, block.moments);
        }
        std::size_t numbers = 0;
        if constexpr (kLevels > 0) {
            numbers = bins.count(rows, sketch->n_edges + 1, counts + kPrefix);
        } else {
            for (std::size_t i = 0; i < rows; ++i) {
                if (raw[i] != raw[i]) continue;
                ++counts[kPrefix + bin_of(raw[i], sketch->edges, sketch->n_edges)];
                ++numbers;
            }
        }
        counts[0] += rows - numbers;  // missing
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

template <bool kStreams>
void transpose_as(const float* tile, std::size_t stride, std::size_t columns, std::size_t rows, float* out,
                  std::size_t step) {
    for (std::size_t r = 0; r < rows; r += kWide) {
        turn<kStreams>(tile + r, stride, columns, rows - r < kWide ? rows - r : kWide, out + r * step, step);
    }
}

void transpose(const float* tile, std::size_t stride, std::size_t columns, std::size_t rows, float* out,
               std::size_t step, bool streams) {
    if (rows < 3) {
        for (std::size_t r = 0; r < rows; ++r) {
            for (std::size_t c = 0; c < columns; ++c) out[r * step + c] = tile[c * stride + r];
        }
        return;
    }
    const bool whole_lines = columns == kWide && reinterpret_cast<std::uintptr_t>(out) % 64 == 0 && step % kWide == 0;
    if (streams && whole_lines) {
        transpose_as<true>(tile, stride, columns, rows, out, step);
    } else {
        transpose_as<false>(tile, stride, columns, rows, out, step);
    }
}

#define TRIMTAB_TEXT(x) #x
#define TRIMTAB_NAME(x) TRIMTAB_TEXT(x)

}  // namespace

extern const Table kTable{TRIMTAB_NAME(TRIMTAB_LEVEL), &kOps, &field, &finish, &transpose};

}  // namespace trimtab::hot::TRIMTAB_LEVEL
