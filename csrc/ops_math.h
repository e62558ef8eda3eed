// Logarithm, sine and cosine in float64, of our own: the same bits on every machine and dispatch level, which libm does
// not promise, and without a branch on the value, so that a loop over a block becomes vector code.
//
// Polynomials and reductions are those of Sun's fdlibm (e_log.c, s_log1p.c, k_sin.c, k_cos.c): within 1 ulp or two of
// the exact result. Static and always inline: the inner loops are compiled once per dispatch level, and no copy may
// serve another.
#pragma once

#include "ops_builtins.h"

namespace trimtab::ops {

TRIMTAB_OP std::uint64_t bits_of(double x) { return __builtin_bit_cast(std::uint64_t, x); }
TRIMTAB_OP double from_bits(std::uint64_t bits) { return __builtin_bit_cast(double, bits); }

TRIMTAB_OP bool is_nan(double x) { return x != x; }
TRIMTAB_OP bool is_nan(float x) { return x != x; }

// log(u + rest) for a positive finite u and a rest far below it; u in 2^k [√½, √2).
TRIMTAB_OP double log_of_sum(double u, double rest) {
    constexpr std::uint64_t kOne = 0x3ff0000000000000ULL;
    constexpr std::uint64_t kRootHalf = 0x3fe6a09e667f3bcdULL;
    const std::uint64_t bits = bits_of(u);
    const std::uint64_t exponent = (bits + (kOne - kRootHalf)) >> 52;  // k + 1023
    const double k = from_bits(0x4330000000000000ULL | exponent) - (4503599627370496.0 + 1023.0);
    const double scale = u > 1e30 ? 0.0 : from_bits((2046ULL - exponent) << 52);  // 2^-k; the rest of such a u is nothing
    const double f = (from_bits(bits - (exponent << 52) + kOne) - 1.0) + rest * scale;
    const double s = f / (2.0 + f);
    const double z = s * s;
    const double w = z * z;
    const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
    const double odd = z * (6.666666666666735130e-01 +
                            w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
    const double half_square = 0.5 * f * f;
    return k * 6.93147180369123816490e-01 -
           ((half_square - (s * (half_square + (even + odd)) + k * 1.90821492927058770002e-10)) - f);
}

// log(1 + x) for x >= 0; NaN and infinity stay what they are.
TRIMTAB_OP double log1p_of(double x) {
    const double u = 1.0 + x;
    const double one = u - x;
    const double rest = (1.0 - one) + (x - (u - one));  // what the sum lost, exactly
    const double result = log_of_sum(u, rest);
    return x < kInfinite ? result : x;
}

// Sine and cosine of 2π turns, for a share of a turn in [0, 1].
struct Angle {
    double sine;
    double cosine;
};
TRIMTAB_OP Angle angle_of(double share) {
    constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
    const double quarter = (share * 4.0 + kWhole) - kWhole;
    const double x = (share - quarter * 0.25) * 6.283185307179586;  // in [-π/4, π/4]
    const double z = x * x;
    const double sine =
        x + x * z * (-1.66666666666666324348e-01 +
                     z * (8.33333333332248946124e-03 +
                          z * (-1.98412698298579493134e-04 +
                               z * (2.75573137070700676789e-06 +
                                    z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
    const double cosine =
        (1.0 - 0.5 * z) +
        z * z * (4.16666666666666019037e-02 +
                 z * (-1.38888888888741095749e-03 +
                      z * (2.48015872894767294178e-05 +
                           z * (-2.75573143513906633035e-07 +
                                z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
    const bool turned = (quarter == 1.0) | (quarter == 3.0);
    const double first = turned ? cosine : sine;
    const double second = turned ? sine : cosine;
    const bool below = (quarter == 2.0) | (quarter == 3.0);
    const bool behind = (quarter == 1.0) | (quarter == 2.0);
    return {(below ? -first : first) + 0.0, (behind ? -second : second) + 0.0};  // + 0: no -0
}

}  // namespace trimtab::ops
