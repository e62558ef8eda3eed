// Memory of slab columns: a vector whose buffer is 64-byte aligned, not zeroed by resize(), and counted.
//
// Counted, so that a NumPy view keeps the buffer it looks at: a column that grows moves on to a new buffer, and the
// view goes on reading the old one. A view may thus be stale, but it never dangles. Refusing to grow while views exist
// (as bytearray does) was turned down: it would make a forgotten view in one place an error in another.
#pragma once

#include <atomic>
#include <cstddef>
#include <limits>
#include <new>
#include <utility>
#include <vector>

namespace trimtab {

// Before each buffer lies its count, in a block of its own that keeps the data aligned.
struct alignas(64) BufferHeader {
    std::atomic<std::size_t> owners{1};

    static BufferHeader* of(const void* data) { return reinterpret_cast<BufferHeader*>(const_cast<void*>(data)) - 1; }
    static void retain(const void* data) noexcept { of(data)->owners.fetch_add(1, std::memory_order_relaxed); }
    static void release(const void* data) noexcept {
        BufferHeader* header = of(data);
        if (header->owners.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        header->~BufferHeader();
        ::operator delete(header, std::align_val_t{alignof(BufferHeader)});
    }
};

template <class T>
struct BufferAllocator {
    using value_type = T;

    BufferAllocator() = default;
    template <class U>
    BufferAllocator(const BufferAllocator<U>&) noexcept {}

    T* allocate(std::size_t count) {
        if (count > (std::numeric_limits<std::size_t>::max() - sizeof(BufferHeader)) / sizeof(T))
            throw std::bad_alloc();
        void* memory =
            ::operator new(sizeof(BufferHeader) + count * sizeof(T), std::align_val_t{alignof(BufferHeader)});
        return reinterpret_cast<T*>(new (memory) BufferHeader + 1);
    }
    void deallocate(T* data, std::size_t) noexcept { BufferHeader::release(data); }

    // resize() leaves new elements as they are: every writer fills what it asked for.
    template <class U>
    void construct(U* place) noexcept {
        ::new (static_cast<void*>(place)) U;
    }
    template <class U, class... Args>
    void construct(U* place, Args&&... args) {
        ::new (static_cast<void*>(place)) U(std::forward<Args>(args)...);
    }

    friend bool operator==(const BufferAllocator&, const BufferAllocator&) { return true; }
};

template <class T>
using Buffer = std::vector<T, BufferAllocator<T>>;

}  // namespace trimtab
