// The hub's counters in Prometheus' text format, with Triton's names beside our own. No Python, no GIL.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "statistics.h"

namespace trimtab {

// A model as it is rendered: a copy, so that nobody waits while text is made.
struct ModelMetrics {
    std::string name;
    std::uint32_t live = 0;
    std::size_t waiting = 0;
    StatisticsData data;
};

std::string render_metrics(const std::vector<ModelMetrics>& models);

}  // namespace trimtab
