// Weights as FP8 E4M3 with a scale per output: absmax / 448, without E4M3's subnormals. `ops/linear/fp8.rs` quantises the same
// way.
//
// A weight is [ceil(n / 16)][k / 32] units of 512 bytes, then [16 * ceil(n / 16)] scales in f32.
#include "linear_bytes.cuh"

// An E4M3 number's bits, moved to where an element has its exponent, are that number times a power of two, which depends on the
// biases of both. One multiplication takes it away: exact, since elements have more bits of both kinds.
template <typename T>
struct Moved;

template <>
struct Moved<bf16> {
    static constexpr unsigned SHIFT = 4;
    static constexpr u32 MAGNITUDES = 0x07f007f0;
    // 2^(127 - 7).
    static constexpr u32 MULTIPLIER = 0x7b807b80;
};

template <>
struct Moved<f16> {
    static constexpr unsigned SHIFT = 1;
    static constexpr u32 MAGNITUDES = 0x3f803f80;
    // 2^(15 - 7).
    static constexpr u32 MULTIPLIER = 0x5c005c00;
};

template <typename T>
struct Fp8 {
    using Element = T;
    static constexpr unsigned TILES = 1;
    static constexpr unsigned ACCESSES = 1;
    static constexpr Scales SCALES = Scales::TOTALS;
    using Zeros = NoZeros;
    static constexpr float FACTOR = 1.0f;
    static constexpr float LARGEST = 448.0f;

    // The numbers in the upper bytes of both halves, where their signs are in place.
    static DEVICE u32 expand(u32 bytes) {
        constexpr u32 SIGNS = 0x80008000, NO_ADDEND = 0x80008000;
        u32 moved = (bytes >> Moved<T>::SHIFT & Moved<T>::MAGNITUDES) | (bytes & SIGNS);
        return multiply_add_pairs<T>(moved, Moved<T>::MULTIPLIER, NO_ADDEND);
    }

    static DEVICE RowsOperand square(const RowsOperand (&accesses)[ACCESSES], unsigned square, NoZeros) {
        RowsOperand operand;
        for (unsigned i = 0; i < 2; ++i) {
            u32 bytes = accesses[0].pair[square * 2 + i];
            operand.pair[i * 2] = expand(bytes << 8);
            operand.pair[i * 2 + 1] = expand(bytes);
        }
        return operand;
    }

    // The number nearest to `value`, which is at most LARGEST and a hair, of two as near the even one; of what is no number
    // some byte.
    static DEVICE u32 encode(float value) {
        constexpr u32 DROPPED = 23 - 3, BIAS_DIFFERENCE = 127 - 7;
        // 2^-6, half of it, and 448. Positive numbers are in the order of their bits.
        constexpr u32 SMALLEST = 0x3c800000, HALF_OF_SMALLEST = 0x3c000000, LARGEST_BITS = 0x43e00000;
        u32 bits = __float_as_uint(value), magnitude = bits & 0x7fffffff;
        u32 within = min(max(magnitude, SMALLEST), LARGEST_BITS);
        u32 rounded = (within + (1 << (DROPPED - 1)) - 1 + (within >> DROPPED & 1)) >> DROPPED;
        u32 number = (bits >> 24 & 0x80) | (rounded - (BIAS_DIFFERENCE << 3));
        return magnitude <= HALF_OF_SMALLEST ? 0 : number;
    }
};

LINEAR_BYTES(fp8, Fp8, bf16)
LINEAR_BYTES(fp8, Fp8, f16)
