// Finding the bins of sixteen values at a time. Included by columns_ops.cpp alone, inside of its level's namespace.
#pragma once

#define TRIMTAB_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)

template <int kLevels>
TRIMTAB_INLINE void search(const float* x, const Edges& edges, std::int32_t* bins) {
    const __m512 value = _mm512_loadu_ps(x);
    __m512i below = _mm512_setzero_si512();
    for (int level = 0; level < kLevels; ++level) {
        const float* const tree = edges.tree + Edges::kLevel[level];
        __m512 edge = _mm512_load_ps(tree);
        if (level == 5) {
            edge = _mm512_permutex2var_ps(edge, below, _mm512_load_ps(tree + 16));
        } else {
            edge = _mm512_permutexvar_ps(below, edge);
        }
        const __mmask16 above = _mm512_cmp_ps_mask(edge, value, _CMP_LE_OQ);
        below = _mm512_add_epi32(below, below);
        below = _mm512_mask_add_epi32(below, above, below, _mm512_set1_epi32(1));
    }
    below = _mm512_sll_epi32(below, _mm_cvtsi32_si128(edges.steps));
    for (int half = (1 << edges.steps) / 2; half > 0; half /= 2) {
        const __m512i at = _mm512_add_epi32(below, _mm512_set1_epi32(half - 1));
        const __m512 edge = _mm512_i32gather_ps(at, edges.all, 4);
        const __mmask16 above = _mm512_cmp_ps_mask(edge, value, _CMP_LE_OQ);
        below = _mm512_mask_add_epi32(below, above, below, _mm512_set1_epi32(half));
    }
    _mm512_storeu_si512(bins, below);
}

#elif defined(__AVX2__)

// From 8 << (bits - 3) edges those at `at`: by eights, then between two at a time by the highest bit.
template <int kBits>
TRIMTAB_INLINE __m256 pick(const float* from, __m256i at) {
    if constexpr (kBits <= 3) {
        return _mm256_permutevar8x32_ps(_mm256_load_ps(from), at);
    } else {
        const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(at, 32 - kBits));
        return _mm256_blendv_ps(pick<kBits - 1>(from, at), pick<kBits - 1>(from + (1 << (kBits - 1)), at), upper);
    }
}
template <int kLevel, int kLevels>
TRIMTAB_INLINE __m256i descend(__m256 value, __m256i below, const float* tree) {
    if constexpr (kLevel == kLevels) {
        return below;
    } else {
        const __m256 edge = pick<kLevel>(tree + Edges::kLevel[kLevel], below);
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(edge, value, _CMP_LE_OQ));
        return descend<kLevel + 1, kLevels>(value, _mm256_sub_epi32(_mm256_add_epi32(below, below), above), tree);
    }
}
template <int kLevels>
TRIMTAB_INLINE void search_half(const float* x, const Edges& edges, std::int32_t* bins) {
    const __m256 value = _mm256_loadu_ps(x);
    __m256i below = descend<0, kLevels>(value, _mm256_setzero_si256(), edges.tree);
    below = _mm256_sll_epi32(below, _mm_cvtsi32_si128(edges.steps));
    for (int half = (1 << edges.steps) / 2; half > 0; half /= 2) {
        const __m256i at = _mm256_add_epi32(below, _mm256_set1_epi32(half - 1));
        const __m256 edge = _mm256_i32gather_ps(edges.all, at, 4);
        const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(edge, value, _CMP_LE_OQ));
        below = _mm256_add_epi32(below, _mm256_and_si256(above, _mm256_set1_epi32(half)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bins), below);
}
template <int kLevels>
TRIMTAB_INLINE void search(const float* x, const Edges& edges, std::int32_t* bins) {
    search_half<kLevels>(x, edges, bins);
    search_half<kLevels>(x + 8, edges, bins + 8);
}

#else

// Sixteen searches side by side, as each waits for its memory.
template <int kLevels>
TRIMTAB_INLINE void search(const float* x, const Edges& edges, std::int32_t* bins) {
    std::int32_t below[16] = {};
    for (int half = 1 << (kLevels + edges.steps - 1); half > 0; half /= 2) {
        for (int i = 0; i < 16; ++i) below[i] += edges.all[below[i] + half - 1] <= x[i] ? half : 0;
    }
    for (int i = 0; i < 16; ++i) bins[i] = below[i];
}

#endif

// How many edges are <= x; 0 for NaN.
TRIMTAB_INLINE void bins_of(const float* x, std::size_t count, const Edges& edges, std::int32_t* bins) {
    for (std::size_t i = 0; i < count; i += 16) {
        switch (edges.levels) {
            case 4: search<4>(x + i, edges, bins + i); break;
            case 5: search<5>(x + i, edges, bins + i); break;
            default: search<6>(x + i, edges, bins + i); break;
        }
    }
}
