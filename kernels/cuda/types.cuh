// Element types of tensors. Kernels compute in f32 and round when they store, to nearest, ties to even.
//
// Own types rather than those of cuda_bf16.h and cuda_fp16.h: NVRTC then needs no header of CUDA.
#pragma once

#include "launch.cuh"

// EXPONENT: the bits of the exponent, all ones in infinities and NaNs.
struct bf16 {
    static constexpr unsigned short EXPONENT = 0x7f80;
    unsigned short bits;
};

struct f16 {
    static constexpr unsigned short EXPONENT = 0x7c00;
    unsigned short bits;
};

#ifdef CUSIM

inline float f32_of(u32 bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

inline u32 bits_of(float x) {
    u32 bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return bits;
}

// PTX ISA, cvt: whatever number a NaN was, it becomes this one.
constexpr unsigned short NAN_BITS = 0x7fff;

inline float to_f32(bf16 x) { return f32_of(u32(x.bits) << 16); }

inline float to_f32(f16 x) {
    u32 magnitude = x.bits & 0x7fff, sign = u32(x.bits & 0x8000) << 16;
    if (magnitude > 0x7c00) return f32_of(0x7fffffff);
    if (magnitude == 0x7c00) return f32_of(sign | 0x7f800000);
    // The exponent's bias differs by 112. Below the normal numbers the bits count steps of 2^-24, and f32 holds them exactly.
    float value = magnitude >= 0x0400 ? f32_of((magnitude << 13) + (112u << 23)) : float(magnitude) * 0x1p-24f;
    return f32_of(sign | bits_of(value));
}

template <typename T>
T round_to(float x);

template <>
inline bf16 round_to<bf16>(float x) {
    u32 bits = bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return {NAN_BITS};
    // Half a unit, less one step where the unit is even. A carry goes on into the exponent, at last to infinity.
    return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline f16 round_to<f16>(float x) {
    u32 magnitude = bits_of(x) & 0x7fffffff, sign = bits_of(x) >> 16 & 0x8000;
    if (magnitude > 0x7f800000) return {NAN_BITS};
    u32 rounded;
    if (magnitude < 0x38800000) {
        // Below 2^-14 units are 2^-24 whatever the exponent, as those of f32 between 1/2 and 1 are: its own addition rounds.
        rounded = bits_of(f32_of(magnitude) + 0.5f) - bits_of(0.5f);
    } else {
        rounded = (magnitude - (112u << 23) + 0x0fff + (magnitude >> 13 & 1)) >> 13;
        // 65520 and more: infinity.
        if (rounded > 0x7c00) rounded = 0x7c00;
    }
    return {static_cast<unsigned short>(sign | rounded)};
}

#else

// A bf16 is the upper half of an f32.
DEVICE float to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// PTX ISA, cvt.
DEVICE float to_f32(f16 x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
}

template <typename T>
DEVICE T round_to(float x);

template <>
DEVICE bf16 round_to<bf16>(float x) {
    bf16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
    return rounded;
}

template <>
DEVICE f16 round_to<f16>(float x) {
    f16 rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
    return rounded;
}

#endif

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
