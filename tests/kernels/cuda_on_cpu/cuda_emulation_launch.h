// Launching the kernel of the generated source above, by plain C. Returns 0, or 1 where a block's threads wait for each
// other for ever, or 2 where a block asks for more shared memory than there is.
#pragma once

namespace emulation {

struct Arguments {
    const unsigned* tables;
    std::uint64_t items;
    const void* const* columns;
    const float* matrix;
    std::uint64_t matrix_pitch;
    float* features;
    std::uint64_t feature_pitch;
    long long* ids;
    std::uint64_t id_pitch;
    unsigned long long* counts;
    std::uint64_t n_counts;
    double* moments;
    std::uint64_t n_moments;
    double* partials;
    std::uint64_t n_partials;
    unsigned* control;
    std::uint64_t rows;
    std::uint64_t chunk;
    std::uint64_t aligned;
    const unsigned* header;
};

inline void call(void* given) {
    const Arguments& a = *static_cast<const Arguments*>(given);
    const auto narrow = [](std::uint64_t value) { return static_cast<unsigned>(value); };
    trimtab_columns(a.tables, narrow(a.items), a.columns, a.matrix, a.matrix_pitch, a.features, a.feature_pitch, a.ids,
                    a.id_pitch, a.counts, a.n_counts, a.moments, a.n_moments, a.partials, narrow(a.n_partials),
                    a.control, narrow(a.rows), narrow(a.chunk), narrow(a.aligned), a.header);
}

}  // namespace emulation

extern "C" int launch(void* arguments, unsigned blocks_x, unsigned blocks_y, unsigned shared_bytes, unsigned seed) {
    if (shared_bytes > kSharedBytes) return 2;
    return emulation::run_grid(blocks_x, blocks_y, 256, seed, &emulation::call, arguments) ? 0 : 1;
}
