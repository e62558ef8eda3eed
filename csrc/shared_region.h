// A region that a client has registered: memory outside of messages, of /dev/shm or of a GPU, and copies to and from it.
//
// Every byte is copied once, into the request's own memory or out of a batch's, and checked there: nothing that a client
// may change meanwhile is ever looked at. Inputs are copied on the thread that received the request, outputs on the one
// that computed the batch, never under the interpreter's lock, before the answer leaves. For a GPU's memory that means a
// wait for the copy; a request's inputs are bounded by what one may bring (SharedMemory::most).
//
// Threads: any. A region lives as long as somebody holds it, so one that is unregistered stays open for the requests
// that use it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_memory.h"

namespace trimtab {

class Transfers;

class SharedRegion {
  public:
    virtual ~SharedRegion() = default;
    SharedRegion(const SharedRegion&) = delete;
    SharedRegion& operator=(const SharedRegion&) = delete;

    const std::string name;
    const std::uint64_t byte_size;

    // Bytes [at, at + size) of the region. Throws WireError where they are not all within it, or it cannot be read (any
    // more); DeviceError where the GPU is lost.
    void read(std::uint64_t at, std::size_t size, char* out, Transfers& transfers) const;
    void write(std::uint64_t at, std::string_view bytes, Transfers& transfers) const;
    void check(std::uint64_t at, std::uint64_t size) const;  // throws WireError

    // Whether what is copied may be under way until the transfers have settled.
    virtual bool settles() const { return false; }

  protected:
    SharedRegion(std::string region_name, std::uint64_t size) : name(std::move(region_name)), byte_size(size) {}
    [[noreturn]] void fail(const std::string& what) const;

  private:
    virtual void copy_out(std::uint64_t at, std::size_t size, char* out, Transfers& transfers) const = 0;
    virtual void copy_in(std::uint64_t at, std::string_view bytes, Transfers& transfers) const = 0;
};

// A window of an object in /dev/shm: an open descriptor, read with pread and written with pwrite, never mapped. A mapping
// was turned down: a client that truncates its file would end this process with SIGBUS, and values that were checked
// could change before they are used. What a client does to its file makes a short read, which is that request's error.
class SystemRegion final : public SharedRegion {
  public:
    // Opens it: only a regular file directly in /dev/shm, by a name without "/", not through a link. Throws WireError.
    SystemRegion(const std::string& name, const std::string& key, std::uint64_t offset, std::uint64_t byte_size);
    ~SystemRegion() override;

    const std::string key;
    const std::uint64_t offset;  // of the window in the file

  private:
    void copy_out(std::uint64_t at, std::size_t size, char* out, Transfers& transfers) const override;
    // A file that is shorter by now is not made longer.
    void copy_in(std::uint64_t at, std::string_view bytes, Transfers& transfers) const override;

    const int descriptor_;
};

// The beginning of another process' memory on a GPU.
class CudaRegion final : public SharedRegion {
  public:
    // Throws WireError where `byte_size` is more than the allocation has.
    CudaRegion(const std::string& name, std::unique_ptr<const CudaMapping> mapping, std::uint64_t byte_size);

    int device() const { return mapping_->device()->ordinal; }
    bool settles() const override { return true; }

  private:
    void copy_out(std::uint64_t at, std::size_t size, char* out, Transfers& transfers) const override;
    void copy_in(std::uint64_t at, std::string_view bytes, Transfers& transfers) const override;

    const std::unique_ptr<const CudaMapping> mapping_;
};

// Copies of one caller, which may be under way until settle() has returned; then all of them are done, or it throws as
// SharedRegion::read does. Waits when it goes. One thread.
class Transfers {
  public:
    void settle();
    CudaCopies& on(const std::shared_ptr<CudaDevice>& device);

  private:
    std::vector<std::unique_ptr<CudaCopies>> devices_;
};

}  // namespace trimtab
