// What answers of one and the same request say: which version they come from, and whether two answers of one version
// agree. An answer that names a version and carries another's outputs is a mixed one.
//
// Reads ModelInferResponse: model_version (2), parameters (4: trimtab_weights), raw_output_contents (6) as FP32.
// Outputs of one version may differ in their last bits, since a batch's size decides how products are summed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace load {

class Answers {
  public:
    struct Version {
        std::string weights;
        std::vector<float> outputs;
        std::uint64_t count = 0;
    };

    // Returns false on an answer that contradicts one before it, or cannot be read. A version that comes again after
    // being reloaded must have the same weights.
    bool check(std::string_view message) {
        Read read;
        if (!parse(message, read) || read.version.empty()) {
            ++unreadable_;
            return false;
        }
        auto [at, fresh] = versions_.try_emplace(std::string(read.version));
        Version& version = at->second;
        if (fresh) {
            version.weights = read.weights;
            version.outputs = read.outputs;
        }
        ++version.count;
        const bool equal = version.weights == read.weights && near(version.outputs, read.outputs);
        if (!equal) ++mixed_;
        return equal;
    }

    std::uint64_t mixed() const { return mixed_; }
    std::uint64_t unreadable() const { return unreadable_; }
    const std::map<std::string, Version>& versions() const { return versions_; }

  private:
    struct Read {
        std::string_view version, weights;
        std::vector<float> outputs;
    };

    static bool near(const std::vector<float>& a, const std::vector<float>& b) {
        if (a.size() != b.size()) return false;
        for (std::size_t i = 0; i < a.size(); ++i)
            if (!(std::abs(a[i] - b[i]) <= 1e-4F * (1 + std::abs(a[i])))) return false;
        return true;
    }

    static bool varint(std::string_view& in, std::uint64_t& value) {
        value = 0;
        for (unsigned shift = 0; shift < 64 && !in.empty(); shift += 7) {
            const auto byte = static_cast<unsigned char>(in.front());
            in.remove_prefix(1);
            value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return true;
        }
        return false;
    }

    // The next field; for a number `bytes` is empty.
    static bool next(std::string_view& in, std::uint64_t& field, std::string_view& bytes) {
        std::uint64_t key = 0, value = 0;
        bytes = {};
        if (!varint(in, key)) return false;
        field = key >> 3;
        switch (key & 7) {
            case 0: return varint(in, value);
            case 1: value = 8; break;
            case 2:
                if (!varint(in, value)) return false;
                break;
            case 5: value = 4; break;
            default: return false;
        }
        if (value > in.size()) return false;
        bytes = in.substr(0, value);
        in.remove_prefix(value);
        return true;
    }

    static bool parse(std::string_view message, Read& read) {
        if (message.size() < 5 || message.front() != 0) return false;
        message.remove_prefix(5);
        std::uint64_t field = 0;
        std::string_view bytes;
        while (!message.empty()) {
            if (!next(message, field, bytes)) return false;
            if (field == 2) read.version = bytes;
            if (field == 4 && !parameter(bytes, read)) return false;
            if (field == 6) {
                const std::size_t at = read.outputs.size();
                read.outputs.resize(at + bytes.size() / 4);
                std::memcpy(read.outputs.data() + at, bytes.data(), bytes.size() / 4 * 4);
            }
        }
        return true;
    }

    static bool parameter(std::string_view entry, Read& read) {
        std::uint64_t field = 0;
        std::string_view bytes, key, value;
        while (!entry.empty()) {
            if (!next(entry, field, bytes)) return false;
            (field == 1 ? key : value) = bytes;
        }
        if (key == "trimtab_weights" && next(value, field, bytes)) read.weights = bytes;
        return true;
    }

    std::map<std::string, Version> versions_;
    std::uint64_t mixed_ = 0, unreadable_ = 0;
};

}  // namespace load
