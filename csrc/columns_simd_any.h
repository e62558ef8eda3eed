// Sixteen values at a time on any machine, in the compiler's own vectors: it splits them into what the machine has.
// Included by columns_hot.cpp alone, inside of its level's namespace. The names mean the same in each of
// columns_simd_*.h.
#pragma once

#define TRIMTAB_INLINE inline __attribute__((always_inline))

typedef float F4 __attribute__((vector_size(16)));
typedef std::int32_t M4 __attribute__((vector_size(16)));
typedef double D2 __attribute__((vector_size(16)));

struct F {  // 16 fp32
    F4 v[4];
};
struct M {  // 16 of yes or no: all ones or zero
    M4 v[4];
};
struct D8 {  // 8 float64
    D2 v[4];
};
struct D {  // 16 float64
    D8 low, high;
};
using Codes = M;

template <class To, class Each>
TRIMTAB_INLINE To each(Each of) {
    return {{of(0), of(1), of(2), of(3)}};
}

TRIMTAB_INLINE F4 load_four(const float* from) {
    F4 x;
    __builtin_memcpy(&x, from, sizeof(x));
    return x;
}
TRIMTAB_INLINE F load(const float* from) {
    return each<F>([&](int i) { return load_four(from + 4 * i); });
}
TRIMTAB_INLINE F splat(float x) {
    return each<F>([&](int) { return F4{x, x, x, x}; });
}
TRIMTAB_INLINE F load_few(const float* from, std::size_t count) {  // the others are NaN
    float all[16];
    for (std::size_t i = 0; i < 16; ++i) all[i] = i < count ? from[i] : __builtin_nanf("");
    return load(all);
}
TRIMTAB_INLINE void store(float* to, F x) { __builtin_memcpy(to, &x, sizeof(x)); }

TRIMTAB_INLINE F4 choose(M4 m, F4 yes, F4 no) {
    return reinterpret_cast<F4>((m & reinterpret_cast<M4>(yes)) | (~m & reinterpret_cast<M4>(no)));
}
TRIMTAB_INLINE M is_nan(F x) {
    return each<M>([&](int i) { return static_cast<M4>(x.v[i] != x.v[i]); });
}
TRIMTAB_INLINE M not_finite(F x) {
    const M4 bits{0x7F800000, 0x7F800000, 0x7F800000, 0x7F800000};
    return each<M>([&](int i) { return static_cast<M4>((reinterpret_cast<M4>(x.v[i]) & bits) == bits); });
}
TRIMTAB_INLINE M both_not(M a, M not_b) {
    return each<M>([&](int i) { return a.v[i] & ~not_b.v[i]; });
}
TRIMTAB_INLINE M is_within(F x, F low, F high) {
    return each<M>([&](int i) { return static_cast<M4>(low.v[i] <= x.v[i]) & static_cast<M4>(x.v[i] <= high.v[i]); });
}
TRIMTAB_INLINE M equal(F a, F b) {
    return each<M>([&](int i) { return static_cast<M4>(a.v[i] == b.v[i]); });
}
TRIMTAB_INLINE F select(M m, F yes, F no) {
    return each<F>([&](int i) { return choose(m.v[i], yes.v[i], no.v[i]); });
}
// b where neither is the larger, or one is NaN.
TRIMTAB_INLINE F smaller(F a, F b) {
    return each<F>([&](int i) { return choose(static_cast<M4>(a.v[i] < b.v[i]), a.v[i], b.v[i]); });
}
TRIMTAB_INLINE F larger(F a, F b) {
    return each<F>([&](int i) { return choose(static_cast<M4>(a.v[i] > b.v[i]), a.v[i], b.v[i]); });
}

TRIMTAB_INLINE float least_of(F x) {  // of no NaN
    float least = x.v[0][0];
    for (int i = 1; i < 16; ++i) least = x.v[i / 4][i % 4] < least ? x.v[i / 4][i % 4] : least;
    return least;
}
TRIMTAB_INLINE float most_of(F x) {
    float most = x.v[0][0];
    for (int i = 1; i < 16; ++i) most = x.v[i / 4][i % 4] > most ? x.v[i / 4][i % 4] : most;
    return most;
}

// Four counts; at most 2^31 additions.
struct Counter {
    M4 n{};
};
TRIMTAB_INLINE void count(Counter& counter, M m) { counter.n -= (m.v[0] + m.v[1]) + (m.v[2] + m.v[3]); }
TRIMTAB_INLINE std::size_t total(const Counter& counter) {
    std::size_t sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<std::size_t>(counter.n[i]);
    return sum;
}

TRIMTAB_INLINE D8 splat_double(double x) {
    return each<D8>([&](int) { return D2{x, x}; });
}
TRIMTAB_INLINE D8 load_double(const double* from) {
    D8 x;
    __builtin_memcpy(&x, from, sizeof(x));
    return x;
}
TRIMTAB_INLINE void store_double(double* to, D8 x) { __builtin_memcpy(to, &x, sizeof(x)); }
TRIMTAB_INLINE D8 add(D8 a, D8 b) {
    return each<D8>([&](int i) { return a.v[i] + b.v[i]; });
}
TRIMTAB_INLINE D8 subtract(D8 a, D8 b) {
    return each<D8>([&](int i) { return a.v[i] - b.v[i]; });
}
TRIMTAB_INLINE D8 multiply(D8 a, D8 b) {
    return each<D8>([&](int i) { return a.v[i] * b.v[i]; });
}
TRIMTAB_INLINE D8 widen_half(F4 a, F4 b) { return {{D2{a[0], a[1]}, D2{a[2], a[3]}, D2{b[0], b[1]}, D2{b[2], b[3]}}}; }
TRIMTAB_INLINE D widen(F x) { return {widen_half(x.v[0], x.v[1]), widen_half(x.v[2], x.v[3])}; }
TRIMTAB_INLINE F4 narrow_four(D2 a, D2 b) {
    return F4{static_cast<float>(a[0]), static_cast<float>(a[1]), static_cast<float>(b[0]), static_cast<float>(b[1])};
}
TRIMTAB_INLINE F narrow(D x) {
    return {{narrow_four(x.low.v[0], x.low.v[1]), narrow_four(x.low.v[2], x.low.v[3]),
             narrow_four(x.high.v[0], x.high.v[1]), narrow_four(x.high.v[2], x.high.v[3])}};
}

// The bins themselves, by comparing with every edge: without a permutation there is no quicker search of many.
template <int kLevels>
TRIMTAB_INLINE Codes search(F x, const Sketch& sketch) {
    Codes below{};
    for (std::size_t edge = 0; edge < sketch.n_edges; ++edge) {
        const F edges = splat(sketch.edges[edge]);
        for (int i = 0; i < 4; ++i) below.v[i] -= static_cast<M4>(edges.v[i] <= x.v[i]);
    }
    return below;
}
inline constexpr bool kCodesReverse = false;

// One byte each, 255 for NaN.
TRIMTAB_INLINE void store_codes(std::uint8_t* to, Codes codes, M nan) {
    for (int i = 0; i < 16; ++i) to[i] = static_cast<std::uint8_t>(codes.v[i / 4][i % 4] | nan.v[i / 4][i % 4]);
}

inline constexpr std::size_t kScanned = 16;          // bytes that scan() takes together
inline constexpr std::size_t kScanFrom = kRows + 1;  // never worth it
TRIMTAB_INLINE std::size_t scan(const std::uint8_t*, std::size_t, std::uint8_t) { return 0; }

#include "columns_bins.h"

// 16 x 16, of which `columns` and `rows` are there. Streams: nothing else here.
template <bool kStreams>
TRIMTAB_INLINE void turn(const float* tile, std::size_t stride, std::size_t columns, std::size_t rows, float* out,
                         std::size_t step) {
    for (std::size_t r = 0; r < rows; ++r) {
        for (std::size_t c = 0; c < columns; ++c) out[r * step + c] = tile[c * stride + r];
    }
}
