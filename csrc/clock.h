// The clock of durations and deadlines.
#pragma once

#include <time.h>

#include <cstdint>

namespace trimtab {

// ns of CLOCK_MONOTONIC, which is also Python's time.monotonic_ns().
inline std::int64_t monotonic_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

// What is to be added to an instant of that clock for ns since 1970, at this moment.
inline std::int64_t since_1970() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec - monotonic_ns();
}

}  // namespace trimtab
