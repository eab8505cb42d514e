// RMSNorm: alone, fused with the residual addition before it, and per head. `ops/rms_norm.rs` says what they mean.
#include "ptx.cuh"
#include "rms_norm.cuh"

// A block per row of out, x: [T, cols], which may be the same; weight: [cols].
template <typename T>
DEVICE void rms_norm(T* out, const T* x, const float* weight, float eps, u32 rounds_first, unsigned cols) {
    x += size_t(blockIdx.x) * cols;
    out += size_t(blockIdx.x) * cols;
    allow_kernel_behind();
    wait_for_kernels_before();
    float sum = 0.0f;
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) sum += square_sum(load(x + col));
    float factor = rsqrtf(block_sum<ROW_THREADS / WARP>(sum) / float(cols) + eps);
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) {
        store(out + col, scaled(load(x + col), factor, weight + col, rounds_first));
    }
}

// The same of residual + x, which replaces residual: [T, cols].
template <typename T>
DEVICE void add_rms_norm(
    T* out, T* residual, const T* x, const float* weight, float eps, u32 rounds_first, unsigned cols) {
    x += size_t(blockIdx.x) * cols;
    allow_kernel_behind();
    wait_for_kernels_before();
    add_rms_norm_row(out, residual, weight, eps, rounds_first, blockIdx.x, cols, [&](unsigned col) { return load(x + col); });
}

// Heads first_head .. first_head + gridDim.y of x: [T, cols], each by itself; weight: [dim]. A warp per row and head.
template <typename T>
DEVICE void head_rms_norm(
    T* x, const float* weight, float eps, u32 rounds_first, unsigned cols, unsigned first_head, unsigned dim) {
    x += size_t(blockIdx.x) * cols + (first_head + blockIdx.y) * dim;
    allow_kernel_behind();
    wait_for_kernels_before();
    float sum = 0.0f;
    for (unsigned col = threadIdx.x * VECTOR; col < dim; col += WARP * VECTOR) sum += square_sum(load(x + col));
    float factor = rsqrtf(warp_sum(sum) / float(dim) + eps);
    for (unsigned col = threadIdx.x * VECTOR; col < dim; col += WARP * VECTOR) {
        store(x + col, scaled(load(x + col), factor, weight + col, rounds_first));
    }
}

#define RMS_NORM(T)                                                                                                          \
    KERNEL __launch_bounds__(ROW_THREADS)                                                                                    \
        rms_norm_##T(T* out, const T* x, const float* weight, float eps, u32 rounds_first, unsigned cols) {                  \
        rms_norm(out, x, weight, eps, rounds_first, cols);                                                                   \
    }                                                                                                                        \
    EXPORT(rms_norm_##T)                                                                                                     \
    KERNEL __launch_bounds__(ROW_THREADS)                                                                                    \
        add_rms_norm_##T(T* out, T* residual, const T* x, const float* weight, float eps, u32 rounds_first, unsigned cols) { \
        add_rms_norm(out, residual, x, weight, eps, rounds_first, cols);                                                     \
    }                                                                                                                        \
    EXPORT(add_rms_norm_##T)                                                                                                 \
    KERNEL __launch_bounds__(WARP)                                                                                           \
        head_rms_norm_##T(T* x, const float* weight, float eps, u32 rounds_first, unsigned cols, unsigned first_head,        \
                          unsigned dim) {                                                                                    \
        head_rms_norm(x, weight, eps, rounds_first, cols, first_head, dim);                                                  \
    }                                                                                                                        \
    EXPORT(head_rms_norm_##T)

RMS_NORM(bf16)
RMS_NORM(f16)
