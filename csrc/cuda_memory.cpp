#include "cuda_memory.h"

#include <string>
#include <utility>

#include "errors.h"

namespace trimtab {

CudaDevice::Scope::Scope(const CudaDevice& device) : calls_(device.driver->calls()) {
    device.driver->require_device();
    device.driver->require(calls_.cuCtxPushCurrent_v2(device.context_), "cuCtxPushCurrent");
    exchanged_ = calls_.cuThreadExchangeStreamCaptureMode(&mode_) == cuda::kSuccess;
}

CudaDevice::Scope::~Scope() {
    if (exchanged_) calls_.cuThreadExchangeStreamCaptureMode(&mode_);
    cuda::Context popped = nullptr;
    calls_.cuCtxPopCurrent_v2(&popped);
}

CudaDevice::CudaDevice(std::shared_ptr<const CudaDriver> driver_, int ordinal_)
    : driver(std::move(driver_)), ordinal(ordinal_) {
    driver->require_device();
    const cuda::Calls& calls = driver->calls();
    cuda::Result result = calls.cuDeviceGet(&device_, ordinal);
    if (result == cuda::kSuccess) result = calls.cuDevicePrimaryCtxRetain(&context_, device_);
    if (result != cuda::kSuccess) {
        throw DeviceError("CUDA shared memory: device " + std::to_string(ordinal) +
                          " cannot be used: " + driver->describe(result));
    }
}

// No mapping is left, nor a copy. What fails here fails because the GPU, or the process, is at its end.
CudaDevice::~CudaDevice() {
    try {
        const Scope scope(*this);
        for (const cuda::Stream stream : idle_) driver->calls().cuStreamDestroy_v2(stream);
    } catch (const std::exception&) {
        return;
    }
    driver->calls().cuDevicePrimaryCtxRelease_v2(device_);
}

CudaDevice::Opened CudaDevice::open(const cuda::IpcHandle& handle, std::string_view region) {
    const std::lock_guard guard(opening_);
    const auto known = opened_.find(handle);
    if (known != opened_.end()) {
        ++known->second.uses;
        return known->second;
    }
    const Scope scope(*this);
    const cuda::Calls& calls = driver->calls();
    Opened opened;
    opened.uses = 1;
    const cuda::Result result = calls.cuIpcOpenMemHandle_v2(&opened.pointer, handle, cuda::kLazyPeerAccess);
    if (result != cuda::kSuccess) {
        // UNKNOWN is also what drivers say of handles that they make nothing of, and no client may end the server by one.
        if (result == cuda::kUnknown) require_working(region);
        else if (cuda::is_lost(result)) driver->require(result, "cuIpcOpenMemHandle", region);
        throw WireError("shared memory region " + quote(region) +
                        ": expected the handle of memory that another process has on device " +
                        std::to_string(ordinal) + " of this server, came one that the driver refuses: " +
                        driver->describe(result));
    }
    try {
        cuda::Pointer base = 0;
        std::size_t size = 0;
        driver->require(calls.cuMemGetAddressRange_v2(&base, &size, opened.pointer), "cuMemGetAddressRange", region);
        const cuda::Pointer before = opened.pointer - base;
        opened.size = before < size ? size - before : 0;
        opened_.emplace(handle, opened);
    } catch (...) {
        calls.cuIpcCloseMemHandle(opened.pointer);
        throw;
    }
    return opened;
}

void CudaDevice::require_working(std::string_view region) const {
    const cuda::Calls& calls = driver->calls();
    cuda::Stream stream = nullptr;
    driver->require(calls.cuStreamCreate(&stream, cuda::kNonBlocking), "cuStreamCreate", region);
    const cuda::Result result = calls.cuStreamSynchronize(stream);
    calls.cuStreamDestroy_v2(stream);
    driver->require(result, "cuStreamSynchronize", region);
}

void CudaDevice::close(const cuda::IpcHandle& handle) noexcept {
    const std::lock_guard guard(opening_);
    const auto known = opened_.find(handle);
    if (known == opened_.end() || --known->second.uses != 0) return;
    const cuda::Pointer pointer = known->second.pointer;
    opened_.erase(known);
    try {
        const Scope scope(*this);
        driver->calls().cuIpcCloseMemHandle(pointer);
    } catch (const std::exception&) {
        // The GPU is lost, and the mapping with it.
    }
}

cuda::Stream CudaDevice::borrow() {
    {
        const std::lock_guard guard(lending_);
        if (!idle_.empty()) {
            const cuda::Stream stream = idle_.back();
            idle_.pop_back();
            return stream;
        }
        idle_.reserve(++streams_);  // so that giving it back cannot fail
    }
    const Scope scope(*this);
    cuda::Stream stream = nullptr;
    driver->require(driver->calls().cuStreamCreate(&stream, cuda::kNonBlocking), "cuStreamCreate");
    return stream;
}

void CudaDevice::give_back(cuda::Stream stream) noexcept {
    const std::lock_guard guard(lending_);
    idle_.push_back(stream);
}

CudaMapping::CudaMapping(std::shared_ptr<CudaDevice> device, const cuda::IpcHandle& handle, std::string_view region)
    : device_(std::move(device)), handle_(handle), opened_(device_->open(handle, region)) {}

std::unique_ptr<CudaMapping> CudaMemory::open(const cuda::IpcHandle& handle, std::int64_t ordinal,
                                              std::string_view region) {
    if (ordinal < 0 || ordinal >= driver_->devices()) {
        throw WireError("shared memory region " + quote(region) + ": expected a device_id of this server, 0 to " +
                        std::to_string(driver_->devices() - 1) + ", came " + std::to_string(ordinal));
    }
    return std::make_unique<CudaMapping>(device(static_cast<int>(ordinal)), handle, region);
}

std::shared_ptr<CudaDevice> CudaMemory::device(int ordinal) {
    const std::lock_guard guard(lock_);
    std::weak_ptr<CudaDevice>& known = devices_[ordinal];
    std::shared_ptr<CudaDevice> device = known.lock();
    if (device == nullptr) known = device = std::make_shared<CudaDevice>(driver_, ordinal);
    return device;
}

CudaCopies::CudaCopies(std::shared_ptr<CudaDevice> device) : device_(std::move(device)), stream_(device_->borrow()) {}

CudaCopies::~CudaCopies() {
    if (under_way_) {
        try {
            settle();
        } catch (const std::exception&) {
            // Whoever wanted to know has asked before.
        }
    }
    device_->give_back(stream_);
}

void CudaCopies::read(cuda::Pointer from, std::size_t size, char* to, std::string_view region) {
    const CudaDevice::Scope scope(*device_);
    under_way_ = true;
    const CudaDriver& driver = *device_->driver;
    driver.require(driver.calls().cuMemcpyDtoHAsync_v2(to, from, size, stream_), "cuMemcpyDtoHAsync", region);
}

void CudaCopies::write(cuda::Pointer to, std::string_view bytes, std::string_view region) {
    const CudaDevice::Scope scope(*device_);
    under_way_ = true;
    const CudaDriver& driver = *device_->driver;
    driver.require(driver.calls().cuMemcpyHtoDAsync_v2(to, bytes.data(), bytes.size(), stream_), "cuMemcpyHtoDAsync",
                   region);
}

void CudaCopies::settle() {
    if (!under_way_) return;
    const CudaDevice::Scope scope(*device_);
    under_way_ = false;
    device_->driver->require(device_->driver->calls().cuStreamSynchronize(stream_), "cuStreamSynchronize");
}

}  // namespace trimtab
