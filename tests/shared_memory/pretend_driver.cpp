// A libcuda.so.1 that pretends: what csrc/cuda_driver.h takes from NVIDIA's, and what a client needs to allocate and
// export memory, over memory files of the host. Processes share "device memory" through it as by CUDA IPC: a handle
// names the exporter's descriptor, and is opened through /proc.
//
// It is stricter than the real one where that finds mistakes:
//   - a pointer to device memory is none of the host's: whoever follows it crashes;
//   - a copy happens when its stream is waited for, not before, and is lost where nobody waits;
//   - a handle that is open cannot be opened again in the same process, as with older drivers;
//   - a stream must be non-blocking, a copy or a handle needs its own context current;
//   - a context that is given back with streams or handles still open says so in the log.
//
// Environment: PRETEND_CUDA_DEVICES (2), PRETEND_CUDA_LOG, a file to which calls are added, and PRETEND_CUDA_ORDER, a file
// that is looked at in every call:
//   "cuName CODE"           the call fails with that code; after a code that loses the GPU every later call fails so
//   "cuName wait A B"       the call opens the pipe A for writing, then B for reading: each waits for the other end
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace {

using Pointer = unsigned long long;

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kNotInitialised = 3, kInvalidDevice = 101, kInvalidContext = 201,
              kAlreadyMapped = 208, kPeerAccessUnsupported = 217, kInvalidHandle = 400, kIllegalAddress = 700;
constexpr Pointer kTag = 1ULL << 62;  // makes an address that no instruction takes

struct Context {
    int device = 0;
    int uses = 0;
};
struct Stream {
    Context* context;
    std::vector<std::function<void()>> copies;
};
struct Allocation {
    char* host;
    std::size_t size;
    Context* context;
    int descriptor;  // -1: another process'
};
struct Handle {
    char magic[8];
    std::int32_t pid, descriptor, device;
    std::uint64_t inode;
    char rest[32];
};
static_assert(sizeof(Handle) == 64);

std::mutex lock;
bool initialised = false;
int broken = 0;  // the code that every call fails with
Context contexts[8];
std::set<Stream*> streams;
std::map<Pointer, Allocation> memory;  // by where it begins
std::map<std::string, Pointer> opened;  // handles
thread_local std::vector<Context*> current;
thread_local int capture_mode = 0;

int device_count() {
    const char* text = std::getenv("PRETEND_CUDA_DEVICES");
    return text != nullptr ? std::atoi(text) : 2;
}

void note(const std::string& what) {
    const char* path = std::getenv("PRETEND_CUDA_LOG");
    if (path == nullptr) return;
    const int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    const std::string line = what + "\n";
    if (write(file, line.data(), line.size()) < 0) std::abort();
    close(file);
}

bool loses(int code) { return code == kIllegalAddress || code == 214 || (code >= 714 && code <= 719) || code == 999; }

// What a call begins with: 0, or what it fails with.
int begin(const char* name) {
    if (const char* path = std::getenv("PRETEND_CUDA_ORDER")) {
        std::ifstream order(path);
        std::string call, what, reached, go;
        order >> call >> what;
        if (call == name && what == "wait") {
            order >> reached >> go;
            close(open(reached.c_str(), O_WRONLY));
            close(open(go.c_str(), O_RDONLY));
        } else if (call == name) {
            const int code = std::atoi(what.c_str());
            const std::lock_guard guard(lock);
            order >> go;
            if (loses(code) && go != "passes") broken = code;
            return code;
        }
    }
    const std::lock_guard guard(lock);
    if (broken != 0) return broken;
    return initialised || std::strcmp(name, "cuInit") == 0 ? 0 : kNotInitialised;
}

Context* here() { return current.empty() ? nullptr : current.back(); }

// The host's bytes for [pointer, pointer + size) of device memory; null where they are not all of one allocation.
char* bytes(Pointer pointer, std::size_t size) {
    auto at = memory.upper_bound(pointer);
    if (at == memory.begin()) return nullptr;
    --at;
    const Pointer offset = pointer - at->first;
    if (offset > at->second.size || size > at->second.size - offset) return nullptr;
    return at->second.host + offset;
}

Pointer add(char* host, std::size_t size, int descriptor) {
    const Pointer pointer = reinterpret_cast<Pointer>(host) | kTag;
    memory[pointer] = {host, size, here(), descriptor};
    return pointer;
}

void remove(Pointer pointer) {
    const Allocation gone = memory.at(pointer);
    memory.erase(pointer);
    munmap(gone.host, gone.size);
    if (gone.descriptor >= 0) close(gone.descriptor);
}

struct Error {
    int code;
    const char* name;
    const char* text;
};
constexpr Error errors[] = {
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kNotInitialised, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {kAlreadyMapped, "CUDA_ERROR_ALREADY_MAPPED", "resource already mapped"},
    {kPeerAccessUnsupported, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access is not supported between these two devices"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
};

}  // namespace

#define BEGIN(name)                          \
    do {                                     \
        const int result_ = begin(name);     \
        if (result_ != 0) return result_;    \
    } while (false);                         \
    const std::lock_guard guard(lock)

extern "C" {

int cuInit(unsigned flags) {
    BEGIN("cuInit");
    if (flags != 0) return kInvalidValue;
    if (device_count() == 0) return 100;
    initialised = true;
    return 0;
}

int cuGetErrorName(int code, const char** name) {
    for (const Error& error : errors) {
        if (error.code == code) return *name = error.name, 0;
    }
    return *name = nullptr, kInvalidValue;
}

int cuGetErrorString(int code, const char** text) {
    for (const Error& error : errors) {
        if (error.code == code) return *text = error.text, 0;
    }
    return *text = nullptr, kInvalidValue;
}

int cuDeviceGetCount(int* count) {
    BEGIN("cuDeviceGetCount");
    *count = device_count();
    return 0;
}

int cuDeviceGet(int* device, int ordinal) {
    BEGIN("cuDeviceGet");
    if (ordinal < 0 || ordinal >= device_count()) return kInvalidDevice;
    *device = ordinal + 100;  // a device is not its ordinal
    return 0;
}

int cuDevicePrimaryCtxRetain(Context** context, int device) {
    BEGIN("cuDevicePrimaryCtxRetain");
    const int ordinal = device - 100;
    if (ordinal < 0 || ordinal >= device_count()) return kInvalidDevice;
    contexts[ordinal].device = ordinal;
    ++contexts[ordinal].uses;
    *context = &contexts[ordinal];
    note("retain " + std::to_string(ordinal));
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    BEGIN("cuDevicePrimaryCtxRelease_v2");
    const int ordinal = device - 100;
    if (ordinal < 0 || ordinal >= device_count()) return kInvalidDevice;
    Context& context = contexts[ordinal];
    if (context.uses == 0) return kInvalidContext;
    --context.uses;
    note("release " + std::to_string(ordinal));
    if (context.uses != 0) return 0;
    for (const Stream* stream : streams) {
        if (stream->context == &context) note("left: a stream");
    }
    for (const auto& [pointer, allocation] : memory) {
        if (allocation.context == &context && allocation.descriptor < 0) note("left: a handle");
    }
    return 0;
}

int cuCtxPushCurrent_v2(Context* context) {
    BEGIN("cuCtxPushCurrent_v2");
    if (context == nullptr || context->uses == 0) return kInvalidContext;
    current.push_back(context);
    return 0;
}

int cuCtxPopCurrent_v2(Context** context) {
    if (current.empty()) return kInvalidContext;
    *context = current.back();
    current.pop_back();
    return 0;
}

int cuThreadExchangeStreamCaptureMode(int* mode) {
    std::swap(*mode, capture_mode);
    return 0;
}

int cuStreamCreate(Stream** stream, unsigned flags) {
    BEGIN("cuStreamCreate");
    if (here() == nullptr) return kInvalidContext;
    if (flags != 1) return kInvalidValue;
    *stream = new Stream{here(), {}};
    streams.insert(*stream);
    note("stream");
    return 0;
}

int cuStreamDestroy_v2(Stream* stream) {
    BEGIN("cuStreamDestroy_v2");
    if (streams.erase(stream) == 0) return kInvalidHandle;
    if (!stream->copies.empty()) note("lost: copies of a stream");
    delete stream;
    return 0;
}

int cuStreamSynchronize(Stream* stream) {
    BEGIN("cuStreamSynchronize");
    if (!streams.contains(stream)) return kInvalidHandle;
    note("wait " + std::to_string(stream->copies.size()));
    for (const auto& copy : stream->copies) copy();
    stream->copies.clear();
    return 0;
}

int cuMemAlloc_v2(Pointer* pointer, std::size_t size) {
    BEGIN("cuMemAlloc_v2");
    if (here() == nullptr) return kInvalidContext;
    if (size == 0) return kInvalidValue;
    const auto file = static_cast<int>(syscall(SYS_memfd_create, "pretend-cuda", 0));
    if (file < 0 || ftruncate(file, static_cast<off_t>(size)) != 0) return kOutOfMemory;
    void* host = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (host == MAP_FAILED) return kOutOfMemory;
    *pointer = add(static_cast<char*>(host), size, file);
    return 0;
}

int cuMemFree_v2(Pointer pointer) {
    BEGIN("cuMemFree_v2");
    const auto found = memory.find(pointer);
    if (found == memory.end() || found->second.descriptor < 0) return kInvalidValue;
    remove(pointer);
    return 0;
}

int cuIpcGetMemHandle(Handle* handle, Pointer pointer) {
    BEGIN("cuIpcGetMemHandle");
    const auto found = memory.find(pointer);
    if (found == memory.end() || found->second.descriptor < 0) return kInvalidValue;
    struct stat file {};
    fstat(found->second.descriptor, &file);
    *handle = {"pretend", getpid(), found->second.descriptor, found->second.context->device, file.st_ino, {}};
    return 0;
}

int cuIpcOpenMemHandle_v2(Pointer* pointer, Handle handle, unsigned flags) {
    BEGIN("cuIpcOpenMemHandle_v2");
    if (here() == nullptr) return kInvalidContext;
    if (flags != 1 || std::memcmp(handle.magic, "pretend", 8) != 0) return kInvalidValue;
    if (handle.pid == getpid()) return kInvalidContext;
    if (handle.device != here()->device) return kPeerAccessUnsupported;
    const std::string key(reinterpret_cast<const char*>(&handle), sizeof(handle));
    if (opened.contains(key)) return kAlreadyMapped;
    const std::string path = "/proc/" + std::to_string(handle.pid) + "/fd/" + std::to_string(handle.descriptor);
    const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0) return kInvalidValue;
    struct stat found {};
    void* host = MAP_FAILED;
    if (fstat(file, &found) == 0 && found.st_ino == handle.inode)
        host = mmap(nullptr, static_cast<std::size_t>(found.st_size), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (host == MAP_FAILED) return kInvalidValue;
    *pointer = opened[key] = add(static_cast<char*>(host), static_cast<std::size_t>(found.st_size), -1);
    note("open");
    return 0;
}

int cuIpcCloseMemHandle(Pointer pointer) {
    BEGIN("cuIpcCloseMemHandle");
    if (here() == nullptr) return kInvalidContext;
    const auto found = memory.find(pointer);
    if (found == memory.end() || found->second.descriptor >= 0) return kInvalidValue;
    std::erase_if(opened, [&](const auto& item) { return item.second == pointer; });
    remove(pointer);
    note("close");
    return 0;
}

int cuMemGetAddressRange_v2(Pointer* base, std::size_t* size, Pointer pointer) {
    BEGIN("cuMemGetAddressRange_v2");
    if (here() == nullptr) return kInvalidContext;
    if (bytes(pointer, 1) == nullptr) return kInvalidValue;
    const auto found = --memory.upper_bound(pointer);
    *base = found->first;
    *size = found->second.size;
    return 0;
}

int cuMemcpyDtoHAsync_v2(void* to, Pointer from, std::size_t size, Stream* stream) {
    BEGIN("cuMemcpyDtoHAsync_v2");
    if (!streams.contains(stream) || stream->context != here()) return kInvalidContext;
    if (capture_mode != 2) return kInvalidValue;
    if (bytes(from, size) == nullptr) return kInvalidValue;
    stream->copies.emplace_back([=] { std::memcpy(to, bytes(from, size), size); });
    return 0;
}

int cuMemcpyHtoDAsync_v2(Pointer to, const void* from, std::size_t size, Stream* stream) {
    BEGIN("cuMemcpyHtoDAsync_v2");
    if (!streams.contains(stream) || stream->context != here()) return kInvalidContext;
    if (capture_mode != 2) return kInvalidValue;
    if (bytes(to, size) == nullptr) return kInvalidValue;
    stream->copies.emplace_back([=] { std::memcpy(bytes(to, size), from, size); });
    return 0;
}

int cuMemcpyDtoH_v2(void* to, Pointer from, std::size_t size) {
    BEGIN("cuMemcpyDtoH_v2");
    if (here() == nullptr) return kInvalidContext;
    if (bytes(from, size) == nullptr) return kInvalidValue;
    std::memcpy(to, bytes(from, size), size);
    return 0;
}

int cuMemcpyHtoD_v2(Pointer to, const void* from, std::size_t size) {
    BEGIN("cuMemcpyHtoD_v2");
    if (here() == nullptr) return kInvalidContext;
    if (bytes(to, size) == nullptr) return kInvalidValue;
    std::memcpy(bytes(to, size), from, size);
    return 0;
}

}  // extern "C"
