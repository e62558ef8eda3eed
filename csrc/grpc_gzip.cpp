#include "grpc_gzip.h"

#include <algorithm>
#include <cstdint>
#include <new>

namespace trimtab {
namespace {

constexpr int kGzipWindow = 15 + 16;  // 16: with gzip's header and checksum
constexpr std::size_t kLeast = 18;    // header and trailer
constexpr std::size_t kBestRatio = 1032;

Bytef* bytes_of(const char* data) { return reinterpret_cast<Bytef*>(const_cast<char*>(data)); }

// What a gzip stream of one member ends with: the size of its content, modulo 2^32.
std::uint32_t promised_size(std::span<const char> in) {
    std::uint32_t size = 0;
    for (std::size_t i = 0; i < 4; ++i)
        size |= std::uint32_t{static_cast<unsigned char>(in[in.size() - 4 + i])} << (8 * i);
    return size;
}

}  // namespace

Gzip::~Gzip() {
    if (in_ready_) inflateEnd(&in_);
    if (out_ready_) deflateEnd(&out_);
}

Inflated Gzip::inflate(std::span<const char> in, std::size_t most, Buffer<char>& out) {
    // A bomb is known by what it promises, before any of it is inflated; one that promises less is stopped there.
    if (in.size() < kLeast) return Inflated::broken;
    const std::uint32_t promised = promised_size(in);
    if (promised > in.size() * kBestRatio) return Inflated::broken;
    if (promised > most) return Inflated::too_large;
    const std::size_t limit = promised;
    if (!in_ready_) {
        if (inflateInit2(&in_, kGzipWindow) != Z_OK) throw std::bad_alloc();
        in_ready_ = true;
    } else {
        inflateReset(&in_);
    }
    out.clear();
    in_.next_in = bytes_of(in.data());
    in_.avail_in = static_cast<uInt>(in.size());
    std::size_t filled = 0;
    for (;;) {
        if (filled == out.size()) {
            // One byte of room beyond the limit shows that there is more.
            const std::size_t room_for = limit + 1;
            if (out.size() == room_for) return Inflated::broken;
            out.resize(std::min(room_for, std::max<std::size_t>({out.size() * 2, in.size() * 2, 1024})));
        }
        const auto room = static_cast<uInt>(std::min<std::size_t>(out.size() - filled, 1U << 30));
        in_.next_out = bytes_of(out.data() + filled);
        in_.avail_out = room;
        const int code = ::inflate(&in_, Z_NO_FLUSH);
        filled += room - in_.avail_out;
        if (code == Z_STREAM_END) break;
        if (code != Z_OK || (in_.avail_in == 0 && in_.avail_out != 0)) return Inflated::broken;
    }
    if (filled > limit) return Inflated::broken;
    out.resize(filled);
    return in_.avail_in == 0 ? Inflated::good : Inflated::broken;
}

void Gzip::deflate(std::span<const char> in, Buffer<char>& out) {
    if (!out_ready_) {
        if (deflateInit2(&out_, 1, Z_DEFLATED, kGzipWindow, 8, Z_DEFAULT_STRATEGY) != Z_OK) throw std::bad_alloc();
        out_ready_ = true;
    } else {
        deflateReset(&out_);
    }
    out.resize(deflateBound(&out_, in.size()));
    out_.next_in = bytes_of(in.data());
    out_.avail_in = static_cast<uInt>(in.size());
    out_.next_out = bytes_of(out.data());
    out_.avail_out = static_cast<uInt>(out.size());
    if (::deflate(&out_, Z_FINISH) != Z_STREAM_END) throw std::bad_alloc();
    out.resize(out.size() - out_.avail_out);
}

}  // namespace trimtab
