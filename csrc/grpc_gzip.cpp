#include "grpc_gzip.h"

#include <algorithm>
#include <new>

namespace trimtab {
namespace {

constexpr int kGzipWindow = 15 + 16;  // 16: with gzip's header and checksum

Bytef* bytes_of(const char* data) { return reinterpret_cast<Bytef*>(const_cast<char*>(data)); }

}  // namespace

Gzip::~Gzip() {
    if (in_ready_) inflateEnd(&in_);
    if (out_ready_) deflateEnd(&out_);
}

Inflated Gzip::inflate(std::span<const char> in, std::size_t limit, Buffer<char>& out) {
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
            const std::size_t most = limit + 1;
            if (out.size() == most) return Inflated::too_large;
            out.resize(std::min(most, std::max<std::size_t>({out.size() * 2, in.size() * 2, 1024})));
        }
        const auto room = static_cast<uInt>(std::min<std::size_t>(out.size() - filled, 1U << 30));
        in_.next_out = bytes_of(out.data() + filled);
        in_.avail_out = room;
        const int code = ::inflate(&in_, Z_NO_FLUSH);
        filled += room - in_.avail_out;
        if (code == Z_STREAM_END) break;
        if (code != Z_OK || (in_.avail_in == 0 && in_.avail_out != 0)) return Inflated::broken;
    }
    if (filled > limit) return Inflated::too_large;
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
