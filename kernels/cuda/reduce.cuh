// Sums over threads, each in one fixed order, so that its bits depend on nothing but the values.
#pragma once

#include "launch.cuh"

// Over the lanes of a warp, the same bits in each: a tree whose additions commute.
DEVICE float warp_sum(float x) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

// Over the threads of a block of WARPS warps, the same bits in each: lanes as a tree, then warps in ascending order. Once per
// kernel: a second call would need a barrier before it.
template <unsigned WARPS>
DEVICE float block_sum(float x) {
    SHARED(float, sums, WARPS);
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < WARPS; ++warp) total += sums[warp];
    return total;
}
