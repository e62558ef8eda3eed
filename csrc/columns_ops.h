// Loops over a block of values for the ops that columns_hot.h does not take: once per dispatch level, as those. Plain
// data throughout, for the reasons given there.
//
// Real ops work on float64 in place. `count` is always a multiple of hot::kWide and arrays are aligned to 64 bytes:
// what lies behind the block's values is computed with them, and nobody looks at it. All levels give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab::hot {

// Edges, as a search goes through them. It first finds which part of 2^steps edges holds a value, by up to 63 edges
// (the last of each part) that a vector register or four hold: on level l, at kLevel[l], the one after the decisions c
// in binary is at c. Then it halves within the part.
struct Edges {
    static constexpr std::size_t kLevel[6] = {0, 16, 32, 48, 64, 80};
    alignas(64) float tree[112] = {};
    const float* all = nullptr;  // filled up with NaN to 2^(levels + steps); borrowed
    int levels = 4;              // 4, 5 or 6
    int steps = 0;
};

// A piecewise-linear distribution function; position i holds from knot i on. Borrowed.
struct Quantiles {
    Edges search;  // of the knots
    const double* knots = nullptr;
    const double* probabilities = nullptr;
    const double* slopes = nullptr;  // the last is 0
    std::size_t count = 0;           // at least 1
};

// A chain that spreads each value over `width` columns, the first at `first`: 0 everywhere, but for the share (or 1) in
// column at[row] - base; with shares, 1 before it. After them the flag, where there is one.
struct Spread {
    const std::int32_t* at = nullptr;
    const float* shares = nullptr;
    const float* flags = nullptr;
    std::int32_t base = 0;
    std::size_t first = 0;
    std::size_t width = 0;
};

struct Ops {
    void (*widen)(const float* raw, std::size_t count, double* x);
    void (*impute)(double* x, std::size_t count, double value);
    void (*clip)(double* x, std::size_t count, double low, double high);
    void (*log1p)(double* x, std::size_t count);
    void (*signed_log)(double* x, std::size_t count);
    void (*affine)(double* x, std::size_t count, double shift, double inverse);
    void (*quantile_normal)(double* x, std::size_t count, const Quantiles& quantiles);
    void (*emit)(const double* x, std::size_t count, float* values);
    void (*cyclic)(const double* x, std::size_t count, double period, float* sines, float* cosines);
    void (*flags)(const float* raw, std::size_t count, float* flags);

    // Integers as fp32, missing as NaN; any count, any alignment.
    void (*from_integers)(const std::int64_t* values, std::size_t count, float* raw);

    // The id of each value: that of missing, or of its bin. Narrows first: to fp32, downwards.
    void (*bucketise)(const double* x, std::size_t count, const Edges& edges, std::int32_t* ids);

    // How many bins lie below each value, and what share of the next; 0 and 0 for NaN. At least two edges.
    void (*piecewise_linear)(const double* x, std::size_t count, const Edges& edges, std::size_t n_edges,
                             std::int32_t* below, float* shares);

    // Row by row, `step` apart, the columns of all chains that spread.
    void (*spread)(const Spread* chains, std::size_t n_chains, std::size_t rows, float* out, std::size_t step);

    // At most kMaxColumns columns of ids, with room for whole groups of kWide, to int64 rows `step` apart. Streams:
    // past the caches where whole cache lines are written; other threads see them after a fence.
    void (*write_ids)(const std::int32_t* const* columns, std::size_t n_columns, std::size_t rows, std::int64_t* out,
                      std::size_t step, bool streams);

    // Any count, any alignment. Text i is bytes[offsets[i], offsets[i + 1]).
    void (*hash_integers)(const std::int64_t* values, std::size_t count, std::uint64_t* hashes);
    void (*hash_texts)(const std::int32_t* offsets, const char* bytes, std::size_t count, std::uint64_t* hashes);
    void (*cross)(std::uint64_t* hashes, const std::uint64_t* others, std::size_t count);
};

namespace portable {
extern const Ops kOps;
}
namespace v2 {
extern const Ops kOps;
}
namespace v3 {
extern const Ops kOps;
}
namespace v4 {
extern const Ops kOps;
}
namespace v4_popcnt {
extern const Ops kOps;
}

}  // namespace trimtab::hot
