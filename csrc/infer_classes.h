// The classification extension: an output's values as the k largest of each row, "value:index" or "value:index:label".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace trimtab {

// Whether values of the datatype can be ordered into classes: integers, FP32 and FP64.
bool can_classify(std::string_view datatype);

// Elements of a raw value of the datatype, 0 where it has none of fixed width.
std::size_t width_of(std::string_view datatype);

// Appends rows x k strings in the raw form of BYTES, the largest value of a row first, NaN last, equal ones by index.
// `raw` has rows x per_row values; k is at most per_row.
void classify(std::string_view raw, std::string_view datatype, std::size_t per_row, std::size_t k,
              std::span<const std::string> labels, std::string& out);

}  // namespace trimtab
