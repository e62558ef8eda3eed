// What each op of a column program computes for one value. The semantics, once: included by the CPU executor and
// by the kernels for CUDA, which therefore give the same bits.
//
// Real values are computed in float64 and rounded to float32 once, when they are emitted. Bins compare the raw fp32
// value with fp32 edges. The order is always: NaN first, then the clamp, then the conversion to an integer. Formulas
// are written so that no two operations can be contracted; the build forbids contraction (-ffp-contract=off,
// --fmad=false). The oracle is kernels/reference.py, which shares no code with this file.
#pragma once

#include "ops_math.h"

namespace trimtab::ops {

inline constexpr std::int64_t kNull = 1;  // 0 is PAD: never produced, for models that pad
inline constexpr std::int64_t kOov = 2;
inline constexpr std::int64_t kFirst = 3;

inline constexpr double kFp32Max = 3.4028234663852886e38;

// --- real ops ---------------------------------------------------------------------------------------------------------

TRIMTAB_OP double impute(double x, double value) { return is_nan(x) ? value : x; }

// NaN stays NaN.
TRIMTAB_OP double clip(double x, double low, double high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

TRIMTAB_OP double log1p(double x) { return log1p_of(x < 0.0 ? 0.0 : x); }

TRIMTAB_OP double signed_log(double x) { return with_sign_of(log1p_of(magnitude(x)), x); }

// What affine multiplies by, worked out once: 0 for a scale of 0. A scale below the least normal number counts as that.
TRIMTAB_OP double inverse_of(double scale) {
    constexpr double kLeast = 2.2250738585072014e-308;
    return scale == 0.0 ? 0.0 : 1.0 / (scale < kLeast ? kLeast : scale);
}

// A scale of 0 says that the column had no spread: everything but NaN becomes 0. In float64 the product is within 2^-52
// of the quotient, far below what is left of it in fp32; dividing would take as long as all the rest.
TRIMTAB_OP double affine(double x, double shift, double inverse) {
    const double result = inverse == 0.0 ? 0.0 : (x - shift) * inverse;
    return is_nan(x) ? x : result;
}

// The quantile of the standard normal distribution for p in [1e-7, 1 - 1e-7].
// Wichura (1988), Algorithm AS 241, PPND16: relative error about 1e-16. Its branch for p < 1.4e-11 is not needed here.
// In two halves, as the second takes thrice as long and few values need it.
TRIMTAB_OP bool is_central(double p) { return magnitude(p - 0.5) <= 0.425; }

TRIMTAB_OP double central_quantile(double p) {
    const double q = p - 0.5;
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

TRIMTAB_OP double outer_quantile(double p) {
    const double tail = p < 0.5 ? p : 1.0 - p;
    const double r = square_root(-log_of_sum(tail, 0.0)) - 1.6;
    const double numerator =
        (((((((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1) * r +
             1.27045825245236838258e+0) * r + 3.64784832476320460504e+0) * r + 5.76949722146069140550e+0) * r +
          4.63033784615654529590e+0) * r + 1.42343711074968357734e+0);
    const double denominator =
        (((((((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2) * r +
             1.48103976427480074590e-1) * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940e+0) * r +
          2.05319162663775882187e+0) * r + 1.0);
    const double result = numerator / denominator;
    return p < 0.5 ? -result : result;
}

// The probability at x, of which `knot` is the last knot <= x, slope that of the stretch after it; within [1e-7, 1 -
// 1e-7].
TRIMTAB_OP double probability(double x, double knot, double slope, double at_knot) {
    return clip(at_knot + (x - knot) * slope, 1e-7, 1.0 - 1e-7);
}

// The largest fp32 number <= x; NaN stays NaN. x is not below an fp32 number exactly where this is not.
TRIMTAB_OP float round_down(double x) {
    const float near = static_cast<float>(x);
    const auto bits = __builtin_bit_cast(std::uint32_t, near);
    const std::uint32_t below = near > 0.0F ? bits - 1U : (near < 0.0F ? bits + 1U : 0x80000001U);
    return static_cast<double>(near) > x ? __builtin_bit_cast(float, below) : near;
}

// The share of bin [low, high] that lies below x: 0 to 1, and 0 for NaN.
TRIMTAB_OP double bin_share(double x, double low, double high) {
    const double share = clip((x - low) / (high - low), 0.0, 1.0);
    return is_nan(share) ? 0.0 : share;
}

// x in turns of 2π, reduced to a share of a turn before the conversion to an angle. Without a finite x: no angle, {0,
// 0}.
TRIMTAB_OP Angle cyclic(double x, double period) {
    const double turns = x / period;
    const Angle angle = angle_of(turns - round_to_floor(turns));  // of NaN where turns are not finite
    const bool known = magnitude(turns) < kInfinite;
    return {known ? angle.sine : 0.0, known ? angle.cosine : 0.0};
}

// What the model gets is finite: NaN is 0, what float32 cannot hold is its largest number.
TRIMTAB_OP float emit(double x) {
    const double finite = clip(x, -kFp32Max, kFp32Max);
    return static_cast<float>(is_nan(x) ? 0.0 : finite);
}

// --- bins and ids -----------------------------------------------------------------------------------------------------

// The finaliser of MurmurHash3 (Appleby): a bijection of 64 bits.
TRIMTAB_OP std::uint64_t mix(std::uint64_t h) {
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdULL;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ULL;
    return h ^ (h >> 33);
}

inline constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ULL;

TRIMTAB_OP std::uint64_t hash_integer(std::int64_t value) { return mix(static_cast<std::uint64_t>(value) + kGolden); }

// FNV-1a over the bytes, then mixed: FNV alone leaves the low bits of short strings alike.
inline constexpr std::uint64_t kHashBegin = 0xcbf29ce484222325ULL;

TRIMTAB_OP std::uint64_t hash_byte(std::uint64_t h, std::uint64_t byte) { return (h ^ byte) * 0x100000001b3ULL; }

// Depends on the order of its parts.
TRIMTAB_OP std::uint64_t hash_cross(std::uint64_t first, std::uint64_t second) { return mix(first ^ (mix(second) + kGolden)); }

// hash % buckets by two multiplications; reciprocal: (2^64 - 1) / buckets. The quotient is at most one too small.
TRIMTAB_OP std::int64_t bucket_of(std::uint64_t hash, std::uint64_t buckets, std::uint64_t reciprocal) {
    const std::uint64_t quotient = upper_product(hash, reciprocal);
    const std::uint64_t rest = hash - quotient * buckets;
    return kFirst + static_cast<std::int64_t>(rest - (rest >= buckets ? buckets : 0));
}

}  // namespace trimtab::ops
