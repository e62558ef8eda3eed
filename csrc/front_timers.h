// Deadlines of calls: a hashed wheel of one-millisecond slots with intrusive lists, so that setting and clearing one
// costs no allocation and no system call. Due times further away than the wheel is long wait in their slot for another
// round. Never early; late by at most a slot and the wake-up. One thread.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "hot_request.h"

namespace trimtab {

// A member of one doubly linked list, or of none.
struct Link {
    Link* before = nullptr;
    Link* after = nullptr;

    bool linked() const { return after != nullptr; }
    void unlink() {
        before->after = after;
        after->before = before;
        before = after = nullptr;
    }
};

// A ring with a sentinel.
struct LinkedList {
    Link ends{&ends, &ends};

    LinkedList() = default;
    LinkedList(const LinkedList&) = delete;
    LinkedList& operator=(const LinkedList&) = delete;
    bool empty() const { return ends.after == &ends; }
    Link* first() { return ends.after; }
    void push_back(Link& link) {
        link.before = ends.before;
        link.after = &ends;
        ends.before->after = &link;
        ends.before = &link;
    }
};

struct Timer : Link {
    std::int64_t due = kNever;  // ns of CLOCK_MONOTONIC
};

class TimerWheel {
  public:
    explicit TimerWheel(std::int64_t now) : tick_(now / kSlot) {}

    void add(Timer& timer, std::int64_t due) {
        timer.due = due;
        const std::int64_t tick = std::max(ceil_tick(due), tick_ + 1);
        const auto slot = static_cast<std::size_t>(tick) % kSlots;
        slots_[slot].push_back(timer);
        used_[slot / 64] |= std::uint64_t{1} << (slot % 64);
    }
    static void remove(Timer& timer) {
        if (timer.linked()) timer.unlink();
    }

    // Takes out all that is due, and calls expire(timer) for each, which may add and remove any.
    template <class Expire>
    void advance(std::int64_t now, Expire&& expire) {
        const std::int64_t target = now / kSlot;
        LinkedList due;
        const std::int64_t first = std::max(tick_ + 1, target - static_cast<std::int64_t>(kSlots) + 1);
        tick_ = std::max(tick_, target);
        for (std::int64_t tick = first; tick <= target; ++tick)
            collect(static_cast<std::size_t>(tick) % kSlots, target, due);
        while (!due.empty()) {
            auto& timer = static_cast<Timer&>(*due.first());
            timer.unlink();
            expire(timer);
        }
    }

    // Milliseconds until there may be something due; -1: nothing is set.
    int wait(std::int64_t now) const {
        const std::size_t base = static_cast<std::size_t>(tick_ + 1) % kSlots;
        for (std::size_t i = 0; i <= kWords; ++i) {
            const std::size_t word = (base / 64 + i) % kWords;
            std::uint64_t bits = used_[word];
            if (i == 0) bits &= ~std::uint64_t{0} << (base % 64);
            if (bits == 0) continue;
            const std::size_t slot = word * 64 + static_cast<std::size_t>(std::countr_zero(bits));
            const auto ahead = static_cast<std::int64_t>((slot + kSlots - base) % kSlots);
            return static_cast<int>(std::max<std::int64_t>(tick_ + 1 + ahead - now / kSlot, 0));
        }
        return -1;
    }

  private:
    static constexpr std::int64_t kSlot = 1'000'000;
    static constexpr std::size_t kSlots = 4096;
    static constexpr std::size_t kWords = kSlots / 64;

    static std::int64_t ceil_tick(std::int64_t due) { return due / kSlot + (due % kSlot != 0); }

    void collect(std::size_t slot, std::int64_t target, LinkedList& due) {
        const std::uint64_t bit = std::uint64_t{1} << (slot % 64);
        if ((used_[slot / 64] & bit) == 0) return;
        for (Link* link = slots_[slot].first(); link != &slots_[slot].ends;) {
            auto& timer = static_cast<Timer&>(*link);
            link = link->after;
            if (ceil_tick(timer.due) > target) continue;
            timer.unlink();
            due.push_back(timer);
        }
        if (slots_[slot].empty()) used_[slot / 64] &= ~bit;
    }

    std::array<LinkedList, kSlots> slots_;
    std::array<std::uint64_t, kWords> used_{};
    std::int64_t tick_;
};

}  // namespace trimtab
