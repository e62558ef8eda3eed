// A bounded uniform sample of a column's finite values, and the extremes of all of them.
//
// Bottom-k sampling: every row has a pseudo-random priority that its caller derives from the row's number; what is kept
// are the values of the rows of the smallest priorities, among those whose value is finite. So it does not depend on
// how the rows were cut into calls. Between calls up to twice as many are kept, of which the rest go when there is no
// more room.
//
// Owns its values. One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

namespace trimtab {

class RowSample {
  public:
    explicit RowSample(std::size_t size) : size_(size) {}

    // Adds values, whose priorities these are; `rows`: positions, in any order, that hold at least those whose priority
    // is not above limit().
    void add(std::span<const float> values, std::span<const std::uint64_t> priorities,
             std::span<const std::int64_t> rows);
    void add(std::span<const float> values, std::span<const std::uint64_t> priorities);

    // Rows of a larger priority are not kept any more.
    std::uint64_t limit() const { return limit_; }

    // Of all finite values: -0 is 0; infinite, and the other way round, without any.
    double minimum() const { return extremes_[0]; }
    double maximum() const { return extremes_[1]; }

    // The sample, in no order.
    std::vector<float> values();

  private:
    void see(std::span<const float> values);
    void keep(float value, std::uint64_t priority);
    void shrink();

    std::size_t size_;
    std::uint64_t limit_ = std::numeric_limits<std::uint64_t>::max();
    std::vector<std::pair<std::uint64_t, float>> kept_;
    // A sketch's part without edges, whose native loops find the extremes.
    std::uint64_t counts_[5] = {};
    double extremes_[4] = {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(), 0, 0};
};

}  // namespace trimtab
