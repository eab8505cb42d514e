// Kernels with the mistakes that asynchronous copies invite, and one without: a thread writes what its neighbour has copied.
#include "ptx.cuh"

constexpr unsigned FLOATS = 4;

DEVICE void request(float* values, const float* x) {
    copy_async(values + threadIdx.x * FLOATS, x + threadIdx.x * FLOATS, true);
    commit_copies();
}

DEVICE void answer(float* out, const float* values) {
    unsigned neighbour = threadIdx.x ^ 1;
    for (unsigned i = 0; i < FLOATS; ++i) out[threadIdx.x * FLOATS + i] = values[neighbour * FLOATS + i];
}

KERNEL copies(float* out, const float* x) {
    SHARED(float, values, 64 * FLOATS);
    request(values, x);
    wait_for_copies<0>();
    __syncthreads();
    answer(out, values);
}
EXPORT(copies)

// Waits, but for all groups except the one that it reads.
KERNEL waits_for_too_few(float* out, const float* x) {
    SHARED(float, values, 64 * FLOATS);
    request(values, x);
    wait_for_copies<1>();
    __syncthreads();
    answer(out, values);
    __syncthreads();
    wait_for_copies<0>();
}
EXPORT(waits_for_too_few)

// Requests anew what others may not have read yet.
KERNEL requests_too_early(float* out, const float* x) {
    SHARED(float, values, 64 * FLOATS);
    request(values, x);
    wait_for_copies<0>();
    __syncthreads();
    request(values, x);
    answer(out, values);
    __syncthreads();
    wait_for_copies<0>();
}
EXPORT(requests_too_early)

KERNEL never_waits(float* out, const float* x) {
    SHARED(float, values, 64 * FLOATS);
    request(values, x);
    out[threadIdx.x] = 0.0f;
}
EXPORT(never_waits)
