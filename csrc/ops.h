// What each op of a column program computes for one value. The semantics, once: included by the CPU executor and, later, by CUDA.
//
// Real values are computed in float64 and rounded to float32 once, when they are emitted. Bins compare the raw fp32 value with
// fp32 edges. The order is always: NaN first, then the clamp, then the conversion to an integer. Formulas are written so that
// no two operations can be contracted; the build forbids contraction (-ffp-contract=off, --fmad=false).
// The oracle is kernels/reference.py, which shares no code with this file.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define TRIMTAB_HD __host__ __device__
#else
#define TRIMTAB_HD
#endif

namespace trimtab::ops {

inline constexpr std::int64_t kNull = 1;  // 0 is PAD: never produced, for models that pad
inline constexpr std::int64_t kOov = 2;
inline constexpr std::int64_t kFirst = 3;

inline constexpr double kFp32Max = 3.4028234663852886e38;

// --- real ops ---------------------------------------------------------------------------------------------------------

TRIMTAB_HD inline double impute(double x, double value) { return std::isnan(x) ? value : x; }

// NaN stays NaN.
TRIMTAB_HD inline double clip(double x, double low, double high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

TRIMTAB_HD inline double log1p(double x) { return std::log1p(x < 0.0 ? 0.0 : x); }

TRIMTAB_HD inline double signed_log(double x) { return std::copysign(std::log1p(std::fabs(x)), x); }

// What affine multiplies by, worked out once: 0 for a scale of 0. A scale below the least normal number counts as that.
TRIMTAB_HD inline double inverse_of(double scale) {
    constexpr double kLeast = 2.2250738585072014e-308;
    return scale == 0.0 ? 0.0 : 1.0 / (scale < kLeast ? kLeast : scale);
}

// A scale of 0 says that the column had no spread: everything but NaN becomes 0. In float64 the product is within 2^-52 of
// the quotient, far below what is left of it in fp32; dividing would take as long as all the rest.
TRIMTAB_HD inline double affine(double x, double shift, double inverse) {
    if (std::isnan(x)) return x;
    return inverse == 0.0 ? 0.0 : (x - shift) * inverse;
}

// The quantile of the standard normal distribution for p in [1e-7, 1 - 1e-7].
// Wichura (1988), Algorithm AS 241, PPND16: relative error about 1e-16. Its branch for p < 1.4e-11 is not needed here.
TRIMTAB_HD inline double normal_quantile(double p) {
    const double q = p - 0.5;
    if (std::fabs(q) <= 0.425) {
        const double r = 0.180625 - q * q;
        const double numerator =
            (((((((2.5090809287301226727e+3 * r + 3.3430575583588128105e+4) * r + 6.7265770927008700853e+4) * r +
                 4.5921953931549871457e+4) * r + 1.3731693765509461125e+4) * r + 1.9715909503065514427e+3) * r +
              1.3314166789178437745e+2) * r + 3.3871328727963666080e+0) * q;
        const double denominator =
            (((((((5.2264952788528545610e+3 * r + 2.8729085735721942674e+4) * r + 3.9307895800092710610e+4) * r +
                 2.1213794301586595867e+4) * r + 5.3941960214247511077e+3) * r + 6.8718700749205790830e+2) * r +
              4.2313330701600911252e+1) * r + 1.0);
        return numerator / denominator;
    }
    const double r = std::sqrt(-std::log(q <= 0.0 ? p : 1.0 - p)) - 1.6;
    const double numerator =
        (((((((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1) * r +
             1.27045825245236838258e+0) * r + 3.64784832476320460504e+0) * r + 5.76949722146069140550e+0) * r +
          4.63033784615654529590e+0) * r + 1.42343711074968357734e+0);
    const double denominator =
        (((((((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2) * r +
             1.48103976427480074590e-1) * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940e+0) * r +
          2.05319162663775882187e+0) * r + 1.0);
    return q <= 0.0 ? -(numerator / denominator) : numerator / denominator;
}

// Knots increase strictly; outside of them the probability is that of the nearest knot.
TRIMTAB_HD inline double quantile_normal(double x, const double* knots, const double* probabilities, std::size_t count) {
    if (std::isnan(x)) return x;
    if (count == 0) return 0.0;
    double p;
    if (x <= knots[0]) {
        p = probabilities[0];
    } else if (x >= knots[count - 1]) {
        p = probabilities[count - 1];
    } else {
        std::size_t low = 0;
        std::size_t high = count - 1;
        while (high - low > 1) {
            const std::size_t middle = (low + high) / 2;
            (knots[middle] <= x ? low : high) = middle;
        }
        const double share = (x - knots[low]) / (knots[high] - knots[low]);
        p = probabilities[low] + share * (probabilities[high] - probabilities[low]);
    }
    return normal_quantile(clip(p, 1e-7, 1.0 - 1e-7));
}

// The share of bin [low, high] that lies below x: 0 to 1, and 0 for NaN.
TRIMTAB_HD inline double bin_share(double x, double low, double high) {
    if (std::isnan(x)) return 0.0;
    return clip((x - low) / (high - low), 0.0, 1.0);
}

// x in turns of 2π, reduced to a fraction of a turn before the conversion to an angle. Without a finite x: no angle, {0, 0}.
struct Angle {
    double sine;
    double cosine;
};
TRIMTAB_HD inline Angle cyclic(double x, double period) {
    const double turns = x / period;
    if (!std::isfinite(turns)) return {0.0, 0.0};
    const double angle = (turns - std::floor(turns)) * 6.283185307179586;
    return {std::sin(angle), std::cos(angle)};
}

// What the model gets is finite: NaN is 0, what float32 cannot hold is its largest number.
TRIMTAB_HD inline float emit(double x) { return std::isnan(x) ? 0.0F : static_cast<float>(clip(x, -kFp32Max, kFp32Max)); }

// --- bins and ids -----------------------------------------------------------------------------------------------------

// The number of edges <= x, for x that is not NaN; -Inf and +Inf fall into the first and last bin. Edges increase strictly.
// Without a branch on x: what values come next cannot be guessed, and a wrong guess costs more than the whole search.
TRIMTAB_HD inline std::size_t bin_of(float x, const float* edges, std::size_t count) {
    if (count == 0) return 0;
    const float* first = edges;
    while (count > 1) {
        const std::size_t half = count / 2;
        first += static_cast<std::size_t>(first[half - 1] <= x) * half;
        count -= half;
    }
    return static_cast<std::size_t>(first - edges) + static_cast<std::size_t>(*first <= x);
}

TRIMTAB_HD inline std::int64_t bucketise(float x, const float* edges, std::size_t count) {
    return std::isnan(x) ? kNull : kFirst + static_cast<std::int64_t>(bin_of(x, edges, count));
}

// The finaliser of MurmurHash3 (Appleby): a bijection of 64 bits.
TRIMTAB_HD inline std::uint64_t mix(std::uint64_t h) {
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdULL;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ULL;
    return h ^ (h >> 33);
}

inline constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

TRIMTAB_HD inline std::uint64_t hash_integer(std::int64_t value) { return mix(static_cast<std::uint64_t>(value) + kGolden); }

// FNV-1a over the bytes, then mixed: FNV alone leaves the low bits of short strings alike.
TRIMTAB_HD inline std::uint64_t hash_bytes(const char* bytes, std::size_t size) {
    std::uint64_t h = 0xcbf29ce484222325ULL;
    for (std::size_t i = 0; i < size; ++i) h = (h ^ static_cast<unsigned char>(bytes[i])) * 0x100000001b3ULL;
    return mix(h);
}

// Depends on the order of its parts.
TRIMTAB_HD inline std::uint64_t hash_cross(std::uint64_t first, std::uint64_t second) { return mix(first ^ (mix(second) + kGolden)); }

TRIMTAB_HD inline std::int64_t bucket_of(std::uint64_t hash, std::uint64_t buckets) {
    return kFirst + static_cast<std::int64_t>(hash % buckets);
}

}  // namespace trimtab::ops
