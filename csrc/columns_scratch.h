// What a run of a column program works in, one a thread. Included by what runs one: columns_program.cpp, columns_threads.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "columns_program.h"

namespace trimtab {

// Between the columns of a tile, so that they do not all fall onto the same sets of the cache.
inline constexpr std::size_t kTileGap = hot::kWide;

inline constexpr std::size_t kTileStride = hot::kRows + kTileGap;

// The places that `count` values take in whole groups of hot::kWide.
inline constexpr std::size_t whole_groups(std::size_t count) {
    return (count + hot::kWide - 1) / hot::kWide * hot::kWide;
}

// Features, or ids, past this do not stay in a cache until they are used: they are written past it.
inline constexpr std::size_t kStreamedBytes = std::size_t{8} << 20;

// What a row-major block takes as columns, so that it stays in the second cache level.
inline constexpr std::size_t kTurnedBytes = std::size_t{256} << 10;

// One thread's memory. Lookups hold the id of each value of the block: kNull, kOov, or kFirst + position.
struct CompiledProgram::Scratch {
    Scratch(const CompiledProgram& program, const ColumnSource& source, std::size_t rows, bool sketching)
        : block(std::min(rows, hot::kRows)) {
        if (source.matrix() != nullptr) {
            const std::size_t fits = kTurnedBytes / sizeof(float) / source.width() / hot::kWide * hot::kWide;
            block = std::min(block, std::max(fits, 2 * hot::kWide));
            stride = (block + hot::kWide - 1) / hot::kWide * hot::kWide + kTileGap;
            turned = std::make_unique_for_overwrite<float[]>(source.width() * stride);
            for (std::size_t i = 0; i < source.width(); ++i) views.push_back({.reals = turned.get() + i * stride});
        }
        if (!program.lookups_.empty())
            found = std::make_unique_for_overwrite<std::int32_t[]>(program.lookups_.size() * whole_groups(block));
        if (sketching && rows > block) states.resize(program.sketch_.size());
        streams_ids = rows * program.n_ids_ * sizeof(std::int64_t) >= kStreamedBytes;
        streams = rows * program.n_features_ * sizeof(float) >= kStreamedBytes;
    }

    std::int32_t* lookup(std::size_t index) { return found.get() + index * whole_groups(block); }

    std::size_t block;  // rows
    bool streams = false;
    bool streams_ids = false;
    std::unique_ptr<std::int32_t[]> found;
    std::vector<hot::State> states;  // one a sketched field; none where a single block is all there is
    std::unique_ptr<float[]> turned;  // a row-major block as columns
    std::size_t stride = 0;           // of them
    std::vector<ColumnView> views;
    alignas(64) std::array<float, hot::kMaxColumns * kTileStride> tile;
    alignas(64) std::array<std::int32_t, hot::kMaxColumns * kTileStride> ids;
    alignas(64) std::array<float, hot::kRows> raw;
    alignas(64) std::array<double, hot::kRows> work;
    std::array<std::uint64_t, hot::kRows> hashes;
    std::array<std::uint64_t, hot::kRows> other_hashes;
    std::array<bool, hot::kRows> missing;
};

}  // namespace trimtab
