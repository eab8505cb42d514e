// A linear layer of few rows: decode. `linear.cuh` says what it means, and in which order. Up to 64 in one pass over the weight; of
// more, in blocks of 64, where those of `linear_tiles.cu` would be too few.
//
// The weight is read once and is nearly all that there is to read: what counts is that enough of it is under way at any time.
// Every warp has a part of the sums for all rows of the block, and 6 to 8 KiB of its part of the weight requested into
// registers, which are requested anew as soon as they were used. At 4.3 TB/s and a microsecond of latency an H200 needs 33 KiB
// under way for each multiprocessor; two blocks of 8 warps have 96 to 128, one of `linear_rows_8` 64. Nothing is measured yet.
//
// The first of it is requested before the kernel waits for those before it, which may not touch a weight (programmatic
// dependent launch).
//
// Shapes:  out: [m][n], x: [m][k], bias: [n] or null, weight: as `pack_linear` makes it.
// Grid:    x: ceil(n / outputs) of 16, 32, 32, 64 outputs for 1, 2, 4, 8 tiles of rows, or more; y: ceil(m / (8 * tiles)).
// Block:   32 * parts threads, a warp a part.
// Traffic: the weight once; of x, all rows for every block, from L2: beside W bytes of weight, W * rows / outputs. That is why
//          more rows have more outputs: 16 for 64 rows would read four times as much of x as of the weight.
#include "linear.cuh"

constexpr unsigned THREADS = MAX_PARTS * WARP;
// Floats of a row of sums in shared memory. With four more than there are outputs, lanes that store different rows at the
// same time have different banks.
constexpr unsigned SUMS_STRIDE = TILE_OUTPUTS + 4;

// ROW_TILES, OUTPUT_TILES: what a block computes. DEPTH, X_DEPTH: how many tiles of inputs ahead the weight and x are
// requested.
template <typename T, typename Out, unsigned ROW_TILES, unsigned OUTPUT_TILES, unsigned DEPTH, unsigned X_DEPTH>
DEVICE void linear_rows(Out* out, const T* x, const T* weight, const float* bias, u32 m, u32 n, u32 k) {
    static_assert(DEPTH % X_DEPTH == 0, "a tile's inputs of x have a fixed place among the registers");
    constexpr unsigned ROWS = ROW_TILES * TILE_ROWS;
    // Of one tile of outputs: [parts][ROWS][SUMS_STRIDE].
    SHARED(float, part_sums, MAX_PARTS * ROWS * SUMS_STRIDE);

    allow_kernel_behind();
    // Blocks of the same outputs are neighbours in time: the second finds the weight in L2.
    unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
    unsigned first_row = block % gridDim.y * ROWS, first_tile = block / gridDim.y * OUTPUT_TILES;
    unsigned output_tiles = output_tiles_of(n), input_tiles = k / TILE_INPUTS;
    if (first_tile >= output_tiles) return;

    // The same for all lanes, which the compiler does not see by itself.
    unsigned part = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0), parts = blockDim.x / WARP, lane = threadIdx.x % WARP;
    unsigned start = part_start(input_tiles, part, parts), count = part_start(input_tiles, part + 1, parts) - start;
    // Behind the last tile of outputs or the last row, that one again: what nobody stores costs nothing to read twice.
    const T* squares = weight + tile_start(first_tile, start, input_tiles) + lane * VECTOR;
    u32 starts[OUTPUT_TILES];
    for (unsigned i = 0; i < OUTPUT_TILES; ++i) starts[i] = min(i, output_tiles - 1 - first_tile) * input_tiles * TILE_ELEMENTS;
    const T* rows = x + size_t(first_row) * k + start * TILE_INPUTS + lane % 4 * VECTOR;
    u32 row_starts[ROW_TILES];
    for (unsigned i = 0; i < ROW_TILES; ++i) row_starts[i] = min(i * TILE_ROWS + lane / 4, m - 1 - first_row) * k;
    auto load_weights = [&](RowsOperand(&weights)[OUTPUT_TILES][TILE_SQUARES], unsigned ahead) {
#pragma unroll
        for (unsigned i = 0; i < OUTPUT_TILES; ++i) {
            for (unsigned square = 0; square < TILE_SQUARES; ++square) {
                const T* from = squares + starts[i] + ahead * TILE_ELEMENTS + square * SQUARE_ELEMENTS;
                weights[i][square] = load_once(reinterpret_cast<const RowsOperand*>(from));
            }
        }
    };
    auto load_inputs = [&](RowInputs(&inputs)[ROW_TILES], unsigned ahead) {
#pragma unroll
        for (unsigned i = 0; i < ROW_TILES; ++i) {
            inputs[i] = *reinterpret_cast<const RowInputs*>(rows + row_starts[i] + ahead * TILE_INPUTS);
        }
    };
    Sums sums[OUTPUT_TILES][ROW_TILES] = {};
    auto multiply = [&](const RowsOperand(&weights)[OUTPUT_TILES][TILE_SQUARES], const RowInputs(&inputs)[ROW_TILES]) {
        for (unsigned square = 0; square < TILE_SQUARES; ++square) {
#pragma unroll
            for (unsigned i = 0; i < OUTPUT_TILES; ++i) {
#pragma unroll
                for (unsigned j = 0; j < ROW_TILES; ++j) {
                    multiply_add<T>(sums[i][j], weights[i][square], inputs[j].square[square]);
                }
            }
        }
    };

    // Request the first tiles.
    RowsOperand weights[DEPTH][OUTPUT_TILES][TILE_SQUARES];
    RowInputs inputs[X_DEPTH][ROW_TILES];
#pragma unroll
    for (unsigned slot = 0; slot < DEPTH; ++slot) {
        if (slot < count) load_weights(weights[slot], slot);
    }
    wait_for_kernels_before();
#pragma unroll
    for (unsigned slot = 0; slot < X_DEPTH; ++slot) {
        if (slot < count) load_inputs(inputs[slot], slot);
    }

    // Multiply what has come, and request into the same registers what comes DEPTH or X_DEPTH tiles later.
    for (unsigned tile = 0; tile < count; tile += DEPTH) {
#pragma unroll
        for (unsigned slot = 0; slot < DEPTH; ++slot) {
            if (tile + slot < count) multiply(weights[slot], inputs[slot % X_DEPTH]);
            if (tile + slot + DEPTH < count) load_weights(weights[slot], slot + DEPTH);
            if (tile + slot + X_DEPTH < count) load_inputs(inputs[slot % X_DEPTH], slot + X_DEPTH);
        }
        squares += DEPTH * TILE_ELEMENTS;
        rows += DEPTH * TILE_INPUTS;
    }

    // Add the parts. Of sums, a lane has two outputs, eight apart, of two rows.
    for (unsigned i = 0; i < OUTPUT_TILES; ++i) {
        float* own = part_sums + part * ROWS * SUMS_STRIDE;
        for (unsigned j = 0; j < ROW_TILES; ++j) {
            for (unsigned at = 0; at < 4; ++at) {
                unsigned row = j * TILE_ROWS + lane % 4 * 2 + at % 2;
                own[row * SUMS_STRIDE + lane / 4 + at / 2 * 8] = sums[i][j].at[at];
            }
        }
        __syncthreads();
        for (unsigned at = threadIdx.x; at < ROWS * TILE_OUTPUTS; at += blockDim.x) {
            unsigned row = at / TILE_OUTPUTS, output = (first_tile + i) * TILE_OUTPUTS + at % TILE_OUTPUTS;
            if (first_row + row >= m || output >= n) continue;
            float total = NOTHING;
            for (unsigned from = 0; from < parts; ++from) {
                total += part_sums[(from * ROWS + row) * SUMS_STRIDE + at % TILE_OUTPUTS];
            }
            out[size_t(first_row + row) * n + output] = round_to<Out>(total + bias_of(bias, output, n));
        }
        // The next tile's sums take the place of what slower threads still read.
        __syncthreads();
    }
}

#define ROWS_KERNEL(NAME, T, OUT, BLOCKS, ...)                                                                            \
    KERNEL __launch_bounds__(THREADS, BLOCKS)                                                                            \
        NAME(OUT* out, const T* x, const T* weight, const float* bias, u32 m, u32 n, u32 k) {                            \
        linear_rows<T, OUT, __VA_ARGS__>(out, x, weight, bias, m, n, k);                                                 \
    }                                                                                                                    \
    EXPORT(NAME)

// ROW_TILES; BLOCKS: of a multiprocessor at least, that one streams while another begins or ends; OUTPUT_TILES, DEPTH, X_DEPTH.
#define ROWS(T, ROW_TILES, BLOCKS, ...)                                                  \
    ROWS_KERNEL(linear_rows_##ROW_TILES##_##T, T, T, BLOCKS, ROW_TILES, __VA_ARGS__)     \
    ROWS_KERNEL(linear_rows_##ROW_TILES##_##T##_f32, T, float, BLOCKS, ROW_TILES, __VA_ARGS__)

#define LINEAR(T)              \
    ROWS(T, 1, 2, 1, 8, 8)     \
    ROWS(T, 2, 2, 2, 4, 2)     \
    ROWS(T, 4, 2, 2, 3, 1)     \
    ROWS(T, 8, 1, 4, 2, 1)

LINEAR(bf16)
LINEAR(f16)
