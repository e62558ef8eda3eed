// When waiting requests become a batch, and which: the batching policy of one model. Pure: instants go in, decisions
// come out; knows no clock, thread, socket or tensor. All instants are ns of one monotonic clock.
//
// Requests wait in lanes, by priority level (0 is the most urgent) and by the version that they ask for. A lane is a
// number of a version, or an alias (0 is the alias "whatever is live"); aliases are resolved when a batch forms, so lanes
// that stand for one version then are drained together, in order of arrival within a level.
//
//   full      at max_batch_size rows a batch goes at once, and at a preferred size as well;
//   delay     otherwise it goes when its oldest request has waited max_queue_delay, but never later than half of the
//             time that any of its requests has in all: waiting for company must not cost a request its deadline;
//   large     a request of more than max_batch_size rows is a batch by itself, or is refused (oversize);
//   expiry    a request whose call's deadline passed is taken out. One that waited longer than its queue policy's
//             timeout is taken out too (REJECT) or goes behind all others (DELAY);
//   asleep    a version may be asleep: its requests wait, expire as all others do, and hold up those of no other version;
//             a decision says which versions are waited for in that way;
//   misses    a request that would be answered after its deadline, by the fastest of the latest batches, is not admitted;
//             and one that would be by what full batches mostly take now is not put into one. Without the second, an
//             overload leaves only requests in the queue that are answered just too late.
//
// Cost: add and remove are O(1) in intrusive lists; a decision looks at the heads of lanes. Deadlines are looked at only
// once the soonest that was seen has come, and the scan then finds the next soonest. Turned down: a heap of deadlines
// (two heap operations a request, to find out in most cases that nothing expired).
//
// The owner of a request takes it out (remove, decide) before it goes away. One thread at a time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace trimtab {

inline constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();

using Lane = std::uint64_t;  // 0: live; a version's number; or an alias' own number, from kFirstAlias on
inline constexpr Lane kLive = 0;
inline constexpr Lane kFirstAlias = Lane{1} << 32;

// What the policy knows of a request. The first part is set before admit().
struct Waiting {
    std::uint32_t rows = 1;
    std::uint32_t priority = 0;                // as asked: 1 is the most urgent, 0 the default
    std::optional<std::uint64_t> timeout_us;   // as asked: in the queue policy's place, where that allows it
    std::uint64_t size = 0;                    // bytes of its message
    Lane lane = kLive;
    std::int64_t arrived = 0;
    std::int64_t deadline = kForever;  // of the call

    // The queue's own.
    std::int64_t expires = kForever;  // by the queue policy
    std::int64_t due = kForever;      // when its batch should go at the latest
    std::uint64_t turn = 0;           // order of arrival in its level
    std::uint32_t level = 0;
    bool queued = false;
    Waiting* before = nullptr;
    Waiting* after = nullptr;
};

// Triton's ModelQueuePolicy, in ns.
struct QueuePolicy {
    bool delay = false;                     // timeout_action
    std::int64_t default_timeout = 0;       // 0: none
    bool allow_timeout_override = true;
    std::uint32_t max_queue_size = 4096;    // requests; 0: any number
};

struct BatchPolicy {
    std::uint32_t max_batch_size = 1024;
    std::int64_t max_queue_delay = 0;
    std::vector<std::uint32_t> preferred;  // ascending
    bool split_oversize = true;
    bool preserve_ordering = false;
    std::uint64_t max_queue_bytes = std::uint64_t{1} << 30;
    std::vector<QueuePolicy> levels = {QueuePolicy{}};  // by priority level; at least one
    std::uint32_t default_level = 0;                    // of requests without a priority
};

enum class Refusal : std::uint8_t { none, queue_full, deadline_passed, would_miss_deadline, too_large, no_such_priority };

// How long batches take, from those computed lately. What is known lapses a second after the last batch: were it kept,
// a model that was slow once could refuse all work, and so never find out that it is fast again.
class BatchTimes {
  public:
    void add(std::uint32_t rows, std::uint32_t max_batch_size, std::int64_t ns, std::int64_t now);
    bool known(std::int64_t now) const { return any_.count >= kEnough && now - last_ < kLapse; }
    // The fastest of the last ones: these two only ever underestimate.
    std::int64_t one() const { return any_.least; }
    std::int64_t full() const { return full_.count >= kEnough ? full_.least : any_.least; }
    // What three of four full batches take at most; 0: not known.
    std::int64_t full_mostly() const { return full_.count >= kEnough ? full_.mostly : 0; }

  private:
    static constexpr std::size_t kWindow = 16;
    static constexpr std::size_t kEnough = 8;
    static constexpr std::int64_t kLapse = 1'000'000'000;
    struct Window {
        std::array<std::int64_t, kWindow> ns{};
        std::size_t count = 0;
        std::int64_t least = 0;  // these are asked for by every request, so kept
        std::int64_t mostly = 0;
        void add(std::int64_t value);
    };
    std::int64_t last_ = 0;
    Window any_;
    Window full_;  // batches of at least half of max_batch_size
};

// Which versions lanes stand for now, 0: none; and which of them cannot compute at the moment.
class Versions {
  public:
    virtual ~Versions() = default;
    virtual std::uint32_t resolve(Lane lane) const = 0;
    virtual bool asleep(std::uint32_t /*version*/) const { return false; }
};

struct Decision {
    std::vector<Waiting*> batch;  // to be computed now on `version`
    std::uint32_t version = 0;
    std::int64_t wait_until = kForever;  // without a batch: look again then, or on arrival
    std::vector<Waiting*> expired;       // to be answered with DEADLINE_EXCEEDED
    std::vector<Waiting*> missed;        // likewise: they would be answered too late
    std::vector<Waiting*> orphaned;      // whose lane stands for no version any more
    std::vector<std::uint32_t> asleep;   // versions that requests wait for, and that are asleep; each once

    void clear();
};

class BatchQueue {
  public:
    explicit BatchQueue(BatchPolicy policy);

    const BatchPolicy& policy() const { return policy_; }
    std::size_t waiting() const { return count_; }
    std::uint64_t rows() const { return rows_; }
    std::uint64_t size() const { return size_; }

    // Whether a request may wait; sets its level and instants. A refused request is as it was.
    Refusal admit(Waiting& request, std::int64_t now);
    // Puts an admitted request at the end of its lane.
    void add(Waiting& request);
    // Takes a request out; false where it does not wait here.
    bool remove(Waiting& request);
    // What to do at `now`; `flush`: wait for no company. `same_batch`: whether a request may share a batch with its first.
    void decide(std::int64_t now, const Versions& versions, bool flush, Decision& decision,
                bool (*same_batch)(const Waiting& first, const Waiting& next) = nullptr);
    // Tells how long a batch took that was computed at `now`.
    void computed(std::uint32_t rows, std::int64_t ns, std::int64_t now) {
        times_.add(rows, policy_.max_batch_size, ns, now);
    }
    // Takes all out, most urgent first.
    std::vector<Waiting*> clear();
    // Takes out what waits for a version.
    std::vector<Waiting*> clear(std::uint32_t version, const Versions& versions);
    bool waits_for(std::uint32_t version, const Versions& versions) const;

  private:
    struct List {
        Waiting* head = nullptr;
        Waiting* tail = nullptr;
        std::uint64_t rows = 0;
        std::size_t count = 0;
        std::int64_t due = kForever;  // no later than the soonest `due` within
        std::uint32_t version = 0;    // while a decision is made
    };
    struct NamedList : List {
        Lane lane = kLive;
        bool held = false;  // whether its version was asleep when a decision was made last
    };
    struct Level {
        std::vector<NamedList> lanes;
        std::size_t count = 0;
        std::uint64_t rows = 0;

        // Those that are computed before what comes now: what is held until a version wakes is in nobody's way.
        std::uint64_t rows_ahead() const {
            std::uint64_t ahead = rows;
            for (const NamedList& lane : lanes) ahead -= lane.held ? lane.rows : 0;
            return ahead;
        }
    };

    NamedList& lane_of(const Waiting& request);
    void link(NamedList& list, Waiting& request);
    void unlink(NamedList& list, Waiting& request);
    void expire(std::int64_t now, Decision& decision);
    Waiting* find_head(const Versions& versions, Decision& decision);
    std::uint32_t target(std::uint32_t version, const Waiting& head) const;
    std::int64_t due(std::uint32_t version, std::int64_t now);
    std::uint64_t rows_of(std::uint32_t version) const;
    std::int64_t answered(std::uint32_t version, std::uint32_t most, std::int64_t now) const;
    void take(std::uint32_t version, std::uint32_t most, std::int64_t now, Decision& decision,
              bool (*same_batch)(const Waiting&, const Waiting&));

    BatchPolicy policy_;
    std::vector<Level> levels_;  // one more than the policy's: the last holds what is delayed
    BatchTimes times_;
    std::vector<Waiting*> delayed_;  // while it expires
    std::int64_t soonest_ = kForever;
    std::uint64_t turns_ = 0;
    std::size_t count_ = 0;
    std::uint64_t rows_ = 0;
    std::uint64_t size_ = 0;
};

}  // namespace trimtab
