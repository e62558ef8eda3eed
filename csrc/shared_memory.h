// Regions that clients have registered, of system shared memory and of CUDA memory, by name: one namespace, since a
// request names a region without its kind.
//
// Whatever lies in /dev/shm and the server's user may open, and whatever another process exports of its GPU, a client
// that may register regions can read and write: see [security] shared_memory.
//
// Threads: any. Registering and unregistering may wait for a driver; finding a region does not.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_memory.h"
#include "shared_region.h"

namespace trimtab {

class SharedMemory {
  public:
    static constexpr std::size_t kMostRegions = 256;  // a descriptor each, or a part of a GPU's address space

    // `most`: bytes that one request may bring in shared memory. `driver`: what opens CUDA memory; null: nothing does.
    explicit SharedMemory(std::uint64_t most, const std::shared_ptr<const CudaDriver>& driver = nullptr);

    // False where the name is taken, by a region of either kind. Throws WireError on a key, offset or size that cannot
    // be.
    bool add(const std::string& name, const std::string& key, std::uint64_t offset, std::uint64_t byte_size);
    // `handle`: the 64 bytes of a CUipcMemHandle. Throws WireError likewise, and where no driver is there; DeviceError
    // where the device cannot be used.
    bool add_cuda(const std::string& name, std::string_view handle, std::int64_t device, std::uint64_t byte_size);

    // Of one kind, SystemRegion or CudaRegion.
    template <class Kind>
    bool remove(const std::string& name);  // false where there is none
    template <class Kind>
    void clear();
    template <class Kind>
    std::vector<std::shared_ptr<const Kind>> list() const;

    std::shared_ptr<const SharedRegion> find(std::string_view name) const;  // throws WireError where there is none
    std::uint64_t most() const { return most_; }
    bool empty() const { return count_.load(std::memory_order_relaxed) == 0; }

  private:
    using Regions = std::map<std::string, std::shared_ptr<const SharedRegion>, std::less<>>;

    // Asks `open` for the region, without the lock, where the name is free.
    bool add_region(const std::string& name, std::uint64_t byte_size,
                    const std::function<std::shared_ptr<const SharedRegion>()>& open);

    const std::uint64_t most_;
    const std::unique_ptr<CudaMemory> cuda_;
    mutable std::mutex lock_;
    Regions regions_;
    std::atomic<std::size_t> count_{0};  // of regions
};

template <class Kind>
bool SharedMemory::remove(const std::string& name) {
    std::shared_ptr<const SharedRegion> gone;  // closed without the lock
    const std::lock_guard guard(lock_);
    const auto found = regions_.find(name);
    if (found == regions_.end() || dynamic_cast<const Kind*>(found->second.get()) == nullptr) return false;
    gone = std::move(found->second);
    regions_.erase(found);
    count_.store(regions_.size(), std::memory_order_relaxed);
    return true;
}

template <class Kind>
void SharedMemory::clear() {
    Regions gone;
    const std::lock_guard guard(lock_);
    for (auto at = regions_.begin(); at != regions_.end();) {
        const auto next = std::next(at);
        if (dynamic_cast<const Kind*>(at->second.get()) != nullptr) gone.insert(regions_.extract(at));
        at = next;
    }
    count_.store(regions_.size(), std::memory_order_relaxed);
}

template <class Kind>
std::vector<std::shared_ptr<const Kind>> SharedMemory::list() const {
    std::vector<std::shared_ptr<const Kind>> all;
    const std::lock_guard guard(lock_);
    for (const auto& [name, region] : regions_) {
        if (auto one = std::dynamic_pointer_cast<const Kind>(region)) all.push_back(std::move(one));
    }
    return all;
}

}  // namespace trimtab
