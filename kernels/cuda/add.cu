// Elementwise addition, rounded once: a residual. `ops/add.rs` says what it means.
//   inout[i] += x[i]
// Shapes:  inout, x [len], a multiple of VECTOR.
// Grid:    one thread per vector.
#include "types.cuh"

constexpr unsigned THREADS = 256;

template <typename T>
DEVICE void add(T* inout, const T* x, u32 len) {
    size_t at = (size_t(blockIdx.x) * THREADS + threadIdx.x) * VECTOR;
    if (at >= len) return;
    Vector<T> sum = load(inout + at);
    const Vector<T> addend = load(x + at);
    for (unsigned i = 0; i < VECTOR; ++i) sum.at[i] = round_to<T>(to_f32(sum.at[i]) + to_f32(addend.at[i]));
    store(inout + at, sum);
}

#define ADD(T)                                                                 \
    KERNEL __launch_bounds__(THREADS) add_##T(T* inout, const T* x, u32 len) { \
        add(inout, x, len);                                                    \
    }                                                                          \
    EXPORT(add_##T)

ADD(bf16)
ADD(f16)
