// Running a compiled column program over rows; see columns_program.h. On threads: columns_threads.cpp.
#include "columns_scratch.h"

#include <algorithm>
#include <atomic>

namespace trimtab {
namespace {

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
    if (scratch.streams || scratch.streams_ids) std::atomic_thread_fence(std::memory_order_seq_cst);
    if (!sketching) return;
    output.counts[0] += stop - start;
    for (std::size_t i = 0; i < scratch.states.size(); ++i) {
        if (!sketch_[i].category) level_->finish(scratch.states[i], output.moments + i * kSketchMoments);
    }
}

void CompiledProgram::run_block(const ColumnSource& source, std::size_t row, std::size_t count, std::size_t done,
                                const ColumnOutput& output, Scratch& scratch) const {
    for (const Group& group : groups_) run_group(group, source, row, count, done, output, scratch);
    if (!lookups_.empty()) find_values(source, row, count, output.counts != nullptr, scratch);
    for (const OtherGroup& group : other_groups_) run_others(group, source, row, count, done, output, scratch);
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

}  // namespace trimtab
