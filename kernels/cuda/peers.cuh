// Memory of every rank that the others have mapped (CUDA IPC), as sums over ranks use it: `cuda/peers.rs` allocates it, all_reduce.cu and
// all_reduce_two_shot.cu say what lies in their parts of it.
//
// A graph may hold calls, and run again and again: their number is counted in the memory itself. Ranks make the same calls in the same
// order, and the kernels of a rank come one after the other (a stream does that, and `wait_for_kernels_before`).
//
// All blocks of a grid must be resident at a time: otherwise those of one rank could wait for what another's would push that wait for
// room in turn.
#pragma once

#include "ptx.cuh"
#include "types.cuh"

constexpr unsigned MAX_RANKS = 8;

// Looks without result between two at whether the group is aborted: about 0.1 ms. That word lies across PCIe, where each takes as long
// as the whole call.
constexpr unsigned LOOKS = 256;

struct alignas(256) Head {
    // Calls so far, and blocks of the current one that have read that.
    u32 calls, arrived;
};
static_assert(sizeof(Head) == 256, "hosts compute the layout as well");

// A region is what begins with a head. `room`: how many vectors a call has at most, the same for all ranks.
struct Group {
    u32 rank, num_ranks, room;
    // Not zero: nobody comes any more.
    const u32* aborted;
    Head* own;
    // Those of rank + 1, rank + 2, ..., and from 0 again: so not all push to the same one first.
    Head* peers[MAX_RANKS - 1];
};

// Regions as `Group` has them; those of ranks that there are not are null.
#define GROUP_PARAMETERS                                                                                                       \
    u32 rank, u32 num_ranks, u32 room, const u32 *aborted, Head *own, Head *peer1, Head *peer2, Head *peer3, Head *peer4, \
        Head *peer5, Head *peer6, Head *peer7
#define GROUP                                                                              \
    Group {                                                                                \
        rank, num_ranks, room, aborted, own, { peer1, peer2, peer3, peer4, peer5, peer6, peer7 } \
    }

// The number of the current call, the same for every thread that asks before it comes to `count_call`.
DEVICE u32 number_of_call(const Group& group) { return load_word(&group.own->calls) + 1; }

// Counts the call, once all threads of the grid have its number: the last block does. A barrier of the block.
DEVICE void count_call(const Group& group, u32 number) {
    __syncthreads();
    if (threadIdx.x == 0 && atomicAdd(&group.own->arrived, 1u) + 1 == gridDim.x) {
        group.own->arrived = 0;
        group.own->calls = number;
    }
}

// Adds a rank's part to those of the ranks before it. Rank 0's is not added to 0, which would make 0 of -0.
template <typename T>
DEVICE void add_part(float (&sums)[VECTOR], u32 rank, const Vector<T>& part) {
    for (unsigned i = 0; i < VECTOR; ++i) sums[i] = rank == 0 ? to_f32(part.at[i]) : sums[i] + to_f32(part.at[i]);
}

template <typename T>
DEVICE Vector<T> rounded(const float (&sums)[VECTOR]) {
    Vector<T> sum;
    for (unsigned i = 0; i < VECTOR; ++i) sum.at[i] = round_to<T>(sums[i]);
    return sum;
}
