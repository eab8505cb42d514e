// The simulator: fibers, barriers and shared memory. Who runs kernels with it holds the one `block` there is, and nobody else does.
#include "cusim.h"

#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <random>

namespace cusim {

Block block;

std::vector<Kernel>& kernels() {
    // Never ended, like the stacks below: a thread may run kernels while the process ends.
    static auto& all = *new std::vector<Kernel>;
    return all;
}

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    // Without the end of others: this may be a fiber, and other threads go on in the meantime.
    std::_Exit(1);
}

// --- Fibers --------------------------------------------------------------------------------------------------------

constexpr size_t STACK_BYTES = 128 << 10;
constexpr size_t PAGE_BYTES = 4 << 10;

// Saves the callee-saved registers on this stack, keeps its pointer in *from, and goes on where `to` was left.
extern "C" HIDDEN void cusim_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl cusim_switch
.hidden cusim_switch
.type cusim_switch, @function
cusim_switch:
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
.size cusim_switch, . - cusim_switch
)");
constexpr size_t SAVED_REGISTERS = 6;
#else
#error "fibers are written for x86-64"
#endif

// Where a thread's stack begins, from which it grows downwards. Stacks are made once and kept. What lies below one cannot be
// touched, so that a kernel which needs more ends there.
static char* stack_top(size_t at) {
    static auto& tops = *new std::vector<char*>;
    while (tops.size() <= at) {
        void* pages = mmap(nullptr, PAGE_BYTES + STACK_BYTES, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
        if (pages == MAP_FAILED || mprotect(pages, PAGE_BYTES, PROT_NONE) != 0) fail("there is no memory for a stack");
        // At the same place of their pages, the stacks of a warp would all compete for the same lines of the caches.
        size_t offset = tops.size() * 17 % 128 * 64;
        tops.push_back(static_cast<char*>(pages) + PAGE_BYTES + STACK_BYTES - 64 - offset);
    }
    return tops[at];
}

static void yield() { cusim_switch(&block.current->stack_pointer, block.scheduler_stack_pointer); }

static uint32_t bit_of(const Thread& thread) { return uint32_t(1) << thread.lane; }

static void release_warp(Warp& warp) {
    warp.ready |= warp.waiting;
    warp.waiting = 0;
    warp.exchange ^= 1;
}

// Has other processes get ahead of a block that is at a barrier, by up to CUSIM_PAUSE_US microseconds.
static void pause_at_random() {
    static const char* const longest = std::getenv("CUSIM_PAUSE_US");
    static auto& random = *new std::minstd_rand(unsigned(getpid()));
    if (longest != nullptr) usleep(unsigned(random() % (std::strtoul(longest, nullptr, 10) + 1)));
}

static void release_block() {
    pause_at_random();
    block.waiting = 0;
    for (Warp& warp : block.warps) {
        warp.ready |= warp.at_barrier;
        warp.at_barrier = 0;
    }
}

void wait_for_warp() {
    const Thread& self = *block.current;
    Warp& warp = block.warps[self.warp];
    // The last to come goes on.
    if ((warp.waiting | bit_of(self)) == warp.live) return release_warp(warp);
    warp.waiting |= bit_of(self);
    yield();
}

void wait_for_block(unsigned line) {
    if (block.waiting > 0 && block.barrier_line != line) {
        fail("%s, block (%u, %u, %u): threads wait at the barriers of lines %u and %u", block.kernel, block.index.x, block.index.y,
             block.index.z, block.barrier_line, line);
    }
    block.barrier_line = line;
    if (++block.waiting == block.live) return release_block();
    const Thread& self = *block.current;
    block.warps[self.warp].at_barrier |= bit_of(self);
    yield();
}

void spin() {
    const Thread& self = *block.current;
    block.warps[self.warp].spinning |= bit_of(self);
    yield();
}

// Whether the process ends, and whether a kernel has found that and stopped for good.
static std::atomic<bool> is_ending{false}, has_stopped{false};

bool stop_spinning() {
    is_ending = true;
    return has_stopped;
}

// Between two rounds of a block whose threads all spin. Other processes need the processor for what they are waited for; at first not for
// long, as they come at about the same time.
static void let_processes_run(unsigned rounds) {
    constexpr unsigned QUICK_ROUNDS = 20;
    if (is_ending) {
        has_stopped = true;
        while (true) pause();
    }
    if (rounds < QUICK_ROUNDS) {
        sched_yield();
    } else {
        usleep(50);
    }
}

// The first frame of every fiber.
static void run_thread() {
    block.body();
    const Thread& self = *block.current;
    Warp& warp = block.warps[self.warp];
    warp.live &= ~bit_of(self);
    block.live--;
    // Who ended is waited for no longer.
    if (warp.waiting != 0 && warp.waiting == warp.live) release_warp(warp);
    if (block.waiting > 0 && block.waiting == block.live) release_block();
    yield();
    fail("a thread went on after its end");
}

// Warp after warp, each until none of its threads may run, or those that may only spin: what it works with stays in the caches.
static void run_block() {
    block.live = unsigned(block.threads.size());
    block.waiting = 0;
    for (unsigned at = 0; at < block.warps.size(); ++at) {
        unsigned lanes = std::min(32u, block.live - at * 32);
        Warp& warp = block.warps[at];
        warp.live = warp.ready = uint32_t((uint64_t(1) << lanes) - 1);
        warp.waiting = warp.at_barrier = warp.spinning = warp.exchange = 0;
    }
    for (unsigned at = 0; at < block.threads.size(); ++at) {
        // As `cusim_switch` leaves a stack: saved registers, then where to return to. The word above stands for the return address of
        // `run_thread`, which keeps its frame aligned as the calling convention demands.
        void** top = reinterpret_cast<void**>(stack_top(at));
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(&run_thread);
        for (size_t i = 0; i < SAVED_REGISTERS; ++i) *--top = nullptr;
        block.threads[at].stack_pointer = top;
    }
    // Rounds in which threads did nothing but spin.
    unsigned idle_rounds = 0;
    while (block.live > 0) {
        bool has_run = false, has_advanced = false;
        for (unsigned at = 0; at < block.warps.size(); ++at) {
            Warp& warp = block.warps[at];
            warp.ready |= warp.spinning;
            warp.spinning = 0;
            while (warp.ready != 0) {
                unsigned lane = unsigned(__builtin_ctz(warp.ready));
                warp.ready &= warp.ready - 1;
                block.current = &block.threads[at * 32 + lane];
                cusim_switch(&block.scheduler_stack_pointer, block.current->stack_pointer);
                has_run = true;
                has_advanced |= (warp.spinning >> lane & 1) == 0;
            }
        }
        if (has_run && !has_advanced) {
            let_processes_run(idle_rounds++);
        } else if (has_run) {
            idle_rounds = 0;
        } else {
            fail("%s, block (%u, %u, %u): %u threads wait for others that never come", block.kernel, block.index.x, block.index.y,
                 block.index.z, block.live);
        }
    }
}

// --- Shared memory -------------------------------------------------------------------------------------------------

// Behind the bytes that a block has, those that tell whether it wrote further.
constexpr size_t DYNAMIC_GUARD_BYTES = 1024;
constexpr char DYNAMIC_GUARD = 0x5a;
alignas(1024) static char dynamic_bytes[SHARED_BYTES + DYNAMIC_GUARD_BYTES];

void begin_shared(void* array, size_t bytes) {
    poison(array, bytes);
    uint32_t address = uint32_t(block.dynamic_shared_bytes + block.shared_bytes + 15) / 16 * 16;
    block.shared_arrays.push_back({static_cast<char*>(array), address, bytes});
    block.shared_bytes += bytes;
    if (block.shared_bytes > STATIC_SHARED_BYTES || block.shared_bytes + block.dynamic_shared_bytes > SHARED_BYTES) {
        fail("%s declares %zu bytes of shared memory, beside %zu of the launch", block.kernel, block.shared_bytes,
             block.dynamic_shared_bytes);
    }
}

void* dynamic_shared() { return dynamic_bytes; }

uint32_t shared_address(const void* byte) {
    for (const SharedArray& array : block.shared_arrays) {
        ptrdiff_t offset = static_cast<const char*>(byte) - array.start;
        if (offset >= 0 && size_t(offset) < array.bytes) return array.address + uint32_t(offset);
    }
    fail("%s: a pointer leads to no array in shared memory", block.kernel);
}

const char* shared_at(uint32_t address, size_t bytes) {
    for (const SharedArray& array : block.shared_arrays) {
        if (address >= array.address && address - array.address + bytes <= array.bytes) return array.start + (address - array.address);
    }
    fail("%s: %zu bytes at %u are in no array in shared memory", block.kernel, bytes, address);
}

static void begin_dynamic() {
    poison(dynamic_bytes, block.dynamic_shared_bytes);
    std::memset(dynamic_bytes + block.dynamic_shared_bytes, DYNAMIC_GUARD, DYNAMIC_GUARD_BYTES);
}

static void end_dynamic() {
    for (size_t at = 0; at < DYNAMIC_GUARD_BYTES; ++at) {
        if (dynamic_bytes[block.dynamic_shared_bytes + at] == DYNAMIC_GUARD) continue;
        fail("%s, block (%u, %u, %u) wrote beyond its %zu bytes of shared memory", block.kernel, block.index.x, block.index.y,
             block.index.z, block.dynamic_shared_bytes);
    }
}

// --- Launches ------------------------------------------------------------------------------------------------------

void launch(const char* kernel, dim3 grid, dim3 size, size_t dynamic_shared_bytes, std::function<void()> body) {
    block.kernel = kernel;
    block.grid = grid;
    block.size = size;
    block.dynamic_shared_bytes = dynamic_shared_bytes;
    block.body = std::move(body);
    block.threads.resize(size_t(size.x) * size.y * size.z);
    block.warps.resize((block.threads.size() + 31) / 32);
    for (unsigned at = 0; at < block.threads.size(); ++at) {
        Thread& thread = block.threads[at];
        thread.index = {at % size.x, at / size.x % size.y, at / size.x / size.y};
        thread.lane = at % 32;
        thread.warp = at / 32;
    }
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                block.index = {x, y, z};
                block.serial++;
                block.shared_arrays.clear();
                block.shared_bytes = 0;
                if (dynamic_shared_bytes > 0) begin_dynamic();
                run_block();
                if (dynamic_shared_bytes > 0) end_dynamic();
            }
        }
    }
}

}  // namespace cusim
