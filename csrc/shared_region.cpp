#include "shared_region.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "errors.h"

namespace trimtab {
namespace {

constexpr const char* kDirectory = "/dev/shm";
constexpr std::size_t kMostKey = 255;

std::string reason(int error) { return std::generic_category().message(error); }

// The file's name for a key: "/name" or "name".
std::string file_name(const std::string& key) {
    const std::string name = key.starts_with('/') ? key.substr(1) : key;
    if (name.empty() || name.size() > kMostKey || name == "." || name == ".." ||
        name.find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
        throw WireError("shared memory key " + quote(key) +
                        ": expected the name of a shared memory object, without \"/\" but in front");
    }
    return name;
}

// An open descriptor until it is given away.
class Opened {
  public:
    explicit Opened(int descriptor) : descriptor_(descriptor) {}
    ~Opened() {
        if (descriptor_ >= 0) close(descriptor_);
    }
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;
    int get() const { return descriptor_; }
    int give() { return std::exchange(descriptor_, -1); }

  private:
    int descriptor_;
};

int open_window(const std::string& key, std::uint64_t offset, std::uint64_t byte_size) {
    const std::string file = file_name(key);
    const auto fail = [&](const std::string& what) {
        throw WireError("shared memory key " + quote(key) + ": " + what);
    };
    const Opened directory(open(kDirectory, O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (directory.get() < 0) fail(std::string(kDirectory) + ": " + reason(errno));
    // O_NONBLOCK: opening a pipe must not wait.
    Opened opened(openat(directory.get(), file.c_str(), O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (opened.get() < 0) fail("cannot be opened: " + reason(errno));
    struct stat found {};
    if (fstat(opened.get(), &found) != 0) fail("cannot be opened: " + reason(errno));
    if (!S_ISREG(found.st_mode)) fail("expected a shared memory object, came another kind of file");
    const auto size = static_cast<std::uint64_t>(std::max<off_t>(found.st_size, 0));
    if (offset > size || byte_size > size - offset) {
        fail("expected a region within its " + std::to_string(size) + " bytes, came " + std::to_string(byte_size) +
             " at " + std::to_string(offset));
    }
    return opened.give();
}

}  // namespace

// --- any region ------------------------------------------------------------------------------------------------------

void SharedRegion::fail(const std::string& what) const {
    throw WireError("shared memory region " + quote(name) + ": " + what);
}

void SharedRegion::check(std::uint64_t at, std::uint64_t size) const {
    if (at > byte_size || size > byte_size - at) {
        fail("expected bytes within its " + std::to_string(byte_size) + ", came " + std::to_string(size) + " at " +
             std::to_string(at));
    }
}

void SharedRegion::read(std::uint64_t at, std::size_t size, char* out, Transfers& transfers) const {
    check(at, size);
    if (size != 0) copy_out(at, size, out, transfers);
}

void SharedRegion::write(std::uint64_t at, std::string_view bytes, Transfers& transfers) const {
    check(at, bytes.size());
    if (!bytes.empty()) copy_in(at, bytes, transfers);
}

// --- system shared memory --------------------------------------------------------------------------------------------

SystemRegion::SystemRegion(const std::string& region_name, const std::string& region_key, std::uint64_t window_offset,
                           std::uint64_t window_size)
    : SharedRegion(region_name, window_size),
      key(region_key),
      offset(window_offset),
      descriptor_(open_window(region_key, window_offset, window_size)) {}

SystemRegion::~SystemRegion() { close(descriptor_); }

void SystemRegion::copy_out(std::uint64_t at, std::size_t size, char* out, Transfers& /*transfers*/) const {
    std::uint64_t from = offset + at;
    while (size != 0) {
        const ssize_t got = pread(descriptor_, out, size, static_cast<off_t>(from));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail("cannot be read: " + reason(errno));
        if (got == 0) fail("its file is shorter than when it was registered");
        out += got;
        from += static_cast<std::uint64_t>(got);
        size -= static_cast<std::size_t>(got);
    }
}

void SystemRegion::copy_in(std::uint64_t at, std::string_view bytes, Transfers& /*transfers*/) const {
    struct stat found {};
    std::uint64_t from = offset + at;
    // A file that shrinks between here and the write grows again, at most by what was registered.
    if (fstat(descriptor_, &found) != 0 || static_cast<std::uint64_t>(found.st_size) < from + bytes.size())
        fail("its file is shorter than when it was registered");
    while (!bytes.empty()) {
        const ssize_t put = pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(from));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) fail("cannot be written: " + reason(put < 0 ? errno : EIO));
        bytes.remove_prefix(static_cast<std::size_t>(put));
        from += static_cast<std::uint64_t>(put);
    }
}

// --- a GPU's memory --------------------------------------------------------------------------------------------------

CudaRegion::CudaRegion(const std::string& region_name, std::unique_ptr<const CudaMapping> mapping,
                       std::uint64_t size)
    : SharedRegion(region_name, size), mapping_(std::move(mapping)) {
    if (size > mapping_->size()) {
        fail("expected at most the " + std::to_string(mapping_->size()) + " bytes that lie there, came " +
             std::to_string(size));
    }
}

void CudaRegion::copy_out(std::uint64_t at, std::size_t size, char* out, Transfers& transfers) const {
    transfers.on(mapping_->device()).read(mapping_->pointer() + at, size, out, name);
}

void CudaRegion::copy_in(std::uint64_t at, std::string_view bytes, Transfers& transfers) const {
    transfers.on(mapping_->device()).write(mapping_->pointer() + at, bytes, name);
}

CudaCopies& Transfers::on(const std::shared_ptr<CudaDevice>& device) {
    for (const auto& copies : devices_) {
        if (&copies->device() == device.get()) return *copies;
    }
    return *devices_.emplace_back(std::make_unique<CudaCopies>(device));
}

void Transfers::settle() {
    for (const auto& copies : devices_) copies->settle();
}

}  // namespace trimtab
