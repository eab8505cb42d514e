// What the ranks of a group make of each other's parts, which NCCL has gathered. `cuda/group.rs` says when.
//
//   sum_ranks:      out[i] = parts[0][i] + parts[1][i] + ...     in f32, in the order of the ranks, rounded once
//   concat_columns: out[row][rank * stride + col] = parts[rank][row][col]
#include "types.cuh"

constexpr unsigned THREADS = 256;

// Shapes:  out [len]; parts [num_ranks][len]; len a multiple of VECTOR.
// Grid:    one thread per vector.
// Traffic: every part once, out once.
template <typename T>
DEVICE void sum_ranks(T* out, const T* parts, u32 num_ranks, u32 len) {
    size_t at = (size_t(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    if (at >= len) return;
    float sums[VECTOR];
    const Vector<T> first = load(parts + at);
    for (unsigned i = 0; i < VECTOR; ++i) sums[i] = to_f32(first.at[i]);
    for (u32 rank = 1; rank < num_ranks; ++rank) {
        const Vector<T> part = load(parts + size_t(rank) * len + at);
        for (unsigned i = 0; i < VECTOR; ++i) sums[i] += to_f32(part.at[i]);
    }
    Vector<T> sum;
    for (unsigned i = 0; i < VECTOR; ++i) sum.at[i] = round_to<T>(sums[i]);
    store(out + at, sum);
}

#define SUM_RANKS(T)                                                                                            \
    KERNEL __launch_bounds__(THREADS) sum_ranks_##T(T* out, const T* parts, u32 num_ranks, u32 len) {           \
        sum_ranks(out, parts, num_ranks, len);                                                                  \
    }                                                                                                           \
    EXPORT(sum_ranks_##T)

SUM_RANKS(bf16)
SUM_RANKS(f16)

// Shapes:  out [rows, cols]; parts [ceil(cols / stride), or more][rows][stride]; what they have beyond cols is dropped.
// Grid:    x: ceil(cols / THREADS), y: rows, or fewer, which share them.
KERNEL __launch_bounds__(THREADS) concat_columns(float* out, const float* parts, u32 rows, u32 cols, u32 stride) {
    u32 col = blockIdx.x * THREADS + threadIdx.x;
    if (col >= cols) return;
    u32 rank = col / stride;
    const float* part = parts + size_t(rank) * rows * stride + (col - rank * stride);
    for (u32 row = blockIdx.y; row < rows; row += gridDim.y) out[size_t(row) * cols + col] = part[size_t(row) * stride];
}
EXPORT(concat_columns)
