// Memory that other processes have on a GPU, opened by the handles that they export (CUDA IPC), and copies to and from it.
//
//   CudaMemory    the devices in use, by ordinal
//   CudaDevice    one device's primary context, which torch uses as well; the handles that are open on it; its streams
//   CudaMapping   one use of an open handle
//   CudaCopies    copies of one caller, on a stream that is its own meanwhile
//
// A handle is opened once and counted here: older drivers refuse to open it a second time in one process. It is closed
// with the last mapping of it, and a device's context is given back with the last mapping on it: it takes some hundred
// MB of the GPU, which a server that computes on the CPU would otherwise keep for ever.
//
// Copies go to and from ordinary host memory, for the bytes have to get into the request's own (it is decoded and
// checked there) or out of the batch's. For such memory the driver itself waits for what it reads, and for large writes;
// small writes are queued, and a batch of them costs one wait. Pinned memory between would let several reads of one
// request overlap, at the price of a copy; not tried, for want of a GPU to measure it on.
//
// Streams are non-blocking, so that nothing waits for torch's default stream or the other way round. A caller's context
// stays as it was: ours is pushed for each call and popped. Calls are made in relaxed capture mode, so that they neither
// end another thread's capture of a CUDA graph nor are refused because of one.
//
// Threads: any. Opening and closing are serialised for each device; copies are not, and never take that lock. A caller
// waits for its own copies alone. The thread that lets go of a mapping last closes it, which may wait for the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "cuda_driver.h"

namespace trimtab {

class CudaDevice {
  public:
    // Throws DeviceError where the device has no room for a context, is taken by another process, and the like.
    CudaDevice(std::shared_ptr<const CudaDriver> driver, int ordinal);
    ~CudaDevice();
    CudaDevice(const CudaDevice&) = delete;
    CudaDevice& operator=(const CudaDevice&) = delete;

    struct Opened {
        cuda::Pointer pointer = 0;
        std::uint64_t size = 0;  // from the pointer to the end of its allocation
        std::size_t uses = 0;
    };
    // Counts one more use. Throws WireError where the driver refuses the handle; `region` is for the message.
    Opened open(const cuda::IpcHandle& handle, std::string_view region);
    void close(const cuda::IpcHandle& handle) noexcept;

    cuda::Stream borrow();  // throws
    void give_back(cuda::Stream stream) noexcept;

    const std::shared_ptr<const CudaDriver> driver;
    const int ordinal;

    // Makes the device's context the calling thread's, for its lifetime. Throws.
    class Scope {
      public:
        explicit Scope(const CudaDevice& device);
        ~Scope();
        Scope(const Scope&) = delete;
        Scope& operator=(const Scope&) = delete;

      private:
        const cuda::Calls& calls_;
        cuda::CaptureMode mode_ = cuda::kCaptureRelaxed;
        bool exchanged_ = false;
    };

  private:
    // Within a Scope: throws as CudaDriver::require where the device does nothing any more, whatever it is asked for.
    void require_working(std::string_view region) const;

    cuda::Ordinal device_ = 0;
    cuda::Context context_ = nullptr;
    std::mutex opening_;
    std::map<cuda::IpcHandle, Opened> opened_;
    std::mutex lending_;
    std::vector<cuda::Stream> idle_;
    std::size_t streams_ = 0;  // as many as callers ever copied at a time
};

class CudaMapping {
  public:
    CudaMapping(std::shared_ptr<CudaDevice> device, const cuda::IpcHandle& handle, std::string_view region);
    ~CudaMapping() { device_->close(handle_); }
    CudaMapping(const CudaMapping&) = delete;
    CudaMapping& operator=(const CudaMapping&) = delete;

    const std::shared_ptr<CudaDevice>& device() const { return device_; }
    cuda::Pointer pointer() const { return opened_.pointer; }
    std::uint64_t size() const { return opened_.size; }

  private:
    const std::shared_ptr<CudaDevice> device_;
    const cuda::IpcHandle handle_;
    const CudaDevice::Opened opened_;
};

class CudaMemory {
  public:
    explicit CudaMemory(std::shared_ptr<const CudaDriver> driver) : driver_(std::move(driver)) {}

    // `ordinal`: by the driver's numbering in this process (CUDA_VISIBLE_DEVICES). Throws WireError where there is none
    // of that number, or the handle is refused; DeviceError where the device cannot be used.
    std::unique_ptr<CudaMapping> open(const cuda::IpcHandle& handle, std::int64_t ordinal, std::string_view region);

  private:
    std::shared_ptr<CudaDevice> device(int ordinal);

    const std::shared_ptr<const CudaDriver> driver_;
    std::mutex lock_;
    std::map<int, std::weak_ptr<CudaDevice>> devices_;
};

// One thread. What is read or written may be under way until settle() has returned; both ends must last until then, or
// until this goes, which waits as well.
class CudaCopies {
  public:
    explicit CudaCopies(std::shared_ptr<CudaDevice> device);
    ~CudaCopies();
    CudaCopies(const CudaCopies&) = delete;
    CudaCopies& operator=(const CudaCopies&) = delete;

    const CudaDevice& device() const { return *device_; }
    // Throw DeviceError, or WireError with the region's name.
    void read(cuda::Pointer from, std::size_t size, char* to, std::string_view region);
    void write(cuda::Pointer to, std::string_view bytes, std::string_view region);
    void settle();

  private:
    const std::shared_ptr<CudaDevice> device_;
    cuda::Stream stream_ = nullptr;
    bool under_way_ = false;
};

}  // namespace trimtab
