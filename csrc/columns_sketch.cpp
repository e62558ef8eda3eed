#include "columns_sketch.h"

#include <algorithm>
#include <limits>

namespace trimtab {
hot::Sketch make_sketch(std::span<const float> edges, float low, float high, float shift) {
    hot::Sketch sketch;
    sketch.edges = edges.data();
    sketch.n_edges = edges.size();
    sketch.low = low;
    sketch.high = high;
    sketch.shift = shift;
    if (edges.size() > hot::kSearchedEdges) return sketch;
    sketch.levels = 4;
    while (edges.size() >= std::size_t{1} << sketch.levels) ++sketch.levels;
    for (int level = 0; level < sketch.levels; ++level) {
        const std::size_t half = std::size_t{1} << (sketch.levels - 1 - level);  // what the level's decision is worth
        for (std::size_t decisions = 0; decisions < std::size_t{1} << level; ++decisions) {
            std::size_t below = 0;  // the edges that are known to be <= x
            for (int i = 0; i < level; ++i) below += ((decisions >> i) & 1U) << (sketch.levels - 1 - i);
            const std::size_t edge = below + half - 1;
            sketch.tree[static_cast<std::size_t>(16 * level) + decisions] =
                edge < edges.size() ? edges[edge] : std::numeric_limits<float>::quiet_NaN();
        }
    }
    return sketch;
}

void sketch_values(const hot::Table& level, const hot::Sketch& field, std::span<const float> values,
                   std::uint64_t* counts, double* moments) {
    hot::State state;
    for (std::size_t i = 0; i < values.size(); i += hot::kRows) {
        hot::Block block;
        block.raw = block.ahead = values.data() + i;
        block.count = std::min(hot::kRows, values.size() - i);
        block.counts = counts;
        block.moments = moments;
        block.state = values.size() > hot::kRows ? &state : nullptr;
        level.field(nullptr, &field, block);
    }
    if (values.size() > hot::kRows) level.finish(state, moments);
}

}  // namespace trimtab
