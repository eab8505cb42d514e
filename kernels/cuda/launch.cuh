// What every kernel is written with: the same source is compiled for the device by nvcc or NVRTC, and for the processor by
// the simulator (sim/), with CUSIM defined.
#pragma once

#ifdef CUSIM
#include "cusim.h"

inline float infinity() { return HUGE_VALF; }

#else

#define DEVICE __device__ __forceinline__

// A kernel that the host finds by its name: no C++ mangling.
#define KERNEL extern "C" __global__ void

// Makes a kernel known to the simulator.
#define EXPORT(name)

// An array in shared memory, at a multiple of 16 bytes. Its contents are undefined until they are written.
#define SHARED(type, name, length) __shared__ __align__(16) type name[length]

// NVRTC has neither the macro nor the compiler's builtin.
DEVICE float infinity() { return __uint_as_float(0x7f800000); }

#endif

// NVRTC has no <stdint.h>.
typedef unsigned u32;
typedef unsigned long long u64;

constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

// --- Kernels that overlap ------------------------------------------------------------------------------------------

// Programmatic dependent launch: until the kernels before this one have ended and their writes can be seen. Returns at once
// where the launch does not ask for the overlap. Everything that such a kernel wrote is read, and everything that it reads is
// written, behind this. PTX ISA, griddepcontrol.
DEVICE void wait_for_kernels_before() {
#if !defined(CUSIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel behind this one may begin as soon as all blocks have come here or ended, and there is room for it.
DEVICE void allow_kernel_behind() {
#if !defined(CUSIM) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
