#include "statistics.h"

#include <algorithm>
#include <chrono>

namespace trimtab {

void Statistics::batch(std::uint32_t version, std::uint32_t rows, std::span<const std::int64_t> arrived,
                       const BatchMarks& marks) {
    using namespace std::chrono;
    const std::int64_t now_ms = duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
    const std::lock_guard guard(lock_);
    VersionStatistics& counts = data_.versions[version];
    const std::uint64_t requests = arrived.size();
    std::int64_t waited = 0;
    for (const std::int64_t instant : arrived) {
        waited += marks.begun - instant;
        data_.queue.add(kLatencyBounds, marks.begun - instant);
        data_.total.add(kLatencyBounds, marks.encoded - instant);
        latencies_.add(marks.encoded - instant);
    }
    data_.compute.add(kLatencyBounds, marks.encoded - marks.begun);
    data_.sizes.add(kSizeBounds, rows);
    counts.requests += requests;
    counts.rows += rows;
    ++counts.batches;
    counts.last_ms = now_ms;
    const auto times = static_cast<std::int64_t>(requests);
    counts.success.add(waited + (marks.encoded - marks.begun) * times, requests);
    counts.queue.add(waited, requests);
    // As in Triton, a request's share of a stage is the whole stage of its batch.
    SizeStatistics& size = counts.sizes[std::min(rows, 4096U)];  // larger ones together: bounded
    const auto add = [&](Stage& all, Stage& one, std::int64_t ns) {
        all.add(ns * times, requests);
        one.add(ns);
    };
    add(counts.input, size.input, marks.read - marks.begun);
    add(counts.infer, size.infer, marks.computed - marks.read);
    add(counts.output, size.output, marks.encoded - marks.computed);
}

void Statistics::failure(std::uint32_t version, std::span<const std::int64_t> arrived, std::int64_t now) {
    const std::lock_guard guard(lock_);
    VersionStatistics& counts = data_.versions[version];
    for (const std::int64_t instant : arrived) counts.fail.add(now - instant);
    data_.failed += arrived.size();
}

void Statistics::drop(Dropped why, std::uint64_t requests) {
    const std::lock_guard guard(lock_);
    data_.dropped[static_cast<std::size_t>(why)] += requests;
}

StatisticsData Statistics::copy() const {
    const std::lock_guard guard(lock_);
    return data_;
}

FineHistogram Statistics::latencies() const {
    const std::lock_guard guard(lock_);
    return latencies_;
}

}  // namespace trimtab
