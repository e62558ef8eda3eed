#include "shared_memory.h"

#include <cstring>
#include <utility>

#include "errors.h"

namespace trimtab {
namespace {

constexpr std::size_t kMostName = 1024;

}  // namespace

SharedMemory::SharedMemory(std::uint64_t most, const std::shared_ptr<const CudaDriver>& driver)
    : most_(most),
      cuda_(driver != nullptr && driver->devices() != 0 ? std::make_unique<CudaMemory>(driver) : nullptr) {}

bool SharedMemory::add_region(const std::string& name, std::uint64_t byte_size,
                              const std::function<std::shared_ptr<const SharedRegion>()>& open) {
    if (name.empty() || name.size() > kMostName) {
        throw WireError("shared memory region: expected a name of 1 to " + std::to_string(kMostName) +
                        " bytes, came " + std::to_string(name.size()));
    }
    if (byte_size == 0) throw WireError("shared memory region " + quote(name) + ": expected bytes, came none");
    const auto check_room = [&] {
        if (regions_.size() < kMostRegions) return;
        throw WireError("shared memory: expected at most " + std::to_string(kMostRegions) +
                        " regions, came another one");
    };
    {
        const std::lock_guard guard(lock_);
        if (regions_.contains(name)) return false;
        check_room();
    }
    std::shared_ptr<const SharedRegion> region = open();  // closed without the lock, where somebody else was faster
    const std::lock_guard guard(lock_);
    if (regions_.contains(name)) return false;
    check_room();
    regions_.emplace(name, std::move(region));
    count_.store(regions_.size(), std::memory_order_relaxed);
    return true;
}

bool SharedMemory::add(const std::string& name, const std::string& key, std::uint64_t offset,
                       std::uint64_t byte_size) {
    return add_region(name, byte_size, [&] { return std::make_shared<const SystemRegion>(name, key, offset, byte_size); });
}

bool SharedMemory::add_cuda(const std::string& name, std::string_view handle, std::int64_t device,
                            std::uint64_t byte_size) {
    return add_region(name, byte_size, [&] {
        if (cuda_ == nullptr) throw WireError("shared memory region " + quote(name) + ": there is no CUDA memory here");
        cuda::IpcHandle opened{};
        if (handle.size() != sizeof(opened.reserved)) {
            throw WireError("shared memory region " + quote(name) + ", raw_handle: expected the " +
                            std::to_string(sizeof(opened.reserved)) + " bytes of a CUDA IPC handle, came " +
                            std::to_string(handle.size()));
        }
        std::memcpy(opened.reserved, handle.data(), handle.size());
        return std::make_shared<const CudaRegion>(name, cuda_->open(opened, device, name), byte_size);
    });
}

std::shared_ptr<const SharedRegion> SharedMemory::find(std::string_view name) const {
    {
        const std::lock_guard guard(lock_);
        const auto found = regions_.find(name);
        if (found != regions_.end()) return found->second;
    }
    throw WireError("shared memory region " + quote(name) + ": expected a registered one");
}

}  // namespace trimtab
