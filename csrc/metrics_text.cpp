#include "metrics_text.h"

#include <array>
#include <charconv>
#include <cstdio>
#include <functional>
#include <string_view>

namespace trimtab {
namespace {

// Writes families one after the other.
class Page {
  public:
    void family(std::string_view name, std::string_view type, std::string_view help) {
        name_ = name;
        text_.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ").append(name).append(" ");
        text_.append(type).append("\n");
    }

    // `labels` without braces: model="m",version="1".
    void sample(std::string_view suffix, std::string_view labels, double value) {
        char number[40];
        const auto [end, error] = std::to_chars(number, number + sizeof(number), value);
        text_.append(name_).append(suffix).append("{").append(labels).append("} ");
        text_.append(number, static_cast<std::size_t>(end - number)).append("\n");
    }

    std::string take() { return std::move(text_); }

  private:
    std::string name_;
    std::string text_;
};

// Names of models are letters, digits, '_', '-' and '.'; others could not be configured. Escaped all the same.
std::string label(std::string_view name, std::string_view value) {
    std::string text(name);
    text += "=\"";
    for (const char c : value) {
        if (c == '\\' || c == '"') text += '\\';
        if (c == '\n') {
            text += "\\n";
            continue;
        }
        text += c;
    }
    return text + "\"";
}

std::string of_model(const ModelMetrics& model) { return label("model", model.name); }

std::string of_version(const ModelMetrics& model, std::uint32_t version) {
    return of_model(model) + "," + label("version", std::to_string(version));
}

std::string bound_text(double bound) {
    char text[40];
    std::snprintf(text, sizeof(text), bound < 1 ? "%.10g" : "%.1f", bound);
    return text;
}

template <std::size_t N>
void write_histogram(Page& page, const ModelMetrics& model, const std::array<std::int64_t, N>& bounds,
                     const Histogram<N>& histogram, double unit) {
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i <= N; ++i) {
        seen += histogram.buckets[i];
        const std::string le = i == N ? "+Inf" : bound_text(static_cast<double>(bounds[i]) * unit);
        page.sample("_bucket", of_model(model) + "," + label("le", le), static_cast<double>(seen));
    }
    page.sample("_count", of_model(model), static_cast<double>(seen));
    page.sample("_sum", of_model(model), static_cast<double>(histogram.total) * unit);
}

using Models = std::vector<ModelMetrics>;
using OfVersion = std::function<double(const VersionStatistics&)>;
using OfModel = std::function<double(const ModelMetrics&)>;

void per_version(Page& page, const Models& models, std::string_view name, std::string_view help, const OfVersion& value) {
    page.family(name, "counter", help);
    for (const ModelMetrics& model : models) {
        for (const auto& [version, counts] : model.data.versions) page.sample("", of_version(model, version), value(counts));
    }
}

void per_model(Page& page, const Models& models, std::string_view name, std::string_view type, std::string_view help,
               const OfModel& value) {
    page.family(name, type, help);
    for (const ModelMetrics& model : models) page.sample("", of_model(model), value(model));
}

double dropped(const ModelMetrics& model, std::initializer_list<Dropped> reasons) {
    std::uint64_t sum = 0;
    for (const Dropped reason : reasons) sum += model.data.dropped[static_cast<std::size_t>(reason)];
    return static_cast<double>(sum);
}

double count(std::uint64_t value) { return static_cast<double>(value); }
double us(const Stage& stage) { return static_cast<double>(stage.ns / 1000); }

void write_own(Page& page, const Models& models) {
    per_version(page, models, "trimtab_requests_total", "Requests answered.",
                [](const VersionStatistics& v) { return count(v.requests); });
    per_version(page, models, "trimtab_rows_total", "Rows answered.",
                [](const VersionStatistics& v) { return count(v.rows); });
    per_version(page, models, "trimtab_batches_total", "Batches computed.",
                [](const VersionStatistics& v) { return count(v.batches); });
    per_model(page, models, "trimtab_failed_requests_total", "counter", "Requests whose batch failed.",
              [](const ModelMetrics& m) { return count(m.data.failed); });
    per_model(page, models, "trimtab_expired_requests_total", "counter",
              "Requests whose deadline passed in the queue, or would have; not computed.",
              [](const ModelMetrics& m) { return dropped(m, {Dropped::expired, Dropped::missed}); });
    per_model(page, models, "trimtab_cancelled_requests_total", "counter",
              "Requests that were cancelled in the queue; not computed.",
              [](const ModelMetrics& m) { return dropped(m, {Dropped::cancelled}); });
    page.family("trimtab_refused_requests_total", "counter", "Requests that were refused when they came, by reason.");
    constexpr std::array<std::pair<const char*, Dropped>, 4> reasons = {{{"invalid", Dropped::invalid},
                                                                         {"not_found", Dropped::not_found},
                                                                         {"queue_full", Dropped::queue_full},
                                                                         {"would_miss_deadline", Dropped::missed}}};
    for (const ModelMetrics& model : models) {
        for (const auto& [name, reason] : reasons)
            page.sample("", of_model(model) + "," + label("reason", name), dropped(model, {reason}));
    }
    constexpr double seconds = 1e-9;
    page.family("trimtab_queue_seconds", "histogram", "Seconds from a request's arrival to its batch, per request.");
    for (const ModelMetrics& model : models) write_histogram(page, model, kLatencyBounds, model.data.queue, seconds);
    page.family("trimtab_compute_seconds", "histogram", "Seconds from rows to encoded answers, per batch.");
    for (const ModelMetrics& model : models) write_histogram(page, model, kLatencyBounds, model.data.compute, seconds);
    page.family("trimtab_request_seconds", "histogram", "Seconds from a request's arrival to its answer, per request.");
    for (const ModelMetrics& model : models) write_histogram(page, model, kLatencyBounds, model.data.total, seconds);
    page.family("trimtab_batch_rows", "histogram", "Rows of a batch.");
    for (const ModelMetrics& model : models) write_histogram(page, model, kSizeBounds, model.data.sizes, 1.0);
    per_model(page, models, "trimtab_queue_depth", "gauge", "Requests that wait.",
              [](const ModelMetrics& m) { return count(m.waiting); });
}

// What dashboards for Triton, and perf_analyzer, read.
void write_triton(Page& page, const Models& models) {
    per_version(page, models, "nv_inference_request_success", "Number of successful inference requests, all batch sizes",
                [](const VersionStatistics& v) { return count(v.requests); });
    page.family("nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes");
    for (const ModelMetrics& model : models) {
        const auto sample = [&](const char* reason, double value) {
            page.sample("", of_version(model, model.live) + "," + label("reason", reason), value);
        };
        sample("REJECTED", dropped(model, {Dropped::queue_full, Dropped::expired, Dropped::missed, Dropped::unavailable}));
        sample("CANCELED", dropped(model, {Dropped::cancelled}));
        sample("BACKEND", count(model.data.failed));
        sample("OTHER", dropped(model, {Dropped::invalid, Dropped::not_found}));
    }
    per_version(page, models, "nv_inference_count", "Number of inferences performed (does not include cached requests)",
                [](const VersionStatistics& v) { return count(v.rows); });
    per_version(page, models, "nv_inference_exec_count",
                "Number of model executions performed (does not include cached requests)",
                [](const VersionStatistics& v) { return count(v.batches); });
    per_version(page, models, "nv_inference_request_duration_us",
                "Cumulative inference request duration in microseconds (includes cached requests)",
                [](const VersionStatistics& v) { return us(v.success); });
    per_version(page, models, "nv_inference_queue_duration_us",
                "Cumulative inference queuing duration in microseconds (includes cached requests)",
                [](const VersionStatistics& v) { return us(v.queue); });
    per_version(page, models, "nv_inference_compute_input_duration_us",
                "Cumulative compute input duration in microseconds (does not include cached requests)",
                [](const VersionStatistics& v) { return us(v.input); });
    per_version(page, models, "nv_inference_compute_infer_duration_us",
                "Cumulative compute inference duration in microseconds (does not include cached requests)",
                [](const VersionStatistics& v) { return us(v.infer); });
    per_version(page, models, "nv_inference_compute_output_duration_us",
                "Cumulative inference compute output duration in microseconds (does not include cached requests)",
                [](const VersionStatistics& v) { return us(v.output); });
    page.family("nv_inference_pending_request_count", "gauge",
                "Instantaneous number of pending requests awaiting execution per-model.");
    for (const ModelMetrics& model : models)
        page.sample("", of_version(model, model.live), count(model.waiting));
}

}  // namespace

std::string render_metrics(const std::vector<ModelMetrics>& models) {
    Page page;
    write_own(page, models);
    write_triton(page, models);
    return page.take();
}

}  // namespace trimtab
