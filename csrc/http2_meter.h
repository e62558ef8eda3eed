// Counts a client's frames before the HTTP/2 session sees them: refuses floods of cheap frames, and knows whether the
// bytes so far end within a frame or a header block, and since when (a client that stops or dawdles there is slow, not
// idle). It reads frame headers only. Pure: the time comes in, the verdict goes out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "front_limits.h"

namespace trimtab {

// So many at once, so many a second in the long run.
class TokenBucket {
  public:
    TokenBucket(double burst, double rate) : tokens_(burst), burst_(burst), rate_(rate / 1e9) {}
    bool take(std::int64_t now, double count) {
        if (count > tokens_) {  // the clock is looked at only when the bucket runs dry
            if (last_ == 0) last_ = now;
            tokens_ = std::min(burst_, tokens_ + static_cast<double>(now - last_) * rate_);
            last_ = now;
        }
        tokens_ -= count;
        return tokens_ >= 0;
    }
    void start(std::int64_t now) { last_ = now; }

  private:
    double tokens_, burst_, rate_;
    std::int64_t last_ = 0;
};

class FrameMeter {
  public:
    FrameMeter(const FrontLimits& limits, std::int64_t now);

    // All bytes that came, in order, from the client's preface on. False: a flood; nothing of it should be handled.
    bool scan(std::span<const std::uint8_t> bytes, std::int64_t now);
    bool within_frame() const { return skip_ > 0 || header_bytes_ > 0; }
    bool past_preface() const { return preface_ == 0; }
    // When the header block, or the frame other than DATA, began that is not complete; 0: there is none. DATA frames
    // may take as long as their messages.
    std::int64_t unfinished_since() const {
        return in_block_ || header_bytes_ > 0 || (skip_ > 0 && !in_data_) ? began_ : 0;
    }
    std::uint64_t data_bytes() const { return data_bytes_; }  // of payloads of DATA frames, as their headers say
    void excuse(std::int64_t now) { began_ = now; }  // it was we who did not read

  private:
    bool count(const std::uint8_t* header, std::int64_t now);

    TokenBucket resets_, controls_, updates_;
    std::size_t preface_ = 24;      // bytes of the client's preface to come
    std::size_t skip_ = 0;          // of the current frame's payload to come
    std::size_t header_bytes_ = 0;  // of a frame header that is not complete
    bool in_block_ = false;         // between HEADERS and END_HEADERS
    bool in_data_ = false;          // the current frame is DATA
    std::uint64_t data_bytes_ = 0;
    std::int64_t began_ = 0;        // the current frame, or its header block
    std::uint8_t header_[9] = {};
};

}  // namespace trimtab
