// The loops of columns_ops.h: compiled once for each dispatch level, of which TRIMTAB_LEVEL names one.
//
// What an op computes is in ops.h, without a branch on the value, so that the compiler makes vector code of these
// loops; only searches are written in vectors by hand.
#include "columns_ops.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "columns_hot.h"
#include "ops.h"

namespace trimtab::hot::TRIMTAB_LEVEL {
namespace {

#include "columns_ops_search.h"

// Every loop's bounds and pointers, as the compiler is to see them.
template <class T>
TRIMTAB_INLINE T* aligned(T* pointer) {
    return static_cast<T*>(__builtin_assume_aligned(pointer, 64));
}
TRIMTAB_INLINE std::size_t whole(std::size_t count) { return count / kWide * kWide; }

template <class Each>
TRIMTAB_INLINE void in_place(double* given, std::size_t count, Each each) {
    double* const x = aligned(given);
    for (std::size_t i = 0; i < whole(count); ++i) x[i] = each(x[i]);
}

void widen(const float* raw, std::size_t count, double* x) {
    raw = aligned(raw);
    x = aligned(x);
    for (std::size_t i = 0; i < whole(count); ++i) x[i] = static_cast<double>(raw[i]);
}

void impute(double* x, std::size_t count, double value) {
    in_place(x, count, [=](double each) { return ops::impute(each, value); });
}
void clip(double* x, std::size_t count, double low, double high) {
    in_place(x, count, [=](double each) { return ops::clip(each, low, high); });
}
void log1p(double* x, std::size_t count) {
    in_place(x, count, [](double each) { return ops::log1p(each); });
}
void signed_log(double* x, std::size_t count) {
    in_place(x, count, [](double each) { return ops::signed_log(each); });
}
void affine(double* x, std::size_t count, double shift, double inverse) {
    in_place(x, count, [=](double each) { return ops::affine(each, shift, inverse); });
}

void emit(const double* x, std::size_t count, float* values) {
    x = aligned(x);
    values = aligned(values);
    for (std::size_t i = 0; i < whole(count); ++i) values[i] = ops::emit(x[i]);
}

void flags(const float* raw, std::size_t count, float* found) {
    raw = aligned(raw);
    found = aligned(found);
    for (std::size_t i = 0; i < whole(count); ++i) found[i] = ops::is_nan(raw[i]) ? 1.0F : 0.0F;
}

void from_integers(const std::int64_t* values, std::size_t count, float* raw) {
    constexpr std::int64_t kMissing = -__INT64_MAX__ - 1;
    for (std::size_t i = 0; i < count; ++i) {
        const float value = static_cast<float>(values[i]);
        raw[i] = values[i] == kMissing ? __builtin_nanf("") : value;
    }
}

void cyclic(const double* x, std::size_t count, double period, float* sines, float* cosines) {
    x = aligned(x);
    sines = aligned(sines);
    cosines = aligned(cosines);
    for (std::size_t i = 0; i < whole(count); ++i) {
        const ops::Angle angle = ops::cyclic(x[i], period);
        sines[i] = static_cast<float>(angle.sine);
        cosines[i] = static_cast<float>(angle.cosine);
    }
}

void round_down(const double* x, std::size_t count, float* values) {
    x = aligned(x);
    for (std::size_t i = 0; i < whole(count); ++i) values[i] = ops::round_down(x[i]);
}

void bucketise(const double* x, std::size_t count, const Edges& edges, std::int32_t* ids) {
    alignas(64) float values[kRows];
    round_down(x, count, values);
    bins_of(values, whole(count), edges, ids);
    for (std::size_t i = 0; i < whole(count); ++i) {
        ids[i] = ops::is_nan(values[i]) ? static_cast<std::int32_t>(ops::kNull)
                                        : ids[i] + static_cast<std::int32_t>(ops::kFirst);
    }
}

void quantile_normal(double* x, std::size_t count, const Quantiles& quantiles) {
    alignas(64) float values[kRows];
    alignas(64) std::int32_t at[kRows];
    alignas(64) double p[kRows];
    x = aligned(x);
    const double low = quantiles.knots[0];
    const double high = quantiles.knots[quantiles.count - 1];
    clip(x, count, low, high);
    round_down(x, count, values);
    bins_of(values, whole(count), quantiles.search, at);
    for (std::size_t i = 0; i < whole(count); ++i) {
        const std::int32_t knot = at[i] > 0 ? at[i] - 1 : 0;  // 0: NaN
        p[i] = ops::probability(x[i], quantiles.knots[knot], quantiles.slopes[knot], quantiles.probabilities[knot]);
    }
    for (std::size_t i = 0; i < whole(count); ++i) x[i] = ops::central_quantile(p[i]);
    std::size_t few = 0;  // of the others, put together
    for (std::size_t i = 0; i < whole(count); ++i) {
        at[few] = static_cast<std::int32_t>(i);
        few += ops::is_central(p[i]) || ops::is_nan(p[i]) ? 0 : 1;
    }
    alignas(64) double outer[kRows];
    for (std::size_t i = 0; i < few; ++i) outer[i] = p[at[i]];
    for (std::size_t i = few; i % kWide != 0; ++i) outer[i] = 0.5;
    for (std::size_t i = 0; i < (few + kWide - 1) / kWide * kWide; ++i) outer[i] = ops::outer_quantile(outer[i]);
    for (std::size_t i = 0; i < few; ++i) x[at[i]] = outer[i];
}

void piecewise_linear(const double* x, std::size_t count, const Edges& edges, std::size_t n_edges, std::int32_t* below,
                      float* shares) {
    alignas(64) float values[kRows];
    round_down(x, count, values);
    bins_of(values, whole(count), edges, below);
    const auto last = static_cast<std::int32_t>(n_edges - 2);
    const float* const __restrict all = edges.all;
    float* const __restrict into = aligned(shares);
    x = aligned(x);
    for (std::size_t i = 0; i < whole(count); ++i) {
        std::int32_t bin = below[i] - 1;
        bin = bin < 0 ? 0 : (bin > last ? last : bin);
        below[i] = bin;
        into[i] = static_cast<float>(
            ops::bin_share(x[i], static_cast<double>(all[bin]), static_cast<double>(all[bin + 1])));
    }
}

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <int kCount>
struct Lanes {
    typedef float F __attribute__((vector_size(4 * kCount)));
    typedef std::int32_t I __attribute__((vector_size(4 * kCount)));
};

// The last lanes overlap with those before, so that nothing is written behind the row.
template <int kCount>
TRIMTAB_INLINE void spread_row(std::int32_t at, float before, float share, std::int32_t width, float* out) {
    if constexpr (kCount < 4) {
        for (std::int32_t c = 0; c < width; ++c) out[c] = c < at ? before : (c == at ? share : 0.0F);
    } else if (width < kCount) {
        spread_row<kCount / 2>(at, before, share, width, out);
    } else {
        using F = typename Lanes<kCount>::F;
        using I = typename Lanes<kCount>::I;
        I first{};
        for (int i = 0; i < kCount; ++i) first[i] = i;
        for (std::int32_t c = 0; c < width; c += kCount) {
            const std::int32_t start = c < width - kCount ? c : width - kCount;
            const I column = first + start;
            const F rest = column == at ? share - F{} : F{};
            const F row = column < at ? before - F{} : rest;
            __builtin_memcpy(out + start, &row, sizeof(row));
        }
    }
}

void spread(const Spread* chains, std::size_t n_chains, std::size_t rows, float* out, std::size_t step) {
    for (std::size_t row = 0; row < rows; ++row, out += step) {
        for (std::size_t i = 0; i < n_chains; ++i) {
            const Spread& chain = chains[i];
            const auto width = static_cast<std::int32_t>(chain.width);
            const bool shared = chain.shares != nullptr;
            spread_row<kLanes>(chain.at[row] - chain.base, shared ? 1.0F : 0.0F, shared ? chain.shares[row] : 1.0F,
                               width, out + chain.first);
            if (chain.flags != nullptr) out[chain.first + chain.width] = chain.flags[row];
        }
    }
}

TRIMTAB_INLINE void stream_ids(const std::int32_t* ids, std::size_t count, std::int64_t* out) {
    for (std::size_t c = 0; c < count; c += 8) {
#if defined(__AVX512F__)
        const __m256i eight = _mm256_load_si256(reinterpret_cast<const __m256i*>(ids + c));
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out + c), _mm512_cvtepi32_epi64(eight));
#elif defined(__AVX2__)
        for (std::size_t i = c; i < c + 8; i += 4) {
            const __m128i four = _mm_load_si128(reinterpret_cast<const __m128i*>(ids + i));
            _mm256_stream_si256(reinterpret_cast<__m256i*>(out + i), _mm256_cvtepi32_epi64(four));
        }
#else
        for (std::size_t i = c; i < c + 8; ++i) out[i] = ids[i];
#endif
    }
}

void write_ids(const std::int32_t* const* columns, std::size_t n_columns, std::size_t rows, std::int64_t* out,
               std::size_t step, bool streams) {
    streams = streams && n_columns % 8 == 0 && step % 8 == 0 && reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
    if (n_columns == 1) {
        for (std::size_t row = 0; row < rows; ++row) out[row * step] = columns[0][row];
        return;
    }
    alignas(64) std::int32_t turned[kWide][kMaxColumns];
    for (std::size_t row = 0; row < rows; row += kWide) {
        const std::size_t few = rows - row < kWide ? rows - row : kWide;
        for (std::size_t c = 0; c < n_columns; ++c) {
            for (std::size_t r = 0; r < kWide; ++r) turned[r][c] = columns[c][row + r];
        }
        for (std::size_t r = 0; r < few; ++r) {
            std::int64_t* const to = out + (row + r) * step;
            if (streams) {
                stream_ids(turned[r], n_columns, to);
                continue;
            }
            for (std::size_t c = 0; c < n_columns; ++c) to[c] = turned[r][c];
        }
    }
}

void hash_integers(const std::int64_t* values, std::size_t count, std::uint64_t* hashes) {
    for (std::size_t i = 0; i < count; ++i) hashes[i] = ops::hash_integer(values[i]);
}

void cross(std::uint64_t* hashes, const std::uint64_t* others, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) hashes[i] = ops::hash_cross(hashes[i], others[i]);
}

// Each step of FNV-1a waits for the one before, so many texts are hashed side by side, eight bytes of each at a time.
constexpr std::size_t kTexts = 32;

void hash_some(const std::int32_t* offsets, const char* bytes, std::size_t texts, const char* end,
               std::uint64_t* hashes) {
    alignas(64) std::uint64_t hash[kTexts];
    alignas(64) std::uint64_t words[kTexts];
    alignas(64) std::int64_t left[kTexts] = {};
    std::int64_t longest = 0;
    for (std::size_t i = 0; i < kTexts; ++i) hash[i] = ops::kHashBegin;
    for (std::size_t i = 0; i < texts; ++i) {
        left[i] = offsets[i + 1] - offsets[i];
        longest = left[i] > longest ? left[i] : longest;
    }
    for (std::int64_t done = 0; done < longest; done += 8) {
        for (std::size_t i = 0; i < texts; ++i) {
            const char* const text = bytes + offsets[i] + done;
            words[i] = 0;
            if (left[i] <= 0) continue;
            if (end - text >= 8) {
                __builtin_memcpy(&words[i], text, 8);
            } else {
                __builtin_memcpy(&words[i], text, static_cast<std::size_t>(end - text));
            }
        }
        const std::int64_t steps = longest - done < 8 ? longest - done : 8;
        for (std::int64_t step = 0; step < steps; ++step) {
            for (std::size_t i = 0; i < kTexts; ++i) {
                const std::uint64_t next = ops::hash_byte(hash[i], words[i] & 0xFF);
                hash[i] = left[i] > 0 ? next : hash[i];
                words[i] >>= 8;
                --left[i];
            }
        }
    }
    for (std::size_t i = 0; i < texts; ++i) hashes[i] = ops::mix(hash[i]);
}

void hash_texts(const std::int32_t* offsets, const char* bytes, std::size_t count, std::uint64_t* hashes) {
    const char* const end = bytes + offsets[count];
    for (std::size_t i = 0; i < count; i += kTexts) {
        const std::size_t texts = count - i < kTexts ? count - i : kTexts;
        hash_some(offsets + i, bytes, texts, end, hashes + i);
    }
}

}  // namespace

extern const Ops kOps{&widen,         &impute,        &clip,       &log1p,    &signed_log, &affine, &quantile_normal,
                      &emit,          &cyclic,        &flags,      &from_integers, &bucketise,
                      &piecewise_linear, &spread,     &write_ids,  &hash_integers, &hash_texts, &cross};

}  // namespace trimtab::hot::TRIMTAB_LEVEL
