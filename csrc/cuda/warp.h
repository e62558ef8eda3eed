// A warp and the rows that it takes of one item at a time: kWarpRows of them, kValues a lane.
//
// Lane l has the rows 4 l ... 4 l + 3, and with two vectors also those 128 further: columns come in as 16-byte loads, and
// what becomes of them goes to the tile in shared memory as 16-byte stores. Row r of the tile's column c lies at
// c * rows + (r ^ 4 (c / 4 % 8)): exchanged by fours, so that neither the lanes of a column nor those that later take
// four columns of a row meet in a bank.
//
// Rows behind the batch's last are NaN (numbers) or PAD (ids) and take the same way as all others; nothing is written
// for them, and their count as missing is taken back when the block ends.
#pragma once

#include "cuda/tables.h"

namespace trimtab::cuda {

struct Values {
    float at[kValues];
};

struct Ids {
    int at[kValues];
};

constexpr Word kAll = 0xffffffffU;

// NaN, asked in other words than ops::is_nan: the compiler would keep eight values' answers from the moments on, for
// which there are not predicates enough.
TRIMTAB_DEVICE bool is_missing(float x) { return !(x <= kInfinity); }

TRIMTAB_DEVICE Word swizzled(Word column, Word row) { return row ^ (4 * ((column >> 2) & 7)); }

struct Warp {
    const Launch& launch;
    Word* shared;
    Word tile;        // word offsets in shared memory
    Word raw;
    Word tile_rows;
    Word histograms;  // this slice's
    Word edges;
    Word states;      // index of this slice's first
    Word extremes;
    Word lane;
    Word row;    // in the tile, of this slice's first
    Word first;  // in the batch, likewise
    Word rows;   // that there are of this slice, at most kWarpRows

    TRIMTAB_DEVICE Word place(Word lane, Word value) { return (value & ~3U) * 32 + 4 * lane + (value & 3U); }

    __device__ __forceinline__ float* column(Word base, Word index) const {
        return reinterpret_cast<float*>(shared + base + index * tile_rows);
    }

    __device__ __forceinline__ bool whole() const { return rows == kWarpRows && launch.aligned != 0; }

    // Of a real or boolean column.
    __device__ __forceinline__ void load_reals(Word input, Values& x) const {
        const float* const from = static_cast<const float*>(launch.columns[input]) + first + 4 * lane;
        if (whole()) {
#pragma unroll
            for (Word v = 0; v < kVectors; ++v) {
                const float4 four = __ldcs(reinterpret_cast<const float4*>(from + 128 * v));  // read once
                x.at[4 * v] = four.x;
                x.at[4 * v + 1] = four.y;
                x.at[4 * v + 2] = four.z;
                x.at[4 * v + 3] = four.w;
            }
        } else {
#pragma unroll
            for (Word v = 0; v < kValues; ++v) {
                x.at[v] = place(lane, v) < rows ? from[place(0, v)] : kNaN;
            }
        }
    }

    // Of a matrix, whose rows are in shared memory.
    __device__ __forceinline__ void load_turned(Word column_of_raw, Values& x) const {
        const float* const from = column(raw, column_of_raw);
#pragma unroll
        for (Word v = 0; v < kVectors; ++v) {
            const float4 four =
                *reinterpret_cast<const float4*>(from + swizzled(column_of_raw, row + 128 * v + 4 * lane));
            x.at[4 * v] = four.x;
            x.at[4 * v + 1] = four.y;
            x.at[4 * v + 2] = four.z;
            x.at[4 * v + 3] = four.w;
        }
    }

    __device__ __forceinline__ Id integer_at(Word input, Word value) const {
        const Id* const from = static_cast<const Id*>(launch.columns[input]) + first;
        return place(lane, value) < rows ? from[place(lane, value)] : kMissingInteger;
    }

    // Of an integer column, as numbers.
    __device__ __forceinline__ void load_integers(Word input, Values& x) const {
#pragma unroll
        for (Word v = 0; v < kValues; ++v) {
            const Id value = integer_at(input, v);
            x.at[v] = value == kMissingInteger ? kNaN : static_cast<float>(value);
        }
    }

    // A feature, to the tile.
    __device__ __forceinline__ void put(Word index, const Values& y) const {
        float* const into = column(tile, index);
#pragma unroll
        for (Word v = 0; v < kVectors; ++v) {
            *reinterpret_cast<float4*>(into + swizzled(index, row + 128 * v + 4 * lane)) =
                make_float4(y.at[4 * v], y.at[4 * v + 1], y.at[4 * v + 2], y.at[4 * v + 3]);
        }
    }

    // 1 where the value is missing.
    __device__ __forceinline__ void put_flags(Word index, const Values& x) const {
        Values y;
#pragma unroll
        for (Word v = 0; v < kValues; ++v) y.at[v] = ops::is_nan(x.at[v]) ? 1.0F : 0.0F;
        put(index, y);
    }

    // A feature, past the tile.
    __device__ __forceinline__ void write_flags(Word feature, const Values& x) const {
        float* const into = launch.features + first * launch.feature_pitch + feature;
#pragma unroll
        for (Word v = 0; v < kValues; ++v) {
            const Word at = place(lane, v);
            if (at < rows) into[at * launch.feature_pitch] = ops::is_nan(x.at[v]) ? 1.0F : 0.0F;
        }
    }

    __device__ __forceinline__ void put_ids(Word index, const Ids& ids) const {
        Id* const into = launch.ids + first * launch.id_pitch + index;
#pragma unroll
        for (Word v = 0; v < kValues; ++v) {
            const Word at = place(lane, v);
            if (at < rows) into[at * launch.id_pitch] = ids.at[v];
        }
    }

    // A value to `width` features, past the tile: `before` in front of position `at`, `share` there, 0 behind.
    __device__ __forceinline__ void spread(Word feature, Word width, const Ids& at, const Values& share,
                                           float before) const {
        float* const into = launch.features + first * launch.feature_pitch + feature;
#pragma unroll
        for (Word v = 0; v < kValues; ++v) {
            for (Word other = 0; other < 32; ++other) {
                const int position = __shfl_sync(kAll, at.at[v], static_cast<int>(other));
                const float part = __shfl_sync(kAll, share.at[v], static_cast<int>(other));
                const Word to = place(other, v);
                if (to >= rows) continue;
                for (Word c = lane; c < width; c += 32) {
                    const int here = static_cast<int>(c);
                    into[to * launch.feature_pitch + c] = here < position ? before : (here == position ? part : 0.0F);
                }
            }
        }
    }
};

}  // namespace trimtab::cuda
