// Adding values to a sketch's flat arrays, whose layout kernels/sketch_spec.py fixes and owns; nothing here allocates.
//
//   counts   (a field's part)  missing, unseen, negative_infinite, positive_infinite, buckets...
//   moments  (a field's part)  minimum, maximum, sum and sum of squares of (x - shift), over finite values
//
// Counts are exact. Sums are taken in eight lanes (by row modulo 8, from the start of the call) that are added in a fixed order,
// so the same calls give the same bits whatever the vector width.
#pragma once

#include <algorithm>
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
inline constexpr std::size_t kSketchBlock = 16;  // values that are taken together

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

    // kSketchBlock finite values, the first of a row that is a multiple of eight.
    void add_block(const float* values, double shift) {
        for (std::size_t i = 0; i < kSketchBlock; i += 8) {
            for (std::size_t lane = 0; lane < 8; ++lane) {
                const double d = (static_cast<double>(values[i + lane]) + 0.0) - shift;
                sum_[lane] += d;
                square_[lane] += d * d;
            }
        }
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

// Up to here every value is compared with every edge, many values at a time; beyond, each is searched for.
inline constexpr std::size_t kComparedEdges = 64;

// The bins of up to kSketchBlock values. That of NaN means nothing.
inline void bins_of(const SketchEdges& field, const float* values, std::size_t count, std::uint32_t* bins) {
    if (count < kSketchBlock || field.edges.size() > kComparedEdges) {
        for (std::size_t i = 0; i < count; ++i) {
            bins[i] = static_cast<std::uint32_t>(ops::bin_of(values[i], field.edges.data(), field.edges.size()));
        }
        return;
    }
    std::array<std::uint32_t, kSketchBlock> below{};
    for (const float edge : field.edges) {
        for (std::size_t i = 0; i < kSketchBlock; ++i) below[i] += static_cast<std::uint32_t>(edge <= values[i]);
    }
    std::copy(below.begin(), below.end(), bins);
}

// One value of any kind.
inline void sketch_value(const SketchEdges& field, float x, std::uint32_t bin, std::size_t row, std::uint64_t* counts, double* moments,
                         SketchLanes& lanes) {
    if (std::isnan(x)) {
        ++counts[0];
        return;
    }
    counts[1] += static_cast<std::uint64_t>(x < field.low || x > field.high);
    ++counts[kSketchPrefix + bin];
    if (std::isinf(x)) {
        ++counts[x < 0 ? 2 : 3];
        return;
    }
    const double value = static_cast<double>(x) + 0.0;  // -0 becomes +0
    moments[0] = value < moments[0] ? value : moments[0];
    moments[1] = value > moments[1] ? value : moments[1];
    lanes.add(row, value - field.shift);
}

inline bool all_finite(const float* values) {
    std::uint32_t wrong = 0;
    for (std::size_t i = 0; i < kSketchBlock; ++i) {
        wrong |= static_cast<std::uint32_t>(!(std::fabs(values[i]) <= std::numeric_limits<float>::max()));
    }
    return wrong == 0;
}

// A block of finite values, to the same bits as one by one.
inline void sketch_block(const SketchEdges& field, const float* values, const std::uint32_t* bins, std::uint64_t* counts, double* moments,
                         SketchLanes& lanes) {
    std::uint32_t unseen = 0;
    float low = values[0];
    float high = values[0];
    for (std::size_t i = 0; i < kSketchBlock; ++i) {
        unseen += static_cast<std::uint32_t>(values[i] < field.low) + static_cast<std::uint32_t>(values[i] > field.high);
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
    }
    counts[1] += unseen;
    for (std::size_t i = 0; i < kSketchBlock; ++i) ++counts[kSketchPrefix + bins[i]];
    const double least = static_cast<double>(low) + 0.0;
    const double most = static_cast<double>(high) + 0.0;
    moments[0] = least < moments[0] ? least : moments[0];
    moments[1] = most > moments[1] ? most : moments[1];
    lanes.add_block(values, field.shift);
}

// Adds values, of which the first is row `row` of the call, a multiple of eight. counts and moments point at the field's parts.
inline void sketch_values(const SketchEdges& field, std::span<const float> values, std::size_t row, std::uint64_t* counts,
                          double* moments, SketchLanes& lanes) {
    std::array<std::uint32_t, kSketchBlock> bins;
    for (std::size_t i = 0; i < values.size(); i += kSketchBlock) {
        const std::size_t count = std::min(kSketchBlock, values.size() - i);
        bins_of(field, values.data() + i, count, bins.data());
        if (count == kSketchBlock && all_finite(values.data() + i)) {
            sketch_block(field, values.data() + i, bins.data(), counts, moments, lanes);
            continue;
        }
        for (std::size_t j = 0; j < count; ++j) sketch_value(field, values[i + j], bins[j], row + i + j, counts, moments, lanes);
    }
}

}  // namespace trimtab
