// The kernel: columns and sketch of a batch in one launch. Included behind the generated run_item().
//
// A block has a chunk of rows (blockIdx.x) and a group of items (blockIdx.y), and goes through its rows a tile at a time:
//
//   rows of a matrix come in and are turned       | all threads, 16-byte loads          (TRIMTAB_MATRIX)
//   each warp takes its items, one after another  | sketch in its own counters, features to the tile in shared memory
//   the tile goes out row by row                  | all threads, 16-byte stores: what the first GEMM reads as it is
//
// Every warp has the same items in all tiles, so its histograms and its lanes' moments are nobody else's. When the
// chunk is done, counts are added to the epoch's (integers: any order gives the same) and the moments of the chunk are
// written to its place among the partials; the group's last block adds these up chunk by chunk, in an order that depends
// on their number alone. So the same launch shape gives the same bits.
#pragma once

#include "cuda/chains.h"

namespace trimtab::cuda {

// Rows from this block's chunk on. A staged batch (TRIMTAB_STAGED) says in its header how many rows it has, of as many as
// the launch is for, so there are blocks without any; and in which epoch they count.
TRIMTAB_DEVICE Word rows_left(const Launch& launch) {
    const Word start = blockIdx.x * launch.chunk;
#if TRIMTAB_STAGED
    const Word came = word(launch.header);
    const Word rows = came < launch.rows ? came : launch.rows;
    return start < rows ? rows - start : 0;
#else
    return launch.rows - start;
#endif
}

TRIMTAB_DEVICE Word epoch(const Launch& launch) {
#if TRIMTAB_STAGED
    return word(launch.header + 2);
#else
    return word(launch.control);
#endif
}

TRIMTAB_DEVICE void begin(const Launch& launch, const Group& group, Word* shared) {
    const Word n_states = group.n_states * group.slices;
    auto* const sums = reinterpret_cast<double2*>(shared);
    auto* const extremes = reinterpret_cast<float2*>(shared + group.extremes);
    for (Word i = threadIdx.x; i < n_states * 32; i += kThreads) {
        sums[i] = make_double2(0.0, 0.0);
        extremes[i] = make_float2(kInfinity, -kInfinity);
    }
    for (Word i = threadIdx.x; i < group.histogram_words * group.slices; i += kThreads) {
        shared[group.histograms + i] = 0;
    }
    for (Word i = threadIdx.x / 32; i < group.n_items; i += kWarps) {
        const Item item = item_at(launch.tables + launch.items, group.first_item + i);
        for (Word j = threadIdx.x % 32; j < item.edge_words; j += 32) {
            shared[group.edges + item.edges + j] = word(launch.tables + item.edge_table + j);
        }
    }
}

// Which four columns of a row a thread takes, and which rows: a power of two of threads share a row, at most eight of
// them, so a thread keeps its columns, and what lies `step` rows further lies just so much further in the tile.
// kEight: eight threads, which the compiler then knows.
template <bool kEight>
struct Quad {
    Word quad;
    Word row;
    Word step;

    __device__ __forceinline__ explicit Quad(Word quads) {
        const Word shift = kEight ? 3 : (quads > 2 ? 2 : quads - 1);
        quad = threadIdx.x & ((1U << shift) - 1);
        row = threadIdx.x >> shift;
        step = kThreads >> shift;
    }
};

#if TRIMTAB_MATRIX
template <bool kEight>
TRIMTAB_DEVICE void turn_quads(Word quads, const float* from, std::size_t pitch, float* raw, Word rows,
                               Word tile_rows) {
    const Quad<kEight> mine(quads);
    if (mine.quad >= quads) return;
    float* into = raw + 4 * mine.quad * tile_rows + swizzled(4 * mine.quad, mine.row);
    from += mine.row * pitch + 4 * mine.quad;
    const auto put = [&](const float4& x) {
        into[0] = x.x;
        into[tile_rows] = x.y;
        into[2 * tile_rows] = x.z;
        into[3 * tile_rows] = x.w;
    };
    Word row = mine.row;
#pragma unroll 4
    for (const Word last = rows < tile_rows ? rows : tile_rows; row < last; row += mine.step) {
        put(__ldcs(reinterpret_cast<const float4*>(from)));
        from += mine.step * pitch;
        into += mine.step;
    }
    for (; row < tile_rows; row += mine.step, into += mine.step) put(make_float4(kNaN, kNaN, kNaN, kNaN));
}

// Rows [first, first + tile_rows) of the group's fields, turned into columns; NaN from `stop` on.
TRIMTAB_DEVICE void turn(const Launch& launch, const Group& group, Word* shared, Word first, Word stop,
                         Word tile_rows) {
    auto* const raw = reinterpret_cast<float*>(shared + group.raw);
    const float* from = launch.matrix + first * launch.matrix_pitch;
    const Word rows = stop - first;
    if (group.first_field != kNone && launch.aligned != 0) {
        from += group.first_field;
        if (group.n_items > 16) {
            turn_quads<true>(group.n_items / 4, from, launch.matrix_pitch, raw, rows, tile_rows);
        } else {
            turn_quads<false>(group.n_items / 4, from, launch.matrix_pitch, raw, rows, tile_rows);
        }
        return;
    }
    for (Word i = threadIdx.x; i < group.n_items * tile_rows; i += kThreads) {
        const Word row = i / group.n_items;
        const Word item = i - row * group.n_items;
        const Word field = item_at(launch.tables + launch.items, group.first_item + item).input;
        raw[item * tile_rows + swizzled(item, row)] = row < rows ? from[row * launch.matrix_pitch + field] : kNaN;
    }
}
#endif

template <bool kEight>
TRIMTAB_DEVICE void put_quads(Word quads, const float* tile, Word tile_rows, float* into, std::size_t pitch,
                              Word rows) {
    const Quad<kEight> mine(quads);
    if (mine.quad >= quads) return;
    const float* from = tile + 4 * mine.quad * tile_rows + swizzled(4 * mine.quad, mine.row);
    into += mine.row * pitch + 4 * mine.quad;
#pragma unroll 4
    for (Word row = mine.row; row < rows; row += mine.step, from += mine.step, into += mine.step * pitch) {
        *reinterpret_cast<float4*>(into) =
            make_float4(from[0], from[tile_rows], from[2 * tile_rows], from[3 * tile_rows]);
    }
}

// The tile's rows before `stop`, to the features. The last group's vectors may reach into what pads a row of features.
TRIMTAB_DEVICE void put_rows(const Launch& launch, const Group& group, const Word* shared, Word first, Word stop,
                             Word tile_rows) {
    const auto* const tile = reinterpret_cast<const float*>(shared + group.tile);
    float* into = launch.features + first * launch.feature_pitch + group.first_feature;
    const Word rows = stop - first < tile_rows ? stop - first : tile_rows;
    if (group.whole_vectors != 0) {
        const Word quads = (group.width + 3) / 4;
        if (quads > 4) {
            put_quads<true>(quads, tile, tile_rows, into, launch.feature_pitch, rows);
        } else {
            put_quads<false>(quads, tile, tile_rows, into, launch.feature_pitch, rows);
        }
        return;
    }
    for (Word i = threadIdx.x; i < group.width * rows; i += kThreads) {
        const Word row = i / group.width;
        const Word column = i - row * group.width;
        into[row * launch.feature_pitch + column] = tile[column * tile_rows + swizzled(column, row)];
    }
}

#if TRIMTAB_SKETCH
// A warp's moments, added up over its lanes; all of them get the result.
TRIMTAB_DEVICE Moments over_lanes(Moments m) {
    for (int step = 16; step > 0; step /= 2) {
        m.sum += __shfl_xor_sync(kAll, m.sum, step);
        m.square += __shfl_xor_sync(kAll, m.square, step);
        m.least = fminf(m.least, __shfl_xor_sync(kAll, m.least, step));
        m.most = fmaxf(m.most, __shfl_xor_sync(kAll, m.most, step));
    }
    return m;
}

TRIMTAB_DEVICE void add(Moments& to, const Moments& m) {
    to.sum += m.sum;
    to.square += m.square;
    to.least = fminf(to.least, m.least);
    to.most = fmaxf(to.most, m.most);
}

// `behind`: rows behind the last that were taken as missing.
TRIMTAB_DEVICE void put_counts(const Launch& launch, const Group& group, const Item& item, const Word* shared,
                               Word behind) {
    Count* const counts = launch.counts + epoch(launch) * launch.n_counts + item.counts;
    for (Word slot = threadIdx.x % 32; slot < item.buckets + kPrefix; slot += 32) {
        Word total = 0;
        for (Word slice = 0; slice < group.slices; ++slice) {
            total += shared[group.histograms + slice * group.histogram_words + item.histogram + slot];
        }
        if (slot == item.buckets && item.moments != kNone) total -= behind;
        if (total == 0) continue;
        atomicAdd(&counts[slot < item.buckets ? kPrefix + slot : slot - item.buckets], static_cast<Count>(total));
    }
}

// Adds a field's moments of the launch to the epoch's; one thread does that.
TRIMTAB_DEVICE void put_total(const Launch& launch, const Item& item, const Moments& moments) {
    double* const into = launch.moments + epoch(launch) * launch.n_moments + item.moments;
    const double least = static_cast<double>(moments.least) + 0.0;  // -0 becomes +0
    const double most = static_cast<double>(moments.most) + 0.0;
    into[0] = least < into[0] ? least : into[0];
    into[1] = most > into[1] ? most : into[1];
    into[2] += moments.sum;
    into[3] += moments.square;
}

TRIMTAB_DEVICE void put_moments(const Launch& launch, const Group& group, const Item& item, const Word* shared) {
    const Word lane = threadIdx.x % 32;
    Moments moments{0.0, 0.0, kInfinity, -kInfinity};
    for (Word slice = 0; slice < group.slices; ++slice) {
        const Word state = (slice * group.n_states + item.state) * 32 + lane;
        const double2 sums = reinterpret_cast<const double2*>(shared)[state];
        const float2 extremes = reinterpret_cast<const float2*>(shared + group.extremes)[state];
        add(moments, {sums.x, sums.y, extremes.x, extremes.y});
    }
    moments = over_lanes(moments);
    if (lane != 0) return;
    if (gridDim.x == 1) return put_total(launch, item, moments);
    double* const into =
        launch.partials + (static_cast<std::size_t>(blockIdx.x) * launch.n_partials + item.partial) * 4;
    into[0] = static_cast<double>(moments.least);
    into[1] = static_cast<double>(moments.most);
    into[2] = moments.sum;
    into[3] = moments.square;
}

// All chunks' moments of a field, by one warp.
TRIMTAB_DEVICE void merge(const Launch& launch, const Item& item) {
    const Word lane = threadIdx.x % 32;
    Moments moments{0.0, 0.0, kInfinity, -kInfinity};
    for (Word chunk = lane; chunk < gridDim.x; chunk += 32) {
        const double* const from =
            launch.partials + (static_cast<std::size_t>(chunk) * launch.n_partials + item.partial) * 4;
        const double least = __ldcg(from), most = __ldcg(from + 1), sum = __ldcg(from + 2), square = __ldcg(from + 3);
        add(moments, {sum, square, static_cast<float>(least), static_cast<float>(most)});
    }
    moments = over_lanes(moments);
    if (lane == 0) put_total(launch, item, moments);
}

TRIMTAB_DEVICE void finish(const Launch& launch, const Group& group, Word* shared, Word behind) {
    __syncthreads();
    const Word* const items = launch.tables + launch.items;
    for (Word i = threadIdx.x / 32; i < group.n_items; i += kWarps) {
        const Item item = item_at(items, group.first_item + i);
        if (item.counts == kNone) continue;
        put_counts(launch, group, item, shared, behind);
        if (item.moments != kNone) put_moments(launch, group, item, shared);
    }
    if (threadIdx.x == 0 && blockIdx.y == 0) {
        const Word left = rows_left(launch);
        atomicAdd(&launch.counts[epoch(launch) * launch.n_counts],
                  static_cast<Count>(left < launch.chunk ? left : launch.chunk));
    }
    if (gridDim.x == 1) return;  // a small batch's only chunk waits for nobody
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) shared[0] = atomicAdd(&launch.control[1 + blockIdx.y], 1U);
    __syncthreads();
    if (shared[0] != gridDim.x - 1) return;
    __threadfence();
    for (Word i = threadIdx.x / 32; i < group.n_items; i += kWarps) {
        const Item item = item_at(items, group.first_item + i);
        if (item.counts != kNone && item.moments != kNone) merge(launch, item);
    }
    if (threadIdx.x == 0) launch.control[1 + blockIdx.y] = 0;  // for the next launch
}
#endif

TRIMTAB_DEVICE void run_block(const Launch& launch, Word* shared) {
    const Group group = group_at(launch.tables, blockIdx.y);
    begin(launch, group, shared);
    __syncthreads();
    const Word tile_rows = kWarpRows * group.slices;
    const Word abreast = kWarps / group.slices;  // items at a time
    const Word slice = (threadIdx.x / 32) / abreast;
    const Word start = blockIdx.x * launch.chunk;
    const Word left = rows_left(launch);
    const Word stop = start + (left < launch.chunk ? left : launch.chunk);
    const Word* const items = launch.tables + launch.items;
    Warp warp{launch, shared, group.tile, group.raw, tile_rows, group.histograms + slice * group.histogram_words,
              group.edges, slice * group.n_states, group.extremes, threadIdx.x % 32, slice * kWarpRows, 0, 0};
    for (Word first = start; first < stop; first += tile_rows) {
#if TRIMTAB_MATRIX
        turn(launch, group, shared, first, stop, tile_rows);
        __syncthreads();
#endif
        warp.first = first + warp.row;
        warp.rows = warp.first >= stop ? 0 : (stop - warp.first < kWarpRows ? stop - warp.first : kWarpRows);
        for (Word i = (threadIdx.x / 32) % abreast; warp.rows > 0 && i < group.n_items; i += abreast) {
            run_item(warp, items, group.first_item + i, i);
        }
        if (group.width > 0) {
            __syncthreads();
            put_rows(launch, group, shared, first, stop, tile_rows);
            __syncthreads();
        } else if (TRIMTAB_MATRIX) {
            __syncthreads();
        }
    }
#if TRIMTAB_SKETCH
    finish(launch, group, shared, (kWarpRows - (stop - start) % kWarpRows) % kWarpRows);
#endif
}

}  // namespace trimtab::cuda

extern "C" __global__ void __launch_bounds__(256, TRIMTAB_BLOCKS)
    trimtab_columns(const unsigned* __restrict__ tables, unsigned items, const void* const* __restrict__ columns,
                    const float* __restrict__ matrix, unsigned long long matrix_pitch, float* __restrict__ features,
                    unsigned long long feature_pitch, long long* __restrict__ ids, unsigned long long id_pitch,
                    unsigned long long* counts, unsigned long long n_counts, double* moments,
                    unsigned long long n_moments, double* partials, unsigned n_partials, unsigned* control,
                    unsigned rows, unsigned chunk, unsigned aligned, const unsigned* __restrict__ header) {
    TRIMTAB_SHARED(float4, shared);
    trimtab::cuda::run_block({tables, items, columns, matrix, matrix_pitch, features, feature_pitch, ids, id_pitch,
                              counts, n_counts, moments, n_moments, partials, n_partials, control, header, rows,
                              chunk, aligned},
                             reinterpret_cast<unsigned*>(shared));
}
