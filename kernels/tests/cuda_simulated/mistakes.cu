// Kernels with the mistakes that the simulator is there to find.
#include "launch.cuh"

// One element too many.
KERNEL writes_beyond(unsigned* out, unsigned length) {
    if (threadIdx.x <= length) out[threadIdx.x] = threadIdx.x;
}
EXPORT(writes_beyond)

// A barrier is missing between the write of another thread and the read.
KERNEL lacks_a_barrier(float* out, const float* x) {
    SHARED(float, values, 64);
    values[threadIdx.x] = x[threadIdx.x];
    out[threadIdx.x] = values[63 - threadIdx.x];
}
EXPORT(lacks_a_barrier)

// The same with its barrier.
KERNEL has_its_barrier(float* out, const float* x) {
    SHARED(float, values, 64);
    values[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = values[63 - threadIdx.x];
}
EXPORT(has_its_barrier)

// Threads of a block wait at different barriers.
KERNEL diverges(unsigned* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        out[threadIdx.x] = 1;
        __syncthreads();
    }
}
EXPORT(diverges)

// Half of a warp waits for the block, the other half for the warp.
KERNEL deadlocks(float* out) {
    if (threadIdx.x < 16) {
        __syncthreads();
    } else {
        out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.0f, 1);
    }
}
EXPORT(deadlocks)
