// Runs kernels on the processor, for their correctness alone: the .cu files are compiled as C++ with this header in place of CUDA.
//
// One block at a time; each thread is a fiber that runs until it waits. Threads of a warp that exchange values, and threads of a
// block at a barrier, wait for each other as on a device. What the model is stricter about than a device: shared memory is
// filled with NaNs before each block; a barrier at which threads arrive from different places, a wait that nobody ends, and a
// write beyond a buffer end the program with a sentence.
//
// What it cannot show: races that need two threads at the same time, the memory model, bank conflicts, speed, and the
// rounding of approximate functions (those of the C library stand in, which are nearer to the true values).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define DEVICE inline
#define KERNEL extern "C" void
#define EXPORT(name) static const cusim::Registration registered_##name{#name, &name};
#define SHARED(type, name, length) auto& name = cusim::shared<type[length], __COUNTER__>()

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace cusim {

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- Threads -------------------------------------------------------------------------------------------------------

enum class Wait { None, Warp, Block, Over };

struct Thread {
    dim3 index;
    unsigned lane, warp;
    Wait wait = Wait::None;
    void* stack_pointer;
};

struct Warp {
    // Threads that have not ended, and those of them that wait.
    unsigned live = 0, waiting = 0;
    // What lanes show each other: of this exchange and of the one before, which slower lanes still read.
    alignas(16) char shown[2][32][64];
    unsigned exchange = 0;
};

struct Block {
    dim3 grid, size, index;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    unsigned live = 0, waiting = 0;
    // Where the threads that wait came from.
    unsigned barrier_line = 0;
    Thread* current = nullptr;
    void* scheduler_stack_pointer = nullptr;
    std::function<void()> body;
    // Waits that ended and threads that did: a round of all threads without one is a deadlock.
    uint64_t events = 0;
};

extern Block block;

// Runs the kernel `body` on every block of a grid.
void launch(dim3 grid, dim3 size, std::function<void()> body);

void wait_for_warp();
void wait_for_block(unsigned line);

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

struct SharedArray {
    void* start;
    size_t bytes;
};
extern std::vector<SharedArray> shared_arrays;

inline void poison(const SharedArray& array) { std::memset(array.start, 0xff, array.bytes); }

// The array that the block declares at a place of the source.
template <typename T, int Place>
T& shared() {
    alignas(1024) static std::remove_const_t<T> array;
    static const bool is_known = [] {
        shared_arrays.push_back({&array, sizeof(array)});
        poison(shared_arrays.back());
        return true;
    }();
    (void)is_known;
    return array;
}

// --- Kernels by name -----------------------------------------------------------------------------------------------

// An argument: a number's bytes, or the address of a buffer.
struct Argument {
    alignas(8) char bytes[8];

    template <typename T>
    T as() const {
        static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "parameters are numbers and pointers");
        std::remove_const_t<T> value;
        std::memcpy(&value, bytes, sizeof(T));
        return value;
    }
};

struct Kernel {
    std::string name;
    size_t parameters;
    std::function<void(const std::vector<Argument>&)> call;
};
std::vector<Kernel>& kernels();

struct Registration {
    template <typename... P>
    Registration(const char* name, void (*kernel)(P...)) {
        kernels().push_back({name, sizeof...(P), [kernel](const std::vector<Argument>& arguments) {
                                 spread<P...>(kernel, arguments, std::index_sequence_for<P...>{});
                             }});
    }

    template <typename... P, size_t... I>
    static void spread(void (*kernel)(P...), const std::vector<Argument>& arguments, std::index_sequence<I...>) {
        kernel(arguments[I].as<P>()...);
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

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
