// The inner loops of the column executor, which exist once per dispatch level: what they take, and which there are.
//
// columns_hot.cpp is compiled once for each level, with the compiler's flags for it; every copy exports one Table. That
// source, and this header, include nothing whose inline functions the linker could take for the rest of the program:
// they would hold instructions that not every machine has. For the same reason everything here is plain data.
//
// All levels give the same bits: elementwise float64, no contraction, sums in fixed lanes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace trimtab::hot {

inline constexpr std::size_t kRows = 512;       // rows a block, at most: 16 columns of it stay in the first cache level
inline constexpr std::size_t kWide = 16;        // values that are taken together
inline constexpr std::size_t kMaxColumns = 16;  // columns that are written together
inline constexpr std::size_t kSearchedEdges = 63;  // up to here bins are found many at a time

// One real feature: clip, then (x - shift) * inverse, then fp32. With a clip, what comes of low and high is an
// fp32 number; without one, low and high are infinite.
struct Column {
    float low = 0.0F;
    float high = 0.0F;
    float fill = 0.0F;  // what NaN gives
    bool clips = false;
    double shift = 0.0;
    double inverse = 1.0;
};

// What a field's values are compared with. The edges, filled up with NaN to 2^levels - 1, also lie level by level as a
// search goes through them: on level l, at 16 * l, the edge after the decisions b0, b1, ... is at b0 + 2 b1 + 4 b2 +
// ...
struct Sketch {
    alignas(64) float tree[16 * 7] = {};
    const float* edges = nullptr;  // increase strictly; borrowed
    std::size_t n_edges = 0;
    int levels = 0;    // 4, 5 or 6; 0: too many edges for that
    float low = 0.0F;  // outside of [low, high] a value is unseen
    float high = 0.0F;
    float shift = 0.0F;
};

// The running sums of one field during a call of several blocks: in eight lanes, by row modulo 8 from the start of the
// call.
struct State {
    double sum[8] = {};
    double square[8] = {};
    float minimum = __builtin_huge_valf();
    float maximum = -__builtin_huge_valf();
};

// `count` <= kRows raw values of one field, NaN missing, the first of a row that is a multiple of eight.
struct Block {
    const float* raw = nullptr;
    std::size_t count = 0;
    const float* ahead = nullptr;  // values that will be read next, `count` of them
    // Where the feature goes and, unless null, 1 for missing; both with room for whole groups of kWide.
    float* values = nullptr;
    float* flags = nullptr;
    // The field's parts of a sketch (columns_sketch.h), which are added to. With a state, the moments wait in it for
    // more blocks and for finish().
    std::uint64_t* counts = nullptr;
    double* moments = nullptr;
    State* state = nullptr;
};

struct Ops;

struct Table {
    const char* name;
    const Ops* ops;  // columns_ops.h

    // Either of column and sketch may be null: then the block's members for it are not looked at.
    void (*field)(const Column* column, const Sketch* sketch, const Block& block);

    // Adds the state of all blocks to the field's moments.
    void (*finish)(const State& state, double* moments);

    // Columns, the first at `tile` and each `stride` after the one before, to rows that are `step` apart. Streams: past
    // the caches where whole cache lines are written; other threads see them after a fence.
    void (*transpose)(const float* tile, std::size_t stride, std::size_t columns, std::size_t rows, float* out,
                      std::size_t step, bool streams);
};

namespace portable {
extern const Table kTable;
}
namespace v2 {
extern const Table kTable;
}
namespace v3 {
extern const Table kTable;
}
namespace v4 {
extern const Table kTable;
}
namespace v4_popcnt {  // and counts bits eight words at a time, which x86-64-v4 leaves open
extern const Table kTable;
}

}  // namespace trimtab::hot
