// Sums over the ranks of a group in one kernel, through memory of every rank that the others have mapped (CUDA IPC).
//
//   all_reduce:              x = x of rank 0 + x of rank 1 + ...   in f32, in the order of the ranks, rounded once: the bits of sum_ranks
//   all_reduce_add_rms_norm: residual += that sum, out = norm(residual) * weight: the bits of sum_ranks and add_rms_norm behind it
//
// Every rank pushes its part into the regions of all others and waits for theirs in its own. Words of eight bytes are four of data and
// four of a flag, the number of the call: a word that has the flag has the data. So a call takes one way over NVLink. Data, a fence and
// a flag would be three (the fence waits until all data has arrived, then the flag goes), and peers that read each other's memory as
// many, since a read goes there and back. The price is twice the bytes, and that every rank sums everything: where these cost more than
// ways save, the sum is that of all_reduce_two_shot.cu.
//
// Calls use two buffers in turn. Two are enough: who begins call n has finished call n - 1, for which it had something from every peer;
// a peer begins n - 1 behind the end of its call n - 2, and so it has read all that this call overwrites. It needs every call to be of
// at least one vector.
//
// Each rank may have its own grid, as threads wait for words and not for blocks.
//
// A region, which its rank allocates, fills with zeros, waits for that, and only then exports:
//   Head                                                       256 bytes, of which peers touch none
//   Words [2 buffers][num_ranks senders][2 halves][room]       a vector's first four elements, then its last four
// in all 256 + 64 * num_ranks * room bytes.
#include "peers.cuh"
#include "rms_norm.cuh"

// 128 blocks at most (MAX_BLOCKS), or 64 rows (MAX_ROWS): they are resident where there are 32 multiprocessors, each of which has
// registers for four or two of them at least, as the launch bounds demand.
constexpr unsigned THREADS = 128;
constexpr unsigned BLOCKS_OF_MULTIPROCESSOR = 4, ROWS_OF_MULTIPROCESSOR = 2;

struct Call {
    u32 flag;
    bool is_aborted;
};

// Where a sender's vectors lie in all regions, in words.
DEVICE size_t part_of(const Group& group, u32 sender, u32 flag) {
    return (size_t(flag % 2) * group.num_ranks + sender) * 2 * group.room;
}

template <typename T>
DEVICE void push(const Group& group, u32 flag, u32 vector, const Vector<T>& x) {
    const u32* pairs = reinterpret_cast<const u32*>(&x);
    Words halves[2];
    for (unsigned i = 0; i < 4; ++i) halves[i / 2].at[i % 2] = u64(flag) << 32 | pairs[i];
    size_t at = part_of(group, group.rank, flag) + vector;
#pragma unroll
    for (unsigned peer = 0; peer < MAX_RANKS - 1; ++peer) {
        if (peer + 1 >= group.num_ranks) continue;
        Words* to = reinterpret_cast<Words*>(group.peers[peer] + 1) + at;
        store_words(to, halves[0]);
        store_words(to + group.room, halves[1]);
    }
}

// What a thread has of x: the vectors first, first + stride, ... before end.
struct Share {
    u32 first, stride, end;
};

// The first half of a call: pushes this rank's part, of `vectors` vectors in all, and counts the call.
template <typename T>
DEVICE Call push_share(const Group& group, const T* x, const Share& share, u32 vectors) {
    // Ahead of each push, and first of all: while it comes, so does the number of the call.
    Vector<T> next = {};
    if (share.first < share.end) next = load(x + size_t(share.first) * VECTOR);
    u32 flag = number_of_call(group);
    for (u32 vector = share.first; vector < share.end; vector += share.stride) {
        const Vector<T> current = next;
        if (vector + share.stride < share.end) next = load(x + size_t(vector + share.stride) * VECTOR);
        push(group, flag, vector, current);
    }
    // Flags come again after 2^32 calls, which are a few days. By then no word may be left from the last time, also where calls seldom
    // reach: each call writes one vector more, in turn.
    u32 swept = flag / 2 % group.room;
    if (blockIdx.x == 0 && threadIdx.x == 0 && swept >= vectors) push(group, flag, swept, Vector<T>{});
    count_call(group, flag);
    return {flag, false};
}

// The second half, once for each vector: all ranks' parts of it, of which x has this one's. Anything once the group is aborted.
template <typename T>
DEVICE Vector<T> sum_of_ranks(const Group& group, Call& call, u32 vector, const T* x) {
    const Words* from = reinterpret_cast<const Words*>(group.own + 1) + part_of(group, 0, call.flag) + vector;
    Words parts[MAX_RANKS][2];
    for (u32 looks = 1;; ++looks) {
        bool is_whole = true;
        // All at once, so that they take the time of one.
#pragma unroll
        for (unsigned rank = 0; rank < MAX_RANKS; ++rank) {
            if (rank >= group.num_ranks || rank == group.rank) continue;
            for (unsigned half = 0; half < 2; ++half) parts[rank][half] = load_words(from + (rank * 2 + half) * group.room);
        }
#pragma unroll
        for (unsigned rank = 0; rank < MAX_RANKS; ++rank) {
            if (rank >= group.num_ranks || rank == group.rank) continue;
            for (unsigned i = 0; i < 4; ++i) is_whole &= u32(parts[rank][i / 2].at[i % 2] >> 32) == call.flag;
        }
        if (is_whole || call.is_aborted) break;
        if (looks % LOOKS == 0) call.is_aborted = load_word(group.aborted) != 0;
        let_others_run();
    }
    // Read only now: before, all registers are full of parts.
    const Vector<T> own = load(x + size_t(vector) * VECTOR);
    float sums[VECTOR];
#pragma unroll
    for (unsigned rank = 0; rank < MAX_RANKS; ++rank) {
        if (rank >= group.num_ranks) continue;
        Vector<T> part = own;
        u32* pairs = reinterpret_cast<u32*>(&part);
        if (rank != group.rank) {
            for (unsigned i = 0; i < 4; ++i) pairs[i] = u32(parts[rank][i / 2].at[i % 2]);
        }
        add_part(sums, rank, part);
    }
    return rounded<T>(sums);
}

// Shapes:  x [vectors * VECTOR].
// Grid:    ceil(vectors / THREADS) or fewer, MAX_BLOCKS = 128 at most, which share them.
// Traffic: x twice and once; twice its bytes to and from every peer.
template <typename T>
DEVICE void all_reduce(T* x, u32 vectors, const Group& group) {
    const Share share = {blockIdx.x * THREADS + threadIdx.x, gridDim.x * THREADS, vectors};
    allow_kernel_behind();
    wait_for_kernels_before();
    Call call = push_share(group, x, share, vectors);
    for (u32 vector = share.first; vector < share.end; vector += share.stride) {
        store(x + size_t(vector) * VECTOR, sum_of_ranks<T>(group, call, vector, x));
    }
}

// Shapes:  out, residual, x [T, cols]; weight [cols].
// Grid:    a block per row, MAX_ROWS = 64 at most.
// Traffic: of the sum that of all_reduce, then that of add_rms_norm, without x between them.
template <typename T>
DEVICE void all_reduce_add_rms_norm(
    T* out, T* residual, const T* x, const float* weight, float eps, u32 rounds_first, u32 cols, const Group& group) {
    u32 vectors = cols / VECTOR, row = blockIdx.x * vectors;
    allow_kernel_behind();
    wait_for_kernels_before();
    Call call = push_share(group, x, {row + threadIdx.x, ROW_THREADS, row + vectors}, gridDim.x * vectors);
    add_rms_norm_row(out, residual, weight, eps, rounds_first, blockIdx.x, cols,
                     [&](unsigned col) { return sum_of_ranks(group, call, row + col / VECTOR, x); });
}

#define ALL_REDUCE(T)                                                                                                       \
    KERNEL __launch_bounds__(THREADS, BLOCKS_OF_MULTIPROCESSOR) all_reduce_##T(T* x, u32 vectors, GROUP_PARAMETERS) {       \
        all_reduce(x, vectors, GROUP);                                                                                      \
    }                                                                                                                       \
    EXPORT(all_reduce_##T)                                                                                                  \
    KERNEL __launch_bounds__(ROW_THREADS, ROWS_OF_MULTIPROCESSOR)                                                           \
        all_reduce_add_rms_norm_##T(T* out, T* residual, const T* x, const float* weight, float eps, u32 rounds_first,      \
                                    u32 cols, GROUP_PARAMETERS) {                                                           \
        all_reduce_add_rms_norm(out, residual, x, weight, eps, rounds_first, cols, GROUP);                                  \
    }                                                                                                                       \
    EXPORT(all_reduce_add_rms_norm_##T)

ALL_REDUCE(bf16)
ALL_REDUCE(f16)
