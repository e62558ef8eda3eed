#include "row_sample.h"

#include <algorithm>
#include <cmath>

#include "columns_levels.h"
#include "columns_sketch.h"

namespace trimtab {

void RowSample::add(std::span<const float> values, std::span<const std::uint64_t> priorities,
                    std::span<const std::int64_t> rows) {
    see(values);
    for (const std::int64_t row : rows) {
        const auto i = static_cast<std::size_t>(row);
        keep(values[i], priorities[i]);
    }
}

void RowSample::add(std::span<const float> values, std::span<const std::uint64_t> priorities) {
    see(values);
    for (std::size_t i = 0; i < values.size(); ++i) keep(values[i], priorities[i]);
}

std::vector<float> RowSample::values() {
    shrink();
    std::vector<float> found(kept_.size());
    std::transform(kept_.begin(), kept_.end(), found.begin(), [](const auto& one) { return one.second; });
    return found;
}

void RowSample::see(std::span<const float> values) {
    static const hot::Sketch field = make_sketch({}, 0.0F, 0.0F, 0.0F);
    sketch_values(cpu_level(), field, values, counts_, extremes_);
}

void RowSample::keep(float value, std::uint64_t priority) {
    if (priority > limit_ || !std::isfinite(value)) return;
    if (kept_.size() == 2 * size_) shrink();
    if (priority <= limit_) kept_.emplace_back(priority, value);
}

void RowSample::shrink() {
    if (kept_.size() <= size_) return;
    const auto last = kept_.begin() + static_cast<std::ptrdiff_t>(size_ - 1);
    std::nth_element(kept_.begin(), last, kept_.end(),
                     [](const auto& one, const auto& other) { return one.first < other.first; });
    limit_ = last->first;
    kept_.resize(size_);
}

}  // namespace trimtab
