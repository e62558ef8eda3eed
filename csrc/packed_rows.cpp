#include "packed_rows.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace trimtab {
namespace {

constexpr std::size_t kColumns = 256;                // taken together: a cache line of each row's part stays in L1
constexpr std::size_t kLine = 64 / sizeof(float);  // rows taken together

void copy_block(std::span<const char* const> rows, std::size_t first_row, std::size_t last_row,
                std::span<float* const> columns, std::size_t first, std::size_t last) {
    for (std::size_t row = first_row; row < last_row; ++row) {
        for (std::size_t column = first; column < last; ++column) {
            std::memcpy(columns[column] + row, rows[row] + column * sizeof(float), sizeof(float));
        }
    }
}

#ifdef __SSE__
__m128 load(const char* row, std::size_t column) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(row + column * sizeof(float)));
}

// Rows [row, row + 4) of four columns.
void copy_four(std::span<const char* const> rows, std::size_t row, std::span<float* const> columns,
               std::size_t column) {
    __m128 v0 = load(rows[row], column), v1 = load(rows[row + 1], column), v2 = load(rows[row + 2], column),
           v3 = load(rows[row + 3], column);
    _MM_TRANSPOSE4_PS(v0, v1, v2, v3);
    _mm_storeu_ps(columns[column] + row, v0);
    _mm_storeu_ps(columns[column + 1] + row, v1);
    _mm_storeu_ps(columns[column + 2] + row, v2);
    _mm_storeu_ps(columns[column + 3] + row, v3);
}

// Rows [row, last), whose number is a multiple of four, of columns [first, whole), likewise: a cache line of a column at
// a time, for columns may lie a power of two apart, and their lines then want the same place in L1.
void copy_lines(std::span<const char* const> rows, std::size_t row, std::size_t last, std::span<float* const> columns,
                std::size_t first, std::size_t whole) {
    for (std::size_t column = first; column < whole; column += 4) {
        for (std::size_t four = row; four < last; four += 4) copy_four(rows, four, columns, column);
    }
}
#endif

}  // namespace

void copy_packed_rows(std::span<const char* const> rows, std::span<float* const> columns) {
    for (std::size_t first = 0; first < columns.size(); first += kColumns) {
        const std::size_t last = std::min(first + kColumns, columns.size());
        std::size_t row = 0;
#ifdef __SSE__
        const std::size_t whole = first + (last - first) / 4 * 4;
        while (row + 4 <= rows.size()) {
            const std::size_t end = std::min(row + kLine, rows.size() / 4 * 4);
            copy_lines(rows, row, end, columns, first, whole);
            copy_block(rows, row, end, columns, whole, last);
            row = end;
        }
#endif
        copy_block(rows, row, rows.size(), columns, first, last);
    }
}

}  // namespace trimtab
