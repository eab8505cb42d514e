// Weights as 8-bit integers with a scale per output: absmax / 127, symmetric. `ops/linear/int8.rs` quantises the same way.
//
// A weight is [ceil(n / 16)][k / 32] units of 512 bytes, then [16 * ceil(n / 16)] scales in f32.
#include "linear_quantized.cuh"
#include "linear_rows.cuh"
#include "linear_tiles.cuh"

template <typename T>
struct Int8 {
    using Element = T;
    static constexpr unsigned TILES = 1;
    static constexpr unsigned ACCESSES = 1;
    static constexpr Scales SCALES = Scales::TOTALS;
    static constexpr float FACTOR = Bytes<T>::FACTOR;
    static constexpr float LARGEST = 127.0f;

    static DEVICE RowsOperand square(const RowsOperand (&accesses)[ACCESSES], unsigned square) {
        RowsOperand operand;
        for (unsigned i = 0; i < 2; ++i) {
            expand_bytes<T>(accesses[0].pair[square * 2 + i], operand.pair[i * 2], operand.pair[i * 2 + 1]);
        }
        return operand;
    }

    // Of what is no number some byte: the scale is none.
    static DEVICE u32 encode(float value) { return u32(__float2int_rn(value) + int(BYTE_ZERO)) & 0xff; }
};

PACK_KERNEL(pack_int8, bf16, pack_bytes, Int8)
PACK_KERNEL(pack_int8, f16, pack_bytes, Int8)

// As in `linear_rows.cu`, with twice as many units under way, which are half as long.
#define ROWS(T, ROW_TILES, BLOCKS, ...)                                                            \
    ROWS_KERNEL(linear_int8_rows_##ROW_TILES##_##T, Int8, T, T, BLOCKS, ROW_TILES, __VA_ARGS__)    \
    ROWS_KERNEL(linear_int8_rows_##ROW_TILES##_##T##_f32, Int8, T, float, BLOCKS, ROW_TILES, __VA_ARGS__)

#define TILES(T, OUTPUTS, WARPS)                                                        \
    TILES_KERNEL(linear_int8_tiles_##OUTPUTS##_##T, Int8, T, T, 128, OUTPUTS, WARPS)    \
    TILES_KERNEL(linear_int8_tiles_##OUTPUTS##_##T##_f32, Int8, T, float, 128, OUTPUTS, WARPS)

#define LINEAR(T)              \
    ROWS(T, 1, 2, 1, 16, 8)    \
    ROWS(T, 2, 2, 2, 8, 2)     \
    ROWS(T, 4, 2, 2, 6, 1)     \
    ROWS(T, 8, 1, 4, 4, 1)     \
    TILES(T, 128, 4)           \
    TILES(T, 64, 2)

LINEAR(bf16)
LINEAR(f16)
