// Rows of floats, one behind the other as they came, into columns. Knows no request and no schema.
#pragma once

#include <span>

namespace trimtab {

// Copies rows, each given by where its values begin (at any alignment), into columns from their row 0 on: column c gets
// value c of every row. Four by four values at a time where there is SSE.
void copy_packed_rows(std::span<const char* const> rows, std::span<float* const> columns);

}  // namespace trimtab
