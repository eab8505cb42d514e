// Element types of tensors. Kernels compute in f32 and round when they store, to nearest, ties to even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "launch.cuh"

typedef __nv_bfloat16 bf16;
typedef __half f16;

DEVICE float to_f32(bf16 x) { return __bfloat162float(x); }
DEVICE float to_f32(f16 x) { return __half2float(x); }

template <typename T>
DEVICE T round_to(float x);
template <>
DEVICE bf16 round_to<bf16>(float x) { return __float2bfloat16_rn(x); }
template <>
DEVICE f16 round_to<f16>(float x) { return __float2half_rn(x); }

// Elements of one access of 16 bytes, the widest there is. Rows are a multiple of them long, and lie at multiples of 16 bytes.
constexpr unsigned VECTOR = 8;

// Eight neighbouring elements.
template <typename T>
struct alignas(16) Vector {
    T at[VECTOR];
};

template <typename T>
DEVICE Vector<T> load(const T* from) { return *reinterpret_cast<const Vector<T>*>(from); }

template <typename T>
DEVICE void store(T* to, const Vector<T>& vector) { *reinterpret_cast<Vector<T>*>(to) = vector; }
