// An output of a batch as Python gives it, in the protocol's raw form. Needs the GIL to be made and to go.
#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <string>
#include <vector>

#include "hub.h"

namespace trimtab {

// A contiguous array [rows, ...] of the output's datatype; of BYTES: an object array, or a list, of bytes or str. Throws
// std::invalid_argument, naming what was expected and what came.
class OutputArray {
  public:
    OutputArray(const OutputSpec& spec, const pybind11::object& values, std::size_t rows);
    BatchTensor tensor() const;  // borrows

  private:
    void take_bytes(const OutputSpec& spec, const pybind11::object& values, std::size_t rows);

    pybind11::array array_;
    std::string raw_;               // BYTES: each element behind its length
    std::vector<std::size_t> ends_;
    std::vector<std::int64_t> row_shape_;
    std::size_t row_bytes_ = 0;
};

}  // namespace trimtab
