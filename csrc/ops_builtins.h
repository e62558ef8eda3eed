// What compilers call differently: the few functions under the ops that GCC and Clang have as builtins and NVRTC, which
// knows neither those nor the standard library, has under other names. All of them are exact.
#pragma once

#ifdef __CUDACC_RTC__
namespace std {
using size_t = decltype(sizeof(0));
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
}  // namespace std
#else
#include <cstddef>
#include <cstdint>
#endif

#ifdef __CUDACC__
#define TRIMTAB_OP __device__ inline
#else
#define TRIMTAB_OP static inline __attribute__((always_inline))
#endif

namespace trimtab::ops {

inline constexpr double kInfinite = __builtin_bit_cast(double, 0x7ff0000000000000ULL);

#ifdef __CUDACC__
TRIMTAB_OP double magnitude(double x) { return ::fabs(x); }
TRIMTAB_OP double with_sign_of(double x, double sign) { return ::copysign(x, sign); }
TRIMTAB_OP double square_root(double x) { return __dsqrt_rn(x); }
TRIMTAB_OP double round_to_floor(double x) { return ::floor(x); }
TRIMTAB_OP std::uint64_t upper_product(std::uint64_t a, std::uint64_t b) { return __umul64hi(a, b); }
#else
TRIMTAB_OP double magnitude(double x) { return __builtin_fabs(x); }
TRIMTAB_OP double with_sign_of(double x, double sign) { return __builtin_copysign(x, sign); }
TRIMTAB_OP double square_root(double x) { return __builtin_sqrt(x); }
TRIMTAB_OP double round_to_floor(double x) { return __builtin_floor(x); }
TRIMTAB_OP std::uint64_t upper_product(std::uint64_t a, std::uint64_t b) {
    return static_cast<std::uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}
#endif

}  // namespace trimtab::ops
