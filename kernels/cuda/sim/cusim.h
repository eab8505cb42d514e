// Runs kernels on the processor, for their correctness alone: the .cu files are compiled as C++ with this header in place of CUDA.
// `program.cc` makes a program of them that runs one launch, `driver.cc` a library that takes the place of libcuda and NVRTC, with which
// `nccl.cc` has several devices work together.
//
// One block at a time; each thread is a fiber that runs until it waits. Threads of a warp that exchange values, and threads of a
// block at a barrier, wait for each other as on a device; one that waits for another process says so (`spin`), or nobody else would
// run. What the model is stricter about than a device: shared memory is filled with NaNs before each block; a barrier at which threads
// arrive from different places, a wait that nobody of the block ends, and a write beyond a buffer end the program with a sentence.
//
// What it cannot show: races that need two threads at the same time, the memory model, bank conflicts, speed, and the
// rounding of approximate functions (those of the C library stand in, which are nearer to the true values).
#pragma once

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
// Inlined by force, as on a device. Files of kernels give functions of their own the same names, of which a linker would keep one.
#define DEVICE inline __attribute__((always_inline))
#define KERNEL extern "C" void
#define EXPORT(name) static const cusim::Registration registered_##name{#name, __FILE__, &name};
#define SHARED(type, name, length) auto& name = cusim::shared<type[length], __COUNTER__>()

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// Without the detour that a library takes to what others could define as well.
#define HIDDEN __attribute__((visibility("hidden")))

namespace cusim {

// Ends the process with a sentence.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- Threads -------------------------------------------------------------------------------------------------------

struct Thread {
    dim3 index;
    unsigned lane, warp;
    void* stack_pointer;
};

// Sets of lanes: those that have not ended, and of them those that may run, that wait for their warp, that wait for their block, that wait
// for another process. The lane that runs is in none of the last four.
struct Warp {
    uint32_t live, ready, waiting, at_barrier, spinning;
    // What lanes show each other: of this exchange and of the one before, which slower lanes still read.
    unsigned exchange;
    alignas(16) char shown[2][32][64];
};

// An array in shared memory: where it is here, and where on a device, at a multiple of 16.
struct SharedArray {
    char* start;
    uint32_t address;
    size_t bytes;
};

struct Block {
    const char* kernel;
    dim3 grid, size, index;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    // Threads that have not ended, and those of them that wait for the block.
    unsigned live = 0, waiting = 0;
    // Where the threads that wait came from.
    unsigned barrier_line = 0;
    Thread* current = nullptr;
    void* scheduler_stack_pointer = nullptr;
    std::function<void()> body;
    // A number of its own among all blocks that ever ran, and its arrays in shared memory so far, one behind the other, and their bytes.
    uint64_t serial = 0;
    std::vector<SharedArray> shared_arrays;
    size_t shared_bytes = 0, dynamic_shared_bytes = 0;
};

HIDDEN extern Block block;

// Runs a kernel, of one thread `body`, on every block of a grid. One launch at a time, from any thread.
void launch(const char* kernel, dim3 grid, dim3 size, size_t dynamic_shared_bytes, std::function<void()> body);

void wait_for_warp();
void wait_for_block(unsigned line);

// Of a thread that looks again and again for what another process writes: all others have their turn before it goes on.
void spin();

// Of a process that ends: whether the kernel that runs, if one does, is one that spins, and from now on never goes on.
bool stop_spinning();

// What the lanes of the calling thread's warp pass to an exchange; of lanes that have ended, anything. It is there until the
// thread takes part in the next one.
template <typename T>
class Exchanged {
   public:
    explicit Exchanged(const T& value) {
        static_assert(sizeof(T) <= 64 && alignof(T) <= 16, "a lane shows that much");
        Warp& warp = block.warps[block.current->warp];
        shown_ = warp.shown[warp.exchange];
        std::memcpy(shown_[block.current->lane], &value, sizeof(T));
        wait_for_warp();
    }

    const T& of(unsigned lane) const { return *reinterpret_cast<const T*>(shown_[lane % 32]); }

   private:
    char (*shown_)[64];
};

// --- Shared memory -------------------------------------------------------------------------------------------------

// What a block may have in arrays that kernels declare, and with those whose length the launch says.
constexpr size_t STATIC_SHARED_BYTES = 48 << 10;
constexpr size_t SHARED_BYTES = 227 << 10;

// Makes no numbers of bytes.
inline void poison(void* start, size_t bytes) { std::memset(start, 0xff, bytes); }

// Poisons an array that a block comes to for the first time, and counts it.
void begin_shared(void* array, size_t bytes);

// The array that the block declares at a place of the source.
template <typename T, int Place>
T& shared() {
    alignas(1024) static std::remove_const_t<T> array;
    static uint64_t last_block = 0;
    if (last_block != block.serial) {
        last_block = block.serial;
        begin_shared(&array, sizeof(array));
    }
    return array;
}

// The bytes whose number the launch says, at a multiple of 1024.
void* dynamic_shared();

// Where a byte of a declared array lies in the block's shared memory, as instructions are told that take no pointers; and the bytes from
// such an address on, which lie in one array or end the program.
uint32_t shared_address(const void* byte);
const char* shared_at(uint32_t address, size_t bytes);

// --- Kernels by name -----------------------------------------------------------------------------------------------

struct Parameter {
    size_t bytes;
    bool is_pointer;
};

struct Kernel {
    std::string name, file;
    std::vector<Parameter> parameters;
    // Of the calling thread, with the address of every argument.
    std::function<void(const void* const*)> call;
};
std::vector<Kernel>& kernels();

struct Registration {
    template <typename... P>
    Registration(const char* name, const char* file, void (*kernel)(P...)) {
        static_assert((std::is_trivially_copyable_v<P> && ...), "arguments are copied byte by byte");
        kernels().push_back({name, file, {{sizeof(P), std::is_pointer_v<P>}...}, [kernel](const void* const* arguments) {
                                 spread<P...>(kernel, arguments, std::index_sequence_for<P...>{});
                             }});
    }

    template <typename... P, size_t... I>
    static void spread(void (*kernel)(P...), [[maybe_unused]] const void* const* arguments, std::index_sequence<I...>) {
        kernel(copy<P>(arguments[I])...);
    }

    template <typename T>
    static T copy(const void* argument) {
        T value;
        std::memcpy(&value, argument, sizeof(T));
        return value;
    }
};

}  // namespace cusim

// --- What CUDA declares --------------------------------------------------------------------------------------------

#define threadIdx (cusim::block.current->index)
#define blockIdx (cusim::block.index)
#define blockDim (cusim::block.size)
#define gridDim (cusim::block.grid)
#define __syncthreads() cusim::wait_for_block(__LINE__)
#define __syncwarp(...) cusim::wait_for_warp()

template <typename T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    return cusim::Exchanged<T>(value).of(cusim::block.current->lane ^ distance);
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return cusim::Exchanged<T>(value).of(lane);
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

inline float __uint_as_float(unsigned x) {
    float value;
    std::memcpy(&value, &x, sizeof(value));
    return value;
}

// To nearest, ties to even; no number is zero.
inline int __float2int_rn(float x) { return std::isnan(x) ? 0 : int(std::nearbyint(x)); }

// One thread runs at a time.
template <typename T>
T atomicAdd(T* at, T x) {
    T before = *at;
    *at += x;
    return before;
}

template <typename T>
T atomicOr(T* at, T x) {
    T before = *at;
    *at |= x;
    return before;
}

inline bool __any_sync(unsigned, bool value) {
    cusim::Exchanged<bool> lanes(value);
    bool any = false;
    for (unsigned lane = 0; lane < 32; ++lane) any |= lanes.of(lane);
    return any;
}

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
// No addition is contracted with it: for x86-64, compilers do so only where they are told that the machine can.
inline float __fmul_rn(float a, float b) { return a * b; }
