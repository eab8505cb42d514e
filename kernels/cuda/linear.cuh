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

// The first tile of a part; of part `parts` the end.
DEVICE unsigned part_start(unsigned input_tiles, unsigned part, unsigned parts) { return input_tiles * part / parts; }

// A total to which nothing was added yet, and a bias that is none: whatever is added to it keeps its bits, a zero its sign.
constexpr float NOTHING = -0.0f;

DEVICE float bias_of(const float* bias, unsigned output, unsigned n) {
    return bias != nullptr && output < n ? bias[output] : NOTHING;
}

// Logits stay as they are.
template <>
DEVICE float round_to<float>(float x) { return x; }
