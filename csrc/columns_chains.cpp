// The chains of a column program that the inner loops of columns_hot.h do not take; see columns_program.h.
//
// A block of a field's values goes through a chain op by op (columns_ops.h), in float64, and stays in the first cache
// level. Features and ids of chains that lie side by side come to tiles of columns, which are written to the row-major
// outputs together; what chains spread over many columns is written row by row.
#include <algorithm>
#include <limits>

#include "columns_scratch.h"

namespace trimtab {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr auto kNull = static_cast<std::int32_t>(ops::kNull);

}  // namespace

void CompiledProgram::find_values(const ColumnSource& source, std::size_t row, std::size_t count, bool sketching,
                                  Scratch& scratch) const {
    for (std::size_t i = 0; i < lookups_.size(); ++i) {
        const FieldLookup& lookup = lookups_[i];
        if (!lookup.chained && !sketching) continue;
        const ColumnView column = source.column(lookup.field);
        std::int32_t* const ids = scratch.lookup(i);
        switch (schema_->fields[lookup.field].type) {
            case Type::string: lookup.texts.find(column.offsets + row, column.bytes, count, ids); break;
            case Type::integer: lookup.integers.find(column.integers + row, count, ids); break;
            case Type::boolean:
            case Type::real: {
                const std::int32_t known[2] = {lookup.integers.find(0), lookup.integers.find(1)};
                for (std::size_t j = 0; j < count; ++j) {
                    const float value = column.reals[row + j];
                    const std::int32_t id = known[value != 0.0F ? 1 : 0];
                    ids[j] = ops::is_nan(value) ? kNull : id;
                }
                break;
            }
        }
    }
}

// The raw values as fp32, and NaN up to a multiple of hot::kWide: integers are rounded to the nearest, missing is NaN.
void CompiledProgram::load(const ColumnSource& source, std::size_t field, std::size_t row, std::size_t count,
                           float* raw) const {
    const ColumnView column = source.column(field);
    if (schema_->fields[field].type == Type::integer) {
        level_->ops->from_integers(column.integers + row, count, raw);
    } else {
        std::copy_n(column.reals + row, count, raw);
    }
    std::fill(raw + count, raw + whole_groups(count), kNaN);
}

// missing: of which true stays true.
void CompiledProgram::hash(const ColumnSource& source, std::size_t field, std::size_t row, std::size_t count,
                           std::uint64_t* hashes, bool* missing) const {
    const ColumnView column = source.column(field);
    switch (schema_->fields[field].type) {
        case Type::string: {
            const std::int32_t* const offsets = column.offsets + row;
            level_->ops->hash_texts(offsets, column.bytes, count, hashes);
            for (std::size_t j = 0; j < count; ++j) missing[j] |= offsets[j] == offsets[j + 1];
            break;
        }
        case Type::integer:
            level_->ops->hash_integers(column.integers + row, count, hashes);
            for (std::size_t j = 0; j < count; ++j) missing[j] |= column.integers[row + j] == kMissingInteger;
            break;
        case Type::boolean:
        case Type::real: {
            const std::uint64_t known[2] = {ops::hash_integer(0), ops::hash_integer(1)};
            for (std::size_t j = 0; j < count; ++j) {
                const float value = column.reals[row + j];
                missing[j] |= ops::is_nan(value);
                hashes[j] = known[value != 0.0F ? 1 : 0];
            }
            break;
        }
    }
}

void CompiledProgram::hash_buckets(const Chain& chain, const ColumnSource& source, std::size_t row, std::size_t count,
                                   std::int32_t* ids, Scratch& scratch) const {
    const Op& op = chain.ops.back();
    std::uint64_t* const hashes = scratch.hashes.data();
    bool* const missing = scratch.missing.data();
    std::fill_n(missing, count, false);
    hash(source, chain.field, row, count, hashes, missing);
    if (op.kind == Kind::cross) {
        hash(source, op.other, row, count, scratch.other_hashes.data(), missing);
        level_->ops->cross(hashes, scratch.other_hashes.data(), count);
    }
    for (std::size_t j = 0; j < count; ++j) {
        const auto id = static_cast<std::int32_t>(ops::bucket_of(hashes[j], op.buckets, op.reciprocal));
        ids[j] = missing[j] ? kNull : id;
    }
}

// One real op on a block; NaN is missing.
void CompiledProgram::apply(const Op& op, double* x, std::size_t count) const {
    const hot::Ops& loops = *level_->ops;
    switch (op.kind) {
        case Kind::impute: return loops.impute(x, count, op.a);
        case Kind::clip: return loops.clip(x, count, op.a, op.b);
        case Kind::log1p: return loops.log1p(x, count);
        case Kind::signed_log: return loops.signed_log(x, count);
        case Kind::affine: return loops.affine(x, count, op.a, op.b);
        case Kind::quantile_normal:
            if (op.knots.empty()) return loops.affine(x, count, 0.0, 0.0);
            return loops.quantile_normal(x, count,
                                         {op.search, op.knots.data(), op.probabilities.data(), op.slopes.data(),
                                          op.knots.size()});
        default: return;
    }
}

// Of a chain of numbers: its features, or its ids, and what tells where they go.
void CompiledProgram::run_numbers(const Chain& chain, const ColumnSource& source, std::size_t row, std::size_t count,
                                  Tiles& tiles, Scratch& scratch) const {
    const hot::Ops& loops = *level_->ops;
    const std::size_t places = whole_groups(count);
    const Op& terminal = chain.ops.back();
    float* const raw = scratch.raw.data();
    double* const x = scratch.work.data();
    load(source, chain.field, row, count, raw);
    loops.widen(raw, places, x);
    for (const Op& op : chain.ops) apply(op, x, places);
    float* column = tiles.column;
    switch (terminal.kind) {
        case Kind::bucketise: loops.bucketise(x, places, terminal.search, tiles.ids); break;
        case Kind::piecewise_linear:
            if (terminal.n_edges < 2) {
                std::fill_n(column, places, 0.0F);
                std::fill_n(tiles.ids, places, 0);
            } else {
                loops.piecewise_linear(x, places, terminal.search, terminal.n_edges, tiles.ids, column);
            }
            column += kTileStride;
            break;
        case Kind::cyclic:
            loops.cyclic(x, places, terminal.a, column, column + kTileStride);
            column += 2 * kTileStride;
            break;
        default:
            loops.emit(x, places, column);
            column += kTileStride;
    }
    if (chain.flag) loops.flags(raw, places, column);
}

void CompiledProgram::run_others(const OtherGroup& group, const ColumnSource& source, std::size_t row,
                                 std::size_t count, std::size_t done, const ColumnOutput& output,
                                 Scratch& scratch) const {
    Tiles tiles{scratch.tile.data(), scratch.ids.data()};
    std::array<const std::int32_t*, hot::kMaxColumns> ids;
    std::array<hot::Spread, hot::kMaxColumns> spreads;
    std::size_t n_ids = 0;
    std::size_t n_spreads = 0;
    for (std::size_t i = group.first; i < group.last; ++i) {
        const Chain& chain = chains_[others_[i]];
        const Op& terminal = chain.ops.back();
        const std::int32_t* found = tiles.ids;
        if (terminal.kind == Kind::vocabulary) {
            found = scratch.lookup(terminal.lookup);
        } else if (terminal.kind == Kind::hash_bucket || terminal.kind == Kind::cross) {
            hash_buckets(chain, source, row, count, tiles.ids, scratch);
        } else {
            run_numbers(chain, source, row, count, tiles, scratch);
        }
        if (chain.spreads()) {
            const bool shared = terminal.kind == Kind::piecewise_linear;
            const float* const flags = shared ? tiles.column + kTileStride : tiles.column;
            spreads[n_spreads++] = {found,
                                    shared ? tiles.column : nullptr,
                                    chain.flag ? flags : nullptr,
                                    shared ? 0 : 1,  // an id is never PAD
                                    chain.first_feature,
                                    chain.width - (chain.flag ? 1 : 0)};
        } else if (chain.id_size > 0) {
            ids[n_ids++] = found;
        }
        tiles.column += chain.columns() * kTileStride;
        tiles.ids += kTileStride;
    }
    float* const features = output.features + done * n_features_;
    if (n_spreads > 0) {
        level_->ops->spread(spreads.data(), n_spreads, count, features, n_features_);
    } else if (group.width > 0) {
        level_->transpose(scratch.tile.data(), kTileStride, group.width, count, features + group.first_feature,
                          n_features_, scratch.streams);
    }
    if (n_ids > 0) {
        level_->ops->write_ids(ids.data(), n_ids, count, output.ids + done * n_ids_ + group.first_id, n_ids_,
                               scratch.streams_ids);
    }
}

void CompiledProgram::sketch_categories(std::size_t count, const ColumnOutput& output, Scratch& scratch) const {
    for (const SketchField& field : sketch_) {
        if (!field.category) continue;
        const std::int32_t* const ids = scratch.lookup(field.lookup);
        // Missing and unseen lie where their ids less one say, the known ones behind the prefix.
        const auto last = static_cast<std::int32_t>(kSketchPrefix + field.counted);
        const auto place_of = [last](std::int32_t id) {
            const std::int32_t known = id - static_cast<std::int32_t>(ops::kFirst) + kSketchPrefix;
            return static_cast<std::size_t>(id < ops::kFirst ? id - kNull : std::min(known, last));
        };
        std::uint64_t* const counts = output.counts + field.offset;
        constexpr std::size_t kFew = 256;
        if (static_cast<std::size_t>(last) >= kFew || count < kFew) {
            for (std::size_t j = 0; j < count; ++j) ++counts[place_of(ids[j])];
            continue;
        }
        // Four, for an addition waits for the one before it to the same place.
        std::uint32_t copies[4][kFew] = {};
        std::size_t j = 0;
        for (; j + 4 <= count; j += 4) {
            for (std::size_t k = 0; k < 4; ++k) ++copies[k][place_of(ids[j + k])];
        }
        for (; j < count; ++j) ++copies[0][place_of(ids[j])];
        for (std::size_t i = 0; i <= static_cast<std::size_t>(last); ++i) {
            counts[i] += std::uint64_t{copies[0][i]} + copies[1][i] + copies[2][i] + copies[3][i];
        }
    }
}

}  // namespace trimtab
