// CUDA as far as csrc/cuda/ needs it, on the CPU: included before a generated source, which g++ then compiles.
//
// Each thread of a block is a fiber with a stack of its own. A fiber runs until it waits: at __syncthreads for all
// threads of its block, at a shuffle for all lanes of its warp. Between two such points the threads run one after the
// other, in an order that the caller chooses (forwards, backwards, or shuffled by a seed), blocks likewise. So code that
// lacks a barrier does not work by luck: what a thread reads too early has not been written in one order or another.
// Shared memory is filled with NaN before each block. A block whose fibers all wait and cannot go on is reported.
//
// Not emulated: that memory is seen late by other blocks (fences do nothing), warps that run apart between shuffles, and
// speed.
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

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)

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
alignas(16) float4 trimtab_shared[kSharedBytes / sizeof(float4)];

namespace emulation {

enum class Waits : std::uint8_t { no, for_warp, for_block, done };

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Waits waits = Waits::no;
    unsigned shuffles = 0;  // that it took part in
};

constexpr std::size_t kStack = 128 * 1024;

struct Block {
    std::vector<Fiber> fibers;
    std::vector<std::array<std::array<std::uint64_t, 32>, 2>> exchanged;  // by warp and by whether the shuffle is odd
    ucontext_t scheduler;
    unsigned running = 0;
    void (*body)(void*) = nullptr;
    void* arguments = nullptr;
};

inline Block block;

inline void wait(Waits what) {
    Fiber& fiber = block.fibers[block.running];
    fiber.waits = what;
    swapcontext(&fiber.context, &block.scheduler);
}

inline void begin_fiber() {
    block.body(block.arguments);
    block.fibers[block.running].waits = Waits::done;
    swapcontext(&block.fibers[block.running].context, &block.scheduler);
}

// Lets go whoever waits for a group of fibers that has come together. Those that are done are not waited for.
inline bool release(std::size_t first, std::size_t count, Waits what) {
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

// False where the fibers wait for each other for ever.
inline bool run_block(const std::vector<unsigned>& order) {
    const std::size_t threads = block.fibers.size();
    for (Fiber& fiber : block.fibers) {
        if (!fiber.stack) fiber.stack = std::make_unique<char[]>(kStack);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStack;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, &begin_fiber, 0);
        fiber.waits = Waits::no;
        fiber.shuffles = 0;
    }
    for (;;) {
        bool moved = false;
        for (const unsigned thread : order) {
            if (block.fibers[thread].waits != Waits::no) continue;
            block.running = thread;
            threadIdx.x = thread;
            swapcontext(&block.scheduler, &block.fibers[thread].context);
            moved = true;
        }
        for (std::size_t warp = 0; warp < threads; warp += 32) moved |= release(warp, 32, Waits::for_warp);
        moved |= release(0, threads, Waits::for_block);
        if (moved) continue;
        return std::all_of(block.fibers.begin(), block.fibers.end(),
                           [](const Fiber& fiber) { return fiber.waits == Waits::done; });
    }
}

inline std::vector<unsigned> order_of(unsigned count, unsigned seed) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0U);
    if (seed == 1) std::reverse(order.begin(), order.end());
    if (seed > 1) std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    return order;
}

// seed 0: threads and blocks in order; 1: backwards; else shuffled.
inline bool run_grid(unsigned blocks_x, unsigned blocks_y, unsigned threads, unsigned seed, void (*body)(void*),
                     void* arguments) {
    block.body = body;
    block.arguments = arguments;
    block.fibers.resize(threads);
    block.exchanged.resize((threads + 31) / 32);
    gridDim = {blocks_x, blocks_y, 1};
    blockDim = {threads, 1, 1};
    const std::vector<unsigned> order = order_of(threads, seed);
    for (const unsigned index : order_of(blocks_x * blocks_y, seed)) {
        blockIdx = {index % blocks_x, index / blocks_x, 0};
        std::memset(trimtab_shared, 0xff, sizeof(trimtab_shared));
        if (!run_block(order)) return false;
    }
    return true;
}

template <class T>
T exchange(T value, unsigned from) {
    Fiber& fiber = block.fibers[block.running];
    const unsigned lane = threadIdx.x % 32;
    auto& slots = block.exchanged[threadIdx.x / 32][fiber.shuffles++ % 2];
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
