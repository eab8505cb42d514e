// Sums over the ranks of a group in one kernel, through memory of every rank that the others have mapped, for more rows than all_reduce.cu
// is for: a rank sums a share of the vectors alone, and hands the sums to the others.
//
//   all_reduce_two_shot:              the bits of all_reduce
//   all_reduce_two_shot_add_rms_norm: those of all_reduce_add_rms_norm
//
// Grids are the same on all ranks. A block has a range of x, which it divides among the ranks, and deals with the blocks of its own number
// on the other ranks, with no others:
//
//   1. it pushes what x has of every peer's share into that peer's region, then a flag;
//   2. it waits for such flags of all peers, adds the parts of its own share in the order of the ranks, rounds once, and pushes the sums
//      into all regions, then a flag;
//   3. it waits for those flags: all sums of its range are in the rank's own region.
//
// So 2 (n - 1) / n of x's bytes leave a rank and as many arrive, where one shot takes 2 (n - 1) of them, flags included. The price is
// time: two flags behind fences are some six ways over NVLink (data, its acknowledgement, the flag; twice), not one. `cuda/peers.rs` says
// from how many bytes on that pays.
//
// Flags are the number of the call, and data has none. What orders them, by the memory model of the PTX ISA:
//   - `__syncthreads` before a flag: what all threads of the block have stored comes before what the thread behind it does.
//   - fence.acq_rel.sys, then the flag, st.relaxed.sys: together a release. It covers the stores of the other threads too, as causality
//     order goes through barriers. Of the scope of the system, since the reader is on another GPU: a narrower fence would let the flag
//     overtake data on its way over NVLink.
//   - ld.relaxed.sys of the flag, then fence.acq_rel.sys: together an acquire, also of scope `sys`. Without it loads behind the flag could
//     be answered by L1, which has what lay there in an earlier call and hears nothing of what peers write.
//   - `__syncthreads` behind it: what the waiting threads have acquired, the other threads of the block may read.
//
// One buffer for everything is enough. A rank pushes parts of call n when its call n - 1 is over, for which every block of every peer has
// sent it sums: that block had read its parts. It pushes sums of call n when a peer's block has sent parts of n: that peer's call n - 1 is
// over, and with it who read sums. For the same reason a flag is never overwritten by that of a later call before it is seen, whichever
// block of the peer writes it. Every call writes the flags of all blocks, also of those that it does not have: so what lies in
// a flag is the number of the call before, and none of 2^32 calls ago.
//
// A region, which its rank allocates, fills with zeros, waits for that, and only then exports:
//   Head
//   Flags                                                        of parts, then of sums
//   Vectors sums [room]
//   Vectors parts [room + MAX_BLOCKS * (num_ranks - 1)]          of a block behind those of the one before, [num_ranks senders][its share]
#include "peers.cuh"
#include "rms_norm.cuh"

// They are resident where there are 32 multiprocessors, each of which has registers for two blocks, as the launch bounds demand: for three
// of them, Blackwell's compiler spills. NCCL fills a link with fewer threads.
constexpr unsigned MAX_BLOCKS = 64, BLOCKS_OF_MULTIPROCESSOR = 2;

// Vectors that a thread loads before it pushes the first of them: memory is some 0.6 us away, and a block of few vectors has no other
// threads that hide it.
constexpr unsigned AHEAD = 4;

enum Step { PARTS, SUMS };

struct Flags {
    u32 at[2][MAX_BLOCKS][MAX_RANKS];
};
static_assert(sizeof(Flags) == 4096, "hosts compute the layout as well");

DEVICE Flags* flags(Head* region) { return reinterpret_cast<Flags*>(region + 1); }

template <typename T>
DEVICE Vector<T>* sums(Head* region) {
    return reinterpret_cast<Vector<T>*>(flags(region) + 1);
}

// A block's vectors of x, of which every rank has a share: the same number, but for the last ranks.
struct Range {
    u32 first, length, share;
    // Of its parts, among those of a region.
    u32 parts;
};

// That of this block, where all have `most` vectors while there are as many.
DEVICE Range range_of_block(const Group& group, u32 vectors, u32 most) {
    u32 first = min(blockIdx.x * most, vectors), length = min(most, vectors - first);
    auto share = [&](u32 length) { return (length + group.num_ranks - 1) / group.num_ranks; };
    return {first, length, share(length), blockIdx.x * group.num_ranks * share(most)};
}

// Tells all peers, when they can see what this block has pushed.
DEVICE void tell(const Group& group, Head* const* regions, Step step, u32 number) {
    __syncthreads();
    if (threadIdx.x >= group.num_ranks || threadIdx.x == group.rank) return;
    Flags* to = flags(regions[threadIdx.x]);
    fence_system();
    for (unsigned block = blockIdx.x; block < MAX_BLOCKS; block += gridDim.x) store_word(&to->at[step][block][group.rank], number);
}

// Until all peers have told this block; or until the group is aborted, and what was pushed may be anything.
DEVICE void wait_for_peers(const Group& group, Step step, u32 number) {
    if (threadIdx.x < group.num_ranks && threadIdx.x != group.rank) {
        const u32* flag = &flags(group.own)->at[step][blockIdx.x][threadIdx.x];
        for (u32 looks = 1; load_word(flag) != number; ++looks) {
            if (looks % LOOKS == 0 && load_word(group.aborted) != 0) break;
            let_others_run();
        }
        fence_system();
    }
    __syncthreads();
}

// Pushes this rank's parts of the peers' shares, beginning with the next rank's.
template <typename T>
DEVICE void push_parts(const Group& group, Head* const* regions, const T* x, const Range& range) {
    u32 own = min(group.rank * range.share, range.length), behind_own = min(own + range.share, range.length);
    u32 length = range.length - (behind_own - own);
    for (u32 start = threadIdx.x; start < length; start += ROW_THREADS * AHEAD) {
        Vector<T> parts[AHEAD];
        u32 at[AHEAD];
#pragma unroll
        for (unsigned i = 0; i < AHEAD; ++i) {
            at[i] = behind_own + start + i * ROW_THREADS;
            if (at[i] >= range.length) at[i] -= range.length;
            if (start + i * ROW_THREADS < length) parts[i] = load(x + size_t(range.first + at[i]) * VECTOR);
        }
#pragma unroll
        for (unsigned i = 0; i < AHEAD; ++i) {
            if (start + i * ROW_THREADS >= length) continue;
            u32 peer = at[i] / range.share, of_share = at[i] - peer * range.share;
            sums<T>(regions[peer])[group.room + range.parts + group.rank * range.share + of_share] = parts[i];
        }
    }
}

// Adds all parts of this rank's share, and pushes the sums.
template <typename T>
DEVICE void push_sums(const Group& group, const T* x, const Range& range) {
    u32 own = min(group.rank * range.share, range.length), length = min(range.share, range.length - own);
    const Vector<T>* from = sums<T>(group.own) + group.room + range.parts;
    for (u32 at = threadIdx.x; at < length; at += ROW_THREADS) {
        u32 vector = range.first + own + at;
        // All at once, so that they take the time of one.
        Vector<T> parts[MAX_RANKS];
#pragma unroll
        for (unsigned rank = 0; rank < MAX_RANKS; ++rank) {
            if (rank >= group.num_ranks) continue;
            parts[rank] = rank == group.rank ? load(x + size_t(vector) * VECTOR) : from[rank * range.share + at];
        }
        float added[VECTOR];
#pragma unroll
        for (unsigned rank = 0; rank < MAX_RANKS; ++rank) {
            if (rank < group.num_ranks) add_part(added, rank, parts[rank]);
        }
        const Vector<T> sum = rounded<T>(added);
        sums<T>(group.own)[vector] = sum;
#pragma unroll
        for (unsigned peer = 0; peer < MAX_RANKS - 1; ++peer) {
            if (peer + 1 < group.num_ranks) sums<T>(group.peers[peer])[vector] = sum;
        }
    }
}

// A call, of which this block has `range`: the sums of that, where they would begin with those of the first vector of x. Anything once
// the group is aborted.
template <typename T>
DEVICE const Vector<T>* sums_of_ranks(const Group& group, const T* x, const Range& range) {
    // By rank: an index that is not known when this is compiled would put the parameters into local memory.
    SHARED(Head*, regions, MAX_RANKS);
    if (threadIdx.x == 0) {
#pragma unroll
        for (unsigned peer = 0; peer < MAX_RANKS - 1; ++peer) {
            if (peer + 1 < group.num_ranks) regions[(group.rank + 1 + peer) % group.num_ranks] = group.peers[peer];
        }
    }
    allow_kernel_behind();
    wait_for_kernels_before();
    u32 number = number_of_call(group);
    count_call(group, number);
    push_parts(group, regions, x, range);
    tell(group, regions, PARTS, number);
    wait_for_peers(group, PARTS, number);
    push_sums(group, x, range);
    tell(group, regions, SUMS, number);
    wait_for_peers(group, SUMS, number);
    return sums<T>(group.own);
}

// Shapes:  x [vectors * VECTOR].
// Grid:    ceil(vectors / ROW_THREADS) or fewer, MAX_BLOCKS at most, which share them.
// Traffic: x twice and once; 2 (n - 1) / n of its bytes to and from peers.
template <typename T>
DEVICE void all_reduce_two_shot(T* x, u32 vectors, const Group& group) {
    const Range range = range_of_block(group, vectors, (vectors + gridDim.x - 1) / gridDim.x);
    const Vector<T>* sums = sums_of_ranks(group, x, range);
    for (u32 at = threadIdx.x; at < range.length; at += ROW_THREADS) store(x + size_t(range.first + at) * VECTOR, sums[range.first + at]);
}

// Shapes:  out, residual, x [rows, cols]; weight [cols].
// Grid:    a block per row or fewer, MAX_BLOCKS at most, which share them.
// Traffic: of the sums that of all_reduce_two_shot, then that of add_rms_norm.
template <typename T>
DEVICE void all_reduce_two_shot_add_rms_norm(T* out, T* residual, const T* x, const float* weight, u32 rows, float eps, u32 rounds_first,
                                             u32 cols, const Group& group) {
    u32 of_row = cols / VECTOR, rows_of_block = (rows + gridDim.x - 1) / gridDim.x;
    const Range range = range_of_block(group, rows * of_row, rows_of_block * of_row);
    const Vector<T>* sums = sums_of_ranks(group, x, range);
    u32 first = blockIdx.x * rows_of_block, end = min(first + rows_of_block, rows);
    for (u32 row = first; row < end; ++row) {
        // Of the sum of squares of the row before, every thread has read what the others had written.
        if (row > first) __syncthreads();
        add_rms_norm_row(out, residual, weight, eps, rounds_first, row, cols, [&](unsigned col) { return sums[row * of_row + col / VECTOR]; });
    }
}

#define ALL_REDUCE_TWO_SHOT(T)                                                                                            \
    KERNEL __launch_bounds__(ROW_THREADS, BLOCKS_OF_MULTIPROCESSOR)                                                       \
        all_reduce_two_shot_##T(T* x, u32 vectors, GROUP_PARAMETERS) {                                                    \
        all_reduce_two_shot(x, vectors, GROUP);                                                                           \
    }                                                                                                                     \
    EXPORT(all_reduce_two_shot_##T)                                                                                       \
    KERNEL __launch_bounds__(ROW_THREADS, BLOCKS_OF_MULTIPROCESSOR)                                                       \
        all_reduce_two_shot_add_rms_norm_##T(T* out, T* residual, const T* x, const float* weight, u32 rows, float eps,   \
                                             u32 rounds_first, u32 cols, GROUP_PARAMETERS) {                              \
        all_reduce_two_shot_add_rms_norm(out, residual, x, weight, rows, eps, rounds_first, cols, GROUP);                 \
    }                                                                                                                     \
    EXPORT(all_reduce_two_shot_add_rms_norm_##T)

ALL_REDUCE_TWO_SHOT(bf16)
ALL_REDUCE_TWO_SHOT(f16)
