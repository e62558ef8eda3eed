// What a launch of the CUDA column kernel reads beside the rows: the layout that kernels/cuda_tables.py writes.
//
// All tables lie in one array of 32-bit words in global memory, the groups first, then the items, then what these point
// at by word offsets that are multiples of four (16 bytes). They hold every number of the program (edges, fills, shifts,
// vocabularies): the source that is compiled depends on the program's shape alone.
#pragma once

#include "ops.h"

#define TRIMTAB_DEVICE static __device__ __forceinline__

// The block's dynamic shared memory. The tests that play the GPU on a CPU give it another way.
#ifndef TRIMTAB_SHARED
#define TRIMTAB_SHARED(type, name) extern __shared__ type name[]
#endif

namespace trimtab::cuda {

using Word = unsigned int;
using Count = unsigned long long;
using Id = long long;

constexpr Word kThreads = 256;
constexpr Word kWarps = kThreads / 32;
constexpr Word kVectors = TRIMTAB_VECTORS;  // of four rows, that a lane takes of an item at a time: 1 or 2
constexpr Word kValues = 4 * kVectors;
constexpr Word kWarpRows = 32 * kValues;
constexpr Word kNone = 0xffffffffU;
constexpr Id kMissingInteger = -0x7fffffffffffffffLL - 1;
constexpr float kMost = 3.402823466e+38F;
constexpr float kNaN = __builtin_bit_cast(float, 0x7fc00000U);
constexpr float kInfinity = __builtin_bit_cast(float, 0x7f800000U);

// Items whose features lie side by side, and the block's shared memory for them (offsets in words).
struct alignas(16) Group {
    Word first_item;
    Word n_items;
    Word first_feature;
    Word width;  // features in the tile
    Word slices;  // a power of two: so many warps share an item, each with rows of its own
    Word whole_vectors;  // whether features go out four at a time
    Word first_field;  // of a matrix, where the items' fields follow each other in fours; else kNone
    Word n_states;
    Word extremes;  // states begin at word 0
    Word tile;
    Word raw;  // of a matrix, the rows as they came; the tile's place where an item's column is that of its feature
    Word histograms;
    Word histogram_words;  // of one slice
    Word edges;
    Word shared_words;
    Word unused;
};

// A field with what is to become of it, or a category with its id.
struct alignas(16) Item {
    Word kind;        // which function of the generated source
    Word input;       // position among the columns
    Word column;      // in the tile, of the first feature
    Word parameters;  // of the chains
    Word sketch;      // {low, high, shift, 0}, then the edges in lanes, of numbers
    Word histogram;   // in the slice's part: the buckets, then missing, unseen, negative and positive infinite
    Word state;       // of the group's moments
    Word edges;       // in shared memory, filled up with NaN to a power of two, less one
    Word id;          // the column of the first id
    Word feature;     // the first of those that are not in the tile
    Word counts;      // where the field begins in a sketch's counts; kNone: it is not counted here
    Word buckets;
    Word moments;     // where it begins in a sketch's moments; kNone: categories
    Word partial;     // of the program's moments
    Word edge_words;  // to be copied to shared memory from `edge_table`
    Word edge_table;
};

// The kernel's arguments. counts and moments: epochs one after the other, of which control[0] says which is added to. Of
// a staged batch, header[0] says how many rows there are, and header[2] which epoch.
struct Launch {
    const Word* tables;
    Word items;  // word offset
    const void* const* columns;  // one a field, then the ids that the host made; null: a matrix
    const float* matrix;
    std::size_t matrix_pitch;  // floats from row to row
    float* features;
    std::size_t feature_pitch;  // a multiple of four
    Id* ids;
    std::size_t id_pitch;
    Count* counts;
    std::size_t n_counts;
    double* moments;
    std::size_t n_moments;
    double* partials;  // [blockIdx.x, n_partials, 4]
    Word n_partials;
    Word* control;  // an epoch, then a ticket for each group
    const Word* header;  // null: not staged
    Word rows;
    Word chunk;  // rows that a block takes
    Word aligned;  // whether columns and matrix begin at, and the matrix's rows are, multiples of 16 bytes
};

TRIMTAB_DEVICE Word word(const Word* at) { return __ldg(at); }
TRIMTAB_DEVICE float real(const Word* at) { return __ldg(reinterpret_cast<const float*>(at)); }
TRIMTAB_DEVICE double wide(const Word* at) { return __ldg(reinterpret_cast<const double*>(at)); }
TRIMTAB_DEVICE uint4 four(const Word* at) { return __ldg(reinterpret_cast<const uint4*>(at)); }

TRIMTAB_DEVICE Group group_at(const Word* tables, Word index) {
    const Word* const at = tables + index * (sizeof(Group) / 4);
    const uint4 a = four(at), b = four(at + 4), c = four(at + 8), d = four(at + 12);
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w, d.x, d.y, d.z, d.w};
}

TRIMTAB_DEVICE Item item_at(const Word* items, Word index) {
    const Word* const at = items + index * (sizeof(Item) / 4);
    const uint4 a = four(at), b = four(at + 4), c = four(at + 8), d = four(at + 12);
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w, d.x, d.y, d.z, d.w};
}

}  // namespace trimtab::cuda
