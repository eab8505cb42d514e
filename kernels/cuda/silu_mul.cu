// The gate of a gated MLP. `ops/silu_mul.rs` says what it means; as in transformers, the gate is rounded before it is multiplied.
#include "types.cuh"

constexpr unsigned THREADS = 128;

// out: [T, cols]; gate_up: [T, 2 * cols], the gate first. Blocks along x share a row, y is the row.
template <typename T>
DEVICE void silu_mul(T* out, const T* gate_up, unsigned cols) {
    allow_kernel_behind();
    wait_for_kernels_before();
    unsigned col = (blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (col >= cols) return;
    const T* row = gate_up + size_t(blockIdx.y) * 2 * cols;
    const Vector<T> gate = load(row + col), up = load(row + cols + col);
    Vector<T> product;
    for (unsigned i = 0; i < VECTOR; ++i) {
        float x = to_f32(gate.at[i]);
        // At -inf the exponential is infinite and the quotient NaN, as it is in the definition.
        float silu = to_f32(round_to<T>(x / (1.0f + __expf(-x))));
        product.at[i] = round_to<T>(silu * to_f32(up.at[i]));
    }
    store(out + size_t(blockIdx.y) * cols + col, product);
}

#define SILU_MUL(T)                                                                                       \
    KERNEL __launch_bounds__(THREADS) silu_mul_##T(T* out, const T* gate_up, unsigned cols) {             \
        silu_mul(out, gate_up, cols);                                                                     \
    }                                                                                                     \
    EXPORT(silu_mul_##T)

SILU_MUL(bf16)
SILU_MUL(f16)
