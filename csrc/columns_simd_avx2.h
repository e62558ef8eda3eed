// Sixteen values at a time in AVX2, as two registers. Included by columns_hot.cpp alone, inside of its level's
// namespace. The names mean the same in each of columns_simd_*.h.
#pragma once

#define TRIMTAB_INLINE inline __attribute__((always_inline))

struct F {  // 16 fp32
    __m256 a, b;
};
struct M {  // 16 of yes or no: all ones or zero
    __m256 a, b;
};
struct D8 {  // 8 float64
    __m256d a, b;
};
struct D {  // 16 float64
    D8 low, high;
};
struct Codes {
    __m256i a, b;
};

TRIMTAB_INLINE F load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
TRIMTAB_INLINE F splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
TRIMTAB_INLINE __m256 load_few_of_eight(const float* from, int count) {
    const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), place);
    const __m256 values = count > 0 ? _mm256_maskload_ps(from, there) : _mm256_setzero_ps();
    return _mm256_blendv_ps(_mm256_set1_ps(__builtin_nanf("")), values, _mm256_castsi256_ps(there));
}
TRIMTAB_INLINE F load_few(const float* from, std::size_t count) {  // the others are NaN
    const int few = static_cast<int>(count);
    return {load_few_of_eight(from, few), load_few_of_eight(few > 8 ? from + 8 : from, few - 8)};
}
TRIMTAB_INLINE void store(float* to, F x) {
    _mm256_storeu_ps(to, x.a);
    _mm256_storeu_ps(to + 8, x.b);
}

TRIMTAB_INLINE M is_nan(F x) { return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)}; }
TRIMTAB_INLINE M not_finite(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0F);
    const __m256 most = _mm256_set1_ps(__FLT_MAX__);
    return {_mm256_cmp_ps(_mm256_andnot_ps(sign, x.a), most, _CMP_NLE_UQ),
            _mm256_cmp_ps(_mm256_andnot_ps(sign, x.b), most, _CMP_NLE_UQ)};
}
TRIMTAB_INLINE M both_not(M a, M not_b) { return {_mm256_andnot_ps(not_b.a, a.a), _mm256_andnot_ps(not_b.b, a.b)}; }
TRIMTAB_INLINE M is_within(F x, F low, F high) {
    return {_mm256_and_ps(_mm256_cmp_ps(low.a, x.a, _CMP_LE_OQ), _mm256_cmp_ps(x.a, high.a, _CMP_LE_OQ)),
            _mm256_and_ps(_mm256_cmp_ps(low.b, x.b, _CMP_LE_OQ), _mm256_cmp_ps(x.b, high.b, _CMP_LE_OQ))};
}
TRIMTAB_INLINE M equal(F a, F b) { return {_mm256_cmp_ps(a.a, b.a, _CMP_EQ_OQ), _mm256_cmp_ps(a.b, b.b, _CMP_EQ_OQ)}; }
TRIMTAB_INLINE F select(M m, F yes, F no) {
    return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
// b where neither is the larger, or one is NaN.
TRIMTAB_INLINE F smaller(F a, F b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
TRIMTAB_INLINE F larger(F a, F b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }

TRIMTAB_INLINE float least_of(F x) {  // of no NaN
    const __m256 eight = _mm256_min_ps(x.a, x.b);
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(four, _mm_movehdup_ps(four)));
}
TRIMTAB_INLINE float most_of(F x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

// Eight counts; at most 2^31 additions.
struct Counter {
    __m256i n = _mm256_setzero_si256();
};
TRIMTAB_INLINE void count(Counter& counter, M m) {
    counter.n = _mm256_sub_epi32(_mm256_sub_epi32(counter.n, _mm256_castps_si256(m.a)), _mm256_castps_si256(m.b));
}
TRIMTAB_INLINE std::size_t total(const Counter& counter) {
    __m128i n = _mm_add_epi32(_mm256_castsi256_si128(counter.n), _mm256_extracti128_si256(counter.n, 1));
    n = _mm_add_epi32(n, _mm_shuffle_epi32(n, 0x4E));
    n = _mm_add_epi32(n, _mm_shuffle_epi32(n, 0xB1));
    return static_cast<std::size_t>(static_cast<unsigned>(_mm_cvtsi128_si32(n)));
}

TRIMTAB_INLINE D8 splat_double(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
TRIMTAB_INLINE D8 load_double(const double* from) { return {_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4)}; }
TRIMTAB_INLINE void store_double(double* to, D8 x) {
    _mm256_storeu_pd(to, x.a);
    _mm256_storeu_pd(to + 4, x.b);
}
TRIMTAB_INLINE D8 add(D8 a, D8 b) { return {_mm256_add_pd(a.a, b.a), _mm256_add_pd(a.b, b.b)}; }
TRIMTAB_INLINE D8 subtract(D8 a, D8 b) { return {_mm256_sub_pd(a.a, b.a), _mm256_sub_pd(a.b, b.b)}; }
TRIMTAB_INLINE D8 multiply(D8 a, D8 b) { return {_mm256_mul_pd(a.a, b.a), _mm256_mul_pd(a.b, b.b)}; }
TRIMTAB_INLINE D8 widen_half(__m256 x) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}
TRIMTAB_INLINE D widen(F x) { return {widen_half(x.a), widen_half(x.b)}; }
TRIMTAB_INLINE __m256 narrow_half(D8 x) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(x.a)), _mm256_cvtpd_ps(x.b), 1);
}
TRIMTAB_INLINE F narrow(D x) { return {narrow_half(x.low), narrow_half(x.high)}; }

// From 8 << (bits - 3) edges those at the codes' lowest bits: by eights, then between two at a time by the next bit.
template <int kBits>
TRIMTAB_INLINE __m256 pick(const float* from, __m256i codes) {
    if constexpr (kBits <= 3) {
        return _mm256_permutevar8x32_ps(_mm256_load_ps(from), codes);
    } else {
        const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 32 - kBits));  // the last bit as the sign
        return _mm256_blendv_ps(pick<kBits - 1>(from, codes), pick<kBits - 1>(from + (1 << (kBits - 1)), codes), upper);
    }
}
template <int kLevel, int kLevels>
TRIMTAB_INLINE __m256i descend(__m256 x, __m256i codes, const float* tree) {
    if constexpr (kLevel == kLevels) {
        return codes;
    } else {
        const __m256 edge = pick<kLevel>(tree + 16 * kLevel, codes);
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(edge, x, _CMP_LE_OQ));
        codes = _mm256_or_si256(codes, _mm256_and_si256(above, _mm256_set1_epi32(1 << kLevel)));
        return descend<kLevel + 1, kLevels>(x, codes, tree);
    }
}
// The decisions of a search, the first in the lowest bit.
template <int kLevels>
TRIMTAB_INLINE __m256i search_half(__m256 x, const float* tree) {
    const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(_mm256_set1_ps(tree[0]), x, _CMP_LE_OQ));
    return descend<1, kLevels>(x, _mm256_srli_epi32(above, 31), tree);
}
template <int kLevels>
TRIMTAB_INLINE Codes search(F x, const Sketch& sketch) {
    return {search_half<kLevels>(x.a, sketch.tree), search_half<kLevels>(x.b, sketch.tree)};
}
inline constexpr bool kCodesReverse = true;  // a code is the bin, its bits the other way round

// One byte each, 255 for NaN.
TRIMTAB_INLINE void store_codes(std::uint8_t* to, Codes codes, M nan) {
    const __m256i mixed = _mm256_packs_epi32(_mm256_or_si256(codes.a, _mm256_castps_si256(nan.a)),
                                             _mm256_or_si256(codes.b, _mm256_castps_si256(nan.b)));
    const __m256i words = _mm256_permute4x64_epi64(mixed, 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}

inline constexpr std::size_t kScanned = 32;   // bytes that scan() takes together
inline constexpr std::size_t kScanFrom = 48;  // from so many values on it is worth it

// How many of the bytes, a multiple of kScanned and at most 255 times it, are `code`: as quick when all are as when
// none is. A whole block's loop is of known length, without anything but comparing and counting.
TRIMTAB_INLINE std::size_t scan(const std::uint8_t* codes, std::size_t size, std::uint8_t code) {
    const __m256i wanted = _mm256_set1_epi8(static_cast<char>(code));
    const auto equal_to = [&](std::size_t i) {
        return _mm256_cmpeq_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(codes + i)), wanted);
    };
    __m256i found = _mm256_setzero_si256();
    if (size == kRows) {
        __m256i others = found;
#pragma GCC unroll 8
        for (std::size_t i = 0; i < kRows; i += 2 * kScanned) {
            found = _mm256_sub_epi8(found, equal_to(i));
            others = _mm256_sub_epi8(others, equal_to(i + kScanned));
        }
        found = _mm256_add_epi8(found, others);
    } else {
        for (std::size_t i = 0; i < size; i += kScanned) found = _mm256_sub_epi8(found, equal_to(i));
    }
    const __m256i sums = _mm256_sad_epu8(found, _mm256_setzero_si256());
    const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return static_cast<std::size_t>(_mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1));
}

#include "columns_bins.h"

// 8 x 8, of which `columns` are there; by rows.
TRIMTAB_INLINE void turn_eight(const float* tile, std::size_t stride, std::size_t columns, __m256* a) {
    __m256 b[8];
    for (std::size_t c = 0; c < 8; ++c) a[c] = c < columns ? _mm256_loadu_ps(tile + c * stride) : _mm256_setzero_ps();
    for (std::size_t c = 0; c < 8; c += 4) {
        const __m256 p = _mm256_unpacklo_ps(a[c], a[c + 1]);
        const __m256 q = _mm256_unpackhi_ps(a[c], a[c + 1]);
        const __m256 r = _mm256_unpacklo_ps(a[c + 2], a[c + 3]);
        const __m256 s = _mm256_unpackhi_ps(a[c + 2], a[c + 3]);
        b[c] = _mm256_shuffle_ps(p, r, 0x44);
        b[c + 1] = _mm256_shuffle_ps(p, r, 0xEE);
        b[c + 2] = _mm256_shuffle_ps(q, s, 0x44);
        b[c + 3] = _mm256_shuffle_ps(q, s, 0xEE);
    }
    for (std::size_t r = 0; r < 4; ++r) {
        a[r] = _mm256_permute2f128_ps(b[r], b[4 + r], 0x20);
        a[4 + r] = _mm256_permute2f128_ps(b[r], b[4 + r], 0x31);
    }
}
TRIMTAB_INLINE void turn_some(const float* tile, std::size_t stride, std::size_t columns, std::size_t rows, float* out,
                              std::size_t step) {
    __m256 a[8];
    turn_eight(tile, stride, columns, a);
    if (columns >= 8 && rows >= 8) {
        for (std::size_t r = 0; r < 8; ++r) _mm256_storeu_ps(out + r * step, a[r]);
        return;
    }
    const __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(columns)), place);
    for (std::size_t r = 0; r < 8; ++r) {
        if (r < rows) _mm256_maskstore_ps(out + r * step, there, a[r]);
    }
}
// 16 x 16, of which `columns` and `rows` are there. Streams: past the caches; `out` is then that of whole cache lines,
// and both halves of one are written together, for a line that is half written goes to memory as it is.
template <bool kStreams>
TRIMTAB_INLINE void turn(const float* tile, std::size_t stride, std::size_t columns, std::size_t rows, float* out,
                         std::size_t step) {
    for (std::size_t r = 0; r < rows; r += 8) {
        if constexpr (kStreams) {
            if (rows - r >= 8) {
                __m256 left[8];
                __m256 right[8];
                turn_eight(tile + r, stride, 8, left);
                turn_eight(tile + 8 * stride + r, stride, 8, right);
                for (std::size_t i = 0; i < 8; ++i) {
                    _mm256_stream_ps(out + (r + i) * step, left[i]);
                    _mm256_stream_ps(out + (r + i) * step + 8, right[i]);
                }
                continue;
            }
        }
        turn_some(tile + r, stride, columns, rows - r, out + r * step, step);
        if (columns > 8) turn_some(tile + 8 * stride + r, stride, columns - 8, rows - r, out + r * step + 8, step);
    }
}
