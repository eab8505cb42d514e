// Instructions that CUDA C++ has no name for, each wrapped once. The simulator has a model of each.
#pragma once

#include "types.cuh"

// The 16 x 16 operand of the matrix instruction: four pairs of elements of a lane, as `kv_cache.cuh` lays them out.
struct alignas(16) RowsOperand {
    u32 pair[4];
};

// The 16 x 8 operand: of column lane / 4 the rows lane % 4 * 2, the next, and those eight further on.
struct ColumnsOperand {
    u32 pair[2];
};

// 16 x 8 sums: of columns lane % 4 * 2 and the next the rows lane / 4, then lane / 4 + 8.
struct Sums {
    float at[4];
};

#ifdef CUSIM

template <typename T>
void multiply_add(Sums& sums, const RowsOperand& rows, const ColumnsOperand& columns) {
    // Every lane widens its own elements, once for all that read them.
    struct Lane {
        float rows[4][2], columns[2][2];
    } own;
    auto widen = [](u32 pair, float* to) {
        T elements[2];
        std::memcpy(elements, &pair, sizeof(pair));
        for (unsigned i = 0; i < 2; ++i) to[i] = to_f32(elements[i]);
    };
    for (unsigned i = 0; i < 4; ++i) widen(rows.pair[i], own.rows[i]);
    for (unsigned i = 0; i < 2; ++i) widen(columns.pair[i], own.columns[i]);
    cusim::Exchanged<Lane> lanes(own);
    unsigned lane = cusim::block.current->lane;
    for (unsigned k = 0; k < 16; ++k) {
        for (unsigned at = 0; at < 4; ++at) {
            const Lane& of_row = lanes.of(lane / 4 * 4 + k % 8 / 2);
            const Lane& of_col = lanes.of((lane % 4 * 2 + at % 2) * 4 + k % 8 / 2);
            sums.at[at] += of_row.rows[at / 2 + k / 8 * 2][k % 2] * of_col.columns[k / 8][k % 2];
        }
    }
}

#else

// sums += rows x columns. PTX ISA, mma.sync.aligned.m16n8k16.
template <typename T>
DEVICE void multiply_add(Sums& sums, const RowsOperand& rows, const ColumnsOperand& columns);

#define MULTIPLY_ADD(T, NAME)                                                                                        \
    template <>                                                                                                      \
    DEVICE void multiply_add<T>(Sums & sums, const RowsOperand& rows, const ColumnsOperand& columns) {               \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                                           \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                        \
            : "+f"(sums.at[0]), "+f"(sums.at[1]), "+f"(sums.at[2]), "+f"(sums.at[3])                                 \
            : "r"(rows.pair[0]), "r"(rows.pair[1]), "r"(rows.pair[2]), "r"(rows.pair[3]), "r"(columns.pair[0]),      \
              "r"(columns.pair[1]));                                                                                 \
    }
MULTIPLY_ADD(bf16, "bf16")
MULTIPLY_ADD(f16, "f16")

#endif

// Two neighbouring elements as the operands hold them, the first in the lower half.
template <typename T>
DEVICE u32 pair_of(T first, T second) {
    struct alignas(4) Pair {
        T at[2];
    } pair = {{first, second}};
    return *reinterpret_cast<const u32*>(&pair);
}

// --- Memory --------------------------------------------------------------------------------------------------------

// 16 bytes that nobody reads again: they take no place in L1. Volatile, and not ld.global.nc, so that they are requested where
// this stands: the assembler moves those behind a wait for other kernels, however volatile. PTX ISA, ld.
DEVICE RowsOperand load_once(const RowsOperand* from) {
#ifdef CUSIM
    return *from;
#else
    RowsOperand loaded;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(loaded.pair[0]), "=r"(loaded.pair[1]), "=r"(loaded.pair[2]), "=r"(loaded.pair[3])
                 : "l"(from));
    return loaded;
#endif
}

// Has L2 fetch bytes, a multiple of 16, that somebody wants later: while they are under way they take neither registers nor shared
// memory. Nothing before Hopper. PTX ISA, cp.async.bulk.prefetch.
DEVICE void prefetch(const void* from, unsigned bytes) {
#ifdef CUSIM
    // A device would fault only there, or not at all; here AddressSanitizer sees it.
    const volatile char* at = static_cast<const volatile char*>(from);
    (void)at[0], (void)at[bytes - 1];
#elif __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes));
#endif
}

#ifdef CUSIM

namespace cusim {

// What a thread copies without waiting for it. Strict: from the request on the destination is no number, and the bytes land at
// the wait that covers them, so a read too early finds NaNs, and so does one that a barrier should have put before the request.
class Copies {
   public:
    static Copies& of_thread() {
        // Never destroyed: a launch may still run while the process ends.
        static auto& threads = *new std::vector<Copies>(1024);
        Copies& copies = threads[block.current->warp * 32 + block.current->lane];
        if (copies.block_ != block.serial) {
            if (!copies.requests_.empty()) fail("a thread of the block before ended without waiting for what it copied");
            copies.block_ = block.serial;
            copies.committed_ = 0;
        }
        return copies;
    }

    void request(void* to, const void* from, bool exists) {
        Request request = {to, {}, committed_};
        if (exists) std::memcpy(request.bytes, from, sizeof(request.bytes));
        poison(to, sizeof(request.bytes));
        requests_.push_back(request);
    }

    void commit() { ++committed_; }

    // All but those of the last `pending` groups. What was not committed belongs to none.
    void wait(unsigned pending) {
        size_t landed = 0;
        while (landed < requests_.size() && requests_[landed].group + pending < committed_) {
            std::memcpy(requests_[landed].to, requests_[landed].bytes, sizeof(Request::bytes));
            ++landed;
        }
        requests_.erase(requests_.begin(), requests_.begin() + std::ptrdiff_t(landed));
    }

   private:
    struct Request {
        void* to;
        char bytes[16];
        unsigned group;
    };
    uint64_t block_ = 0;
    std::vector<Request> requests_;
    unsigned committed_ = 0;
};

}  // namespace cusim

#endif

// Copies 16 bytes into shared memory while the thread goes on, past L1; zeros where there is nothing to copy, and `from` is
// not read. PTX ISA, cp.async. The neighbours of what is copied are likely to be next: L2 fetches them at once.
DEVICE void copy_async(void* to, const void* from, bool exists) {
#ifdef CUSIM
    cusim::Copies::of_thread().request(to, from, exists);
#else
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(u32(__cvta_generic_to_shared(to))),
                 "l"(from), "r"(exists ? 16 : 0)
                 : "memory");
#endif
}

// Makes a group of the copies that the thread has requested since the last one, of none too.
DEVICE void commit_copies() {
#ifdef CUSIM
    cusim::Copies::of_thread().commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until the thread's copies have landed, but for those of the last PENDING groups. Other threads see them behind a barrier.
template <unsigned PENDING>
DEVICE void wait_for_copies() {
#ifdef CUSIM
    cusim::Copies::of_thread().wait(PENDING);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// --- Kernels that overlap ------------------------------------------------------------------------------------------

// Programmatic dependent launch: until the kernels before this one have ended and their writes can be seen. Returns at once
// where the launch does not ask for the overlap. Everything that such a kernel wrote is read, and everything that it reads is
// written, behind this. PTX ISA, griddepcontrol.
DEVICE void wait_for_kernels_before() {
#if !defined(CUSIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel behind this one may begin as soon as all blocks have come here or ended, and there is room for it.
DEVICE void allow_kernel_behind() {
#if !defined(CUSIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
