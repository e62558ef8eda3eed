#include "request_ids.h"

#include <sys/random.h>

#include <atomic>
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

// Milliseconds in 4096ths.
std::uint64_t next_tick() {
    static std::atomic<std::uint64_t> last{0};
    using std::chrono::duration_cast, std::chrono::nanoseconds, std::chrono::system_clock;
    const auto now = duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count();
    const auto ns = static_cast<std::uint64_t>(now);
    const std::uint64_t tick = (ns / 1'000'000) * 4096 + (ns % 1'000'000) * 4096 / 1'000'000;
    std::uint64_t before = last.load(std::memory_order_relaxed);
    std::uint64_t mine = 0;
    do {
        mine = tick > before ? tick : before + 1;
    } while (!last.compare_exchange_weak(before, mine, std::memory_order_relaxed));
    return mine;
}

void store_big_endian(std::uint64_t value, std::uint8_t* out) {
    for (int i = 7; i >= 0; --i, value >>= 8) out[i] = static_cast<std::uint8_t>(value);
}

}  // namespace

RequestId make_request_id() {
    thread_local RandomBlock random;
    const std::uint64_t tick = next_tick();
    RequestId id{};
    store_big_endian((tick >> 12) << 16 | std::uint64_t{7} << 12 | (tick & 0xFFF), id.data());
    store_big_endian(std::uint64_t{2} << 62 | (random.next() >> 2), id.data() + 8);
    return id;
}

void write_request_id(const RequestId& id, char* out) {
    static constexpr char digits[] = "0123456789abcdef";
    for (std::size_t i = 0; i < id.size(); ++i) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *out++ = '-';
        *out++ = digits[id[i] >> 4];
        *out++ = digits[id[i] & 15];
    }
}

}  // namespace trimtab
