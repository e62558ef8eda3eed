// Checking and compiling a column program: after this, a run cannot go wrong whatever the slab holds.
//
// The Python side has checked the same program in words of its own; this check is for safety, not for explanation.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <unordered_map>

#include "columns_edges.h"
#include "columns_program.h"

namespace trimtab {
namespace {

constexpr std::size_t kMaxEdges = 4096;
constexpr std::int64_t kMaxBuckets = std::int64_t{1} << 24;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("column program: " + what); }

void require(bool holds, const std::string& what) {
    if (!holds) refuse(what);
}

double real(const OpSpec& spec, std::size_t index) {
    require(index < spec.reals.size() && std::isfinite(spec.reals[index]),
            spec.name + ": a parameter is missing or not finite");
    return spec.reals[index];
}

std::int64_t integer(const OpSpec& spec, std::size_t index, std::int64_t low, std::int64_t high) {
    require(index < spec.integers.size(), spec.name + ": a parameter is missing");
    require(spec.integers[index] >= low && spec.integers[index] <= high, spec.name + ": a parameter is out of range");
    return spec.integers[index];
}

float as_fp32(double value, const std::string& what) {
    require(std::fabs(value) <= ops::kFp32Max, what + ": not a finite float32");
    const float result = static_cast<float>(value);
    require(static_cast<double>(result) == value, what + ": not a float32");
    return result;
}

std::vector<float> increasing(std::vector<double>::const_iterator from, std::vector<double>::const_iterator to,
                              const std::string& what) {
    require(static_cast<std::size_t>(to - from) <= kMaxEdges, what + ": too many edges");
    std::vector<float> edges;
    for (; from != to; ++from) edges.push_back(as_fp32(*from, what));
    require(std::adjacent_find(edges.begin(), edges.end(), [](float a, float b) { return !(a < b); }) == edges.end(),
            what + ": edges do not increase");
    return edges;
}

}  // namespace

CompiledProgram::CompiledProgram(std::shared_ptr<const Schema> schema, const std::vector<ChainSpec>& chains,
                                 const std::vector<SketchFieldSpec>& sketch, const hot::Table& level)
    : schema_(std::move(schema)), level_(&level) {
    require(sketch.size() == schema_->features(), "the sketch's fields are not the features");
    for (const ChainSpec& chain : chains) compile_chain(chain);
    for (std::size_t i = 0; i < sketch.size(); ++i) {
        const SketchFieldSpec& spec = sketch[i];
        const std::string what = "sketch of \"" + schema_->fields[i].name + "\"";
        SketchField field;
        field.category = spec.category;
        field.offset = n_counts_;
        if (spec.category) {
            require(schema_->fields[i].type != Type::real, what + ": a real has no categories");
            field.lookup = add_lookup(i, spec.integers, spec.texts);
            field.counted = spec.counted;
            require(field.counted <= lookups_[field.lookup].size(), what + ": more counted than values");
            n_counts_ += kSketchPrefix + field.counted + 1;
        } else {
            require(schema_->fields[i].type != Type::string, what + ": a string has no edges");
            require(spec.reals.size() >= 3, what + ": parameters are missing");
            const float low = as_fp32(spec.reals[0], what);
            const float high = as_fp32(spec.reals[1], what);
            require(low <= high, what + ": low is above high");
            field.edges = increasing(spec.reals.begin() + 3, spec.reals.end(), what);
            field.numbers = make_sketch(field.edges, low, high, as_fp32(spec.reals[2], what));
            n_counts_ += kSketchPrefix + field.edges.size() + 1;
        }
        n_moments_ += kSketchMoments;
        sketch_.push_back(std::move(field));  // a moved vector keeps its place, so the borrowed edges stay
    }
    plan();
}

// One real op on one value; NaN is missing.
double CompiledProgram::apply(const Op& op, double x) {
    switch (op.kind) {
        case Kind::impute: return ops::impute(x, op.a);
        case Kind::clip: return ops::clip(x, op.a, op.b);
        case Kind::affine: return ops::affine(x, op.a, op.b);
        default: return x;
    }
}

// The chain as the inner loops take it: impute and clip once at most each, then at most one scaling.
std::optional<hot::Column> CompiledProgram::hot_column(const Chain& chain) const {
    hot::Column column;
    column.low = -std::numeric_limits<float>::infinity();
    column.high = std::numeric_limits<float>::infinity();
    bool scaled = false;
    double missing = std::numeric_limits<double>::quiet_NaN();
    for (const Op& op : chain.ops) {
        missing = apply(op, missing);
        switch (op.kind) {
            case Kind::impute:
                if (scaled) return std::nullopt;
                break;
            case Kind::clip:
                if (scaled || column.clips) return std::nullopt;
                column.clips = true;
                column.low = static_cast<float>(op.a);
                column.high = static_cast<float>(op.b);
                break;
            case Kind::affine:
                if (scaled) return std::nullopt;
                scaled = true;
                column.shift = op.a;
                column.inverse = op.b;
                break;
            case Kind::value: break;
            default: return std::nullopt;
        }
    }
    if (column.inverse == 0.0) {  // no spread: clipped to 0, and 0 it stays
        column.clips = true;
        column.low = column.high = 0.0F;
        column.shift = 0.0;
        column.inverse = 1.0;
    }
    // What is clipped is not clamped to fp32 again.
    const double least = (static_cast<double>(column.low) - column.shift) * column.inverse;
    const double most = (static_cast<double>(column.high) - column.shift) * column.inverse;
    if (column.clips && (least < -ops::kFp32Max || most > ops::kFp32Max)) return std::nullopt;
    column.fill = ops::emit(missing);
    return column;
}

void CompiledProgram::plan_other(std::size_t index) {
    const Chain& chain = chains_[index];
    const bool gives_id = chain.id_size > 0 && !chain.one_hot;
    OtherGroup* last = other_groups_.empty() ? nullptr : &other_groups_.back();
    if (last == nullptr || last->spreads != chain.spreads() || last->width + chain.columns() > hot::kMaxColumns ||
        last->last - last->first == hot::kMaxColumns ||
        (!chain.spreads() && chain.width > 0 && last->width > 0 &&
         last->first_feature + last->width != chain.first_feature)) {
        other_groups_.push_back({others_.size(), others_.size(), 0, 0, 0, true, chain.spreads()});
        last = &other_groups_.back();
    }
    if (last->width == 0) last->first_feature = chain.first_feature;
    if (gives_id && last->no_ids) last->first_id = chain.id;
    last->no_ids &= !gives_id;
    last->width += chain.columns();
    others_.push_back(index);
    last->last = others_.size();
}

// Who computes what: groups of chains for the inner loops, and the others.
void CompiledProgram::plan() {
    std::vector<bool> waiting;  // whether a field's numbers are still to be sketched by some task
    for (const SketchField& field : sketch_) {
        waiting.push_back(!field.category);
        categories_ |= field.category;
    }
    const auto add_task = [&](std::size_t field, const hot::Column* column, bool flag) {
        tasks_.push_back(
            {field, field, schema_->fields[field].type == Type::integer, column != nullptr, flag, waiting[field], {}});
        if (column != nullptr) tasks_.back().column = *column;
        waiting[field] = false;
    };
    for (std::size_t i = 0; i < chains_.size(); ++i) {
        const Chain& chain = chains_[i];
        const std::optional<hot::Column> column = hot_column(chain);
        if (!column) {
            plan_other(i);
            continue;
        }
        Group* last = groups_.empty() ? nullptr : &groups_.back();
        if (last == nullptr || last->first_feature + last->width != chain.first_feature ||
            last->width + chain.width > hot::kMaxColumns) {
            groups_.push_back({tasks_.size(), tasks_.size(), chain.first_feature, 0});
            last = &groups_.back();
        }
        add_task(chain.field, &*column, chain.flag);
        last->last_task = tasks_.size();
        last->width += chain.width;
    }
    groups_.push_back({tasks_.size(), tasks_.size(), 0, 0});  // what is left to be sketched
    for (std::size_t field = 0; field < waiting.size(); ++field) {
        if (waiting[field]) add_task(field, nullptr, false);
    }
    groups_.back().last_task = tasks_.size();
    for (std::size_t i = 0; i < tasks_.size(); ++i) {
        const Task& next = tasks_[(i + kAhead) % tasks_.size()];
        if (!next.integer) tasks_[i].next = next.field;
    }
}

std::size_t CompiledProgram::add_lookup(std::size_t field, const std::vector<std::int64_t>& integers,
                                        const std::vector<std::string>& texts) {
    FieldLookup lookup;
    lookup.field = field;
    lookup.text = schema_->fields[field].type == Type::string;
    const std::string what = "vocabulary of \"" + schema_->fields[field].name + "\"";
    require(lookup.text ? integers.empty() : texts.empty(), what + ": values of the wrong type");
    const bool distinct = lookup.text ? lookup.texts.build(texts) : lookup.integers.build(integers);
    require(distinct, what + ": a value occurs twice");
    // A feature's vocabulary and its sketch's categories are nearly always the same: look a value up once.
    for (std::size_t i = 0; i < lookups_.size(); ++i) {
        if (lookups_[i].field == field && lookups_[i].integers == lookup.integers && lookups_[i].texts == lookup.texts)
            return i;
    }
    lookups_.push_back(std::move(lookup));
    return lookups_.size() - 1;
}

void CompiledProgram::compile_chain(const ChainSpec& spec) {
    require(spec.field < schema_->features(), "a chain reads a field that is no feature");
    const Field& field = schema_->fields[spec.field];
    Chain chain;
    chain.field = spec.field;
    bool terminal = false;
    for (const OpSpec& op : spec.ops) {
        if (op.name == "embedding" || op.name == "one_hot") {
            require(terminal && chain.id_size > 0 && &op == &spec.ops.back(), op.name + " follows no id");
            chain.one_hot = op.name == "one_hot";
            continue;
        }
        require(!terminal, op.name + " follows a terminal");
        chain.ops.push_back(compile_op(chain, op));
        const Op& made = chain.ops.back();
        if (op.name == "impute") chain.flag = integer(op, 0, 0, 1) == 1;
        switch (made.kind) {
            case Kind::bucketise: chain.id_size = made.n_edges + 4; break;
            case Kind::vocabulary: chain.id_size = lookups_[made.lookup].size() + 3; break;
            case Kind::hash_bucket:
            case Kind::cross: chain.id_size = made.buckets + 3; break;
            case Kind::piecewise_linear: chain.width = std::max<std::size_t>(made.n_edges, 2) - 1; break;
            case Kind::cyclic: chain.width = 2; break;
            default: continue;
        }
        terminal = true;
    }
    if (!terminal) {
        require(field.type != Type::string, "a string has no real value");
        chain.ops.push_back(Op{});
        chain.width = 1;
    }
    if (chain.one_hot) chain.width = chain.id_size - 1;
    chain.width += chain.flag ? 1 : 0;
    chain.first_feature = n_features_;
    n_features_ += chain.width;
    if (chain.id_size > 0 && !chain.one_hot) chain.id = n_ids_++;
    chains_.push_back(std::move(chain));
}

CompiledProgram::Op CompiledProgram::compile_op(const Chain& chain, const OpSpec& spec) {
    static const std::unordered_map<std::string, Kind> kinds = {
        {"impute", Kind::impute},
        {"clip", Kind::clip},
        {"log1p", Kind::log1p},
        {"signed_log", Kind::signed_log},
        {"standardise", Kind::affine},
        {"min_max", Kind::affine},
        {"robust", Kind::affine},
        {"quantile_normal", Kind::quantile_normal},
        {"bucketise", Kind::bucketise},
        {"vocabulary", Kind::vocabulary},
        {"hash_bucket", Kind::hash_bucket},
        {"cross", Kind::cross},
        {"cyclic", Kind::cyclic},
        {"piecewise_linear", Kind::piecewise_linear},
    };
    const auto found = kinds.find(spec.name);
    require(found != kinds.end(), "unknown op \"" + spec.name.substr(0, 40) + "\"");
    const Type type = schema_->fields[chain.field].type;
    Op op;
    op.kind = found->second;
    const bool category = op.kind == Kind::vocabulary || op.kind == Kind::hash_bucket || op.kind == Kind::cross;
    require(category ? type != Type::real && chain.ops.empty() : type != Type::string,
            spec.name + ": wrong type or place");
    switch (op.kind) {
        case Kind::impute: op.a = as_fp32(real(spec, 0), spec.name); break;
        case Kind::clip:
            op.a = as_fp32(real(spec, 0), spec.name);
            op.b = as_fp32(real(spec, 1), spec.name);
            require(op.a <= op.b, "clip: low is above high");
            break;
        case Kind::affine:
            op.a = real(spec, 0);
            require(real(spec, 1) >= 0.0, spec.name + ": a negative scale");
            op.b = ops::inverse_of(real(spec, 1));
            break;
        case Kind::quantile_normal: {
            const std::size_t count = spec.reals.size() / 2;
            require(spec.reals.size() == count * 2, "quantile_normal: knots and probabilities differ in number");
            const auto middle = spec.reals.begin() + static_cast<std::ptrdiff_t>(count);
            op.edges = increasing(spec.reals.begin(), middle, spec.name);
            op.search = make_edges(op.edges);
            op.knots.assign(spec.reals.begin(), middle);
            op.probabilities.assign(middle, spec.reals.end());
            for (const double p : op.probabilities) require(p >= 0.0 && p <= 1.0, "quantile_normal: not a probability");
            op.slopes.assign(count, 0.0);
            for (std::size_t i = 0; i + 1 < count; ++i) {
                op.slopes[i] = (op.probabilities[i + 1] - op.probabilities[i]) / (op.knots[i + 1] - op.knots[i]);
            }
            break;
        }
        case Kind::bucketise:
        case Kind::piecewise_linear:
            op.edges = increasing(spec.reals.begin(), spec.reals.end(), spec.name);
            op.n_edges = op.edges.size();
            op.search = make_edges(op.edges);
            break;
        case Kind::cyclic:
            op.a = real(spec, 0);
            require(op.a > 0.0, "cyclic: the period is not positive");
            break;
        case Kind::vocabulary:
            op.lookup = add_lookup(chain.field, spec.integers, spec.texts);
            lookups_[op.lookup].chained = true;
            break;
        case Kind::hash_bucket: op.buckets = static_cast<std::uint64_t>(integer(spec, 0, 1, kMaxBuckets)); break;
        case Kind::cross: {
            const auto features = static_cast<std::int64_t>(schema_->features());
            op.other = static_cast<std::size_t>(integer(spec, 0, 0, features - 1));
            require(schema_->fields[op.other].type != Type::real, "cross: the other field is real");
            op.buckets = static_cast<std::uint64_t>(integer(spec, 1, 1, kMaxBuckets));
            break;
        }
        default: break;
    }
    if (op.buckets > 0) op.reciprocal = ~std::uint64_t{0} / op.buckets;
    return op;
}

}  // namespace trimtab
