#include "request_ids.h"

#include <sys/random.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>

namespace trimtab {
namespace {

// Random bytes from the kernel, some hundred ids' worth at a time. After fork() the child would repeat them: servers
// start processes by exec, and an id has its time beside them.
class RandomBlock {
  public:
    std::uint64_t next() {
        if (used_ == words_.size()) fill();
        return words_[used_++];
    }

  private:
    void fill() {
        auto* at = reinterpret_cast<char*>(words_.data());
        std::size_t left = sizeof(words_);
        while (left != 0) {
            const ssize_t got = getrandom(at, left, 0);
            if (got < 0) {
                if (errno == EINTR) continue;
                throw std::system_error(errno, std::generic_category(), "getrandom");
            }
            at += got;
            left -= static_cast<std::size_t>(got);
        }
        used_ = 0;
    }

    std::array<std::uint64_t, 512> words_{};
    std::size_t used_ = words_.size();
};

// The first of `count` ticks that nobody else has: milliseconds in 4096ths. Many at once run ahead of the clock for a while.
std::uint64_t next_ticks(std::uint64_t count) {
    static std::atomic<std::uint64_t> last{0};
    using std::chrono::duration_cast, std::chrono::nanoseconds, std::chrono::system_clock;
    const auto now = duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count();
    const auto ns = static_cast<std::uint64_t>(now);
    const std::uint64_t tick = (ns / 1'000'000) * 4096 + (ns % 1'000'000) * 4096 / 1'000'000;
    std::uint64_t before = last.load(std::memory_order_relaxed);
    std::uint64_t mine = 0;
    do {
        mine = tick > before ? tick : before + 1;
    } while (!last.compare_exchange_weak(before, mine + count - 1, std::memory_order_relaxed));
    return mine;
}

void store_big_endian(std::uint64_t value, std::uint8_t* out) {
    static_assert(std::endian::native == std::endian::little);
    value = __builtin_bswap64(value);
    std::memcpy(out, &value, sizeof(value));
}

}  // namespace

void make_request_ids(std::span<RequestId> ids) {
    if (ids.empty()) return;
    thread_local RandomBlock random;
    std::uint64_t tick = next_ticks(ids.size());
    for (RequestId& id : ids) {
        store_big_endian((tick >> 12) << 16 | std::uint64_t{7} << 12 | (tick & 0xFFF), id.data());
        store_big_endian(std::uint64_t{2} << 62 | (random.next() >> 2), id.data() + 8);
        ++tick;
    }
}

void write_request_id(const RequestId& id, char* out) {
    static constexpr auto pairs = [] {
        constexpr char digits[] = "0123456789abcdef";
        std::array<char, 512> text{};
        for (std::size_t i = 0; i < 256; ++i) {
            text[2 * i] = digits[i >> 4];
            text[2 * i + 1] = digits[i & 15];
        }
        return text;
    }();
    for (std::size_t i = 0; i < id.size(); ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *out++ = '-';
        std::memcpy(out, pairs.data() + std::size_t{2} * id[i], 2);
        out += 2;
    }
}

}  // namespace trimtab
