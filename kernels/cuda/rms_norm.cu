// RMSNorm: alone, fused with the residual addition before it, and per head. `ops/rms_norm.rs` says what they mean.
//
// The mean square is summed in f32. What is normalised is rounded before the weight scales it, and a residual after every
// addition, as transformers' LlamaRMSNorm and its decoder layers do: the order decides the last bit of a logit.
#include "ptx.cuh"
#include "reduce.cuh"

// Threads of a row: 256 have two vectors each of 4,096 columns.
constexpr unsigned ROW_THREADS = 256;

template <typename T>
DEVICE float square_sum(const Vector<T>& x) {
    float sum = 0.0f;
    for (unsigned i = 0; i < VECTOR; ++i) sum = fmaf(to_f32(x.at[i]), to_f32(x.at[i]), sum);
    return sum;
}

// weight: VECTOR floats at a multiple of 16 bytes.
template <typename T>
DEVICE Vector<T> scaled(const Vector<T>& x, float factor, const float* weight) {
    Vector<T> out;
    for (unsigned i = 0; i < VECTOR; ++i) {
        out.at[i] = round_to<T>(to_f32(round_to<T>(to_f32(x.at[i]) * factor)) * weight[i]);
    }
    return out;
}

// A block per row of out, x: [T, cols]; weight: [cols].
template <typename T>
DEVICE void rms_norm(T* out, const T* x, const float* weight, float eps, unsigned cols) {
    x += size_t(blockIdx.x) * cols;
    out += size_t(blockIdx.x) * cols;
    allow_kernel_behind();
    wait_for_kernels_before();
    float sum = 0.0f;
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) sum += square_sum(load(x + col));
    float factor = rsqrtf(block_sum<ROW_THREADS / WARP>(sum) / float(cols) + eps);
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) {
        store(out + col, scaled(load(x + col), factor, weight + col));
    }
}

// The same of residual + x, which replaces residual: [T, cols]. Every thread reads back only what it wrote itself.
template <typename T>
DEVICE void add_rms_norm(T* out, T* residual, const T* x, const float* weight, float eps, unsigned cols) {
    x += size_t(blockIdx.x) * cols;
    residual += size_t(blockIdx.x) * cols;
    out += size_t(blockIdx.x) * cols;
    allow_kernel_behind();
    wait_for_kernels_before();
    float sum = 0.0f;
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) {
        Vector<T> added = load(residual + col);
        const Vector<T> addend = load(x + col);
        for (unsigned i = 0; i < VECTOR; ++i) added.at[i] = round_to<T>(to_f32(added.at[i]) + to_f32(addend.at[i]));
        store(residual + col, added);
        sum += square_sum(added);
    }
    float factor = rsqrtf(block_sum<ROW_THREADS / WARP>(sum) / float(cols) + eps);
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) {
        store(out + col, scaled(load(residual + col), factor, weight + col));
    }
}

// Heads first_head .. first_head + gridDim.y of x: [T, cols], each by itself; weight: [dim]. A warp per row and head.
template <typename T>
DEVICE void head_rms_norm(T* x, const float* weight, float eps, unsigned cols, unsigned first_head, unsigned dim) {
    x += size_t(blockIdx.x) * cols + (first_head + blockIdx.y) * dim;
    allow_kernel_behind();
    wait_for_kernels_before();
    float sum = 0.0f;
    for (unsigned col = threadIdx.x * VECTOR; col < dim; col += WARP * VECTOR) sum += square_sum(load(x + col));
    float factor = rsqrtf(warp_sum(sum) / float(dim) + eps);
    for (unsigned col = threadIdx.x * VECTOR; col < dim; col += WARP * VECTOR) {
        store(x + col, scaled(load(x + col), factor, weight + col));
    }
}

#define RMS_NORM(T)                                                                                                        \
    KERNEL __launch_bounds__(ROW_THREADS) rms_norm_##T(T* out, const T* x, const float* weight, float eps, unsigned cols) { \
        rms_norm(out, x, weight, eps, cols);                                                                               \
    }                                                                                                                      \
    EXPORT(rms_norm_##T)                                                                                                   \
    KERNEL __launch_bounds__(ROW_THREADS)                                                                                  \
        add_rms_norm_##T(T* out, T* residual, const T* x, const float* weight, float eps, unsigned cols) {                 \
        add_rms_norm(out, residual, x, weight, eps, cols);                                                                 \
    }                                                                                                                      \
    EXPORT(add_rms_norm_##T)                                                                                               \
    KERNEL __launch_bounds__(WARP)                                                                                         \
        head_rms_norm_##T(T* x, const float* weight, float eps, unsigned cols, unsigned first_head, unsigned dim) {        \
        head_rms_norm(x, weight, eps, cols, first_head, dim);                                                              \
    }                                                                                                                      \
    EXPORT(head_rms_norm_##T)

RMS_NORM(bf16)
RMS_NORM(f16)
