// Sums over threads, each in one fixed order, so that its bits depend on nothing but the values.
#pragma once

#include "launch.cuh"

// Over the lanes of a warp, the same bits in each: a tree whose additions commute.
template <typename T>
DEVICE T warp_sum(T x) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

// Over the threads of a block of WARPS warps, the same bits in each: lanes as a tree, then warps in ascending order. Once per
// kernel and type: a second call would need a barrier before it.
template <unsigned WARPS, typename T>
DEVICE T block_sum(T x) {
    SHARED(T, sums, WARPS);
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    T total = 0;
    for (unsigned warp = 0; warp < WARPS; ++warp) total += sums[warp];
    return total;
}
