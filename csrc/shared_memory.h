// Regions of system shared memory that clients have registered, by name.
//
// A region is an open descriptor and a window of its file; it is read with pread and written with pwrite, never mapped.
// A mapping was turned down: a client that truncates its file would end this process with SIGBUS, and values that were
// checked could change before they are used. So every byte is copied once, into the request's own memory, and checked
// there; what a client does to its file afterwards makes a short read, which is that request's error.
//
// Which files: only regular ones directly in /dev/shm, by a name without "/", not through a link. Whatever there the
// server's user may open, a client that may register regions can read and write: see [security] shared_memory.
//
// Threads: any. A region lives as long as somebody holds it, so one that is unregistered stays open for the requests
// that use it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace trimtab {

class SharedRegion {
  public:
    // Takes the descriptor.
    SharedRegion(std::string name, std::string key, int descriptor, std::uint64_t offset, std::uint64_t byte_size);
    ~SharedRegion();
    SharedRegion(const SharedRegion&) = delete;
    SharedRegion& operator=(const SharedRegion&) = delete;

    const std::string name;
    const std::string key;
    const std::uint64_t offset;     // of the window in the file
    const std::uint64_t byte_size;  // of the window

    // Bytes [at, at + size) of the window. Throws WireError where they are not all within it, or the file is shorter
    // by now.
    void read(std::uint64_t at, std::size_t size, char* out) const;
    // As read. A file that is shorter by now is not made longer.
    void write(std::uint64_t at, std::string_view bytes) const;
    void check(std::uint64_t at, std::uint64_t size) const;  // throws WireError

  private:
    [[noreturn]] void fail(const std::string& what) const;

    const int descriptor_;
};

class SharedMemory {
  public:
    static constexpr std::size_t kMostRegions = 256;  // a descriptor each

    // `most`: bytes that one request may bring in shared memory.
    explicit SharedMemory(std::uint64_t most) : most_(most) {}

    // False where the name is taken. Throws WireError on a key, offset or size that cannot be.
    bool add(const std::string& name, const std::string& key, std::uint64_t offset, std::uint64_t byte_size);
    bool remove(const std::string& name);
    void clear();
    std::shared_ptr<const SharedRegion> find(std::string_view name) const;  // throws WireError where there is none
    std::vector<std::shared_ptr<const SharedRegion>> list() const;
    std::uint64_t most() const { return most_; }

  private:
    const std::uint64_t most_;
    mutable std::mutex lock_;
    std::map<std::string, std::shared_ptr<const SharedRegion>, std::less<>> regions_;
};

}  // namespace trimtab
