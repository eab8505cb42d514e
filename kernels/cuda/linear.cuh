// What the kernels of linear layers share: how a packed weight lies in memory, and the order of a sum.
//
//   out[m][n] = sum over k of x[m][k] * w[n][k]  (+ bias[n])
//
// A weight is [ceil(N / 16)][K / 32] tiles of 16 outputs x 32 inputs: two squares of 16 x 16, each as the matrix instruction
// takes its 16-row operand (ptx.cuh, RowsOperand), so that a warp reads a square with one access of 512 bytes, every lane its
// own 16, and a part of a row of tiles is one stream. Outputs are the rows of the instruction, rows of x its columns: decode's
// few rows fill a tile of eight. (Weights in the order of the instruction: arXiv:2408.11743.)
//
// A sum does not care in which order the instruction counts its inputs, as long as both operands agree. Here lane % 4 has eight
// neighbours of a tile's 32, the first four in the first square and the others in the second: what a lane needs of a row of x
// for both squares is 16 bytes at one place.
//
// The order of a sum follows from K alone, never from the number of rows, a row's place, or which kernel computes it: a row has
// the same bits in a prompt's chunk and in any batch of decode. Tiles of K are cut into `parts`; a part is one chain of matrix
// instructions over ascending inputs that begins with zero; the parts are added in ascending order, then the bias; the sum is
// rounded once. The host chooses the number of parts by K, 1 <= parts <= K / 32.
//
// Quantised weights keep that order and add their scales to it: "Formats of weights" below, one file each (`linear_int8.cu`).
//
// Assumes: K is a multiple of 32; x and the weight lie at multiples of 16 bytes. Outputs from N on are zeros of the weight.
#pragma once

#include "ptx.cuh"

constexpr unsigned TILE_OUTPUTS = 16;
constexpr unsigned TILE_INPUTS = 32;
constexpr unsigned TILE_ELEMENTS = TILE_OUTPUTS * TILE_INPUTS;
constexpr unsigned TILE_SQUARES = 2;
constexpr unsigned SQUARE_ELEMENTS = TILE_ELEMENTS / TILE_SQUARES;
// Rows of x that one matrix instruction takes.
constexpr unsigned TILE_ROWS = 8;
constexpr unsigned MAX_PARTS = 8;

static_assert(SQUARE_ELEMENTS == WARP * VECTOR, "a lane has 16 bytes of a square");
static_assert(TILE_INPUTS == 4 * VECTOR, "the four lanes of a row have 16 bytes of it each");

// What a lane has of a row of x in a tile: eight neighbours.
struct alignas(16) RowInputs {
    ColumnsOperand square[TILE_SQUARES];
};

static_assert(sizeof(RowInputs) == VECTOR * 2 && sizeof(RowsOperand) == VECTOR * 2, "both are one access");

// How many tiles of outputs a weight has.
DEVICE unsigned output_tiles_of(unsigned n) { return (n + TILE_OUTPUTS - 1) / TILE_OUTPUTS; }

// Where a tile begins. `input_tiles`: of the whole weight.
DEVICE size_t tile_start(unsigned output_tile, unsigned input_tile, unsigned input_tiles) {
    return (size_t(output_tile) * input_tiles + input_tile) * TILE_ELEMENTS;
}

// Where in its tile a pair of neighbouring inputs lies: of the tile's output, the pair (of four) of the vector (of four).
DEVICE unsigned in_tile(unsigned output, unsigned vector, unsigned pair) {
    unsigned lane = output % 8 * 4 + vector;
    return pair / 2 * SQUARE_ELEMENTS + (lane * 4 + output / 8 + pair % 2 * 2) * 2;
}

// The first unit of a part; of part `parts` the end.
DEVICE unsigned part_start(unsigned units, unsigned part, unsigned parts) { return units * part / parts; }

// --- Formats of weights ----------------------------------------------------------------------------------------------
//
// Kernels take a weight in units, of which a lane reads its own 16 bytes with every access: a unit is TILES tiles along the
// inputs, and a weight [ceil(N / 16)][K / (32 * TILES)] units, each [ACCESSES][32 lanes] of 16 bytes. Behind them all lie the
// scales of a weight that has some. `square` makes of a lane's accesses an operand of the matrix instruction, less the zeros of
// its outputs where units have some. Parts of a sum are cut between units.

// What is multiplied by scales, always sums in f32: nothing, totals, one scale for every output; or the sums of units, each a
// chain of its own, one scale for every output and unit, which are added to a part in ascending order.
enum class Scales { NONE, TOTALS, UNITS };

// What `square` takes from the numbers of a format whose zero is always the same: nothing.
struct NoZeros {
    static constexpr bool ARE_STORED = false;
    DEVICE explicit NoZeros(u32) {}
};

// Elements as they are.
template <typename T>
struct Plain {
    using Element = T;
    static constexpr unsigned TILES = 1;
    static constexpr unsigned ACCESSES = TILE_SQUARES;
    static constexpr Scales SCALES = Scales::NONE;
    using Zeros = NoZeros;

    static DEVICE RowsOperand square(const RowsOperand (&accesses)[ACCESSES], unsigned square, NoZeros) {
        return accesses[square];
    }
};

// How many units of inputs a weight has.
template <typename Format>
DEVICE unsigned units_of(unsigned k) { return k / (TILE_INPUTS * Format::TILES); }

// Which access of the weight is a unit's first of lane 0.
template <typename Format>
DEVICE size_t unit_start(unsigned output_tile, unsigned unit, unsigned units) {
    return (size_t(output_tile) * units + unit) * (Format::ACCESSES * WARP);
}

// Where the scales begin.
template <typename Format, typename Scale>
DEVICE const Scale* scales_of(const void* weight, unsigned n, unsigned units) {
    const RowsOperand* accesses = static_cast<const RowsOperand*>(weight);
    return reinterpret_cast<const Scale*>(accesses + unit_start<Format>(output_tiles_of(n), 0, units));
}

// Scales of units lie as lanes want them: for a unit [8] pairs of two bytes each, those of the outputs lane / 4 and eight further
// on; then the zeros, if they are stored, [8] pairs of bytes.
constexpr unsigned UNIT_SCALES = TILE_OUTPUTS / 2;

// Words of the scales and zeros of a unit.
template <typename Format>
constexpr unsigned UNIT_WORDS = UNIT_SCALES + (Format::Zeros::ARE_STORED ? TILE_OUTPUTS / sizeof(u32) : 0);

// Where the pairs of zeros of a unit lie whose scales begin at `scales`.
DEVICE const unsigned short* unit_zeros(const u32* scales) {
    return reinterpret_cast<const unsigned short*>(scales + UNIT_SCALES);
}

// Adds a unit's sums, which count in 1 / FACTOR, to those of its part. `scales`: a pair.
template <typename Format>
DEVICE void add_unit(Sums& part, const Sums& unit, u32 scales) {
    for (unsigned at = 0; at < 4; ++at) {
        typename Format::UnitScale scale = {static_cast<unsigned short>(at < 2 ? scales : scales >> 16)};
        part.at[at] = fmaf(to_f32(scale) * Format::FACTOR, unit.at[at], part.at[at]);
    }
}

// A total to which nothing was added yet, and a bias that is none: whatever is added to it keeps its bits, a zero its sign.
constexpr float NOTHING = -0.0f;

DEVICE float bias_of(const float* bias, unsigned output, unsigned n) {
    return bias != nullptr && output < n ? bias[output] : NOTHING;
}

// What a total of an output becomes.
template <typename Format>
struct Finish {
    float addend, scale;

    DEVICE Finish(const float* bias, const void* weight, unsigned output, unsigned n, unsigned units)
        : addend(bias_of(bias, output, n)), scale(1.0f) {
        if constexpr (Format::SCALES == Scales::TOTALS) {
            if (output < n) scale = scales_of<Format, float>(weight, n, units)[output] * Format::FACTOR;
        }
    }

    DEVICE float of(float total) const {
        return Format::SCALES == Scales::TOTALS ? fmaf(total, scale, addend) : total + addend;
    }
};

// Logits stay as they are.
template <>
DEVICE float round_to<float>(float x) { return x; }
