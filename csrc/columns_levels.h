// Which of the column executor's inner loops (columns_hot.h) this process uses: the best that the machine has, unless
// the environment variable TRIMTAB_CPU names another. Fixed when the module is imported; no thread can see it change.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "columns_hot.h"

namespace trimtab {

// Those that were built and that this machine has, the best first; `portable` is always there.
const std::vector<const hot::Table*>& cpu_levels();

// By name. Throws std::invalid_argument, naming those that there are, on another.
const hot::Table& cpu_level(std::string_view name);

// Makes TRIMTAB_CPU, or the best, the default. Throws std::invalid_argument where the machine does not have it.
void choose_cpu_level();
const hot::Table& cpu_level();

}  // namespace trimtab
