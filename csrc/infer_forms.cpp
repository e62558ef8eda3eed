#include "infer_forms.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "errors.h"

namespace trimtab {
namespace {

constexpr std::string_view kPrefix = "shared_memory_";

// What the parameters of one tensor say.
struct Asked {
    bool shared = false;
    std::string_view region;
    std::optional<std::uint64_t> byte_size;
    std::uint64_t offset = 0;
    std::uint32_t classes = 0;
};

[[noreturn]] void fail(std::string_view tensor, std::string_view key, const std::string& expected) {
    throw WireError("tensor " + quote(tensor) + ", parameter " + quote(key) + ": expected " + expected);
}

std::uint64_t whole(std::string_view tensor, const Parameter& parameter) {
    if (const auto* value = std::get_if<std::int64_t>(&parameter.value); value != nullptr && *value >= 0)
        return static_cast<std::uint64_t>(*value);
    if (const auto* value = std::get_if<std::uint64_t>(&parameter.value)) return *value;
    fail(tensor, parameter.key, "an integer from 0, came another value");
}

Asked read(const InferMessage& message, std::string_view tensor, Range parameters) {
    Asked asked;
    for (std::size_t i = parameters.first; i < parameters.last; ++i) {
        const Parameter& parameter = message.tensor_parameters[i];
        const std::string_view key = parameter.key;
        if (key == "shared_memory_region") {
            const auto* name = std::get_if<std::string_view>(&parameter.value);
            if (name == nullptr) fail(tensor, key, "the name of a region, came another value");
            asked.region = *name;
        } else if (key == "shared_memory_byte_size") {
            asked.byte_size = whole(tensor, parameter);
        } else if (key == "shared_memory_offset") {
            asked.offset = whole(tensor, parameter);
        } else if (key == "classification") {
            asked.classes = static_cast<std::uint32_t>(
                std::min<std::uint64_t>(whole(tensor, parameter), std::numeric_limits<std::uint32_t>::max()));
            continue;
        } else {
            if (key.starts_with(kPrefix)) fail(tensor, key, "region, byte_size or offset after that prefix");
            continue;
        }
        asked.shared = true;
    }
    if (asked.shared && (asked.region.empty() || !asked.byte_size)) {
        fail(tensor, asked.region.empty() ? "shared_memory_region" : "shared_memory_byte_size",
             "it beside the others of shared memory, came none");
    }
    return asked;
}

std::shared_ptr<const SharedRegion> region_of(const Asked& asked, const SharedMemory* memory) {
    if (memory == nullptr) {
        throw WireError("shared memory is switched off; [security] shared_memory = true in trimtab.toml allows it");
    }
    std::shared_ptr<const SharedRegion> region = memory->find(asked.region);
    region->check(asked.offset, *asked.byte_size);
    return region;
}

}  // namespace

void read_shared_inputs(InferMessage& message, const SharedMemory* memory, Buffer<char>& copy) {
    if (message.tensor_parameters.empty()) return;
    std::vector<Asked> asked;
    std::vector<std::shared_ptr<const SharedRegion>> regions;
    std::size_t shared = 0;
    std::uint64_t total = 0;
    for (const InputTensor& input : message.inputs) {
        asked.push_back(read(message, input.name, input.parameters));
        const Asked& one = asked.back();
        if (one.classes != 0) fail(input.name, "classification", "it for outputs, came for an input");
        regions.push_back(one.shared ? region_of(one, memory) : nullptr);
        if (!one.shared) continue;
        ++shared;
        if (input.contents.size() != 0) fail(input.name, "shared_memory_region", "no contents beside it, came both");
        // check() has bounded each by its region; the sum is bounded here.
        if (*one.byte_size > memory->most() - std::min(total, memory->most())) {
            throw WireError("expected at most " + std::to_string(memory->most()) +
                            " bytes of inputs in shared memory (max_message_bytes), came more");
        }
        total += *one.byte_size;
    }
    if (shared == 0) return;
    const std::size_t others = message.inputs.size() - shared;
    if (message.raw_contents.size() != others) {
        throw WireError("expected one raw_input_contents for each of the " + std::to_string(others) +
                        " inputs that are not in shared memory, came " + std::to_string(message.raw_contents.size()));
    }
    copy.resize(static_cast<std::size_t>(total));
    std::vector<std::string_view> contents;
    contents.reserve(message.inputs.size());
    std::size_t at = 0;
    std::size_t next = 0;
    Transfers transfers;  // goes first: what it copies to and from lasts longer
    for (std::size_t i = 0; i < message.inputs.size(); ++i) {
        if (!asked[i].shared) {
            contents.push_back(message.raw_contents[next++]);
            continue;
        }
        const auto size = static_cast<std::size_t>(*asked[i].byte_size);
        regions[i]->read(asked[i].offset, size, copy.data() + at, transfers);
        contents.emplace_back(copy.data() + at, size);
        at += size;
    }
    transfers.settle();
    message.raw_contents = std::move(contents);
}

void read_output_forms(const InferMessage& message, const SharedMemory* memory, std::vector<OutputForm>& forms) {
    forms.clear();
    if (message.tensor_parameters.empty()) return;
    bool plain = true;
    for (const RequestedOutput& output : message.outputs) {
        const Asked asked = read(message, output.name, output.parameters);
        OutputForm& form = forms.emplace_back();
        form.classes = asked.classes;
        if (asked.shared) {
            if (asked.classes != 0)
                fail(output.name, "classification", "it for outputs in the answer, came for one in shared memory");
            form.region = region_of(asked, memory);
            form.offset = asked.offset;
            form.byte_size = *asked.byte_size;
        }
        plain &= !asked.shared && asked.classes == 0;
    }
    if (plain) forms.clear();
}

}  // namespace trimtab
