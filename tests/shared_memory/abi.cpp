// Holds csrc/cuda_driver.h against NVIDIA's cuda.h: names, arguments, sizes and numbers. Run, it says of each code in its
// arguments whether it loses the GPU.
#include <cuda.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "cuda_driver.h"

namespace {

// Types that a call cannot tell apart.
template <class One, class Other>
constexpr bool alike = sizeof(One) == sizeof(Other) && alignof(One) == alignof(Other) &&
                       std::is_pointer_v<One> == std::is_pointer_v<Other> &&
                       std::is_class_v<One> == std::is_class_v<Other>;

template <class One, class Other>
constexpr bool same = false;
template <class A, class... As, class B, class... Bs>
    requires(sizeof...(As) == sizeof...(Bs))
constexpr bool same<A (*)(As...), B (*)(Bs...)> = alike<A, B> && (alike<As, Bs> && ...);

#define CHECK(name, arguments) static_assert(same<decltype(trimtab::cuda::Calls::name), decltype(&::name)>, #name);
TRIMTAB_CUDA_CALLS(CHECK)

// cuda.h's macros name the versions that are called here.
#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
bool called_as(const char* name, const char* expanded) { return std::strcmp(name, expanded) == 0; }

static_assert(sizeof(trimtab::cuda::IpcHandle) == CU_IPC_HANDLE_SIZE);
static_assert(trimtab::cuda::kSuccess == CUDA_SUCCESS);
static_assert(trimtab::cuda::kLazyPeerAccess == CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
static_assert(trimtab::cuda::kNonBlocking == CU_STREAM_NON_BLOCKING);
static_assert(trimtab::cuda::kCaptureRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);

}  // namespace

int main(int count, char** codes) {
    const bool versions = called_as("cuDevicePrimaryCtxRelease_v2", TEXT(cuDevicePrimaryCtxRelease)) &&
                          called_as("cuCtxPushCurrent_v2", TEXT(cuCtxPushCurrent)) &&
                          called_as("cuCtxPopCurrent_v2", TEXT(cuCtxPopCurrent)) &&
                          called_as("cuStreamCreate", TEXT(cuStreamCreate)) &&
                          called_as("cuStreamDestroy_v2", TEXT(cuStreamDestroy)) &&
                          called_as("cuStreamSynchronize", TEXT(cuStreamSynchronize)) &&
                          called_as("cuIpcOpenMemHandle_v2", TEXT(cuIpcOpenMemHandle)) &&
                          called_as("cuIpcCloseMemHandle", TEXT(cuIpcCloseMemHandle)) &&
                          called_as("cuMemGetAddressRange_v2", TEXT(cuMemGetAddressRange)) &&
                          called_as("cuMemcpyDtoHAsync_v2", TEXT(cuMemcpyDtoHAsync)) &&
                          called_as("cuMemcpyHtoDAsync_v2", TEXT(cuMemcpyHtoDAsync));
    for (int i = 1; i < count; ++i) {
        if (trimtab::cuda::is_lost(std::atoi(codes[i]))) std::printf("%s\n", codes[i]);
    }
    return versions ? 0 : 1;
}
