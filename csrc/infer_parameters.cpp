#include "infer_parameters.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "errors.h"

namespace trimtab {
namespace {

bool is_zero(const Parameter& parameter) {
    return std::visit(
        [](const auto& value) {
            using T = std::decay_t<decltype(value)>;
            if constexpr (std::is_same_v<T, std::monostate>) {
                return false;
            } else if constexpr (std::is_same_v<T, std::string_view>) {
                return value.empty();
            } else {
                return value == T{};
            }
        },
        parameter.value);
}

[[noreturn]] void fail_parameter(const Parameter& parameter, const std::string& expected) {
    throw WireError("parameter " + quote(parameter.key) + ": expected " + expected);
}

void require_value(const Parameter& parameter) {
    if (std::holds_alternative<std::monostate>(parameter.value)) fail_parameter(parameter, "a value, came none");
}

std::optional<std::int64_t> check_request_parameters(const std::vector<Parameter>& parameters) {
    std::optional<std::int64_t> time_us;
    for (const Parameter& parameter : parameters) {
        require_value(parameter);
        const std::string_view key = parameter.key;
        if (key == "trimtab_time_us") {
            const auto* value = std::get_if<std::int64_t>(&parameter.value);
            if (value == nullptr) fail_parameter(parameter, "microseconds as int64_param, came another type");
            time_us = *value;
        } else if (key.starts_with("trimtab_")) {
            fail_parameter(parameter, "trimtab_time_us as the only one of that prefix");
        } else if (key == "triton_enable_empty_final_response") {
            // Of use where a request may have many answers; here each has one, which says that it is the last.
            if (!std::holds_alternative<bool>(parameter.value)) fail_parameter(parameter, "a boolean, came another type");
        } else if (key.starts_with("triton_")) {
            fail_parameter(parameter, "no other one with Triton's reserved prefix than triton_enable_empty_final_response");
        } else if ((key == "sequence_id" || key == "sequence_start" || key == "sequence_end") && !is_zero(parameter)) {
            fail_parameter(parameter, "none, as sequences are not supported");
        } else if (key == "timeout" || key == "priority") {
            const auto* value = std::get_if<std::int64_t>(&parameter.value);
            if ((value == nullptr || *value < 0) && !std::holds_alternative<std::uint64_t>(parameter.value)) {
                fail_parameter(parameter, "an integer from 0, came another value");
            }
        }
    }
    return time_us;
}

}  // namespace

std::optional<std::int64_t> check_parameters(const InferMessage& message, bool forms) {
    for (const Parameter& parameter : message.tensor_parameters) {
        require_value(parameter);
        if (forms) continue;
        if (parameter.key.starts_with("shared_memory_"))
            fail_parameter(parameter, "none, as shared memory is not supported");
        if (parameter.key == "classification" && !is_zero(parameter)) {
            fail_parameter(parameter, "none, as the classification extension is not supported");
        }
    }
    return check_request_parameters(message.parameters);
}

void check_requested_outputs(const InferMessage& message) {
    if (message.outputs.size() < 2) return;
    std::vector<std::string_view> names;
    names.reserve(message.outputs.size());
    for (const RequestedOutput& output : message.outputs) names.push_back(output.name);
    std::sort(names.begin(), names.end());
    const auto repeated = std::adjacent_find(names.begin(), names.end());
    if (repeated != names.end())
        throw WireError("requested output " + quote(*repeated) + ": expected once, came again");
}

}  // namespace trimtab
