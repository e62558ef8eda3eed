#include "columns_joint.h"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

#include "columns_program.h"
#include "ops_math.h"

namespace trimtab {
namespace {

constexpr int kOne = 1 << 13;            // what stands for 1
constexpr std::size_t kAngles = 1 << 12;  // of a turn
constexpr int kPhaseShift = 4;
// A product is at most 2^26: so many stay within 32 bits.
constexpr std::size_t kFlushed = 31;

struct Waves {
    std::array<std::int16_t, kAngles> cosine;
    std::array<std::int16_t, kAngles> sine;
    Waves() : cosine{}, sine{} {
        for (std::size_t i = 0; i < kAngles; ++i) {
            const ops::Angle angle = ops::angle_of(static_cast<double>(i) / static_cast<double>(kAngles));
            cosine[i] = rounded(angle.cosine);
            sine[i] = rounded(angle.sine);
        }
    }
    static std::int16_t rounded(double x) {
        return static_cast<std::int16_t>(static_cast<int>(x * kOne + (kOne + 0.5)) - kOne);
    }
};

const Waves& waves() {
    static const Waves made;
    return made;
}

// How many edges are <= x, which is not NaN.
std::size_t bin_of(float x, const std::vector<float>& edges) {
    return static_cast<std::size_t>(std::upper_bound(edges.begin(), edges.end(), x) - edges.begin());
}

}  // namespace

void add_joint(const std::uint16_t* phases, std::size_t count, std::span<std::int64_t, kJointLength> sums) {
    const Waves& wave = waves();
    alignas(64) std::int32_t products[kJointWidth][kJointWidth];
    alignas(64) std::int32_t totals[kJointWidth];
    for (std::size_t first = 0; first < count; first += kFlushed) {
        const std::size_t last = std::min(first + kFlushed, count);
        for (auto& row : products) std::fill(std::begin(row), std::end(row), 0);
        std::fill(std::begin(totals), std::end(totals), 0);
        for (std::size_t r = first; r < last; ++r) {
            alignas(64) std::int32_t z[kJointWidth];
            for (std::size_t k = 0; k < kFrequencies; ++k) {
                const std::size_t angle = phases[r * kFrequencies + k] >> kPhaseShift;
                z[k] = wave.cosine[angle];
                z[kFrequencies + k] = wave.sine[angle];
            }
            for (std::size_t i = 0; i < kJointWidth; ++i) {
                totals[i] += z[i];
                // The whole row, not the triangle: of known length it becomes vector code.
                for (std::size_t j = 0; j < kJointWidth; ++j) products[i][j] += z[i] * z[j];
            }
        }
        std::int64_t* to = sums.data();
        *to++ += static_cast<std::int64_t>(last - first);
        for (const std::int32_t total : totals) *to++ += total;
        for (std::size_t i = 0; i < kJointWidth; ++i) {
            for (std::size_t j = i; j < kJointWidth; ++j) *to++ += products[i][j];
        }
    }
}

void CompiledProgram::sum_jointly(const ColumnSource& source, std::span<const std::int64_t> rows,
                                  std::span<const std::uint16_t> phases,
                                  std::span<std::int64_t, kJointLength> sums) const {
    std::size_t table_rows = 0;
    for (const SketchField& field : sketch_) table_rows += buckets(field) + 2;
    if (phases.size() != table_rows * kFrequencies) throw std::invalid_argument("phases of another sketch");
    for (const std::int64_t row : rows) {
        if (row < 0 || static_cast<std::size_t>(row) >= source.rows()) throw std::out_of_range("rows beyond the end");
    }
    alignas(64) std::uint16_t added[kJointRows * kFrequencies];
    for (std::size_t first = 0; first < rows.size(); first += kJointRows) {
        const auto some = rows.subspan(first, std::min(kJointRows, rows.size() - first));
        std::fill_n(added, some.size() * kFrequencies, std::uint16_t{0});
        const std::uint16_t* table = phases.data();
        for (std::size_t i = 0; i < sketch_.size(); ++i) {
            for (std::size_t r = 0; r < some.size(); ++r) {
                const std::size_t bucket = bucket_of(source, i, static_cast<std::size_t>(some[r]));
                const std::uint16_t* const turns = table + bucket * kFrequencies;
                std::uint16_t* const row = added + r * kFrequencies;
                for (std::size_t k = 0; k < kFrequencies; ++k) row[k] = static_cast<std::uint16_t>(row[k] + turns[k]);
            }
            table += (buckets(sketch_[i]) + 2) * kFrequencies;
        }
        add_joint(added, some.size(), sums);
    }
}

std::size_t CompiledProgram::buckets(const SketchField& field) {
    return field.category ? field.counted + 1 : field.edges.size() + 1;
}

// Missing comes behind the buckets, then unseen.
std::size_t CompiledProgram::bucket_of(const ColumnSource& source, std::size_t index, std::size_t row) const {
    const SketchField& field = sketch_[index];
    const std::size_t missing = buckets(field);
    const Type type = schema_->fields[index].type;
    const float* const matrix = source.matrix();
    const ColumnView column = matrix == nullptr ? source.column(index) : ColumnView{};
    const auto real = [&] { return matrix == nullptr ? column.reals[row] : matrix[row * source.width() + index]; };
    if (field.category) {
        const FieldLookup& lookup = lookups_[field.lookup];
        std::int32_t id = static_cast<std::int32_t>(ops::kNull);
        if (type == Type::string) {
            lookup.texts.find(column.offsets + row, column.bytes, 1, &id);
        } else if (type == Type::integer) {
            lookup.integers.find(column.integers + row, 1, &id);
        } else if (const float value = real(); !ops::is_nan(value)) {
            id = lookup.integers.find(value != 0.0F ? 1 : 0);
        }
        if (id < static_cast<std::int32_t>(ops::kFirst)) {
            return missing + (id == static_cast<std::int32_t>(ops::kNull) ? 0 : 1);
        }
        return std::min(static_cast<std::size_t>(id - static_cast<std::int32_t>(ops::kFirst)), field.counted);
    }
    if (type == Type::integer) {
        const std::int64_t value = column.integers[row];
        if (value == std::numeric_limits<std::int64_t>::min()) return missing;
        return bin_of(static_cast<float>(value), field.edges);
    }
    const float value = real();
    return ops::is_nan(value) ? missing : bin_of(value, field.edges);
}

}  // namespace trimtab
