// Load for a gRPC server: one thread that sends one unary request again and again, and one JSON line of what came of it.
//
// Closed loop: every stream sends its next request when it has its answer. Open loop (--rate): requests have intended
// starts, Poisson or uniform, fixed before the run; a latency counts from the intended start, however late the request
// could leave, so that a stalled server cannot slow its own measurement down. What this program itself was late by is
// a histogram of its own ("late_us"): where that is large, the generator was too slow and its latencies are not the
// server's. "busy" is the share of time in which it had something to do.
//
// The thread spins for kSpin ns before it sleeps: on a core of its own it hardly ever sleeps under load, and on a shared
// one it is not made to wait for having used up its share. Latencies, rates and gaps are of what started after
// the warm-up and, in an open loop, of what was intended before the end.
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <time.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "answers.h"
#include "connection.h"
#include "histogram.h"
#include "socket.h"

namespace load {
namespace {

constexpr double kSecond = 1e9;
constexpr std::int64_t kSpin = 50'000;

std::int64_t now() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

struct Options {
    std::string address, path = "/inference.GRPCInferenceService/ModelInfer", authority = "localhost", body, timeout;
    std::size_t connections = 1, streams = 1;
    double rate = 0, seconds = 1, warm_up = 0.2, slice = 0, patience = 5;
    bool uniform = false, tls = false, shed = false;
    std::uint64_t check_every = 0, seed = 1, requests = 0;
};

struct Slice {
    double at = 0;
    std::uint64_t ok = 0, failed = 0;
    double p50 = 0, p99 = 0, max = 0;
};

class Run : public Sink {
  public:
    explicit Run(const Options& options) : options_(options), random_(options.seed) {
        std::ifstream file(options.body, std::ios::binary);
        if (!file) throw std::runtime_error("cannot read " + options.body);
        const std::string body((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        call_ = {options.path, options.authority, options.tls ? "https" : "http", options.timeout, {}};
        call_.message.push_back(0);
        for (int shift = 24; shift >= 0; shift -= 8) call_.message.push_back(static_cast<char>(body.size() >> shift));
        call_.message += body;
    }

    void connect() {
        SSL_CTX* tls = options_.tls ? make_tls() : nullptr;
        for (std::size_t i = 0; i < options_.connections; ++i)
            connections_.push_back(
                std::make_unique<Connection>(call_, std::make_unique<Socket>(options_.address, tls), *this));
        poll_ = epoll_create1(0);
        prctl(PR_SET_TIMERSLACK, 1UL);
        for (std::size_t i = 0; i < connections_.size(); ++i) {
            epoll_event event{};
            event.events = EPOLLIN;
            event.data.u64 = i;
            epoll_ctl(poll_, EPOLL_CTL_ADD, connections_[i]->descriptor(), &event);
        }
        const std::int64_t limit = now() + 10'000'000'000LL;
        for (bool ready = false; !ready;) {
            turn();
            ready = true;
            for (const auto& each : connections_) ready = ready && each->ready();
            if (now() > limit) throw std::runtime_error("the server did not answer as HTTP/2 within 10 s");
        }
    }

    void run() {
        const std::int64_t begun = now();
        measured_ = begun + static_cast<std::int64_t>(options_.warm_up * kSecond);
        end_ = measured_ + static_cast<std::int64_t>(options_.seconds * kSecond);
        last_ok_ = slice_start_ = measured_;
        if (options_.rate > 0) {
            next_ = static_cast<double>(begun);
        } else {
            for (const auto& each : connections_)
                while (each->under_way() < closed(*each)) submit(*each, begun);
        }
        while ((time_ = now()) < end_ && !finished()) {
            if (options_.rate > 0) release();
            turn();
            if (options_.slice > 0 && time_ - slice_start_ >= static_cast<std::int64_t>(options_.slice * kSecond))
                end_slice();
        }
        stopped_ = std::min(time_, end_);
        ended_ = true;
        const std::int64_t limit = time_ + static_cast<std::int64_t>(options_.patience * kSecond);
        while (under_way() > 0 && (time_ = now()) < limit) turn();
    }

    // --- Sink

    void answered(Connection& from, std::int64_t start, int status, std::size_t bytes, std::string_view message,
                  bool kept) override {
        const bool ok = status == 0 && bytes >= 5;
        if (status == 0 && bytes < 5) status = kNoStatus;
        if (kept && ok) answers_.check(message);
        if (start >= measured_) {
            if (ok) {
                latency_.record(time_ - start);
                if (options_.slice > 0) slice_latency_.record(time_ - start);
            } else {
                refused_.record(time_ - start);
            }
            ++statuses_[std::min(static_cast<std::size_t>(status), kStatuses - 1)];
        }
        if (time_ >= measured_ && !ended_) {
            ok ? ++completed_ : ++failed_;
            if (ok) {
                gap_ = std::max(gap_, time_ - last_ok_);
                last_ok_ = time_;
            }
            ++(ok ? slice_ok_ : slice_failed_);
        }
        if (ended_ || !from.open()) return;
        if (options_.rate <= 0) {
            // More than one where the server has allowed more streams since (gRPC's own starts with few).
            while (!finished() && from.under_way() < closed(from)) submit(from, time_);
        } else if (waiting_at_ < waiting_.size() && from.under_way() < most(from)) {
            submit(from, waiting_[waiting_at_++]);
            if (waiting_at_ == waiting_.size()) waiting_.clear(), waiting_at_ = 0;
        }
    }

    void print() const {
        const double seconds = static_cast<double>(stopped_ - measured_) / kSecond;
        std::printf("{\"rate\": %.3f, \"offered\": %.3f, \"seconds\": %.4f, \"completed\": %llu, \"failed\": %llu, ",
                    static_cast<double>(completed_) / seconds, options_.rate, seconds, count(completed_), count(failed_));
        std::printf("\"unanswered\": %zu, \"never_sent\": %zu, \"busy\": %.4f, \"gap_ms\": %.4f, ", under_way(),
                    waiting_.size() - waiting_at_ + shed_, static_cast<double>(busy_) / static_cast<double>(busy_ + idle_ + 1),
                    static_cast<double>(std::max(gap_, stopped_ - last_ok_)) * 1e-6);
        print("latency_us", latency_);
        print("refused_us", refused_);
        print("late_us", late_);
        std::printf("\"statuses\": {");
        const char* comma = "";
        for (std::size_t i = 0; i < kStatuses; ++i)
            if (statuses_[i] > 0) std::printf("%s\"%zu\": %llu", comma, i, count(statuses_[i])), comma = ", ";
        std::printf("}, \"refusal\": \"");
        for (const char each : refusal())
            if (each >= ' ' && each != '"' && each != '\\') std::putchar(each);
        std::printf("\", \"mixed\": %llu, \"unreadable\": %llu, \"versions\": {", count(answers_.mixed()),
                    count(answers_.unreadable()));
        comma = "";
        for (const auto& [name, version] : answers_.versions()) {
            std::printf("%s\"%s\": {\"weights\": \"%s\", \"count\": %llu, \"outputs\": [", comma, name.c_str(),
                        version.weights.c_str(), count(version.count));
            for (std::size_t i = 0; i < std::min<std::size_t>(version.outputs.size(), 8); ++i)
                std::printf("%s%.9g", i == 0 ? "" : ", ", static_cast<double>(version.outputs[i]));
            std::printf("]}");
            comma = ", ";
        }
        std::printf("}, \"slices\": [");
        for (std::size_t i = 0; i < slices_.size(); ++i) {
            const Slice& each = slices_[i];
            std::printf("%s{\"at\": %.3f, \"ok\": %llu, \"failed\": %llu, \"p50_us\": %.2f, \"p99_us\": %.2f, "
                        "\"max_us\": %.2f}",
                        i == 0 ? "" : ", ", each.at, count(each.ok), count(each.failed), each.p50, each.p99, each.max);
        }
        std::printf("]}\n");
    }

  private:
    static constexpr std::size_t kStatuses = 128;

    static unsigned long long count(std::uint64_t value) { return value; }

    static void print(const char* name, const Histogram& histogram) {
        std::printf("\"%s\": {\"n\": %llu, \"mean\": %.2f, \"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, "
                    "\"p99.9\": %.2f, \"max\": %.2f}, ",
                    name, count(histogram.count()), histogram.mean_us(), histogram.quantile_us(.5),
                    histogram.quantile_us(.9), histogram.quantile_us(.99), histogram.quantile_us(.999),
                    histogram.max_us());
    }

    bool finished() const {
        if (options_.requests > 0 && completed_ + failed_ >= options_.requests) return true;
        for (const auto& each : connections_)
            if (each->open()) return false;
        return true;
    }

    std::size_t under_way() const {
        std::size_t sum = 0;
        for (const auto& each : connections_) sum += each->under_way();
        return sum;
    }

    std::string refusal() const {
        for (const auto& each : connections_)
            if (!each->refusal().empty()) return each->refusal();
        return {};
    }

    std::size_t most(const Connection& connection) const {
        return options_.streams > 1 ? std::min(options_.streams, connection.most_streams()) : connection.most_streams();
    }

    std::size_t closed(const Connection& on) const { return std::min(options_.streams, on.most_streams()); }

    void submit(Connection& on, std::int64_t start) {
        const bool keep = options_.check_every > 0 && sent_++ % options_.check_every == 0;
        on.submit(start, keep);
    }

    // Sends what was intended to start by now, over the connections in turn.
    void release() {
        const double mean = kSecond / options_.rate;
        while (next_ <= static_cast<double>(time_)) {
            const auto intended = static_cast<std::int64_t>(next_);
            next_ += options_.uniform ? mean : mean * exponential_(random_);
            if (intended >= end_) break;
            if (intended >= measured_) late_.record(time_ - intended);
            std::size_t tried = 0;
            for (; tried < connections_.size(); ++tried) {
                Connection& each = *connections_[turn_++ % connections_.size()];
                if (!each.open() || each.under_way() >= most(each)) continue;
                submit(each, intended);
                break;
            }
            if (tried < connections_.size()) continue;
            if (options_.shed)
                ++shed_;
            else
                waiting_.push_back(intended);
        }
    }

    // Sends what is written, reads what has come.
    void turn() {
        for (const auto& each : connections_)
            if (each->open() || each->under_way() > 0) each->flush();
        epoll_event events[256];
        const int ready = wait(events);
        const std::int64_t begun = now();
        if (ready > 0) active_ = begun;
        (worked_ ? busy_ : idle_) += std::max<std::int64_t>(begun - turned_, 0) * (turned_ != 0);
        turned_ = begun;
        worked_ = ready > 0;
        for (int i = 0; i < ready; ++i) {
            Connection& each = *connections_[events[i].data.u64];
            time_ = now();
            do {
                if (!each.read()) epoll_ctl(poll_, EPOLL_CTL_DEL, each.descriptor(), nullptr);
            } while (each.pending());
        }
    }

    // Sleeps where nothing has come for a while, until the next intended start at the latest.
    int wait(epoll_event (&events)[256]) {
        const std::int64_t time = now();
        std::int64_t most = time - active_ < kSpin ? 0 : 10'000'000;
        if (options_.rate > 0 && !ended_) most = std::min(most, static_cast<std::int64_t>(next_) - time - kSpin);
        const timespec timeout{0, most > 0 ? most : 0};
        return epoll_pwait2(poll_, events, 256, &timeout, nullptr);
    }

    void end_slice() {
        slices_.push_back({static_cast<double>(time_ - measured_) / kSecond, slice_ok_, slice_failed_,
                           slice_latency_.quantile_us(.5), slice_latency_.quantile_us(.99), slice_latency_.max_us()});
        slice_start_ = time_;
        slice_ok_ = slice_failed_ = 0;
        slice_latency_.clear();
    }

    const Options options_;
    Call call_;
    std::vector<std::unique_ptr<Connection>> connections_;
    int poll_ = -1;
    std::mt19937_64 random_;
    std::exponential_distribution<double> exponential_;
    double next_ = 0;                    // intended start, ns
    std::vector<std::int64_t> waiting_;  // intended starts for which no stream was free
    std::size_t waiting_at_ = 0, turn_ = 0, shed_ = 0;
    std::int64_t time_ = 0, measured_ = 0, end_ = 0, stopped_ = 0, last_ok_ = 0, gap_ = 0;
    std::int64_t turned_ = 0, busy_ = 0, idle_ = 0, active_ = 0;
    bool worked_ = false, ended_ = false;
    std::uint64_t sent_ = 0, completed_ = 0, failed_ = 0, slice_ok_ = 0, slice_failed_ = 0;
    std::uint64_t statuses_[kStatuses] = {};
    Histogram latency_, refused_, late_, slice_latency_;
    Answers answers_;
    std::vector<Slice> slices_;
    std::int64_t slice_start_ = 0;
};

Options parse(int count, char** words) {
    Options options;
    for (int i = 1; i < count; ++i) {
        const std::string name = words[i];
        if (name == "--tls") {
            options.tls = true;
            continue;
        }
        if (name == "--shed") {
            options.shed = true;
            continue;
        }
        if (name == "--uniform") {
            options.uniform = true;
            continue;
        }
        if (++i == count) throw std::runtime_error("no value for " + name);
        const std::string value = words[i];
        if (name == "--address") options.address = value;
        else if (name == "--path") options.path = value;
        else if (name == "--authority") options.authority = value;
        else if (name == "--body") options.body = value;
        else if (name == "--timeout") options.timeout = value;
        else if (name == "--connections") options.connections = std::stoul(value);
        else if (name == "--streams") options.streams = std::stoul(value);
        else if (name == "--rate") options.rate = std::stod(value);
        else if (name == "--seconds") options.seconds = std::stod(value);
        else if (name == "--warm-up") options.warm_up = std::stod(value);
        else if (name == "--slice") options.slice = std::stod(value);
        else if (name == "--patience") options.patience = std::stod(value);
        else if (name == "--check-every") options.check_every = std::stoull(value);
        else if (name == "--requests") options.requests = std::stoull(value);
        else if (name == "--seed") options.seed = std::stoull(value);
        else throw std::runtime_error("unknown option " + name);
    }
    if (options.address.empty() || options.body.empty()) throw std::runtime_error("--address and --body are needed");
    return options;
}

}  // namespace
}  // namespace load

int main(int count, char** words) {
    try {
        load::Run run(load::parse(count, words));
        run.connect();
        run.run();
        run.print();
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "load: %s\n", error.what());
        return 1;
    }
}
