// gzip of messages, bounded. One thread at a time; the zlib states are kept between messages.
#pragma once

#include <zlib.h>

#include <cstddef>
#include <span>

#include "buffer.h"

namespace trimtab {

enum class Inflated : unsigned char { good, too_large, broken };

class Gzip {
  public:
    Gzip() = default;
    Gzip(const Gzip&) = delete;
    Gzip& operator=(const Gzip&) = delete;
    ~Gzip();

    // The content of one whole gzip stream of one member, at most `most` bytes: memory grows with what comes out, never
    // beyond it. One that is too large is refused by the size in its trailer, which costs nothing.
    Inflated inflate(std::span<const char> in, std::size_t most, Buffer<char>& out);
    // Throws std::bad_alloc.
    void deflate(std::span<const char> in, Buffer<char>& out);

  private:
    z_stream in_{};
    z_stream out_{};
    bool in_ready_ = false;
    bool out_ready_ = false;
};

}  // namespace trimtab
