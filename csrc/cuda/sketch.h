// A warp's rows counted for the sketch: a histogram of its own in shared memory, moments in each lane.
//
// Of a field's histogram up to 31 edges lie in the warp's lanes, and a value finds its bin by five comparisons, four of
// which ask another lane for the edge. More edges lie in shared memory. Adding 1 to a shared counter whose old value
// nobody asks for is ATOMS.POPC.INC: lanes of the same bin are added up by the hardware, so a constant column takes no
// longer than a uniform one. Every lane keeps the sum and the sum of squares of (x - shift) in float64; they are added
// up in fixed order when the block ends. No float is ever added atomically.
#pragma once

#include "cuda/warp.h"

namespace trimtab::cuda {

constexpr Word kLaneEdges = 31;
constexpr Word kPrefix = 4;  // missing, unseen, negative and positive infinite

// One instruction instead of the two that the compiler finds, four times a value.
TRIMTAB_DEVICE void add_if_not_above(Word& sum, Word part, float edge, float x) {
#ifdef __CUDACC__
    asm("{ .reg .pred p; setp.le.f32 p, %1, %2; @p add.u32 %0, %0, %3; }" : "+r"(sum) : "f"(edge), "f"(x), "r"(part));
#else
    if (edge <= x) sum += part;
#endif
}

// Adds 1 to a counter in shared memory. By a 32-bit address: the compiler works the generic one out anew for each value.
TRIMTAB_DEVICE void count_shared(Word* counts, Word slot) {
#ifdef __CUDACC__
    const auto at = static_cast<Word>(__cvta_generic_to_shared(counts));
    asm volatile("red.shared.add.u32 [%0], 1;" ::"r"(at + 4 * slot) : "memory");
#else
    ++counts[slot];
#endif
}

// At most 2^kLevels - 1 edges. Lane l holds, for the decision between h edges, that at l + h - 1; where there is none,
// NaN, which is <= nothing.
template <int kLevels>
struct LaneEdges {
    float first;
    float level[kLevels];

    __device__ __forceinline__ LaneEdges(const Word* edges, Word lane) {
        first = real(edges + (1 << (kLevels - 1)) - 1);
#pragma unroll
        for (int i = 1; i < kLevels; ++i) level[i] = real(edges + lane + (1 << (kLevels - 1 - i)) - 1);
    }

    // How many edges are <= x; 0 for NaN. All lanes of the warp take part.
    __device__ __forceinline__ Word bin_of(float x) const {
        Word below = first <= x ? 1U << (kLevels - 1) : 0U;
#pragma unroll
        for (int i = 1; i < kLevels; ++i) {
            const float edge = __shfl_sync(kAll, level[i], static_cast<int>(below));
            add_if_not_above(below, 1U << (kLevels - 1 - i), edge, x);
        }
        return below;
    }
};

// So many edges, filled up with NaN to 2^k - 1 of them; words + 1 is that 2^k.
TRIMTAB_DEVICE Word bin_among(const float* edges, Word words, float x) {
    Word below = 0;
    for (Word half = (words + 1) / 2; half > 0; half /= 2) {
        if (edges[below + half - 1] <= x) below += half;
    }
    return below;
}

struct Moments {
    double sum;
    double square;
    float least;
    float most;
};

struct Sketched {
    const Warp& warp;
    const Item& item;
    Word* counts;
    double2* sums;
    float2* extremes;

    __device__ __forceinline__ Sketched(const Warp& w, const Item& i) : warp(w), item(i) {
        const Word state = (w.states + i.state) * 32 + w.lane;
        counts = w.shared + w.histograms + i.histogram;
        sums = reinterpret_cast<double2*>(w.shared) + state;
        extremes = reinterpret_cast<float2*>(w.shared + w.extremes) + state;
    }

    __device__ __forceinline__ void count(Word slot) const { count_shared(counts, slot); }

    // What is outside of the range that training saw; among it infinities, which have no part in the moments.
    __device__ __forceinline__ void look_again(const Values& x, float low, float high, float shift,
                                               Moments& moments) const {
        Word unseen = 0, negative = 0, positive = 0;
        moments.least = kInfinity;
        moments.most = -kInfinity;
#pragma unroll
        for (Word v = 0; v < kValues; ++v) {
            const float value = x.at[v];
            unseen += value < low || value > high;
            negative += value == -kInfinity;
            positive += value == kInfinity;
            if (!(value >= -kMost && value <= kMost)) continue;
            moments.least = fminf(moments.least, value);
            moments.most = fmaxf(moments.most, value);
            const double d = static_cast<double>(value) - static_cast<double>(shift);
            moments.sum += d;
            moments.square = __fma_rn(d, d, moments.square);
        }
        Word* const rare = counts + item.buckets;
        if (unseen != 0) atomicAdd(&rare[1], unseen);
        if (negative != 0) atomicAdd(&rare[2], negative);
        if (positive != 0) atomicAdd(&rare[3], positive);
    }

    __device__ __forceinline__ void add_moments(const Values& x) const {
        const uint4 parameters = four(warp.launch.tables + item.sketch);
        const float low = __uint_as_float(parameters.x);
        const float high = __uint_as_float(parameters.y);
        const float shift = __uint_as_float(parameters.z);
        const double2 before = *sums;
        Moments moments{before.x, before.y, kInfinity, -kInfinity};
#pragma unroll
        for (Word v = 0; v < kValues; ++v) {
            const float value = x.at[v];
            moments.least = fminf(moments.least, value);  // passes over NaN
            moments.most = fmaxf(moments.most, value);
            const double d = static_cast<double>(ops::is_nan(value) ? shift : value) - static_cast<double>(shift);
            moments.sum += d;
            moments.square = __fma_rn(d, d, moments.square);
        }
        if (moments.least < low || moments.most > high) {
            moments.sum = before.x;
            moments.square = before.y;
            look_again(x, low, high, shift, moments);
        }
        *sums = make_double2(moments.sum, moments.square);
        const float2 seen = *extremes;
        *extremes = make_float2(fminf(seen.x, moments.least), fmaxf(seen.y, moments.most));
    }
};

template <int kLevels>
TRIMTAB_DEVICE void sketch_in_lanes(const Warp& warp, const Item& item, const Values& x) {
    const Sketched sketch(warp, item);
    const LaneEdges<kLevels> edges(warp.launch.tables + item.sketch + 4, warp.lane);
    sketch.add_moments(x);
#pragma unroll
    for (Word v = 0; v < kValues; ++v) {
        const Word bin = edges.bin_of(x.at[v]);
        sketch.count(is_missing(x.at[v]) ? item.buckets : bin);
    }
}

TRIMTAB_DEVICE void sketch_in_memory(const Warp& warp, const Item& item, const Values& x) {
    const Sketched sketch(warp, item);
    const float* const edges = reinterpret_cast<const float*>(warp.shared + warp.edges + item.edges);
    sketch.add_moments(x);
#pragma unroll
    for (Word v = 0; v < kValues; ++v) {
        sketch.count(is_missing(x.at[v]) ? item.buckets : bin_among(edges, item.edge_words, x.at[v]));
    }
}

// Ids by a vocabulary's positions; PAD is no row.
TRIMTAB_DEVICE void sketch_ids(const Warp& warp, const Item& item, const Ids& ids) {
    const Sketched sketch(warp, item);
    const int others = static_cast<int>(item.buckets) - 1;
#pragma unroll
    for (Word v = 0; v < kValues; ++v) {
        const int position = ids.at[v] - static_cast<int>(ops::kFirst);
        if (ids.at[v] == 0) continue;
        sketch.count(position < 0 ? item.buckets + static_cast<Word>(ids.at[v] - 1)
                                  : static_cast<Word>(position < others ? position : others));
    }
}

}  // namespace trimtab::cuda
