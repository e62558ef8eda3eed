#include "tracing.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <random>
#include <span>
#include <utility>

namespace trimtab {
namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

int digit_of(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;  // upper case is malformed
}

bool read_hex(std::string_view text, std::span<std::uint8_t> out) {
    for (std::size_t i = 0; i < out.size(); ++i) {
        const int high = digit_of(text[2 * i]);
        const int low = digit_of(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        out[i] = static_cast<std::uint8_t>(high * 16 + low);
    }
    return true;
}

bool all_zero(std::span<const std::uint8_t> bytes) {
    return std::all_of(bytes.begin(), bytes.end(), [](std::uint8_t byte) { return byte == 0; });
}

// The finaliser of splitmix64 (Steele et al., 2014).
std::uint64_t mix(std::uint64_t value) {
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9U;
    value = (value ^ value >> 27) * 0x94D049BB133111EBU;
    return value ^ value >> 31;
}

std::uint64_t random_word() {
    std::random_device device;
    return std::uint64_t{device()} << 32 | device();
}

}  // namespace

// version "-" trace-id "-" parent-id "-" trace-flags, in lower-case hex; later versions may go on after another "-".
bool parse_traceparent(std::string_view text, TraceContext& context) noexcept {
    constexpr std::size_t size = 55;
    if (text.size() < size || text.size() > kLongestTraceparent) return false;
    if (text[2] != '-' || text[35] != '-' || text[52] != '-') return false;
    std::array<std::uint8_t, 1> version{};
    std::array<std::uint8_t, 1> flags{};
    TraceContext read;
    if (!read_hex(text.substr(0), version) || !read_hex(text.substr(3), read.trace) ||
        !read_hex(text.substr(36), read.parent) || !read_hex(text.substr(53), flags)) {
        return false;
    }
    if (version[0] == 0xFF || all_zero(read.trace) || all_zero(read.parent)) return false;
    if (text.size() != size && (version[0] == 0 || text[size] != '-')) return false;
    read.sampled = (flags[0] & 1) != 0;
    context = read;
    return true;
}

bool SecondLimit::admit(std::int64_t now) {
    if (!begun_ || now - began_ >= kSecond) {
        began_ = now;
        begun_ = true;
        used_ = 0;
    }
    if (used_ >= most_) return false;
    ++used_;
    return true;
}

Tracing::Tracing(double ratio, std::uint32_t per_second, std::size_t capacity)
    : ratio_(ratio), capacity_(capacity), seeds_{random_word(), random_word()}, limit_(per_second) {}

// Roots are chosen by their trace id, as OpenTelemetry's TraceIdRatioBased does: by its last eight bytes.
bool Tracing::decide(std::string_view traceparent, TraceContext& context) noexcept {
    if (!traceparent.empty() && parse_traceparent(traceparent, context)) return context.sampled;
    if (ratio_ <= 0.0) return false;
    constexpr std::uint64_t golden = 0x9E3779B97F4A7C15U;
    const std::uint64_t step = roots_.fetch_add(1, std::memory_order_relaxed) * golden;
    const std::array<std::uint64_t, 2> words{mix(seeds_[0] + step), mix(seeds_[1] + step)};
    if (static_cast<double>(words[1] >> 11) * 0x1p-53 >= ratio_) return false;
    for (std::size_t i = 0; i < 16; ++i)
        context.trace[i] = static_cast<std::uint8_t>(words[i / 8] >> (56 - 8 * (i % 8)));
    context.sampled = true;
    return !all_zero(context.trace);
}

std::unique_ptr<Span> Tracing::begin(std::string_view traceparent, std::int64_t now) noexcept {
    TraceContext context;
    if (!decide(traceparent, context)) return nullptr;
    {
        const std::lock_guard guard(lock_);
        if (!limit_.admit(now)) {
            over_rate_.fetch_add(1, std::memory_order_relaxed);
            return nullptr;
        }
    }
    auto span = std::unique_ptr<Span>(new (std::nothrow) Span);
    if (!span) {
        over_capacity_.fetch_add(1, std::memory_order_relaxed);
        return nullptr;
    }
    span->context = context;
    span->arrived = now;
    return span;
}

void Tracing::end(std::unique_ptr<Span> span) noexcept {
    try {
        const std::lock_guard guard(lock_);
        if (ended_.size() < capacity_) {
            ended_.push_back(std::move(span));
            return;
        }
    } catch (const std::bad_alloc&) {  // it is lost like one for which there is no room
    }
    over_capacity_.fetch_add(1, std::memory_order_relaxed);
}

std::vector<std::unique_ptr<Span>> Tracing::drain() {
    const std::lock_guard guard(lock_);
    return std::exchange(ended_, {});
}

}  // namespace trimtab
