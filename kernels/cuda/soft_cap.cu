// Numbers that level off. `ops/soft_cap.rs` says what it means.
//   x[i] = cap * tanh(x[i] / cap)
// Shapes:  x [len], f32.
// Grid:    one thread per number.
#include "launch.cuh"

constexpr unsigned THREADS = 256;

KERNEL __launch_bounds__(THREADS) soft_cap(float* x, float cap, u32 len) {
    size_t at = size_t(blockIdx.x) * THREADS + threadIdx.x;
    if (at < len) x[at] = cap * tanhf(x[at] / cap);
}
EXPORT(soft_cap)
