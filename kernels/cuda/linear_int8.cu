// Weights as 8-bit integers with a scale per output: absmax / 127, symmetric. `ops/linear/int8.rs` quantises the same way.
//
// A weight is [ceil(n / 16)][k / 32] units of 512 bytes, then [16 * ceil(n / 16)] scales in f32.
#include "linear_bytes.cuh"

template <typename T>
struct Int8 {
    using Element = T;
    static constexpr unsigned TILES = 1;
    static constexpr unsigned ACCESSES = 1;
    static constexpr Scales SCALES = Scales::TOTALS;
    using Zeros = NoZeros;
    static constexpr float FACTOR = Bytes<T>::FACTOR;
    static constexpr float LARGEST = 127.0f;

    static DEVICE RowsOperand square(const RowsOperand (&accesses)[ACCESSES], unsigned square, NoZeros) {
        RowsOperand operand;
        for (unsigned i = 0; i < 2; ++i) {
            expand_bytes<T>(accesses[0].pair[square * 2 + i], operand.pair[i * 2], operand.pair[i * 2 + 1]);
        }
        return operand;
    }

    // Of what is no number some byte: the scale is none.
    static DEVICE u32 encode(float value) { return u32(__float2int_rn(value) + int(BYTE_ZERO)) & 0xff; }
};

LINEAR_BYTES(int8, Int8, bf16)
LINEAR_BYTES(int8, Int8, f16)
