#include "front_bridge.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <iterator>
#include <utility>

#include "net_socket.h"

namespace trimtab {

Bridge::Bridge() : wake_(make_eventfd()) {}

void Bridge::post(std::vector<Event>& events) {
    if (events.empty()) return;
    bool first = false;
    {
        const std::lock_guard lock(mutex_);
        first = events_.empty();
        if (first) {
            events_.swap(events);
        } else {
            events_.insert(events_.end(), std::make_move_iterator(events.begin()),
                           std::make_move_iterator(events.end()));
        }
    }
    events.clear();
    if (first) ::eventfd_write(wake_.get(), 1);
}

std::vector<Event> Bridge::take() {
    eventfd_t ignored = 0;
    ::eventfd_read(wake_.get(), &ignored);
    const std::lock_guard lock(mutex_);
    return std::exchange(events_, {});
}

}  // namespace trimtab
