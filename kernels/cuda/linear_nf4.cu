// Weights as 4-bit NormalFloat: sixteen levels, multiples of 1/127, times a scale per output and 64 inputs: absmax / 127 in bf16.
// `ops/linear/nf4.rs` quantises the same way. k is a multiple of 64.
//
// A weight is [ceil(n / 16)][k / 64] units of 512 bytes, then for each of them 16 scales, 32 bytes.
#include "linear_quantized.cuh"
#include "linear_rows.cuh"
#include "linear_tiles.cuh"

// In 1/127; the levels of bitsandbytes' code book, rounded. A macro: code of a device sees no array of the host.
#define LEVELS {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127}

// A level's number as it is stored: its two upper bits have changed their places, so that the numbers n and n + 8 are both of the
// lower eight levels or both of the upper ones.
DEVICE constexpr u32 swapped(u32 number) { return (number & 3) | (number & 4) << 1 | (number & 8) >> 1; }

// The byte of the level with that number as it is stored. Those of the lower eight levels have no highest bit, the others have
// it.
DEVICE constexpr u32 level_byte(u32 stored) {
    constexpr int levels[16] = LEVELS;
    return u32(levels[swapped(stored)] + int(BYTE_ZERO));
}

// Sixteen bytes in four registers are looked up by two permutations, each of eight: with a number of the other eight, its
// fourth bit set, it gives eight times the highest bit of the byte that the other three mean (ptx.cuh). The first table has no
// such byte, so it gives zeros there. Of the second, that is all ones for upper levels: those bytes of the first are inverted.
// The two combine by exclusive or, and the numbers of the second are inverted in their fourth bits.
DEVICE constexpr u32 level_bytes(u32 table, u32 first) {
    u32 bytes = 0;
    for (u32 i = 0; i < 4; ++i) {
        u32 byte = level_byte(table * 8 + first + i);
        bool inverts = table == 0 && byte >= 0x80;
        bytes |= (inverts ? byte ^ 0xff : byte) << (i * 8);
    }
    return bytes;
}

DEVICE constexpr bool pairs_have_one_highest_bit() {
    for (u32 i = 0; i < 8; ++i) {
        if ((level_byte(i) ^ level_byte(i + 8)) & 0x80) return false;
    }
    return true;
}

template <typename T>
struct Nf4 {
    using Element = T;
    static constexpr unsigned TILES = 2;
    static constexpr unsigned ACCESSES = 1;
    static constexpr Scales SCALES = Scales::UNITS;
    using Zeros = NoZeros;
    using UnitScale = bf16;
    static constexpr float FACTOR = Bytes<T>::FACTOR;

    static DEVICE u32 look_up(u32 numbers) {
        static_assert(pairs_have_one_highest_bit(), "the second table knows which bytes of the first are inverted");
        constexpr u32 FIRST_LOW = level_bytes(0, 0), FIRST_HIGH = level_bytes(0, 4);
        constexpr u32 SECOND_LOW = level_bytes(1, 0), SECOND_HIGH = level_bytes(1, 4);
        return permute_bytes(FIRST_LOW, FIRST_HIGH, numbers) ^ permute_bytes(SECOND_LOW, SECOND_HIGH, numbers ^ 0x88888888);
    }

    static DEVICE RowsOperand square(const RowsOperand (&accesses)[ACCESSES], unsigned square, NoZeros) {
        u32 numbers = accesses[0].pair[square];
        RowsOperand operand;
        for (unsigned i = 0; i < 2; ++i) {
            expand_bytes<T>(look_up(numbers >> (i * 16)), operand.pair[i * 2], operand.pair[i * 2 + 1]);
        }
        return operand;
    }

    // The number of the level nearest to `value`, of two as near the lower, as it is stored.
    static DEVICE u32 encode(float value) {
        constexpr int levels[16] = LEVELS;
        u32 number = 0;
#pragma unroll
        for (unsigned i = 0; i < 15; ++i) number += value > float(levels[i] + levels[i + 1]) / 2 ? 1 : 0;
        return swapped(number);
    }
};

// Rows of a weight: [num_rows][k], the outputs from first_output on. What the weight has of other outputs is not touched; n: of
// the weight.
// Grid:    x: as that of `pack_bytes`; y: any number, which share the inputs: ceil(k / 1024) gives every warp two units.
//          PACK_THREADS threads.
// Traffic: one read, one write.
template <typename Format, typename T>
DEVICE void pack_levels(void* weight, const T* rows, u32 first_output, u32 num_rows, u32 k, u32 n) {
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, vector = lane % 4;
    unsigned output_tile = first_output / TILE_OUTPUTS + blockIdx.x, units = units_of<Format>(k);
    LaneRows lane_rows(output_tile, first_output, num_rows);
    RowsOperand* accesses = static_cast<RowsOperand*>(weight) + unit_start<Format>(output_tile, 0, units) + lane;
    bf16* scales = const_cast<bf16*>(scales_of<Format, bf16>(weight, n, units)) + size_t(output_tile) * units * TILE_OUTPUTS;
    for (unsigned unit = blockIdx.y * PACK_WARPS + warp; unit < units; unit += gridDim.y * PACK_WARPS) {
        RowsOperand access = {};
#pragma unroll
        for (unsigned i = 0; i < 2; ++i) {
            // The four lanes of an output have its 64 inputs.
            Vector<T> values[Format::TILES];
            u32 magnitude = 0;
            for (unsigned tile = 0; tile < Format::TILES; ++tile) {
                values[tile] = lane_rows.load(rows, i, k, (unit * Format::TILES + tile) * TILE_INPUTS + vector * VECTOR);
                magnitude = max(magnitude, largest_magnitude(values[tile]));
            }
            magnitude = warp_max(magnitude, 4);
            bf16 scale = round_to<bf16>(scaling_of(absmax_of<T>(magnitude), 127.0f).scale);
            if (lane_rows.exists[i] && vector == 0) scales[unit * TILE_OUTPUTS + lane / 4 * 2 + i] = scale;
            // The levels nearest to what the rounded scale makes of them.
            float inverse = to_f32(scale) > 0.0f ? 1.0f / to_f32(scale) : 0.0f;
#pragma unroll
            for (unsigned tile = 0; tile < Format::TILES; ++tile) {
#pragma unroll
                for (unsigned at = 0; at < VECTOR; ++at) {
                    u32 number = Format::encode(to_f32(values[tile].at[at]) * inverse);
                    access.pair[tile * TILE_SQUARES + at / 4] |= number << (at % 4 * 8 + i * 4);
                }
            }
        }
        lane_rows.store(accesses + unit * WARP, access, 0x0f0f0f0f);
    }
}

PACK_KERNEL(pack_nf4, bf16, pack_levels, Nf4)
PACK_KERNEL(pack_nf4, f16, pack_levels, Nf4)

// As in `linear_rows.cu`, in units of twice as many inputs and half as many bytes, of which 2 to 4 KiB are under way in every
// warp: more would be more than the part of a weight with 4096 inputs. The sums of units leave `linear_nf4_rows_8` half as many
// outputs.
#define ROWS(T, ROW_TILES, BLOCKS, ...)    \
    ROWS_KERNEL(linear_nf4_rows_##ROW_TILES##_##T, Nf4, T, T, BLOCKS, ROW_TILES, __VA_ARGS__)

#define TILES(T, OUTPUTS) TILES_KERNEL(linear_nf4_tiles_##OUTPUTS##_##T, Nf4, T, T, 64, OUTPUTS, 4)

#define LINEAR(T)             \
    ROWS(T, 1, 2, 1, 8, 8)    \
    ROWS(T, 2, 2, 2, 4, 2)    \
    ROWS(T, 4, 2, 2, 2, 1)    \
    ROWS(T, 8, 1, 2, 4, 1)    \
    TILES(T, 128)

LINEAR(bf16)
LINEAR(f16)
