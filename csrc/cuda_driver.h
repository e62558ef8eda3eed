// NVIDIA's driver, looked for when the process runs: the few functions that it takes to read and write what another
// process has on a GPU, out of libcuda.so.1 by dlopen. Nothing of CUDA is needed to build this or to start; the
// declarations are this file's own, and a test holds them against cuda.h.
//
// What fails is one of two things. Most codes are about the call, or about what a client gave: WireError. Some say that
// the GPU is lost to this process: its context does not recover, and every call after it fails as well. That is a
// DeviceError, now and for whatever asks later, and the descriptor becomes readable, so that whoever runs the server can
// end it.
//
// Threads: any. The library is never unloaded.
#pragma once

#include <atomic>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

struct CUctx_st;
struct CUstream_st;

namespace trimtab {
namespace cuda {

using Result = int;            // CUresult
using Ordinal = int;           // CUdevice
using Context = CUctx_st*;     // CUcontext
using Stream = CUstream_st*;   // CUstream
using Pointer = std::uint64_t;  // CUdeviceptr
using CaptureMode = int;       // CUstreamCaptureMode

struct IpcHandle {  // CUipcMemHandle
    char reserved[64];
    auto operator<=>(const IpcHandle&) const = default;
};

inline constexpr Result kSuccess = 0;
inline constexpr Result kUnknown = 999;
inline constexpr unsigned kLazyPeerAccess = 1;     // CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
inline constexpr unsigned kNonBlocking = 1;        // CU_STREAM_NON_BLOCKING
inline constexpr CaptureMode kCaptureRelaxed = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED

// By the names that the library exports, which are those of cuda.h behind its macros.
#define TRIMTAB_CUDA_CALLS(X)                                                                         \
    X(cuInit, (unsigned flags))                                                                       \
    X(cuGetErrorName, (Result error, const char** name))                                              \
    X(cuGetErrorString, (Result error, const char** text))                                            \
    X(cuDeviceGetCount, (int* count))                                                                 \
    X(cuDeviceGet, (Ordinal * device, int ordinal))                                                   \
    X(cuDevicePrimaryCtxRetain, (Context * context, Ordinal device))                                  \
    X(cuDevicePrimaryCtxRelease_v2, (Ordinal device))                                                 \
    X(cuCtxPushCurrent_v2, (Context context))                                                         \
    X(cuCtxPopCurrent_v2, (Context * context))                                                        \
    X(cuThreadExchangeStreamCaptureMode, (CaptureMode * mode))                                        \
    X(cuStreamCreate, (Stream * stream, unsigned flags))                                              \
    X(cuStreamDestroy_v2, (Stream stream))                                                            \
    X(cuStreamSynchronize, (Stream stream))                                                           \
    X(cuIpcOpenMemHandle_v2, (Pointer * pointer, IpcHandle handle, unsigned flags))                   \
    X(cuIpcCloseMemHandle, (Pointer pointer))                                                         \
    X(cuMemGetAddressRange_v2, (Pointer * base, std::size_t* size, Pointer pointer))                  \
    X(cuMemcpyDtoHAsync_v2, (void* to, Pointer from, std::size_t size, Stream stream))                \
    X(cuMemcpyHtoDAsync_v2, (Pointer to, const void* from, std::size_t size, Stream stream))

struct Calls {
#define TRIMTAB_CUDA_MEMBER(name, arguments) Result(*name) arguments = nullptr;
    TRIMTAB_CUDA_CALLS(TRIMTAB_CUDA_MEMBER)
#undef TRIMTAB_CUDA_MEMBER
};

// Whether a code says that the GPU is lost to this process: what cuda.h says "leaves the process in an inconsistent
// state", and memory or links that failed.
bool is_lost(Result result);

}  // namespace cuda

class CudaDriver {
  public:
    // Never throws for want of a driver or of a GPU: devices() is 0 then, and missing() says why.
    explicit CudaDriver(const std::string& library = "libcuda.so.1");
    ~CudaDriver();
    CudaDriver(const CudaDriver&) = delete;
    CudaDriver& operator=(const CudaDriver&) = delete;

    int devices() const { return devices_; }
    const std::string& missing() const { return missing_; }
    const cuda::Calls& calls() const { return calls_; }  // of use where there are devices

    // Returns where `result` is success. Throws DeviceError where it says that the GPU is lost, else WireError; `call`
    // is what was called, `region` the name of the one that it was for, if it was for one.
    void require(cuda::Result result, const char* call, std::string_view region = {}) const;
    // Throws DeviceError where the GPU has been lost.
    void require_device() const;
    std::string describe(cuda::Result result) const;  // "out of memory (CUDA_ERROR_OUT_OF_MEMORY)"

    int descriptor() const { return event_; }  // readable once the GPU is lost
    std::string fault() const;                 // what happened then; empty before

  private:
    bool load(const std::string& library);
    [[noreturn]] void lose(const std::string& what) const;

    cuda::Calls calls_;
    int devices_ = 0;
    std::string missing_;
    int event_ = -1;
    mutable std::atomic<bool> lost_{false};
    mutable std::mutex lock_;
    mutable std::string fault_;
};

}  // namespace trimtab
