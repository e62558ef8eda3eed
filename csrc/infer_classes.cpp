#include "infer_classes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

#include "wire.h"

namespace trimtab {
namespace {

// Calls work(zero) with a zero of the type; false where the datatype has no order.
template <class Work>
bool with_number(std::string_view datatype, const Work& work) {
    if (datatype == "FP32") return work(float{}), true;
    if (datatype == "FP64") return work(double{}), true;
    if (datatype == "INT8") return work(std::int8_t{}), true;
    if (datatype == "INT16") return work(std::int16_t{}), true;
    if (datatype == "INT32") return work(std::int32_t{}), true;
    if (datatype == "INT64") return work(std::int64_t{}), true;
    if (datatype == "UINT8") return work(std::uint8_t{}), true;
    if (datatype == "UINT16") return work(std::uint16_t{}), true;
    if (datatype == "UINT32") return work(std::uint32_t{}), true;
    if (datatype == "UINT64") return work(std::uint64_t{}), true;
    return false;
}

template <class T>
bool before(T one, T other) {
    if constexpr (std::is_floating_point_v<T>) {
        if (std::isnan(one)) return false;
        if (std::isnan(other)) return true;
    }
    return one > other;
}

}  // namespace

bool can_classify(std::string_view datatype) {
    return with_number(datatype, [](auto) {});
}

std::size_t width_of(std::string_view datatype) {
    std::size_t width = 0;
    with_number(datatype, [&](auto zero) { width = sizeof(zero); });
    return width;
}

void classify(std::string_view raw, std::string_view datatype, std::size_t per_row, std::size_t k,
              std::span<const std::string> labels, std::string& out) {
    std::vector<std::size_t> order(per_row);
    with_number(datatype, [&](auto zero) {
        using T = decltype(zero);
        for (; !raw.empty(); raw.remove_prefix(per_row * sizeof(T))) {
            const auto value = [&](std::size_t index) { return wire::load<T>(raw.data() + index * sizeof(T)); };
            std::iota(order.begin(), order.end(), std::size_t{0});
            std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
                              [&](std::size_t one, std::size_t other) {
                                  const T left = value(one);
                                  const T right = value(other);
                                  if (before(left, right)) return true;
                                  return !before(right, left) && one < other;
                              });
            for (std::size_t i = 0; i < k; ++i) {
                std::string text = std::to_string(value(order[i])) + ":" + std::to_string(order[i]);
                if (order[i] < labels.size() && !labels[order[i]].empty()) text += ":" + labels[order[i]];
                const auto size = static_cast<std::uint32_t>(text.size());
                char length[sizeof(size)];
                std::memcpy(length, &size, sizeof(size));
                out.append(length, sizeof(length));
                out += text;
            }
        }
    });
}

}  // namespace trimtab
