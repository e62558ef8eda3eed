// Adding values to a sketch's flat arrays, whose layout kernels/sketch_spec.py fixes and owns; nothing here allocates.
//
//   counts   (a field's part)  missing, unseen, negative_infinite, positive_infinite, buckets...
//   moments  (a field's part)  minimum, maximum, sum and sum of squares of (x - shift), over finite values
//
// Counts are exact. Sums are taken in eight lanes (by row modulo 8, from the start of the call) that are added in a fixed order,
// so the same calls give the same bits whatever the vector width.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "ops.h"

namespace trimtab {

inline constexpr std::size_t kSketchPrefix = 4;
inline constexpr std::size_t kSketchMoments = 4;

// What a numeric field's values are compared with.
struct SketchEdges {
    std::vector<float> edges;  // increase strictly
    float low = 0.0F;          // outside of [low, high] a value is unseen
    float high = 0.0F;
    double shift = 0.0;
};

// The running sums of one field during one call.
class SketchLanes {
  public:
    void add(std::size_t row, double d) {
        sum_[row % 8] += d;
        square_[row % 8] += d * d;
    }

    void finish(double* moments) const {
        moments[2] += total(sum_);
        moments[3] += total(square_);
    }

  private:
    static double total(const std::array<double, 8>& lane) {
        return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
    }

    std::array<double, 8> sum_{};
    std::array<double, 8> square_{};
};

// Adds values, of which the first is row `row` of the call. counts and moments point at the field's parts.
inline void sketch_values(const SketchEdges& field, std::span<const float> values, std::size_t row, std::uint64_t* counts,
                          double* moments, SketchLanes& lanes) {
    std::uint64_t* const buckets = counts + kSketchPrefix;
    double low = moments[0];
    double high = moments[1];
    for (std::size_t i = 0; i < values.size(); ++i) {
        const float x = values[i];
        if (std::isnan(x)) {
            ++counts[0];
            continue;
        }
        counts[1] += static_cast<std::uint64_t>(x < field.low || x > field.high);
        ++buckets[ops::bin_of(x, field.edges.data(), field.edges.size())];
        if (std::isinf(x)) {
            ++counts[x < 0 ? 2 : 3];
            continue;
        }
        const double value = static_cast<double>(x) + 0.0;  // -0 becomes +0
        low = value < low ? value : low;
        high = value > high ? value : high;
        lanes.add(row + i, value - field.shift);
    }
    moments[0] = low;
    moments[1] = high;
}

}  // namespace trimtab
