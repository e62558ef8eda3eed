// Running a compiled column program over rows; see columns_program.h. On threads: columns_threads.cpp.
#include "columns_scratch.h"

#include <algorithm>
#include <atomic>
#include <limits>

namespace trimtab {
namespace {

// Row by row, as a row's bins lie side by side: all of them are 1 below the bin that holds x, and 0 above it.
void piecewise_linear(const std::vector<float>& edges, double x, float* shares) {
    const std::size_t bins = std::max<std::size_t>(edges.size(), 2) - 1;
    std::fill_n(shares, bins, 0.0F);
    if (std::isnan(x) || edges.size() < 2) return;
    const std::size_t below = static_cast<std::size_t>(std::upper_bound(edges.begin(), edges.end(), x) - edges.begin());
    if (below == 0) return;
    std::fill_n(shares, below - 1, 1.0F);
    if (below <= bins) shares[below - 1] = ops::emit(ops::bin_share(x, edges[below - 1], edges[below]));
}

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Copies `count` rows of a row-major matrix to columns that are `stride` apart. A row's last values are turned together
// with some before them, again: nothing is read past a row's end.
void turn_rows(const hot::Table& level, const float* matrix, std::size_t width, std::size_t count, float* columns,
               std::size_t stride) {
    const auto turn = [&](std::size_t row, std::size_t rows, std::size_t first, std::size_t fields) {
        level.transpose(matrix + row * width + first, width, rows, fields, columns + first * stride + row, stride,
                        false);
    };
    if (width < hot::kWide) {
        for (std::size_t row = 0; row < count; ++row) {
            for (std::size_t i = 0; i < width; ++i) columns[i * stride + row] = matrix[row * width + i];
        }
        return;
    }
    for (std::size_t row = 0; row < count; row += hot::kWide) {
        const std::size_t rows = std::min(hot::kWide, count - row);
        turn(row, rows, 0, width / hot::kWide * hot::kWide);
        if (width % hot::kWide != 0) turn(row, rows, width - hot::kWide, hot::kWide);
    }
}

}  // namespace

void CompiledProgram::run(const ColumnSource& source, std::size_t start, std::size_t stop, const ColumnOutput& output,
                          std::size_t threads) const {
    if (start >= stop) return;
    const std::size_t chunks = (stop - start + kChunk - 1) / kChunk;
    if (std::min(threads, chunks) > 1) return run_on_threads(source, start, stop, output, std::min(threads, chunks));
    Scratch scratch(*this, source, stop - start, output.counts != nullptr);
    for (std::size_t row = start; row < stop; row += kChunk) {
        run_chunk(source, row, std::min(row + kChunk, stop), row - start, output, scratch);
    }
}

void CompiledProgram::run_chunk(const ColumnSource& source, std::size_t start, std::size_t stop, std::size_t done,
                                const ColumnOutput& output, Scratch& scratch) const {
    const bool sketching = output.counts != nullptr;
    std::fill(scratch.states.begin(), scratch.states.end(), hot::State{});
    for (std::size_t row = start; row < stop; row += scratch.block) {
        const std::size_t count = std::min(scratch.block, stop - row);
        if (source.matrix() == nullptr) {
            run_block(source, row, count, done + row - start, output, scratch);
        } else {
            turn_rows(*level_, source.matrix() + row * source.width(), source.width(), count, scratch.turned.get(),
                      scratch.stride);
            run_block({scratch.views, count}, 0, count, done + row - start, output, scratch);
        }
    }
    if (scratch.streams) std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!sketching) return;
    output.counts[0] += stop - start;
    for (std::size_t i = 0; i < scratch.states.size(); ++i) {
        if (!sketch_[i].category) level_->finish(scratch.states[i], output.moments + i * kSketchMoments);
    }
}

void CompiledProgram::run_block(const ColumnSource& source, std::size_t row, std::size_t count, std::size_t done,
                                const ColumnOutput& output, Scratch& scratch) const {
    for (const Group& group : groups_) run_group(group, source, row, count, done, output, scratch);
    if (!lookups_.empty()) find_values(source, row, count, scratch);
    for (const std::size_t chain : others_) run_chain(chains_[chain], source, row, count, done, output, scratch);
    if (categories_ && output.counts != nullptr) sketch_categories(count, output, scratch);
}

void CompiledProgram::run_group(const Group& group, const ColumnSource& source, std::size_t row, std::size_t count,
                                std::size_t done, const ColumnOutput& output, Scratch& scratch) const {
    const bool sketching = output.counts != nullptr;
    const std::size_t stride = (count + hot::kWide - 1) / hot::kWide * hot::kWide + kTileGap;
    float* column = scratch.tile.data();
    hot::Block block;
    block.count = count;
    for (std::size_t i = group.first_task; i < group.last_task; ++i) {
        const Task& task = tasks_[i];
        const bool sketched = task.sketched && sketching;
        if (!task.feature && !sketched) continue;
        block.raw = block.ahead = scratch.raw.data();
        if (task.integer) {
            load(source, task.field, row, count, scratch.raw.data());
        } else {
            block.raw = source.column(task.field).reals + row;
            block.ahead = source.column(task.next).reals + (i + kAhead < tasks_.size() ? row : row + count);
        }
        if (task.feature) {
            block.values = column;
            column += stride;
            block.flags = task.flag ? column : nullptr;
            column += task.flag ? stride : 0;
        }
        if (!sketched) {
            level_->field(&task.column, nullptr, block);
            continue;
        }
        const SketchField& field = sketch_[task.field];
        block.counts = output.counts + field.offset;
        block.moments = output.moments + task.field * kSketchMoments;
        block.state = scratch.states.empty() ? nullptr : &scratch.states[task.field];
        level_->field(task.feature ? &task.column : nullptr, &field.numbers, block);
    }
    if (group.width > 0) {
        level_->transpose(scratch.tile.data(), stride, group.width, count,
                          output.features + done * n_features_ + group.first_feature, n_features_, scratch.streams);
    }
}

void CompiledProgram::find_values(const ColumnSource& source, std::size_t row, std::size_t count, Scratch& scratch) const {
    const auto id_of = [](std::int64_t position) { return position < 0 ? ops::kOov : ops::kFirst + position; };
    for (std::size_t i = 0; i < lookups_.size(); ++i) {
        const FieldLookup& lookup = lookups_[i];
        const ColumnView column = source.column(lookup.field);
        std::int64_t* const ids = scratch.lookup(i);
        switch (schema_->fields[lookup.field].type) {
            case Type::string:
                for (std::size_t j = 0; j < count; ++j) {
                    const std::string_view text = column.text(row + j);
                    ids[j] = text.empty() ? ops::kNull : id_of(lookup.texts.find(text));
                }
                break;
            case Type::integer:
                for (std::size_t j = 0; j < count; ++j) {
                    const std::int64_t value = column.integers[row + j];
                    ids[j] = value == kMissingInteger ? ops::kNull : id_of(lookup.integers.find(value));
                }
                break;
            case Type::boolean:
            case Type::real:
                for (std::size_t j = 0; j < count; ++j) {
                    const float value = column.reals[row + j];
                    ids[j] = std::isnan(value) ? ops::kNull : id_of(lookup.integers.find(value != 0.0F ? 1 : 0));
                }
                break;
        }
    }
}

// The raw values as fp32: integers are rounded to the nearest, missing is NaN.
void CompiledProgram::load(const ColumnSource& source, std::size_t field, std::size_t row, std::size_t count, float* raw) const {
    const ColumnView column = source.column(field);
    if (schema_->fields[field].type == Type::integer) {
        for (std::size_t j = 0; j < count; ++j) {
            const std::int64_t value = column.integers[row + j];
            raw[j] = value == kMissingInteger ? kNaN : static_cast<float>(value);
        }
    } else {
        std::copy_n(column.reals + row, count, raw);
    }
}

void CompiledProgram::hash(const ColumnSource& source, std::size_t field, std::size_t row, std::size_t count,
                           std::uint64_t* hashes, bool* missing) const {
    const ColumnView column = source.column(field);
    for (std::size_t j = 0; j < count; ++j) {
        switch (schema_->fields[field].type) {
            case Type::string: {
                const std::string_view text = column.text(row + j);
                missing[j] |= text.empty();
                hashes[j] = ops::hash_bytes(text.data(), text.size());
                break;
            }
            case Type::integer: {
                const std::int64_t value = column.integers[row + j];
                missing[j] |= value == kMissingInteger;
                hashes[j] = ops::hash_integer(value);
                break;
            }
            case Type::boolean:
            case Type::real: {
                const float value = column.reals[row + j];
                missing[j] |= std::isnan(value);
                hashes[j] = ops::hash_integer(value != 0.0F ? 1 : 0);
                break;
            }
        }
    }
}

void CompiledProgram::run_chain(const Chain& chain, const ColumnSource& source, std::size_t row, std::size_t count,
                                std::size_t done, const ColumnOutput& output, Scratch& scratch) const {
    float* const raw = scratch.raw.data();
    double* const work = scratch.work.data();
    std::int64_t* ids = scratch.ids.data();
    const Op& terminal = chain.ops.back();
    const bool numeric =
        terminal.kind != Kind::vocabulary && terminal.kind != Kind::hash_bucket && terminal.kind != Kind::cross;
    if (numeric) {
        load(source, chain.field, row, count, raw);
        for (std::size_t j = 0; j < count; ++j) work[j] = static_cast<double>(raw[j]);
    }
    float* const features = output.features + done * n_features_ + chain.first_feature;
    const std::size_t step = n_features_;
    for (const Op& op : chain.ops) {
        switch (op.kind) {
            case Kind::impute:
                for (std::size_t j = 0; j < count; ++j) work[j] = ops::impute(work[j], op.a);
                break;
            case Kind::clip:
                for (std::size_t j = 0; j < count; ++j) work[j] = ops::clip(work[j], op.a, op.b);
                break;
            case Kind::log1p:
                for (std::size_t j = 0; j < count; ++j) work[j] = ops::log1p(work[j]);
                break;
            case Kind::signed_log:
                for (std::size_t j = 0; j < count; ++j) work[j] = ops::signed_log(work[j]);
                break;
            case Kind::affine:
                for (std::size_t j = 0; j < count; ++j) work[j] = ops::affine(work[j], op.a, op.b);
                break;
            case Kind::quantile_normal:
                for (std::size_t j = 0; j < count; ++j) {
                    work[j] = ops::quantile_normal(work[j], op.knots.data(), op.probabilities.data(), op.knots.size());
                }
                break;
            case Kind::bucketise:
                // Only impute and clip came before, so the value is still an fp32 one.
                for (std::size_t j = 0; j < count; ++j) {
                    ids[j] = ops::bucketise(static_cast<float>(work[j]), op.edges.data(), op.edges.size());
                }
                break;
            case Kind::vocabulary: ids = scratch.lookup(op.lookup); break;
            case Kind::hash_bucket:
            case Kind::cross:
                std::fill_n(scratch.missing.data(), count, false);
                hash(source, chain.field, row, count, scratch.hashes.data(), scratch.missing.data());
                if (op.kind == Kind::cross) {
                    hash(source, op.other, row, count, scratch.other_hashes.data(), scratch.missing.data());
                    for (std::size_t j = 0; j < count; ++j) {
                        scratch.hashes[j] = ops::hash_cross(scratch.hashes[j], scratch.other_hashes[j]);
                    }
                }
                for (std::size_t j = 0; j < count; ++j) {
                    ids[j] = scratch.missing[j] ? ops::kNull : ops::bucket_of(scratch.hashes[j], op.buckets);
                }
                break;
            case Kind::piecewise_linear:
                for (std::size_t j = 0; j < count; ++j) piecewise_linear(op.edges, work[j], features + j * step);
                break;
            case Kind::cyclic:
                for (std::size_t j = 0; j < count; ++j) {
                    const ops::Angle angle = ops::cyclic(work[j], op.a);
                    features[j * step] = ops::emit(angle.sine);
                    features[j * step + 1] = ops::emit(angle.cosine);
                }
                break;
            case Kind::value:
                for (std::size_t j = 0; j < count; ++j) features[j * step] = ops::emit(work[j]);
                break;
        }
    }
    if (chain.one_hot) {
        for (std::size_t j = 0; j < count; ++j) {
            std::fill_n(features + j * step, chain.id_size - 1, 0.0F);
            features[j * step + static_cast<std::size_t>(ids[j]) - 1] = 1.0F;  // an id is never PAD
        }
    } else if (chain.id_size > 0) {
        for (std::size_t j = 0; j < count; ++j) output.ids[(done + j) * n_ids_ + chain.id] = ids[j];
    }
    if (chain.flag) {
        float* const flags = features + chain.width - 1;
        for (std::size_t j = 0; j < count; ++j) flags[j * step] = std::isnan(raw[j]) ? 1.0F : 0.0F;
    }
}

void CompiledProgram::sketch_categories(std::size_t count, const ColumnOutput& output, Scratch& scratch) const {
    for (const SketchField& field : sketch_) {
        if (!field.category) continue;
        std::uint64_t* const counts = output.counts + field.offset;
        const std::int64_t* const ids = scratch.lookup(field.lookup);
        for (std::size_t j = 0; j < count; ++j) {
            if (ids[j] == ops::kNull) {
                ++counts[0];
            } else if (ids[j] == ops::kOov) {
                ++counts[1];
            } else {
                ++counts[kSketchPrefix + std::min(static_cast<std::size_t>(ids[j] - ops::kFirst), field.counted)];
            }
        }
    }
}

}  // namespace trimtab
