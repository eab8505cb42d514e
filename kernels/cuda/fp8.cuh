// Eight-bit floats of caches: OCP FP8 E4M3 (without infinities) and E5M2. Nothing computes in them: they are stored rounded and
// widened exactly when loaded, as `simd/float8.rs` does on the processor. (arXiv:2209.05433.)
//
// Which of the two a byte is, parameters say, which an instruction takes as they are: with kernels for each, those of attention
// would take half as long again to compile.
#pragma once

#include "ptx.cuh"

struct fp8 {
    unsigned char bits;
};

// What tells one format from the other: 3 and 0x7e, or 2 and 0x7b. largest: the bits of the largest finite number.
struct Fp8Format {
    u32 mantissa_bits, largest;
};

// To nearest, ties to even; beyond the largest finite number, infinity too, that number. NaN stays NaN.
DEVICE fp8 round_to_fp8(float x, const Fp8Format& format) {
    constexpr u32 NAN_CODE = 0x7f;
    u32 bits = __float_as_uint(x), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
    u32 bias = (64 >> format.mantissa_bits) - 1, dropped = 23 - format.mantissa_bits, first_normal = (128 - bias) << 23;
    u32 rounded;
    if (magnitude > 0x7f800000) {
        rounded = NAN_CODE;
    } else if (magnitude < first_normal) {
        // Numbers of f32 are as far apart as ours below the normal ones, from 2^dropped times the first of these on: its own
        // addition rounds.
        u32 shift = first_normal + (dropped << 23);
        rounded = __float_as_uint(__uint_as_float(magnitude) + __uint_as_float(shift)) - shift;
    } else {
        rounded = (magnitude + (1 << (dropped - 1)) - 1 + (magnitude >> dropped & 1)) >> dropped;
        rounded = min(rounded - ((127 - bias) << format.mantissa_bits), format.largest);
    }
    return {static_cast<unsigned char>(sign | rounded)};
}

// How bytes become pairs of elements. Exponent and mantissa, moved to where an element has them, are the number times a power of
// two, which one multiplication takes away: exact, since elements have more bits of both. A byte that stands for no number
// would become the one that comes next: another multiplication takes that one, and no other, to infinity, and zero times infinity
// makes the sum NaN. So E5M2's infinity, which nobody writes, becomes NaN too.
struct Widening {
    // Moves a byte, which begins as the lower half of an element; what of that is the number; both factors, twice as elements.
    u32 shift_factor, kept, multiplier, to_infinity;
};

// Two of four bytes: the lower, or the upper ones.
template <typename T>
DEVICE u32 widened_pair(const Widening& widening, u32 bytes, bool is_upper) {
    constexpr u32 MINUS_ZERO = 0x80008000;
    // Each byte, and above it eight times its sign.
    u32 with_signs = permute_bytes(bytes, 0, is_upper ? 0xb3a2 : 0x9180);
    u32 moved = with_signs * widening.shift_factor & widening.kept;
    u32 number = multiply_add_pairs<T>(moved, widening.multiplier, MINUS_ZERO);
    u32 infinity_if_none = multiply_add_pairs<T>(number, widening.to_infinity, MINUS_ZERO);
    return multiply_add_pairs<T>(infinity_if_none, 0, number);
}
