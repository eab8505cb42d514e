// The simulator: fibers, barriers, and a program that runs one kernel. It reads a launch from its standard input and writes
// the buffers to its standard output; `tests/simulator/mod.rs` has the other side.
#include "cusim.h"

#include <cstdarg>
#include <new>

namespace cusim {

Block block;
std::vector<SharedArray> shared_arrays;

std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    std::fputc('\n', stderr);
    std::exit(1);
}

// --- Fibers --------------------------------------------------------------------------------------------------------

constexpr size_t STACK_BYTES = 128 << 10;

// Saves the callee-saved registers on this stack, keeps its pointer in *from, and goes on where `to` was left.
extern "C" void cusim_switch(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl cusim_switch
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
)");
constexpr size_t SAVED_REGISTERS = 6;
#else
#error "fibers are written for x86-64"
#endif

static void yield() { cusim_switch(&block.current->stack_pointer, block.scheduler_stack_pointer); }

static void release_warp(unsigned index) {
    Warp& warp = block.warps[index];
    warp.waiting = 0;
    warp.exchange ^= 1;
    block.events++;
    for (Thread& thread : block.threads) {
        if (thread.warp == index && thread.wait == Wait::Warp) thread.wait = Wait::None;
    }
}

static void release_block() {
    block.waiting = 0;
    block.events++;
    for (Thread& thread : block.threads) {
        if (thread.wait == Wait::Block) thread.wait = Wait::None;
    }
}

void wait_for_warp() {
    Thread& self = *block.current;
    Warp& warp = block.warps[self.warp];
    if (++warp.waiting == warp.live) return release_warp(self.warp);
    self.wait = Wait::Warp;
    yield();
}

void wait_for_block(unsigned line) {
    if (block.waiting > 0 && block.barrier_line != line) {
        fail("block (%u, %u, %u): threads wait at the barriers of lines %u and %u", block.index.x, block.index.y, block.index.z,
             block.barrier_line, line);
    }
    block.barrier_line = line;
    if (++block.waiting == block.live) return release_block();
    block.current->wait = Wait::Block;
    yield();
}

// The first frame of every fiber.
static void run_thread() {
    block.body();
    Thread& self = *block.current;
    Warp& warp = block.warps[self.warp];
    self.wait = Wait::Over;
    block.events++;
    block.live--;
    warp.live--;
    // Who ended is waited for no longer.
    if (warp.live > 0 && warp.waiting == warp.live) release_warp(self.warp);
    if (block.live > 0 && block.waiting == block.live) release_block();
    yield();
    fail("a thread went on after its end");
}

static void run_block(std::vector<char*>& stacks) {
    unsigned count = block.size.x * block.size.y * block.size.z;
    block.threads.assign(count, Thread{});
    block.warps.assign((count + 31) / 32, Warp{});
    block.live = count;
    block.waiting = 0;
    for (const SharedArray& array : shared_arrays) poison(array);
    for (unsigned at = 0; at < count; ++at) {
        Thread& thread = block.threads[at];
        thread.index = {at % block.size.x, at / block.size.x % block.size.y, at / block.size.x / block.size.y};
        thread.lane = at % 32;
        thread.warp = at / 32;
        block.warps[thread.warp].live++;
        // As `cusim_switch` leaves a stack: saved registers, then where to return to. The word above stands for the return address of
        // `run_thread`, which keeps its frame aligned as the calling convention demands.
        void** top = reinterpret_cast<void**>(stacks[at] + STACK_BYTES - 64);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(&run_thread);
        for (size_t i = 0; i < SAVED_REGISTERS; ++i) *--top = nullptr;
        thread.stack_pointer = top;
    }
    while (block.live > 0) {
        uint64_t before = block.events;
        for (Thread& thread : block.threads) {
            if (thread.wait != Wait::None) continue;
            block.current = &thread;
            cusim_switch(&block.scheduler_stack_pointer, thread.stack_pointer);
        }
        if (block.events == before) {
            fail("block (%u, %u, %u): %u threads wait for others that never come", block.index.x, block.index.y, block.index.z,
                 block.live);
        }
    }
}

void launch(dim3 grid, dim3 size, std::function<void()> body) {
    block.grid = grid;
    block.size = size;
    block.body = std::move(body);
    std::vector<char*> stacks(size_t(size.x) * size.y * size.z);
    for (char*& stack : stacks) stack = static_cast<char*>(std::aligned_alloc(64, STACK_BYTES));
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                block.index = {x, y, z};
                run_block(stacks);
            }
        }
    }
    for (char* stack : stacks) std::free(stack);
}

// --- One launch ----------------------------------------------------------------------------------------------------

static void read_exactly(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) fail("the launch ends early");
}

static uint64_t read_number() {
    uint64_t number;
    read_exactly(&number, sizeof(number));
    return number;
}

// A device buffer: the bytes of the launch between two fields of guards, which AddressSanitizer brings along.
class Buffer {
   public:
    explicit Buffer(size_t bytes)
        : bytes_(bytes), memory_(static_cast<char*>(::operator new(padded(bytes), std::align_val_t{ALIGNMENT}))) {
        std::memset(memory_, PATTERN, padded(bytes));
        read_exactly(start(), bytes);
    }

    char* start() { return memory_ + GUARD; }
    size_t bytes() const { return bytes_; }

    bool is_intact() {
        for (size_t at = 0; at < padded(bytes_); ++at) {
            bool inside = at >= GUARD && at < GUARD + bytes_;
            if (!inside && memory_[at] != PATTERN) return false;
        }
        return true;
    }

   private:
    // As allocations of a device are at least.
    static constexpr size_t ALIGNMENT = 256;
#ifdef __SANITIZE_ADDRESS__
    static constexpr size_t GUARD = 0;
#else
    static constexpr size_t GUARD = ALIGNMENT;
#endif
    static constexpr char PATTERN = 0x5a;
    static size_t padded(size_t bytes) { return bytes + 2 * GUARD; }

    size_t bytes_;
    char* memory_;
};

// Numbers of eight bytes: length of the name and the name; grid and block; the arguments, each 0 and its eight bytes, or 1 and
// the length of a buffer and its bytes. The answer is the bytes of all buffers.
static int run() {
    std::string name(read_number(), '\0');
    read_exactly(name.data(), name.size());
    unsigned extents[6];
    for (unsigned& extent : extents) extent = unsigned(read_number());
    std::vector<Argument> arguments(read_number());
    std::vector<Buffer> buffers;
    for (Argument& argument : arguments) {
        if (read_number() == 0) {
            read_exactly(argument.bytes, sizeof(argument.bytes));
        } else {
            buffers.emplace_back(read_number());
            char* start = buffers.back().start();
            std::memcpy(argument.bytes, &start, sizeof(start));
        }
    }
    for (const Kernel& kernel : kernels()) {
        if (kernel.name != name) continue;
        if (kernel.parameters != arguments.size()) {
            fail("%s has %zu parameters, not %zu", name.c_str(), kernel.parameters, arguments.size());
        }
        launch({extents[0], extents[1], extents[2]}, {extents[3], extents[4], extents[5]}, [&] { kernel.call(arguments); });
        for (size_t at = 0; at < buffers.size(); ++at) {
            if (!buffers[at].is_intact()) fail("%s wrote beyond buffer %zu", name.c_str(), at);
            std::fwrite(buffers[at].start(), 1, buffers[at].bytes(), stdout);
        }
        return 0;
    }
    fail("there is no kernel %s", name.c_str());
}

}  // namespace cusim

int main() { return cusim::run(); }
