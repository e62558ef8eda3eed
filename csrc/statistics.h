// What serving counts, per model and version, in native memory. Stages and names are those of Triton's ModelStatistics.
//
// Written by the threads that answer batches and refuse requests, under a lock of its own that is held for a batch at a
// time; read by copying under the same lock. Nothing here allocates but for a new version or a new batch size.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

namespace trimtab {

// Upper bounds of the latency histograms, in ns: 10 us to 100 s. Of the batch sizes: 1 to 4096 rows.
inline constexpr std::array<std::int64_t, 22> kLatencyBounds = {
    10'000,         25'000,         50'000,         100'000,        250'000,        500'000,        1'000'000,
    2'500'000,      5'000'000,      10'000'000,     25'000'000,     50'000'000,     100'000'000,    250'000'000,
    500'000'000,    1'000'000'000,  2'500'000'000,  5'000'000'000,  10'000'000'000, 25'000'000'000, 50'000'000'000,
    100'000'000'000};
inline constexpr std::array<std::int64_t, 13> kSizeBounds = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};

// Counts per bucket, not cumulative; a value equal to a bound is within it.
template <std::size_t N>
struct Histogram {
    std::array<std::uint64_t, N + 1> buckets{};
    std::int64_t total = 0;

    void add(const std::array<std::int64_t, N>& bounds, std::int64_t value) {
        std::size_t low = 0;
        for (std::size_t width = N; width != 0;) {
            const std::size_t half = width / 2;
            if (bounds[low + half] < value) {
                low += half + 1;
                width -= half + 1;
            } else {
                width = half;
            }
        }
        ++buckets[low];
        total += value;
    }
};

// Latencies finely enough for a change of a few per cent in a quantile: 32 buckets an octave from 1 us (2^10 ns) to
// 137 s (2^37 ns), one below and one above. A bucket's lower bound is within it.
struct FineHistogram {
    static constexpr int kBits = 5, kFirst = 10, kLast = 37;
    static constexpr std::size_t kBuckets = (std::size_t{kLast - kFirst} << kBits) + 2;
    std::array<std::uint64_t, kBuckets> buckets{};

    static constexpr std::size_t place(std::int64_t ns) {
        if (ns < (std::int64_t{1} << kFirst)) return 0;
        if (ns >= (std::int64_t{1} << kLast)) return kBuckets - 1;
        const auto value = static_cast<std::uint64_t>(ns);
        const int octave = static_cast<int>(std::bit_width(value)) - 1;
        const std::size_t within = (value >> (octave - kBits)) & ((std::size_t{1} << kBits) - 1);
        return 1 + (static_cast<std::size_t>(octave - kFirst) << kBits) + within;
    }
    void add(std::int64_t ns) { ++buckets[place(ns)]; }
};

struct Stage {
    std::uint64_t count = 0;
    std::int64_t ns = 0;
    void add(std::int64_t duration, std::uint64_t times = 1) {
        count += times;
        ns += duration;
    }
};

struct SizeStatistics {
    Stage input, infer, output;
};

struct VersionStatistics {
    std::uint64_t requests = 0;
    std::uint64_t rows = 0;
    std::uint64_t batches = 0;
    std::int64_t last_ms = 0;  // since the epoch
    Stage success, fail, queue, input, infer, output;
    std::map<std::uint32_t, SizeStatistics> sizes;  // by rows of the batch
};

// Why a request was not computed.
enum class Dropped : std::uint8_t { invalid, not_found, queue_full, expired, missed, cancelled, unavailable, count };

// When a batch passed which point, in ns of the monotonic clock.
struct BatchMarks {
    std::int64_t begun = 0, read = 0, computed = 0, encoded = 0;
};

struct StatisticsData {
    std::map<std::uint32_t, VersionStatistics> versions;
    Histogram<kLatencyBounds.size()> queue, compute, total;
    Histogram<kSizeBounds.size()> sizes;
    std::uint64_t failed = 0;
    std::array<std::uint64_t, static_cast<std::size_t>(Dropped::count)> dropped{};
};

class Statistics {
  public:
    // A batch that was computed; `arrived`: each request's arrival.
    void batch(std::uint32_t version, std::uint32_t rows, std::span<const std::int64_t> arrived, const BatchMarks& marks);
    // Requests of a batch that failed.
    void failure(std::uint32_t version, std::span<const std::int64_t> arrived, std::int64_t now);
    void drop(Dropped why, std::uint64_t requests = 1);
    StatisticsData copy() const;
    // Of the requests in `total`.
    FineHistogram latencies() const;

  private:
    mutable std::mutex lock_;
    StatisticsData data_;
    FineHistogram latencies_;
};

}  // namespace trimtab
