// Many rows times weights as they are, on Hopper.
#include "linear_wgmma.cuh"

#if defined(CUSIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define WGMMA_KERNEL(NAME, T, OUT)                                                                          \
    KERNEL __launch_bounds__(WGMMA_THREADS, 1)                                                              \
        NAME(OUT* out, const T* x, const void* weight, const float* bias, u32 m, u32 n, u32 k, u32 parts) { \
        linear_wgmma<T, OUT>(out, x, weight, bias, m, n, k, parts, blockIdx.x, blockIdx.y);                 \
    }                                                                                                       \
    EXPORT(NAME)

#define LINEAR(T)                               \
    WGMMA_KERNEL(linear_wgmma_128_##T, T, T)    \
    WGMMA_KERNEL(linear_wgmma_128_##T##_f32, T, float)

LINEAR(bf16)
LINEAR(f16)

#endif
