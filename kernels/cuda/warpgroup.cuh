// The matrix instruction of Hopper (sm_90a, no other architecture): four warps, a warpgroup, multiply 64 x 16 elements, which they
// have in registers, by 16 x 128 in shared memory, while they go on. PTX ISA, wgmma.mma_async.
//
// Registers: warp w of the four has rows 16 w to 16 w + 15, as RowsOperand and Sums of the instruction of one warp have them (PTX ISA,
// "Register fragments for wgmma.mma_async.m64nNk16").
//
// Between the call that asks for products and the wait that covers them, neither sums nor the operand in registers may be touched,
// nor what lies in shared memory be written. Before the first call of a group stands a fence: behind it the instruction sees what
// was written to registers.
#pragma once

#include "ptx.cuh"

constexpr unsigned WARPGROUP = 4 * WARP;
constexpr unsigned WARPGROUP_ROWS = 64;
// Columns of the product, and its Sums of a thread.
constexpr unsigned WARPGROUP_COLUMNS = 128;
constexpr unsigned WARPGROUP_SUMS = WARPGROUP_COLUMNS / 8;

// Of the operand in shared memory: eight columns x eight elements, 16 neighbouring bytes a column, 128 neighbouring bytes in all
// (PTX ISA, "Shared memory matrix layout" without swizzling, K-major: a "core matrix").
constexpr unsigned CORE_COLUMNS = 8;
constexpr unsigned CORE_BYTES = 128;

// Where an operand lies in shared memory: its first core matrix, the bytes from there to that of the other eight elements, and those
// to that of the next eight columns, all multiples of 16 below 256 Ki. PTX ISA, "Matrix descriptor format": bits 0 to 13 have
// the address, 16 to 29 the leading dimension's offset, 32 to 45 the stride dimension's, each without its lowest four bits; zeros
// in bits 62 and 63 are no swizzling.
DEVICE u64 describe_columns(u32 address, u32 to_next_elements, u32 to_next_columns) {
    auto field = [](u32 bytes) { return u64((bytes & 0x3ffff) >> 4); };
    return field(address) | field(to_next_elements) << 16 | field(to_next_columns) << 32;
}

#ifdef CUSIM

// Where it lies in the block's shared memory.
inline u32 shared_address(const void* in_shared_memory) { return cusim::shared_address(in_shared_memory); }

namespace cusim {

// What a thread has asked its warpgroup to multiply. Strict: sums are no numbers from the first request until the wait that covers the
// last one, and what lies in shared memory is read as late as that wait. A request without its fence, and registers that
// were written meanwhile, end the program.
class Multiplications {
   public:
    static Multiplications& of_thread() {
        // Never destroyed: a launch may still run while the process ends.
        static auto& threads = *new std::vector<Multiplications>(1024);
        Multiplications& own = threads[block.current->warp * 32 + block.current->lane];
        if (own.block_ != block.serial) {
            if (!own.requests_.empty()) fail("a thread of the block before ended without waiting for what it multiplied");
            own.block_ = block.serial;
            own.committed_ = 0;
            own.is_fenced_ = false;
        }
        return own;
    }

    void fence() { is_fenced_ = true; }

    template <typename T>
    void request(Sums* sums, const RowsOperand& rows, u64 columns) {
        if (!is_fenced_) fail("%s: a warpgroup multiplies without a fence", block.kernel);
        if (requests_.empty()) {
            sums_ = sums;
            std::memcpy(chain_, sums, sizeof(chain_));
            poison(sums, sizeof(chain_));
        }
        if (sums != sums_) fail("%s: a warpgroup adds to other sums before it has waited", block.kernel);
        Request request = {&rows, rows, columns, committed_, {}, &element<T>};
        // A thread multiplies two rows of its warp, of which four lanes have the elements.
        Exchanged<RowsOperand> lanes(rows);
        unsigned lane = block.current->lane;
        for (unsigned k = 0; k < 16; ++k) {
            const RowsOperand& of_quad = lanes.of(lane / 4 * 4 + k % 8 / 2);
            for (unsigned row = 0; row < 2; ++row) {
                request.rows[row][k] = element<T>(reinterpret_cast<const char*>(&of_quad.pair[row + k / 8 * 2]) + k % 2 * 2);
            }
        }
        requests_.push_back(request);
    }

    void commit() {
        ++committed_;
        is_fenced_ = false;
    }

    // All but those of the last `pending` groups. What was not committed belongs to none.
    void wait(unsigned pending) {
        size_t done = 0;
        for (; done < requests_.size() && requests_[done].group + pending < committed_; ++done) {
            multiply(requests_[done]);
        }
        if (done == 0) return;
        requests_.erase(requests_.begin(), requests_.begin() + std::ptrdiff_t(done));
        if (!requests_.empty()) return;
        char untouched[sizeof(chain_)];
        poison(untouched, sizeof(untouched));
        if (std::memcmp(sums_, untouched, sizeof(untouched)) != 0) fail("%s: sums were written before the wait", block.kernel);
        std::memcpy(sums_, chain_, sizeof(chain_));
    }

   private:
    struct Request {
        const RowsOperand* operand;
        RowsOperand bits;
        u64 columns;
        unsigned group;
        float rows[2][16];
        float (*element)(const char*);
    };

    template <typename T>
    static float element(const char* at) {
        T value;
        std::memcpy(&value, at, sizeof(value));
        return to_f32(value);
    }

    void multiply(const Request& request) {
        if (std::memcmp(request.operand, &request.bits, sizeof(RowsOperand)) != 0) {
            fail("%s: an operand in registers was written before the wait", block.kernel);
        }
        auto field = [&](unsigned bit) { return u32(request.columns >> bit & 0x3fff) << 4; };
        u32 address = field(0), to_next_elements = field(16), to_next_columns = field(32);
        if (request.columns >> 46 != 0) fail("%s: operands with an offset or swizzled are not simulated", block.kernel);
        for (unsigned tile = 0; tile < WARPGROUP_SUMS; ++tile) {
            for (unsigned next = 0; next < 2; ++next) {
                unsigned column = block.current->lane % 4 * 2 + next;
                float elements[16];
                for (unsigned half = 0; half < 2; ++half) {
                    u32 core = address + half * to_next_elements + tile * to_next_columns;
                    const char* from = shared_at(core + column * 16, 16);
                    for (unsigned i = 0; i < 8; ++i) elements[half * 8 + i] = request.element(from + i * 2);
                }
                // In the order of `multiply_add`, unless a test wants a device that has another one.
                static const bool is_descending = std::getenv("CUSIM_WGMMA_DESCENDING") != nullptr;
                for (unsigned row = 0; row < 2; ++row) {
                    float& sum = chain_[tile].at[row * 2 + next];
                    for (unsigned i = 0; i < 16; ++i) {
                        unsigned k = is_descending ? 15 - i : i;
                        sum += request.rows[row][k] * elements[k];
                    }
                }
            }
        }
    }

    uint64_t block_ = 0;
    std::vector<Request> requests_;
    unsigned committed_ = 0;
    bool is_fenced_ = false;
    // Of the requests that are not done: where their sums are, and what they are so far.
    Sums* sums_ = nullptr;
    Sums chain_[WARPGROUP_SUMS];
};

}  // namespace cusim

template <typename T>
void multiply_add_async(Sums (&sums)[WARPGROUP_SUMS], const RowsOperand& rows, u64 columns) {
    cusim::Multiplications::of_thread().request<T>(sums, rows, columns);
}

inline void fence_registers() { cusim::Multiplications::of_thread().fence(); }
inline void commit_products() { cusim::Multiplications::of_thread().commit(); }

template <unsigned PENDING>
void wait_for_products() { cusim::Multiplications::of_thread().wait(PENDING); }

// Nothing lies between the processor and shared memory.
inline void publish_to_products() {}

#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

DEVICE u32 shared_address(const void* in_shared_memory) { return u32(__cvta_generic_to_shared(in_shared_memory)); }

// sums += rows x columns, which `describe_columns` describes.
template <typename T>
DEVICE void multiply_add_async(Sums (&sums)[WARPGROUP_SUMS], const RowsOperand& rows, u64 columns);

#define SUMS_OF(AT) "+f"(sums[AT].at[0]), "+f"(sums[AT].at[1]), "+f"(sums[AT].at[2]), "+f"(sums[AT].at[3])

// The predicate says that sums are added to; the numbers behind it that neither operand changes its sign, and that the eight elements of
// a column are neighbours.
#define MULTIPLY_ADD_ASYNC(T, NAME)                                                                                  \
    template <>                                                                                                      \
    DEVICE void multiply_add_async<T>(Sums(&sums)[WARPGROUP_SUMS], const RowsOperand& rows, u64 columns) {           \
        asm volatile(                                                                                                \
            "{\n"                                                                                                    \
            ".reg .pred adds;\n"                                                                                     \
            "setp.eq.u32 adds, 0, 0;\n"                                                                              \
            "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " "                                         \
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                \
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                       \
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                       \
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                      \
            "{%64, %65, %66, %67}, %68, adds, 1, 1, 0;\n"                                                            \
            "}"                                                                                                      \
            : SUMS_OF(0), SUMS_OF(1), SUMS_OF(2), SUMS_OF(3), SUMS_OF(4), SUMS_OF(5), SUMS_OF(6), SUMS_OF(7),        \
              SUMS_OF(8), SUMS_OF(9), SUMS_OF(10), SUMS_OF(11), SUMS_OF(12), SUMS_OF(13), SUMS_OF(14), SUMS_OF(15)   \
            : "r"(rows.pair[0]), "r"(rows.pair[1]), "r"(rows.pair[2]), "r"(rows.pair[3]), "l"(columns));             \
    }
MULTIPLY_ADD_ASYNC(bf16, "bf16")
MULTIPLY_ADD_ASYNC(f16, "f16")

// Before the first product of a group. PTX ISA, wgmma.fence.
DEVICE void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Makes a group of the products that the warp has asked for since the last one. PTX ISA, wgmma.commit_group.
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until the products are done, but for those of the last PENDING groups. PTX ISA, wgmma.wait_group.
template <unsigned PENDING>
DEVICE void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

// Of who has written to shared memory, before the barrier behind which it is multiplied: the instruction reads past the way that
// stores take. PTX ISA, fence.proxy.async.
DEVICE void publish_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif
