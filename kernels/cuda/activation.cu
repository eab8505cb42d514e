// The activation of an MLP, alone or as a gate. `ops/activation.rs` says what they mean; as in transformers, a gate is rounded before it
// is multiplied.
#include "types.cuh"

constexpr unsigned THREADS = 128;

// Each of one number. At -inf the exponential is infinite and the quotient NaN, as it is in the definition.
DEVICE float silu(float x) { return x / (1.0f + __expf(-x)); }

DEVICE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

// 1 + tanh(u) is 2 / (1 + e^-2u). The factor: 2 * sqrt(2 / pi).
DEVICE float gelu_tanh(float x) { return x / (1.0f + __expf(-1.59576912f * x * fmaf(0.044715f, x * x, 1.0f))); }

// out: [T, cols]; x: the same, or with a gate [T, 2 * cols], of which the gate comes first. Blocks along x share a row, y is the row.
template <bool IS_GATED, typename T, typename F>
DEVICE void activate(T* out, const T* x, unsigned cols, F f) {
    allow_kernel_behind();
    wait_for_kernels_before();
    unsigned col = (blockIdx.x * THREADS + threadIdx.x) * VECTOR;
    if (col >= cols) return;
    const T* row = x + size_t(blockIdx.y) * (IS_GATED ? 2 : 1) * cols;
    Vector<T> activated = load(row + col), up = {};
    if (IS_GATED) up = load(row + cols + col);
    for (unsigned i = 0; i < VECTOR; ++i) {
        activated.at[i] = round_to<T>(f(to_f32(activated.at[i])));
        if (IS_GATED) activated.at[i] = round_to<T>(to_f32(activated.at[i]) * to_f32(up.at[i]));
    }
    store(out + size_t(blockIdx.y) * cols + col, activated);
}

#define ACTIVATION(NAME, T)                                                               \
    KERNEL __launch_bounds__(THREADS) NAME##_##T(T* out, const T* x, unsigned cols) {     \
        activate<false>(out, x, cols, [](float x) { return NAME(x); });                   \
    }                                                                                     \
    EXPORT(NAME##_##T)                                                                    \
    KERNEL __launch_bounds__(THREADS) NAME##_mul_##T(T* out, const T* x, unsigned cols) { \
        activate<true>(out, x, cols, [](float x) { return NAME(x); });                    \
    }                                                                                     \
    EXPORT(NAME##_mul_##T)

#define ACTIVATIONS(T)       \
    ACTIVATION(silu, T)      \
    ACTIVATION(gelu, T)      \
    ACTIVATION(gelu_tanh, T)

ACTIVATIONS(bf16)
ACTIVATIONS(f16)
