// Rows that Python owns, for a column program: arrays that are borrowed and kept alive, never copied.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "column_source.h"

namespace trimtab {

class ColumnTable {
  public:
    // One array a field, or offsets and bytes, as Slab.append_columns takes them (offsets int32).
    ColumnTable(std::shared_ptr<const Schema> schema, const pybind11::sequence& columns);

    // float32 [rows, fields], row-major, where all fields are real.
    ColumnTable(std::shared_ptr<const Schema> schema, const pybind11::array& matrix);

    const std::shared_ptr<const Schema>& schema() const { return schema_; }
    const ColumnSource& source() const { return source_; }
    const pybind11::object& values() const { return kept_; }  // as they were given

  private:
    std::shared_ptr<const Schema> schema_;
    pybind11::object kept_;
    std::vector<ColumnView> views_;
    ColumnSource source_;
};

}  // namespace trimtab
