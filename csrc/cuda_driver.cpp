#include "cuda_driver.h"

#include <dlfcn.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "errors.h"

namespace trimtab {
namespace {

template <class Function>
bool find(void* library, const char* name, Function& function) {
    void* const found = dlsym(library, name);
    static_assert(sizeof(found) == sizeof(function));
    std::memcpy(&function, &found, sizeof(found));
    return found != nullptr;
}

}  // namespace

bool cuda::is_lost(Result result) {
    constexpr Result codes[] = {
        214,  // ECC_UNCORRECTABLE
        220,  // NVLINK_UNCORRECTABLE
        226,  // CONTAINED
        700,  // ILLEGAL_ADDRESS
        702,  // LAUNCH_TIMEOUT
        709,  // CONTEXT_IS_DESTROYED
        710,  // ASSERT
        714,  // HARDWARE_STACK_ERROR
        715,  // ILLEGAL_INSTRUCTION
        716,  // MISALIGNED_ADDRESS
        717,  // INVALID_ADDRESS_SPACE
        718,  // INVALID_PC
        719,  // LAUNCH_FAILED
        721,  // TENSOR_MEMORY_LEAK
        810,  // MPS_CLIENT_TERMINATED
        911,  // EXTERNAL_DEVICE
        kUnknown,
    };
    return std::find(std::begin(codes), std::end(codes), result) != std::end(codes);
}

CudaDriver::CudaDriver(const std::string& library) : event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (event_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    if (!load(library)) return;
    const auto fails = [&](cuda::Result result, const char* call) {
        if (result == cuda::kSuccess) return false;
        missing_ = std::string(call) + ": " + describe(result);
        return true;
    };
    int count = 0;
    if (fails(calls_.cuInit(0), "cuInit") || fails(calls_.cuDeviceGetCount(&count), "cuDeviceGetCount")) return;
    if (count <= 0) missing_ = "the driver sees no GPU";
    devices_ = std::max(count, 0);
}

CudaDriver::~CudaDriver() { close(event_); }

bool CudaDriver::load(const std::string& library) {
    void* const opened = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {
        const char* const why = dlerror();
        missing_ = why != nullptr ? why : library + " cannot be loaded";
        return false;
    }
#define TRIMTAB_CUDA_FIND(name, arguments)                      \
    if (!find(opened, #name, calls_.name)) {                    \
        missing_ = library + " has no " #name ": it is too old"; \
        return false;                                           \
    }
    TRIMTAB_CUDA_CALLS(TRIMTAB_CUDA_FIND)
#undef TRIMTAB_CUDA_FIND
    return true;
}

std::string CudaDriver::describe(cuda::Result result) const {
    const char* name = nullptr;
    const char* text = nullptr;
    if (calls_.cuGetErrorName(result, &name) != cuda::kSuccess || name == nullptr)
        return "error " + std::to_string(result);
    if (calls_.cuGetErrorString(result, &text) != cuda::kSuccess || text == nullptr) return name;
    return std::string(text) + " (" + name + ")";
}

void CudaDriver::require(cuda::Result result, const char* call, std::string_view region) const {
    if (result == cuda::kSuccess) return;
    const std::string what = std::string(call) + ": " + describe(result);
    if (cuda::is_lost(result)) lose(what);
    throw WireError(region.empty() ? "CUDA shared memory: " + what : "shared memory region " + quote(region) + ": " + what);
}

void CudaDriver::require_device() const {
    if (lost_.load(std::memory_order_acquire)) throw DeviceError(fault());
}

void CudaDriver::lose(const std::string& what) const {
    {
        const std::lock_guard guard(lock_);
        if (fault_.empty()) fault_ = "CUDA shared memory: the GPU is lost to this server, which restarts: " + what;
    }
    if (!lost_.exchange(true, std::memory_order_release)) {
        const std::uint64_t one = 1;
        // It fails only where the counter is full, and it is counted to 1.
        [[maybe_unused]] const ssize_t put = write(event_, &one, sizeof(one));
    }
    throw DeviceError(fault());
}

std::string CudaDriver::fault() const {
    const std::lock_guard guard(lock_);
    return fault_;
}

}  // namespace trimtab
