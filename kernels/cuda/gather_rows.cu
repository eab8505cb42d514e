// Rows of a matrix, picked: of a prompt's chunk those that the output layer needs. `ops/gather_rows.rs` says what it means.
//   out[s, :] = x[rows[s], :]
// Shapes:  out [S, cols]; x [T, cols]; rows [S], below T.
// Grid:    one block per row of out; each thread copies every THREADS-th vector.
#include "types.cuh"

constexpr unsigned THREADS = 128;

template <typename T>
DEVICE void gather_rows(T* out, const T* x, const u32* rows, u32 cols) {
    allow_kernel_behind();
    wait_for_kernels_before();
    x += size_t(rows[blockIdx.x]) * cols;
    out += size_t(blockIdx.x) * cols;
    for (u32 col = threadIdx.x * VECTOR; col < cols; col += THREADS * VECTOR) store(out + col, load(x + col));
}

#define GATHER_ROWS(T)                                                                                 \
    KERNEL __launch_bounds__(THREADS) gather_rows_##T(T* out, const T* x, const u32* rows, u32 cols) { \
        gather_rows(out, x, rows, cols);                                                               \
    }                                                                                                  \
    EXPORT(gather_rows_##T)

GATHER_ROWS(bf16)
GATHER_ROWS(f16)
