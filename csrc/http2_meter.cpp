#include "http2_meter.h"

#include <cstring>

namespace trimtab {
namespace {

enum FrameType : std::uint8_t {
    kData, kHeaders, kPriority, kReset, kSettings, kPush, kPing, kGoaway, kUpdate, kContinuation,
};
constexpr std::uint8_t kEndStream = 1, kEndHeaders = 4, kPadded = 8;
constexpr std::size_t kMostPadding = 256;  // with its length

}  // namespace

FrameMeter::FrameMeter(const FrontLimits& limits, std::int64_t now)
    : resets_(limits.reset_burst, limits.resets_per_second),
      controls_(limits.control_burst, limits.controls_per_second),
      updates_(limits.update_burst, limits.updates_per_second) {
    resets_.start(now);
    controls_.start(now);
    updates_.start(now);
}

bool FrameMeter::count(const std::uint8_t* header, std::int64_t now) {
    const std::size_t length = (static_cast<std::size_t>(header[0]) << 16) |
                               (static_cast<std::size_t>(header[1]) << 8) | static_cast<std::size_t>(header[2]);
    skip_ = length;
    in_data_ = header[3] == kData;
    if (in_data_) data_bytes_ += length;
    if (header[3] == kHeaders || header[3] == kContinuation) in_block_ = (header[4] & kEndHeaders) == 0;
    switch (header[3]) {
        case kData: {
            // Padding alone counts as nothing.
            const std::size_t least = (header[4] & kPadded) != 0 ? kMostPadding : 0;
            return length > least || (header[4] & kEndStream) != 0 || controls_.take(now, 1);
        }
        case kHeaders: return true;  // bounded by streams, and by resets
        case kReset: return resets_.take(now, 1);
        case kUpdate: return updates_.take(now, 1);
        default: return controls_.take(now, 1);
    }
}

bool FrameMeter::scan(std::span<const std::uint8_t> bytes, std::int64_t now) {
    const std::size_t preface = std::min(preface_, bytes.size());
    preface_ -= preface;
    bytes = bytes.subspan(preface);
    while (!bytes.empty()) {
        if (skip_ > 0) {
            const std::size_t skipped = std::min(skip_, bytes.size());
            skip_ -= skipped;
            bytes = bytes.subspan(skipped);
            continue;
        }
        if (header_bytes_ == 0 && !in_block_) began_ = now;
        if (header_bytes_ == 0 && bytes.size() >= sizeof(header_)) {
            if (!count(bytes.data(), now)) return false;
            bytes = bytes.subspan(sizeof(header_));
        } else {
            const std::size_t part = std::min(sizeof(header_) - header_bytes_, bytes.size());
            std::memcpy(header_ + header_bytes_, bytes.data(), part);
            header_bytes_ += part;
            bytes = bytes.subspan(part);
            if (header_bytes_ == sizeof(header_)) {
                header_bytes_ = 0;
                if (!count(header_, now)) return false;
            }
        }
    }
    return true;
}

}  // namespace trimtab
