// Memory for nghttp2's sessions, which allocates some ten small blocks a request: free lists of one thread, by size.
// The C library's own cache keeps seven blocks a size, which a burst of a hundred streams overruns.
//
// A session's memory must be given back on the thread, and before the pool goes. Kept memory is what was in use at
// once, up to a bound a size; beyond it, and for large blocks, it is the C library's. Under AddressSanitizer all of it
// is, so that errors are found.
#pragma once

#include <nghttp2/nghttp2.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace trimtab {

class Http2Memory {
  public:
    Http2Memory() = default;
    Http2Memory(const Http2Memory&) = delete;
    Http2Memory& operator=(const Http2Memory&) = delete;
    ~Http2Memory() {
        for (List& list : lists_) {
            while (list.first != nullptr) std::free(list.take());
        }
    }

    nghttp2_mem functions() {
        return {this, [](std::size_t size, void* self) { return static_cast<Http2Memory*>(self)->allocate(size); },
                [](void* data, void* self) { static_cast<Http2Memory*>(self)->release(data); },
                [](std::size_t count, std::size_t size, void* self) {
                    void* data = size != 0 && count > kMost / size
                                     ? nullptr
                                     : static_cast<Http2Memory*>(self)->allocate(count * size);
                    if (data != nullptr) std::memset(data, 0, count * size);
                    return data;
                },
                [](void* data, std::size_t size, void* self) {
                    return static_cast<Http2Memory*>(self)->change(data, size);
                }};
    }

  private:
    static constexpr std::size_t kMost = std::size_t{1} << 40;
    static constexpr std::size_t kStep = 64;
    static constexpr std::size_t kClasses = 33;     // up to 2 KiB with the head; class 0 is not kept
    static constexpr std::size_t kKept = 16 << 10;  // blocks of a size

    // Before each block; keeps its alignment.
    struct alignas(16) Head {
        std::size_t kind;  // the size in steps, 0 for large ones
        std::size_t size;  // that was asked for
    };
    struct List {
        void* first = nullptr;
        std::size_t count = 0;
        void* take() {
            void* block = first;
            std::memcpy(&first, block, sizeof(first));
            --count;
            return block;
        }
        void give(void* block) {
            std::memcpy(block, &first, sizeof(first));
            first = block;
            ++count;
        }
    };

    void* allocate(std::size_t size) {
        const std::size_t kind = (size + sizeof(Head) + kStep - 1) / kStep;
        void* block = nullptr;
        if (kind < kClasses && lists_[kind].first != nullptr) {
            block = lists_[kind].take();
        } else {
            block = std::malloc(kind < kClasses ? kind * kStep : size + sizeof(Head));
            if (block == nullptr) return nullptr;
        }
        auto* head = static_cast<Head*>(block);
        *head = {kind < kClasses ? kind : 0, size};
        return head + 1;
    }
    void release(void* data) {
        if (data == nullptr) return;
        Head* head = static_cast<Head*>(data) - 1;
#ifdef __SANITIZE_ADDRESS__
        const bool keep = false;
#else
        const bool keep = head->kind != 0 && lists_[head->kind].count < kKept;
#endif
        if (keep) {
            lists_[head->kind].give(head);
        } else {
            std::free(head);
        }
    }
    void* change(void* data, std::size_t size) {
        if (data == nullptr) return allocate(size);
        Head* head = static_cast<Head*>(data) - 1;
        if (head->kind != 0 && size + sizeof(Head) <= head->kind * kStep) {
            head->size = size;
            return data;
        }
        void* moved = allocate(size);
        if (moved == nullptr) return nullptr;
        std::memcpy(moved, data, head->size < size ? head->size : size);
        release(data);
        return moved;
    }

    std::array<List, kClasses> lists_{};
};

}  // namespace trimtab
