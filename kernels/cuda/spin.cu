// Takes a stated time and does nothing else: measuring programs put it where they leave something out (`machine.rs`).
#include "ptx.cuh"

// Grid: one thread. As accurate as the GPU's clock goes on, which on some is every microsecond.
KERNEL __launch_bounds__(1) spin(u32 nanoseconds) {
    allow_kernel_behind();
    wait_for_kernels_before();
    u64 begin = nanoseconds_now();
    while (nanoseconds_now() - begin < nanoseconds) let_others_run();
}
EXPORT(spin)
