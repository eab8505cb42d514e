// LayerNorm: alone, and fused with the residual addition before it. `ops/layer_norm.rs` says what they mean.
//
// Mean and variance are summed in f32, the variance from differences to the mean: of squares alone a large mean would leave nothing.
// The result is rounded once, a residual after its addition, as torch does.
#include "reduce.cuh"
#include "types.cuh"

// Threads of a row: 256 have two vectors each of 4,096 columns.
constexpr unsigned ROW_THREADS = 256;

// The sum of f(col) over the vectors of this thread's share of a row.
template <typename F>
DEVICE float share_sum(unsigned cols, F f) {
    float sum = 0.0f;
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) sum += f(col);
    return sum;
}

// The row at x into out, [cols] both; weight, bias: [cols]. Every thread reads only what lies in its own share.
template <typename T>
DEVICE void norm_row(T* out, const T* x, const float* weight, const float* bias, float eps, unsigned cols) {
    constexpr unsigned WARPS = ROW_THREADS / WARP;
    float mean = block_sum<WARPS>(share_sum(cols, [&](unsigned col) {
        const Vector<T> part = load(x + col);
        float sum = 0.0f;
        for (unsigned i = 0; i < VECTOR; ++i) sum += to_f32(part.at[i]);
        return sum;
    })) / float(cols);
    // All have read the first sum.
    __syncthreads();
    float variance = block_sum<WARPS>(share_sum(cols, [&](unsigned col) {
        const Vector<T> part = load(x + col);
        float sum = 0.0f;
        for (unsigned i = 0; i < VECTOR; ++i) {
            float difference = to_f32(part.at[i]) - mean;
            sum = fmaf(difference, difference, sum);
        }
        return sum;
    })) / float(cols);
    float factor = rsqrtf(variance + eps);
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) {
        Vector<T> part = load(x + col);
        for (unsigned i = 0; i < VECTOR; ++i) {
            part.at[i] = round_to<T>(fmaf((to_f32(part.at[i]) - mean) * factor, weight[col + i], bias[col + i]));
        }
        store(out + col, part);
    }
}

// A block per row of out, x: [T, cols].
template <typename T>
DEVICE void layer_norm(T* out, const T* x, const float* weight, const float* bias, float eps, unsigned cols) {
    size_t row = size_t(blockIdx.x) * cols;
    allow_kernel_behind();
    wait_for_kernels_before();
    norm_row(out + row, x + row, weight, bias, eps, cols);
}

// The same of residual + x, which replaces residual: [T, cols].
template <typename T>
DEVICE void add_layer_norm(
    T* out, T* residual, const T* x, const float* weight, const float* bias, float eps, unsigned cols) {
    size_t row = size_t(blockIdx.x) * cols;
    allow_kernel_behind();
    wait_for_kernels_before();
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) {
        Vector<T> sum = load(residual + row + col);
        const Vector<T> addend = load(x + row + col);
        for (unsigned i = 0; i < VECTOR; ++i) sum.at[i] = round_to<T>(to_f32(sum.at[i]) + to_f32(addend.at[i]));
        store(residual + row + col, sum);
    }
    norm_row(out + row, residual + row, weight, bias, eps, cols);
}

#define LAYER_NORM(T)                                                                                          \
    KERNEL __launch_bounds__(ROW_THREADS)                                                                      \
        layer_norm_##T(T* out, const T* x, const float* weight, const float* bias, float eps, unsigned cols) { \
        layer_norm(out, x, weight, bias, eps, cols);                                                           \
    }                                                                                                          \
    EXPORT(layer_norm_##T)                                                                                     \
    KERNEL __launch_bounds__(ROW_THREADS)                                                                      \
        add_layer_norm_##T(T* out, T* residual, const T* x, const float* weight, const float* bias, float eps, \
                           unsigned cols) {                                                                    \
        add_layer_norm(out, residual, x, weight, bias, eps, cols);                                             \
    }                                                                                                          \
    EXPORT(add_layer_norm_##T)

LAYER_NORM(bf16)
LAYER_NORM(f16)
