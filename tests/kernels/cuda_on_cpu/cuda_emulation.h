// CUDA as far as csrc/cuda/ needs it, on the CPU: included before a generated source, which g++ then compiles.
//
// Each thread is a fiber with a stack of its own. It runs until it waits: at __syncthreads for all threads of its block,
// at a shuffle for all lanes of its warp. The threads take turns, those of eight blocks at a time, in an order that the
// caller chooses: forwards, backwards, or by a seed, where in each turn half of the warps sit idle, too. So code that
// lacks a barrier does not work by luck: what a thread reads too early has not been written in one order or another.
// Shared memory is filled with NaN before each block. Where all wait and none can go on, that is reported.
//
// Not emulated: that memory is seen late by other blocks (fences do nothing), that lanes of a warp run apart within a
// turn at a finer grain, and speed.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define TRIMTAB_SHARED(type, name) type* const name = reinterpret_cast<type*>(emulation::running_block->shared.data())

struct uint3 { unsigned x = 0, y = 0, z = 0; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

inline uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr unsigned kSharedBytes = 227 * 1024;

namespace emulation {

enum class Waits : std::uint8_t { no, for_warp, for_block, done };

// Changing stacks. By hand where that is written: swapcontext asks the kernel each time, and AddressSanitizer's clears
// the shadow of whole stacks.
#ifdef __x86_64__
struct Context {
    void* top = nullptr;
};

extern "C" void emulation_change(void** left, void* entered);
asm(R"(
.text
.globl emulation_change
.hidden emulation_change
.type emulation_change, @function
emulation_change:
    endbr64
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulation_change, .-emulation_change
)");

inline void change(Context& left, Context& entered) { emulation_change(&left.top, entered.top); }

inline void make(Context& context, char* stack, std::size_t size, void (*entry)()) {
    auto** top = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(stack + size) & ~std::uintptr_t{15});
    *--top = nullptr;  // whom entry would return to
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.top = top;
}
#else
using Context = ucontext_t;

inline void change(Context& left, Context& entered) { swapcontext(&left, &entered); }

inline void make(Context& context, char* stack, std::size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack;
    Waits waits = Waits::done;
    unsigned shuffles = 0;  // that it took part in
};

constexpr std::size_t kStack = 64 * 1024;
constexpr std::size_t kResident = 8;  // blocks at a time

struct Block {
    uint3 index;
    std::vector<Fiber> fibers;
    std::vector<std::array<std::array<std::uint64_t, 32>, 2>> exchanged;  // by warp and by whether the shuffle is odd
    std::vector<float4> shared;
    bool busy = false;
};

inline std::array<Block, kResident> blocks;
inline Block* running_block = nullptr;
inline Fiber* running = nullptr;
inline Context scheduler;
inline void (*body)(void*) = nullptr;
inline void* body_arguments = nullptr;

inline void wait(Waits what) {
    Fiber* const fiber = running;
    fiber->waits = what;
    change(fiber->context, scheduler);
}

inline void begin_fiber() {
    body(body_arguments);
    wait(Waits::done);
}

inline void begin_block(Block& block, uint3 index, unsigned threads) {
    block.index = index;
    block.busy = true;
    block.fibers.resize(threads);
    block.exchanged.resize((threads + 31) / 32);
    block.shared.resize(kSharedBytes / sizeof(float4));
    std::memset(block.shared.data(), 0xff, kSharedBytes);
    for (Fiber& fiber : block.fibers) {
        if (!fiber.stack) fiber.stack = std::make_unique_for_overwrite<char[]>(kStack);
#ifdef __SANITIZE_ADDRESS__
        __asan_unpoison_memory_region(fiber.stack.get(), kStack);  // of the frames that a fiber before left there
#endif
        make(fiber.context, fiber.stack.get(), kStack, &begin_fiber);
        fiber.waits = Waits::no;
        fiber.shuffles = 0;
    }
}

// Lets go whoever waits for a group of fibers that has come together. Those that are done are not waited for.
inline bool release(Block& block, std::size_t first, std::size_t count, Waits what) {
    bool any = false;
    for (std::size_t i = first; i < first + count; ++i) {
        if (block.fibers[i].waits == Waits::done) continue;
        if (block.fibers[i].waits != what) return false;
        any = true;
    }
    for (std::size_t i = first; i < first + count; ++i) {
        if (block.fibers[i].waits == what) block.fibers[i].waits = Waits::no;
    }
    return any;
}

// One turn of a block. False where none of its threads could go on.
inline bool run_some(Block& block, const std::vector<unsigned>& order, std::mt19937* random) {
    const std::size_t threads = block.fibers.size();
    bool moved = false;
    running_block = &block;
    blockIdx = block.index;
    const std::uint32_t idle = random != nullptr ? static_cast<std::uint32_t>((*random)()) : 0;
    for (const unsigned thread : order) {
        if (block.fibers[thread].waits != Waits::no) continue;
        moved = true;
        if ((idle >> (thread / 32) & 1U) != 0) continue;
        running = &block.fibers[thread];
        threadIdx.x = thread;
        change(scheduler, running->context);
    }
    for (std::size_t warp = 0; warp < threads; warp += 32) moved |= release(block, warp, 32, Waits::for_warp);
    moved |= release(block, 0, threads, Waits::for_block);
    block.busy = !std::all_of(block.fibers.begin(), block.fibers.end(),
                              [](const Fiber& fiber) { return fiber.waits == Waits::done; });
    return moved || !block.busy;
}

inline std::vector<unsigned> order_of(unsigned count, unsigned seed) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0U);
    if (seed == 1) std::reverse(order.begin(), order.end());
    if (seed > 1) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    return order;
}

// seed 0: threads and blocks in order; 1: backwards; else by the seed. False where threads wait for each other for ever.
inline bool run_grid(unsigned blocks_x, unsigned blocks_y, unsigned threads, unsigned seed, void (*function)(void*),
                     void* arguments) {
    body = function;
    body_arguments = arguments;
    gridDim = {blocks_x, blocks_y, 1};
    blockDim = {threads, 1, 1};
    for (Block& block : blocks) block.busy = false;
    std::mt19937 random(seed);
    const std::vector<unsigned> order = order_of(threads, seed);
    const std::vector<unsigned> indices = order_of(blocks_x * blocks_y, seed);
    auto next = indices.begin();
    for (;;) {
        bool any = false, moved = false;
        for (Block& block : blocks) {
            if (!block.busy && next != indices.end()) {
                begin_block(block, {*next % blocks_x, *next / blocks_x, 0}, threads);
                ++next;
            }
            if (!block.busy) continue;
            any = true;
            moved |= run_some(block, order, seed > 1 ? &random : nullptr);
        }
        if (!any) return true;
        if (!moved) return false;
    }
}

template <class T>
T exchange(T value, unsigned from) {
    const unsigned lane = threadIdx.x % 32;
    auto& slots = running_block->exchanged[threadIdx.x / 32][running->shuffles++ % 2];
    slots[lane] = 0;
    std::memcpy(&slots[lane], &value, sizeof(T));
    wait(Waits::for_warp);
    T result;
    std::memcpy(&result, &slots[from % 32], sizeof(T));
    return result;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::Waits::for_block); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned, T value, int lane) { return emulation::exchange(value, static_cast<unsigned>(lane)); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulation::exchange(value, (threadIdx.x % 32) ^ static_cast<unsigned>(mask));
}

template <class T>
T atomicAdd(T* to, T value) { return std::exchange(*to, static_cast<T>(*to + value)); }

template <class T>
T __ldg(const T* from) { return *from; }
template <class T>
T __ldcg(const T* from) { return *from; }
template <class T>
T __ldcs(const T* from) { return *from; }

inline float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float fminf(float a, float b) { return __builtin_fminf(a, b); }
inline float fmaxf(float a, float b) { return __builtin_fmaxf(a, b); }
