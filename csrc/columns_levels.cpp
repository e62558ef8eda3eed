#include "columns_levels.h"

#include <cstdlib>
#include <stdexcept>

namespace trimtab {
namespace {

const hot::Table* chosen = &hot::portable::kTable;

std::vector<const hot::Table*> find_levels() {
    std::vector<const hot::Table*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
    const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512cd");
    if (v4 && __builtin_cpu_supports("avx512vpopcntdq")) found.push_back(&hot::v4_popcnt::kTable);
    if (v4) found.push_back(&hot::v4::kTable);
    if (v3) found.push_back(&hot::v3::kTable);
    if (v2) found.push_back(&hot::v2::kTable);
#endif
    found.push_back(&hot::portable::kTable);
    return found;
}

}  // namespace

const std::vector<const hot::Table*>& cpu_levels() {
    static const std::vector<const hot::Table*> levels = find_levels();
    return levels;
}

const hot::Table& cpu_level(std::string_view name) {
    std::string names;
    for (const hot::Table* level : cpu_levels()) {
        if (name == level->name) return *level;
        names += names.empty() ? level->name : std::string(", ") + level->name;
    }
    throw std::invalid_argument("no CPU level \"" + std::string(name.substr(0, 40)) + "\": this machine has " + names);
}

void choose_cpu_level() {
    const char* const wanted = std::getenv("TRIMTAB_CPU");
    try {
        chosen = wanted == nullptr || *wanted == '\0' ? cpu_levels().front() : &cpu_level(wanted);
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(std::string("TRIMTAB_CPU: ") + error.what());
    }
}

const hot::Table& cpu_level() { return *chosen; }

}  // namespace trimtab
