// A column program compiled for the CPU: checked once when made, immutable, and run by any number of threads at a time.
//
// A run goes through its rows in blocks. The usual chains of numbers (impute, clip, one of the scalings, in
// that or another order) and the numeric fields of the sketch go through the inner loops of columns_hot.h, a field's
// feature and its part of the sketch at once, up to sixteen columns before they are written to the row-major output
// together. For every other chain: each lookup is done once a block; then the chain takes its field's raw values
// through its ops in float64 and writes its columns. Rows that come row by row are turned into columns a block at a time,
// in the cache. A run borrows its source and the output for the call, and allocates scratch memory of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "column_source.h"
#include "columns_hot.h"
#include "columns_joint.h"
#include "columns_lookup.h"
#include "columns_ops.h"
#include "columns_sketch.h"
#include "slab.h"

namespace trimtab {

// As it comes from Python: an op's name and parameters, unchecked.
struct OpSpec {
    std::string name;
    std::vector<double> reals;
    std::vector<std::int64_t> integers;
    std::vector<std::string> texts;
};

struct ChainSpec {
    std::size_t field = 0;
    std::vector<OpSpec> ops;
};

struct SketchFieldSpec {
    bool category = false;
    std::vector<double> reals;  // low, high, shift, edges...
    std::vector<std::int64_t> integers;
    std::vector<std::string> texts;
    std::size_t counted = 0;
};

// Where a run puts what it computes; row-major [rows, n_features] and [rows, n_ids]. counts and moments: null without a
// sketch.
struct ColumnOutput {
    float* features = nullptr;
    std::int64_t* ids = nullptr;
    std::uint64_t* counts = nullptr;
    double* moments = nullptr;
};

class CompiledProgram {
  public:
    static constexpr std::size_t kChunk = 16384;  // rows that one thread takes at a time

    // Throws std::invalid_argument, naming the field, on anything that could not be run safely.
    CompiledProgram(std::shared_ptr<const Schema> schema, const std::vector<ChainSpec>& chains,
                    const std::vector<SketchFieldSpec>& sketch, const hot::Table& level);
    CompiledProgram(const CompiledProgram&) = delete;
    CompiledProgram& operator=(const CompiledProgram&) = delete;

    std::size_t n_features() const { return n_features_; }
    std::size_t n_ids() const { return n_ids_; }
    std::size_t n_counts() const { return n_counts_; }    // the part of a sketch's counts that a run touches
    std::size_t n_moments() const { return n_moments_; }  // likewise
    bool reads(const Schema& schema) const { return schema == *schema_; }

    // Rows [start, stop) of a source of this schema, on at most `threads` threads, the caller's among them. The number
    // of threads changes no bit: sums are taken chunk by chunk of kChunk rows and added up in that order.
    void run(const ColumnSource& source, std::size_t start, std::size_t stop, const ColumnOutput& output,
             std::size_t threads = 1) const;

    // Adds these rows of a source of this schema to the sums of a joint sketch (columns_joint.h), whose phases are those
    // of each sketched field's buckets, then of missing and of unseen values. Throws std::invalid_argument and
    // std::out_of_range, and has added nothing then.
    void sum_jointly(const ColumnSource& source, std::span<const std::int64_t> rows,
                     std::span<const std::uint16_t> phases, std::span<std::int64_t, kJointLength> sums) const;

  private:
    enum class Kind : std::uint8_t {
        impute,
        clip,
        log1p,
        signed_log,
        affine,
        quantile_normal,  // real ops
        bucketise,
        vocabulary,
        hash_bucket,
        cross,
        piecewise_linear,
        cyclic,
        value,  // terminals; value: the real itself
    };
    struct Op {
        Kind kind = Kind::value;
        double a = 0.0;  // impute: value; clip: low; affine: shift; cyclic: period
        double b = 0.0;  // clip: high; affine: 1 / scale
        std::vector<float> edges;           // filled up for the search
        std::size_t n_edges = 0;            // without that
        hot::Edges search;                  // of the edges, or the knots; borrows them
        std::vector<double> knots;          // quantile_normal, as what follows
        std::vector<double> probabilities;
        std::vector<double> slopes;
        std::size_t lookup = 0;             // vocabulary
        std::size_t other = 0;              // cross
        std::uint64_t buckets = 0;
        std::uint64_t reciprocal = 0;  // (2^64 - 1) / buckets
    };
    struct Chain {
        std::size_t field = 0;
        std::vector<Op> ops;  // the terminal last
        bool flag = false;
        bool one_hot = false;
        std::size_t id_size = 0;
        std::size_t width = 0;
        std::size_t first_feature = 0;
        std::size_t id = 0;
        // Whether each value goes to many columns.
        bool spreads() const { return one_hot || ops.back().kind == Kind::piecewise_linear; }
        // In the tile; of what spreads: the shares and the flag.
        std::size_t columns() const {
            if (!spreads()) return width;
            return (ops.back().kind == Kind::piecewise_linear ? 1 : 0) + (flag ? 1 : 0);
        }
    };
    struct SketchField {
        bool category = false;
        std::vector<float> edges;
        hot::Sketch numbers;  // borrows the edges
        std::size_t lookup = 0;
        std::size_t counted = 0;
        std::size_t offset = 0;
    };
    struct FieldLookup {
        std::size_t field = 0;
        bool text = false;
        bool chained = false;  // whether a chain wants it
        IntegerLookup integers;
        TextLookup texts;
        std::size_t size() const { return text ? texts.size() : integers.size(); }
    };
    // A numeric field as the inner loops take it: for a feature (and its flag), for the sketch, or for both.
    struct Task {
        std::size_t field = 0;
        std::size_t next = 0;  // the field of the task kAhead after it, if that is read in place
        bool integer = false;
        bool feature = false;
        bool flag = false;
        bool sketched = false;
        hot::Column column;
    };
    // So many fields ahead memory is asked for a block of rows: one takes less time than memory does.
    static constexpr std::size_t kAhead = 3;
    // Tasks whose columns lie side by side, at most hot::kMaxColumns of them.
    struct Group {
        std::size_t first_task = 0;
        std::size_t last_task = 0;  // behind the last
        std::size_t first_feature = 0;
        std::size_t width = 0;
    };
    // Chains that columns_hot.h does not take, of others_, at most hot::kMaxColumns of them and of their columns; these lie
    // side by side, as their ids do, or else all of the chains spread.
    struct OtherGroup {
        std::size_t first = 0;
        std::size_t last = 0;  // behind the last
        std::size_t first_feature = 0;
        std::size_t width = 0;
        std::size_t first_id = 0;
        bool no_ids = true;
        bool spreads = false;
    };
    // Where a chain's columns go.
    struct Tiles {
        float* column = nullptr;
        std::int32_t* ids = nullptr;
    };
    struct Scratch;

    Op compile_op(const Chain& chain, const OpSpec& spec);
    void compile_chain(const ChainSpec& spec);
    static double apply(const Op& op, double x);
    std::optional<hot::Column> hot_column(const Chain& chain) const;
    void plan();
    void plan_other(std::size_t index);
    std::size_t add_lookup(std::size_t field, const std::vector<std::int64_t>& integers,
                           const std::vector<std::string>& texts);
    void run_chunk(const ColumnSource& source, std::size_t start, std::size_t stop, std::size_t done,
                   const ColumnOutput& output, Scratch& scratch) const;
    void run_on_threads(const ColumnSource& source, std::size_t start, std::size_t stop, const ColumnOutput& output,
                        std::size_t threads) const;
    void run_block(const ColumnSource& source, std::size_t row, std::size_t count, std::size_t done,
                   const ColumnOutput& output, Scratch& scratch) const;
    void find_values(const ColumnSource& source, std::size_t row, std::size_t count, bool sketching,
                     Scratch& scratch) const;
    void load(const ColumnSource& source, std::size_t field, std::size_t row, std::size_t count, float* raw) const;
    void hash(const ColumnSource& source, std::size_t field, std::size_t row, std::size_t count, std::uint64_t* hashes,
              bool* missing) const;
    void hash_buckets(const Chain& chain, const ColumnSource& source, std::size_t row, std::size_t count,
                      std::int32_t* ids, Scratch& scratch) const;
    void apply(const Op& op, double* x, std::size_t count) const;
    void run_numbers(const Chain& chain, const ColumnSource& source, std::size_t row, std::size_t count, Tiles& tiles,
                     Scratch& scratch) const;
    void run_others(const OtherGroup& group, const ColumnSource& source, std::size_t row, std::size_t count,
                    std::size_t done, const ColumnOutput& output, Scratch& scratch) const;
    void run_group(const Group& group, const ColumnSource& source, std::size_t row, std::size_t count, std::size_t done,
                   const ColumnOutput& output, Scratch& scratch) const;
    static std::size_t buckets(const SketchField& field);
    std::size_t bucket_of(const ColumnSource& source, std::size_t index, std::size_t row) const;
    void sketch_categories(std::size_t count, const ColumnOutput& output, Scratch& scratch) const;

    std::shared_ptr<const Schema> schema_;
    std::vector<Chain> chains_;
    std::vector<SketchField> sketch_;
    std::vector<FieldLookup> lookups_;
    std::vector<Task> tasks_;
    std::vector<Group> groups_;
    std::vector<std::size_t> others_;  // the chains that are in no group
    std::vector<OtherGroup> other_groups_;
    const hot::Table* level_;
    bool categories_ = false;  // whether a field's categories are sketched
    std::size_t n_features_ = 0;
    std::size_t n_ids_ = 0;
    std::size_t n_counts_ = 1;
    std::size_t n_moments_ = 0;
};

}  // namespace trimtab
