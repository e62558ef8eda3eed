// The parts that generated sources (kernels/cuda_source.py) are put together from: what a chain makes of a lane's
// values. Parameters lie in the tables, at word offsets that the source knows.
//
// Chains of impute, clip and one scaling (`Scaled`) are the hot ones: clipped in float32, scaled in float64, rounded
// once, as the CPU executor's inner loops do. All other chains go op by op through ops.h in float64. Both give the bits
// that the CPU gives, but for the sign of a zero.
#pragma once

#include "cuda/sketch.h"

namespace trimtab::cuda {

// `place`: the item's position in the group, which is its column among a matrix's turned ones.
TRIMTAB_DEVICE void load_reals(const Warp& warp, const Item& item, Word place, Values& x) {
#if TRIMTAB_MATRIX
    warp.load_turned(place, x);
#else
    warp.load_reals(item.input, x);
#endif
}

// --- numbers --------------------------------------------------------------------------------------------------------

// {shift, inverse} as doubles, {low, high, fill}. kBounded: what comes of low and high is a float32 number.
template <bool kClips, bool kScales, bool kBounded>
struct Scaled {
    double shift;
    double inverse;
    float low;
    float high;
    float fill;

    __device__ __forceinline__ explicit Scaled(const Word* p) {
        if constexpr (kScales) {
            const double2 scaling = __ldg(reinterpret_cast<const double2*>(p));
            shift = scaling.x;
            inverse = scaling.y;
        }
        const uint4 bounds = four(p + 4);
        low = __uint_as_float(bounds.x);
        high = __uint_as_float(bounds.y);
        fill = __uint_as_float(bounds.z);
    }

    __device__ __forceinline__ float operator()(float x) const {
        float y = x;
        if constexpr (kClips) y = fminf(high, fmaxf(low, y));
        if constexpr (kScales) y = static_cast<float>((static_cast<double>(y) - shift) * inverse);
        if constexpr (!kBounded) y = fminf(kMost, fmaxf(-kMost, y));
        return is_missing(x) ? fill : y;
    }
};

// Edges of a chain that are too many for lanes: searched where they lie, in memory that the first cache level holds.
struct TableEdges {
    const Word* edges;
    Word words;

    __device__ __forceinline__ Word bin_of(float x) const {
        Word below = 0;
        for (Word half = (words + 1) / 2; half > 0; half /= 2) {
            if (real(edges + below + half - 1) <= x) below += half;
        }
        return below;
    }
};

// {words, edges, n, probabilities, slopes}: see ops::probability.
TRIMTAB_DEVICE double quantile_normal(const Word* tables, const Word* p, double x) {
    const TableEdges knots{tables + word(p + 1), word(p)};
    const Word last = word(p + 2) - 1;
    x = ops::clip(x, static_cast<double>(real(knots.edges)), static_cast<double>(real(knots.edges + last)));
    const Word below = knots.bin_of(ops::round_down(x));
    const Word knot = below > 0 ? below - 1 : 0;  // 0: NaN
    const double share =
        ops::probability(x, static_cast<double>(real(knots.edges + knot)), wide(tables + word(p + 4) + 2 * knot),
                         wide(tables + word(p + 3) + 2 * knot));
    return ops::is_central(share) || ops::is_nan(share) ? ops::central_quantile(share) : ops::outer_quantile(share);
}

// The bin of [0, last] that x lies in, and its share; of at least two edges.
template <class Edges>
TRIMTAB_DEVICE int share_of(const Edges& edges, const Word* table, int last, double x, float& share) {
    int bin = static_cast<int>(edges.bin_of(ops::round_down(x))) - 1;
    bin = bin < 0 ? 0 : (bin > last ? last : bin);
    share = static_cast<float>(
        ops::bin_share(x, static_cast<double>(real(table + bin)), static_cast<double>(real(table + bin + 1))));
    return bin;
}

TRIMTAB_DEVICE int id_of_bin(Word bin, float x) {
    return static_cast<int>(ops::is_nan(x) ? ops::kNull : ops::kFirst + static_cast<std::int64_t>(bin));
}

// Rows behind the last have no id.
TRIMTAB_DEVICE void pad(const Warp& warp, Ids& ids) {
#pragma unroll
    for (Word v = 0; v < kValues; ++v) {
        if (warp.place(warp.lane, v) >= warp.rows) ids.at[v] = 0;
    }
}

// --- categories -----------------------------------------------------------------------------------------------------

// A category's value. Booleans are 0 and 1.
struct IntegerColumn {
    __device__ __forceinline__ static Id at(const Warp& warp, Word input, Word v) { return warp.integer_at(input, v); }
};

struct BooleanColumn {
    __device__ __forceinline__ static Id at(const Warp& warp, Word input, Word v) {
        const float* const from = static_cast<const float*>(warp.launch.columns[input]) + warp.first;
        const Word place = warp.place(warp.lane, v);
        const float value = place < warp.rows ? from[place] : kNaN;
        return ops::is_nan(value) ? kMissingInteger : (value != 0.0F ? 1 : 0);
    }
};

// {n, values, ids}: the values ascending, and the id of each.
TRIMTAB_DEVICE int vocabulary(const Word* tables, const Word* p, Id value) {
    if (value == kMissingInteger) return static_cast<int>(ops::kNull);
    const Id* const values = reinterpret_cast<const Id*>(tables + word(p + 1));
    Word first = 0;
    Word last = word(p);
    const Word count = last;
    while (first < last) {
        const Word middle = (first + last) / 2;
        if (__ldg(values + middle) < value) {
            first = middle + 1;
        } else {
            last = middle;
        }
    }
    if (first == count || __ldg(values + first) != value) return static_cast<int>(ops::kOov);
    return static_cast<int>(word(tables + word(p + 2) + first));
}

// {buckets, reciprocal}, both of 64 bits.
TRIMTAB_DEVICE int bucket(const Word* p, std::uint64_t hash) {
    const auto* const from = reinterpret_cast<const unsigned long long*>(p);
    return static_cast<int>(ops::bucket_of(hash, __ldg(from), __ldg(from + 1)));
}

TRIMTAB_DEVICE int hash_bucket(const Word* p, Id value) {
    return value == kMissingInteger ? static_cast<int>(ops::kNull) : bucket(p, ops::hash_integer(value));
}

TRIMTAB_DEVICE int cross(const Word* p, Id value, Id other) {
    if (value == kMissingInteger || other == kMissingInteger) return static_cast<int>(ops::kNull);
    return bucket(p, ops::hash_cross(ops::hash_integer(value), ops::hash_integer(other)));
}

// Ids that the host made.
TRIMTAB_DEVICE int staged(const Warp& warp, Word input, Word v) {
    const int* const from = static_cast<const int*>(warp.launch.columns[input]) + warp.first;
    const Word place = warp.place(warp.lane, v);
    return place < warp.rows ? from[place] : 0;
}

// As features, one for each id but PAD.
TRIMTAB_DEVICE void put_one_hot(const Warp& warp, Word feature, Word width, const Ids& ids) {
    Ids at;
    Values one;
#pragma unroll
    for (Word v = 0; v < kValues; ++v) {
        at.at[v] = ids.at[v] - 1;
        one.at[v] = 1.0F;
    }
    warp.spread(feature, width, at, one, 0.0F);
}

}  // namespace trimtab::cuda
