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

#ifdef CUSIM

template <typename T>
u32 rounded_pair(float first, float second) {
    return pair_of(round_to<T>(first), round_to<T>(second));
}

template <typename T>
u32 multiply_add_pairs(u32 a, u32 b, u32 c) {
    T sums[2], operands[3][2];
    const u32 pairs[3] = {a, b, c};
    std::memcpy(operands, pairs, sizeof(operands));
    for (unsigned i = 0; i < 2; ++i) {
        // Rounded once more than on a device, unless f32 holds the sum: of what kernels expand, it does.
        double product = double(to_f32(operands[0][i])) * double(to_f32(operands[1][i]));
        sums[i] = round_to<T>(float(product + double(to_f32(operands[2][i]))));
    }
    return pair_of(sums[0], sums[1]);
}

inline u32 permute_bytes(u32 low, u32 high, u32 selectors) {
    u64 bytes = u64(high) << 32 | low;
    u32 permuted = 0;
    for (unsigned i = 0; i < 4; ++i) {
        u32 selector = selectors >> (i * 4) & 15, byte = u32(bytes >> (selector % 8 * 8)) & 0xff;
        permuted |= (selector < 8 ? byte : byte < 0x80 ? 0 : 0xff) << (i * 8);
    }
    return permuted;
}

#else

// The same of two numbers that are rounded to elements, by one instruction. PTX ISA, cvt.
template <typename T>
DEVICE u32 rounded_pair(float first, float second);

#define ROUNDED_PAIR(T, NAME)                                                                          \
    template <>                                                                                        \
    DEVICE u32 rounded_pair<T>(float first, float second) {                                            \
        u32 pair;                                                                                      \
        asm("cvt.rn." NAME ".f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));                 \
        return pair;                                                                                   \
    }
ROUNDED_PAIR(bf16, "bf16x2")
ROUNDED_PAIR(f16, "f16x2")

// a * b + c of both elements of pairs, rounded once. Operands below the normal numbers are what they are, none is flushed to
// zero. PTX ISA, fma (half precision).
template <typename T>
DEVICE u32 multiply_add_pairs(u32 a, u32 b, u32 c);

#define MULTIPLY_ADD_PAIRS(T, NAME)                                                                      \
    template <>                                                                                          \
    DEVICE u32 multiply_add_pairs<T>(u32 a, u32 b, u32 c) {                                              \
        u32 sums;                                                                                        \
        asm("fma.rn." NAME " %0, %1, %2, %3;" : "=r"(sums) : "r"(a), "r"(b), "r"(c));                    \
        return sums;                                                                                     \
    }
MULTIPLY_ADD_PAIRS(bf16, "bf16x2")
MULTIPLY_ADD_PAIRS(f16, "f16x2")

// Four bytes of the eight of `low` and `high`, each by four bits of `selectors`, of which the lower sixteen count: three bits are
// a byte's number; with the fourth, it is eight times that byte's highest bit. PTX ISA, prmt.
DEVICE u32 permute_bytes(u32 low, u32 high, u32 selectors) {
    u32 permuted;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(permuted) : "r"(low), "r"(high), "r"(selectors));
    return permuted;
}

#endif

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

// The same of four bytes.
DEVICE u32 load_once(const u32* from) {
#ifdef CUSIM
    return *from;
#else
    u32 loaded;
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(loaded) : "l"(from));
    return loaded;
#endif
}

// The same of two bytes, in the lower half.
DEVICE u32 load_once(const unsigned short* from) {
#ifdef CUSIM
    return *from;
#else
    u32 loaded;
    asm volatile("ld.global.L1::no_allocate.u16 %0, [%1];" : "=r"(loaded) : "l"(from));
    return loaded;
#endif
}

// 1 / x within one unit of the last place; 0 of infinity. PTX ISA, rcp.
DEVICE float reciprocal(float x) {
#ifdef CUSIM
    return 1.0f / x;
#else
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
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

// --- Memory that other GPUs write ----------------------------------------------------------------------------------

// Two words, each written and read whole; which of them comes first is anybody's guess.
struct alignas(16) Words {
    u64 at[2];
};

// To memory of any GPU. Its reader needs no fence for what is in the word itself. PTX ISA, st.relaxed: a vector is as many accesses
// of its elements, each of which is strong, and strong accesses of a scope that has both threads are not torn.
DEVICE void store_words(Words* to, const Words& words) {
#ifdef CUSIM
    // Another process may read them. The second first: nobody should rely on an order.
    __atomic_store_n(&to->at[1], words.at[1], __ATOMIC_RELEASE);
    __atomic_store_n(&to->at[0], words.at[0], __ATOMIC_RELEASE);
#else
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(words.at[0]), "l"(words.at[1]) : "memory");
#endif
}

// What is there now, past L1. PTX ISA, ld.relaxed.
DEVICE Words load_words(const Words* from) {
    Words words;
#ifdef CUSIM
    words.at[0] = __atomic_load_n(&from->at[0], __ATOMIC_ACQUIRE);
    words.at[1] = __atomic_load_n(&from->at[1], __ATOMIC_ACQUIRE);
#else
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(words.at[0]), "=l"(words.at[1]) : "l"(from) : "memory");
#endif
    return words;
}

// The same of four bytes, which may be memory of the host.
DEVICE u32 load_word(const u32* from) {
    u32 word;
#ifdef CUSIM
    word = __atomic_load_n(from, __ATOMIC_ACQUIRE);
#else
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
#endif
    return word;
}

// Writes four bytes to memory of any GPU. PTX ISA, st.relaxed.
DEVICE void store_word(u32* to, u32 word) {
#ifdef CUSIM
    __atomic_store_n(to, word, __ATOMIC_RELEASE);
#else
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
#endif
}

// Between what threads of this GPU read and write and what those of others do: a `store_word` behind it releases what is before it, a
// `load_word` before it acquires for what is behind it. PTX ISA, fence.
DEVICE void fence_system() {
#ifdef CUSIM
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#else
    asm volatile("fence.acq_rel.sys;" ::: "memory");
#endif
}

// Between two looks at such memory. A device runs its other threads anyway, and the load itself takes long enough.
DEVICE void let_others_run() {
#ifdef CUSIM
    cusim::spin();
#endif
}

// --- Time ----------------------------------------------------------------------------------------------------------

// The time since some day, which is the same for all threads. PTX ISA, %globaltimer.
DEVICE u64 nanoseconds_now() {
    u64 now;
#ifdef CUSIM
    now = u64(std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
#else
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
#endif
    return now;
}
