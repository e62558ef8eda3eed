// Sixteen values at a time in AVX-512 (F, BW, DQ, VL). Included by columns_hot.cpp alone, inside of its level's
// namespace. The names mean the same in each of columns_simd_*.h.
#pragma once

#define TRIMTAB_INLINE inline __attribute__((always_inline))

using F = __m512;     // 16 fp32
using M = __mmask16;  // 16 of yes or no
using D8 = __m512d;   // 8 float64
struct D {            // 16 float64
    D8 low, high;
};
using Codes = __m512i;

TRIMTAB_INLINE F load(const float* from) { return _mm512_loadu_ps(from); }
TRIMTAB_INLINE F splat(float x) { return _mm512_set1_ps(x); }
TRIMTAB_INLINE F load_few(const float* from, std::size_t count) {  // the others are NaN
    return _mm512_mask_loadu_ps(splat(__builtin_nanf("")), static_cast<M>((1U << count) - 1U), from);
}
TRIMTAB_INLINE void store(float* to, F x) { _mm512_storeu_ps(to, x); }

TRIMTAB_INLINE M is_nan(F x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
TRIMTAB_INLINE M not_finite(F x) { return _mm512_fpclass_ps_mask(x, 0x99); }
TRIMTAB_INLINE M both_not(M a, M not_b) { return _kandn_mask16(not_b, a); }
TRIMTAB_INLINE M is_within(F x, F low, F high) {
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(low, x, _CMP_LE_OQ), x, high, _CMP_LE_OQ);
}
TRIMTAB_INLINE M equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
TRIMTAB_INLINE F select(M m, F yes, F no) { return _mm512_mask_mov_ps(no, m, yes); }
// b where neither is the larger, or one is NaN.
TRIMTAB_INLINE F smaller(F a, F b) { return _mm512_min_ps(a, b); }
TRIMTAB_INLINE F larger(F a, F b) { return _mm512_max_ps(a, b); }

TRIMTAB_INLINE float least_of(F x) { return _mm512_reduce_min_ps(x); }  // of no NaN
TRIMTAB_INLINE float most_of(F x) { return _mm512_reduce_max_ps(x); }

struct Counter {
    std::size_t n = 0;
};
TRIMTAB_INLINE void count(Counter& counter, M m) {
    counter.n += static_cast<std::size_t>(__builtin_popcount(_cvtmask16_u32(m)));
}
TRIMTAB_INLINE std::size_t total(const Counter& counter) { return counter.n; }

TRIMTAB_INLINE D8 splat_double(double x) { return _mm512_set1_pd(x); }
TRIMTAB_INLINE D8 load_double(const double* from) { return _mm512_loadu_pd(from); }
TRIMTAB_INLINE void store_double(double* to, D8 x) { _mm512_storeu_pd(to, x); }
TRIMTAB_INLINE D8 add(D8 a, D8 b) { return _mm512_add_pd(a, b); }
TRIMTAB_INLINE D8 subtract(D8 a, D8 b) { return _mm512_sub_pd(a, b); }
TRIMTAB_INLINE D8 multiply(D8 a, D8 b) { return _mm512_mul_pd(a, b); }
TRIMTAB_INLINE D widen(F x) {
    return {_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
}
TRIMTAB_INLINE F narrow(D x) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(x.low)), _mm512_cvtpd_ps(x.high), 1);
}

// A block's histogram: a bit a value for each decision of its search, and for its being a number. A bin is what the
// decisions leave of the latter.
template <int kLevels>
class Bins {
  public:
    TRIMTAB_INLINE void put(std::size_t row, F x, M nan, const Sketch& sketch) {
        const float* const tree = sketch.tree;
        __m512i taken = _mm512_setzero_si512();  // the decisions so far, the first in the lowest bit
        for (int level = 0; level < kLevels; ++level) {
            F edge = _mm512_load_ps(tree + 16 * level);
            if (level == 0) {
                edge = splat(tree[0]);
            } else if (level < 5) {
                edge = _mm512_permutexvar_ps(taken, edge);
            } else {
                edge = _mm512_permutex2var_ps(edge, taken, _mm512_load_ps(tree + 16 * level + 16));
            }
            const M above = _mm512_cmp_ps_mask(edge, x, _CMP_LE_OQ);
            taken = _mm512_mask_or_epi32(taken, above, taken, _mm512_set1_epi32(1 << level));
            bits_[level][row / 16] = above;
        }
        bits_[kLevels][row / 16] = _knot_mask16(nan);
    }

    // Adds the `rows` values that were put. Returns how many were no NaN.
    TRIMTAB_INLINE std::size_t count(std::size_t rows, std::size_t bins, std::uint64_t* histogram) {
        if (rows < kFew) return count_few(rows, histogram);
        if (rows <= 64) return count_words<std::uint64_t>(rows, bins, histogram);
        if (rows <= 256) return count_words<Words4>(rows, bins, histogram);
        return count_words<Words8>(rows, bins, histogram);
    }

  private:
    static constexpr std::size_t kFew = 8;
    typedef std::uint64_t Words4 __attribute__((vector_size(32)));
    typedef std::uint64_t Words8 __attribute__((vector_size(64)));

    TRIMTAB_INLINE std::size_t count_few(std::size_t rows, std::uint64_t* histogram) const {
        std::size_t numbers = 0;
        for (std::size_t row = 0; row < rows; ++row) {
            std::size_t bin = 0;
            for (int level = 0; level < kLevels; ++level) bin = 2 * bin + ((bits_[level][0] >> row) & 1U);
            const std::size_t number = (static_cast<std::size_t>(bits_[kLevels][0]) >> row) & 1U;
            histogram[bin] += number;
            numbers += number;
        }
        return numbers;
    }

    template <class Words>
    TRIMTAB_INLINE std::size_t count_words(std::size_t rows, std::size_t bins, std::uint64_t* histogram) {
        for (std::size_t i = (rows + 15) / 16; i < sizeof(Words) / sizeof(M); ++i) {
            for (auto& level : bits_) level[i] = 0;
        }
        Words words[kLevels + 1];
        for (int level = 0; level <= kLevels; ++level) __builtin_memcpy(&words[level], bits_[level], sizeof(Words));
        decltype(count_bits(words[0])) sums[std::size_t{1} << kLevels];
        split<0, 0>(words[kLevels], words, sums);
        alignas(64) std::uint64_t found[std::size_t{1} << kLevels];
        for (std::size_t bin = 0; bin < std::size_t{1} << kLevels; bin += 8) add_up(sums + bin, found + bin);
        std::size_t numbers = 0;
        for (std::size_t bin = 0; bin < bins; ++bin) {
            histogram[bin] += found[bin];
            numbers += found[bin];
        }
        return numbers;
    }

    // Values that have come to a node of the search, of which kBin is the first bin below.
    template <int kLevel, std::size_t kBin, class Words, class Sum>
    TRIMTAB_INLINE static void split(Words values, const Words* words, Sum* sums) {
        if constexpr (kLevel == kLevels) {
            sums[kBin] = count_bits(values);
        } else {
            constexpr std::size_t kAbove = kBin + (std::size_t{1} << (kLevels - 1 - kLevel));
            split<kLevel + 1, kBin>(values & ~words[kLevel], words, sums);
            split<kLevel + 1, kAbove>(values & words[kLevel], words, sums);
        }
    }

    // The bits that are set: of eight words at once where the machine can, to be added up for eight bins together.
    template <class Words>
    TRIMTAB_INLINE static std::uint64_t count_bits(const Words& values) {
        std::uint64_t each[sizeof(Words) / 8];
        __builtin_memcpy(each, &values, sizeof(Words));
        std::uint64_t sum = 0;
        for (const std::uint64_t word : each) sum += static_cast<std::uint64_t>(__builtin_popcountll(word));
        return sum;
    }
    TRIMTAB_INLINE static void add_up(const std::uint64_t* sums, std::uint64_t* found) {
        __builtin_memcpy(found, sums, 8 * sizeof(*found));
    }
#if defined(__AVX512VPOPCNTDQ__)
    TRIMTAB_INLINE static __m512i count_bits(const Words8& values) {
        return _mm512_popcnt_epi64(reinterpret_cast<const __m512i&>(values));
    }
    TRIMTAB_INLINE static void add_up(const __m512i* sums, std::uint64_t* found) {
        __m512i two[4];  // of each 128 bits: a sum's and the next one's
        for (std::size_t i = 0; i < 4; ++i) {
            const __m512i a = sums[2 * i];
            const __m512i b = sums[2 * i + 1];
            two[i] = _mm512_add_epi64(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        }
        const auto halves = [](__m512i a, __m512i b) {
            return _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xDD));
        };
        _mm512_store_si512(found, halves(halves(two[0], two[1]), halves(two[2], two[3])));
    }
#endif

    alignas(64) M bits_[kLevels + 1][kRows / 16];
};

// 16 x 16, of which `columns` and `rows` are there. Streams: past the caches; `out` is then that of whole cache lines.
template <bool kStreams>
TRIMTAB_INLINE void turn(const float* tile, std::size_t stride, std::size_t columns, std::size_t rows, float* out,
                         std::size_t step) {
    __m512 a[16];
    __m512 b[16];
    for (std::size_t c = 0; c < 16; ++c) a[c] = c < columns ? _mm512_loadu_ps(tile + c * stride) : _mm512_setzero_ps();
    for (std::size_t c = 0; c < 16; c += 4) {
        const __m512 p = _mm512_unpacklo_ps(a[c], a[c + 1]);
        const __m512 q = _mm512_unpackhi_ps(a[c], a[c + 1]);
        const __m512 r = _mm512_unpacklo_ps(a[c + 2], a[c + 3]);
        const __m512 s = _mm512_unpackhi_ps(a[c + 2], a[c + 3]);
        b[c] = _mm512_shuffle_ps(p, r, 0x44);
        b[c + 1] = _mm512_shuffle_ps(p, r, 0xEE);
        b[c + 2] = _mm512_shuffle_ps(q, s, 0x44);
        b[c + 3] = _mm512_shuffle_ps(q, s, 0xEE);
    }
    const M there = static_cast<M>((1U << columns) - 1U);
    for (std::size_t r = 0; r < 4; ++r) {  // b[4 g + r] holds columns 4 g ... of the rows r, 4 + r, 8 + r, 12 + r
        const __m512 p = _mm512_shuffle_f32x4(b[r], b[4 + r], 0x44);
        const __m512 q = _mm512_shuffle_f32x4(b[r], b[4 + r], 0xEE);
        const __m512 s = _mm512_shuffle_f32x4(b[8 + r], b[12 + r], 0x44);
        const __m512 t = _mm512_shuffle_f32x4(b[8 + r], b[12 + r], 0xEE);
        a[r] = _mm512_shuffle_f32x4(p, s, 0x88);
        a[4 + r] = _mm512_shuffle_f32x4(p, s, 0xDD);
        a[8 + r] = _mm512_shuffle_f32x4(q, t, 0x88);
        a[12 + r] = _mm512_shuffle_f32x4(q, t, 0xDD);
    }
    if (columns == 16 && rows == 16) {
        for (std::size_t r = 0; r < 16; ++r) {
            if constexpr (kStreams) {
                _mm512_stream_ps(out + r * step, a[r]);
            } else {
                _mm512_storeu_ps(out + r * step, a[r]);
            }
        }
        return;
    }
    for (std::size_t r = 0; r < 16; ++r) {
        if (r < rows) _mm512_mask_storeu_ps(out + r * step, there, a[r]);
    }
}
