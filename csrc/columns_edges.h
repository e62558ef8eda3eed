// Making the edges that the loops of columns_ops.h search.
#pragma once

#include <cstddef>
#include <limits>
#include <vector>

#include "columns_ops.h"

namespace trimtab {

// edges: increasing; filled up, and borrowed by what is returned.
inline hot::Edges make_edges(std::vector<float>& edges) {
    constexpr float kNone = std::numeric_limits<float>::quiet_NaN();  // nothing is >= it
    hot::Edges made;
    while (made.levels < 6 && edges.size() >= std::size_t{1} << made.levels) ++made.levels;
    while (edges.size() >= std::size_t{1} << (made.levels + made.steps)) ++made.steps;
    edges.resize(std::size_t{1} << (made.levels + made.steps), kNone);
    made.all = edges.data();
    for (int level = 0; level < made.levels; ++level) {
        const std::size_t rest = made.levels - 1 - static_cast<std::size_t>(level);
        for (std::size_t decisions = 0; decisions < std::size_t{1} << level; ++decisions) {
            const std::size_t part = (2 * decisions + 1) << rest;  // whose last edge is before the value or not
            made.tree[hot::Edges::kLevel[level] + decisions] = edges[(part << made.steps) - 1];
        }
    }
    return made;
}

}  // namespace trimtab
