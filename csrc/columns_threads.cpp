// A run of a column program on several threads; see columns_program.h.
//
// The threads live for the call: starting one takes some 30 us, a chunk some hundreds. They take chunk after chunk by a
// shared counter. Each counts into an array of its own, for integers add up in any order; the moments of every chunk
// are kept apart and added up in the chunks' order when all are done, as a single thread adds them.
#include <atomic>
#include <exception>
#include <limits>

#include "columns_scratch.h"
#include "team.h"

namespace trimtab {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

void CompiledProgram::run_on_threads(const ColumnSource& source, std::size_t start, std::size_t stop,
                                     const ColumnOutput& output, std::size_t threads) const {
    const bool sketching = output.counts != nullptr;
    const std::size_t chunks = (stop - start + kChunk - 1) / kChunk;
    std::vector<std::uint64_t> counts(sketching ? threads * n_counts_ : 0);
    std::vector<double> moments(sketching ? chunks * n_moments_ : 0);
    for (std::size_t i = 0; i + kSketchMoments <= moments.size(); i += kSketchMoments) {
        moments[i] = kInfinity;
        moments[i + 1] = -kInfinity;
    }
    std::vector<std::exception_ptr> failures(threads);
    std::atomic<std::size_t> next{0};
    const auto work = [&](std::size_t member) noexcept {
        try {
            Scratch scratch(*this, source, stop - start, sketching);
            for (std::size_t chunk = next++; chunk < chunks; chunk = next++) {
                ColumnOutput part = output;
                if (sketching) {
                    part.counts = counts.data() + member * n_counts_;
                    part.moments = moments.data() + chunk * n_moments_;
                }
                const std::size_t first = start + chunk * kChunk;
                run_chunk(source, first, std::min(first + kChunk, stop), chunk * kChunk, part, scratch);
            }
        } catch (...) {
            failures[member] = std::current_exception();
            next = chunks;
        }
    };
    Team::run(threads, work);
    for (const std::exception_ptr& failure : failures) {
        if (failure) std::rethrow_exception(failure);
    }
    for (std::size_t i = 0; i < counts.size(); ++i) output.counts[i % n_counts_] += counts[i];
    for (std::size_t i = 0; i + kSketchMoments <= moments.size(); i += kSketchMoments) {
        double* const all = output.moments + i % n_moments_;
        all[0] = std::min(all[0], moments[i]);
        all[1] = std::max(all[1], moments[i + 1]);
        all[2] += moments[i + 2];
        all[3] += moments[i + 3];
    }
}

}  // namespace trimtab
