// Rows that are normalised: what `rms_norm.cu` does, and `all_reduce.cu` and `all_reduce_two_shot.cu` with sums that have just arrived. The
// same bits in all of them.
//
// The mean square is summed in f32. What is normalised is rounded before the weight scales it where transformers does so (LlamaRMSNorm;
// not GemmaRMSNorm), and a residual after every addition, as its decoder layers do: the order decides the last bit of a logit.
#pragma once

#include "reduce.cuh"
#include "types.cuh"

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
DEVICE Vector<T> scaled(const Vector<T>& x, float factor, const float* weight, u32 rounds_first) {
    Vector<T> out;
    for (unsigned i = 0; i < VECTOR; ++i) {
        float normal = to_f32(x.at[i]) * factor;
        if (rounds_first) normal = to_f32(round_to<T>(normal));
        out.at[i] = round_to<T>(normal * weight[i]);
    }
    return out;
}

// A row of residual + x, which replaces residual: [T, cols] both, out as well; weight: [cols]. addend_at(col): VECTOR elements of that row of
// x. Every thread reads back only what it wrote itself. A second row needs a barrier before it, as `block_sum` does.
template <typename T, typename Addend>
DEVICE void add_rms_norm_row(
    T* out, T* residual, const float* weight, float eps, u32 rounds_first, unsigned row, unsigned cols, Addend addend_at) {
    residual += size_t(row) * cols;
    out += size_t(row) * cols;
    float sum = 0.0f;
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) {
        Vector<T> added = load(residual + col);
        const Vector<T> addend = addend_at(col);
        for (unsigned i = 0; i < VECTOR; ++i) added.at[i] = round_to<T>(to_f32(added.at[i]) + to_f32(addend.at[i]));
        store(residual + col, added);
        sum += square_sum(added);
    }
    float factor = rsqrtf(block_sum<ROW_THREADS / WARP>(sum) / float(cols) + eps);
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += ROW_THREADS * VECTOR) {
        store(out + col, scaled(load(residual + col), factor, weight + col, rounds_first));
    }
}
