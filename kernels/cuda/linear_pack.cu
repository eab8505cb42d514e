// Rows of a weight as they are stored, into their places among the tiles of `linear.cuh`.
//
// Grid:    x: the tiles of outputs that the rows touch, ceil((first_output + num_rows) / 16) - first_output / 16, or more; y:
//          any number, which share the inputs: ceil(K / 1024) gives every warp four tiles. 256 threads.
// Traffic: one read, one write. A warp reads 64 bytes of each of 16 rows and writes 1024 bytes at one place.
#include "linear.cuh"

constexpr unsigned WARPS = 8;
constexpr unsigned THREADS = WARPS * WARP;

// rows: [num_rows][k], the outputs from first_output on. What the weight has of other outputs is not touched.
template <typename T>
DEVICE void pack_linear(T* weight, const T* rows, u32 first_output, u32 num_rows, u32 k) {
    unsigned lane = threadIdx.x % WARP, vector = lane % 4;
    unsigned output_tile = first_output / TILE_OUTPUTS + blockIdx.x, input_tiles = k / TILE_INPUTS;
    // A lane has two outputs, eight apart. Those before the first wrap round to rows beyond the last.
    u32 row[2];
    bool exists[2];
    for (unsigned i = 0; i < 2; ++i) {
        row[i] = output_tile * TILE_OUTPUTS + lane / 4 + i * 8 - first_output;
        exists[i] = row[i] < num_rows;
    }
    unsigned stride = gridDim.y * WARPS;
    for (unsigned tile = blockIdx.y * WARPS + threadIdx.x / WARP; tile < input_tiles; tile += stride) {
        RowInputs inputs[2] = {};
        for (unsigned i = 0; i < 2; ++i) {
            const T* from = rows + size_t(row[i]) * k + tile * TILE_INPUTS + vector * VECTOR;
            if (exists[i]) inputs[i] = *reinterpret_cast<const RowInputs*>(from);
        }
        T* to = weight + tile_start(output_tile, tile, input_tiles);
        if (exists[0] && exists[1]) {
            for (unsigned square = 0; square < TILE_SQUARES; ++square) {
                RowsOperand operand;
                for (unsigned i = 0; i < 4; ++i) operand.pair[i] = inputs[i % 2].square[square].pair[i / 2];
                *reinterpret_cast<RowsOperand*>(to + in_tile(lane / 4, vector, square * 2)) = operand;
            }
        } else {
            for (unsigned i = 0; i < 2; ++i) {
                for (unsigned pair = 0; exists[i] && pair < 4; ++pair) {
                    u32 both = inputs[i].square[pair / 2].pair[pair % 2];
                    *reinterpret_cast<u32*>(to + in_tile(lane / 4 + i * 8, vector, pair)) = both;
                }
            }
        }
    }
}

#define PACK(T)                                                                                                     \
    KERNEL __launch_bounds__(THREADS)                                                                               \
        pack_linear_##T(T* weight, const T* rows, u32 first_output, u32 num_rows, u32 k) {                          \
        pack_linear(weight, rows, first_output, num_rows, k);                                                       \
    }                                                                                                               \
    EXPORT(pack_linear_##T)

PACK(bf16)
PACK(f16)
