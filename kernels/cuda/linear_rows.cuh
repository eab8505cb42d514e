// A linear layer of few rows: decode. `linear.cuh` says what it means, and in which order. Up to 64 in one pass over the weight;
// of more, in blocks of 64, where those of `linear_tiles.cuh` would be too few.
//
// The weight is read once and is nearly all that there is to read: what counts is that enough of it is under way at any time.
// Every warp has a part of the sums for all rows of the block, and 6 to 8 KiB of its part of the weight requested into
// registers, which are requested anew as soon as they were used. At 4.3 TB/s and a microsecond of latency an H200 needs 33 KiB
// under way for each multiprocessor; two blocks of 8 warps have 96 to 128, one of `linear_rows_8` 64. Nothing is measured yet.
//
// A quantised weight becomes operands in registers: what is requested and kept are its bytes.
//
// The first of it is requested before the kernel waits for those before it, which may not touch a weight (programmatic
// dependent launch).
//
// Shapes:  out: [m][n], x: [m][k], bias: [n] or null, weight: as the packing of its format makes it.
// Grid:    x: ceil(n / outputs) of 16, 32, 32, 64 outputs for 1, 2, 4, 8 tiles of rows (NF4, INT4: 16, 32, 32, 32), or more;
//          y: ceil(m / (8 * tiles)). RowsBlock says which part a block has.
// Block:   32 * parts threads, a warp a part.
// Traffic: the weight once; of x, all rows for every block, from L2: beside W bytes of weight, W * rows / outputs. That is why
//          more rows have more outputs: 16 for 64 rows would read four times as much of x as of the weight.
#pragma once

#include "linear.cuh"

constexpr unsigned ROWS_THREADS = MAX_PARTS * WARP;
// Floats of a row of sums in shared memory. With four more than there are outputs, lanes that store different rows at the
// same time have different banks.
constexpr unsigned SUMS_STRIDE = TILE_OUTPUTS + 4;

// What a block has: of the grid's blocks along y, which are blocks of rows, and of those along x, which are blocks of outputs. Blocks of
// the same outputs are neighbours in time: the second finds the weight in L2.
struct RowsBlock {
    unsigned rows, outputs;
};

DEVICE RowsBlock rows_block() {
    unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
    return {block % gridDim.y, block / gridDim.y};
}

// ROW_TILES, OUTPUT_TILES: what a block computes. DEPTH, X_DEPTH: how many units of the weight ahead and how many tiles of x are
// requested.
template <typename Format, typename Out, unsigned ROW_TILES, unsigned OUTPUT_TILES, unsigned DEPTH, unsigned X_DEPTH>
DEVICE void linear_rows(
    Out* out, const typename Format::Element* x, const void* weight, const float* bias, u32 m, u32 n, u32 k, RowsBlock block) {
    static_assert(DEPTH * Format::TILES % X_DEPTH == 0, "a tile's inputs of x have a fixed place among the registers");
    using T = typename Format::Element;
    constexpr unsigned ROWS = ROW_TILES * TILE_ROWS;
    constexpr unsigned UNIT_INPUTS = Format::TILES * TILE_INPUTS;
    constexpr unsigned UNIT_ACCESSES = Format::ACCESSES * WARP;
    constexpr bool SCALES_UNITS = Format::SCALES == Scales::UNITS;
    // Of one tile of outputs: [parts][ROWS][SUMS_STRIDE].
    SHARED(float, part_sums, MAX_PARTS * ROWS * SUMS_STRIDE);

    allow_kernel_behind();
    unsigned first_row = block.rows * ROWS, first_tile = block.outputs * OUTPUT_TILES;
    unsigned output_tiles = output_tiles_of(n), units = units_of<Format>(k);
    if (first_tile >= output_tiles) return;

    // The same for all lanes, which the compiler does not see by itself.
    unsigned part = __shfl_sync(ALL_LANES, threadIdx.x / WARP, 0), parts = blockDim.x / WARP, lane = threadIdx.x % WARP;
    unsigned start = part_start(units, part, parts), count = part_start(units, part + 1, parts) - start;
    // What a lane has of a unit: its accesses, and the scales and zeros of its outputs if units have some.
    struct Weights {
        RowsOperand access[Format::ACCESSES];
        u32 scales, zeros;
    };
    // Behind the last tile of outputs or the last row, that one again: what nobody stores costs nothing to read twice.
    const RowsOperand* accesses = static_cast<const RowsOperand*>(weight) + unit_start<Format>(first_tile, start, units) + lane;
    const u32* scales = scales_of<Format, u32>(weight, n, units);
    scales += (size_t(first_tile) * units + start) * UNIT_WORDS<Format> + lane / 4;
    u32 starts[OUTPUT_TILES];
    for (unsigned i = 0; i < OUTPUT_TILES; ++i) starts[i] = min(i, output_tiles - 1 - first_tile) * units;
    const T* rows = x + size_t(first_row) * k + start * UNIT_INPUTS + lane % 4 * VECTOR;
    u32 row_starts[ROW_TILES];
    for (unsigned i = 0; i < ROW_TILES; ++i) row_starts[i] = min(i * TILE_ROWS + lane / 4, m - 1 - first_row) * k;
    auto load_weights = [&](Weights(&weights)[OUTPUT_TILES], unsigned ahead) {
#pragma unroll
        for (unsigned i = 0; i < OUTPUT_TILES; ++i) {
            for (unsigned access = 0; access < Format::ACCESSES; ++access) {
                const RowsOperand* from = accesses + starts[i] * UNIT_ACCESSES + ahead * UNIT_ACCESSES + access * WARP;
                weights[i].access[access] = load_once(from);
            }
            [[maybe_unused]] const u32* from = scales + starts[i] * UNIT_WORDS<Format> + ahead * UNIT_WORDS<Format>;
            if constexpr (SCALES_UNITS) weights[i].scales = load_once(from);
            // Half as far apart as the scales. A pointer of their own would take registers.
            weights[i].zeros = 0;
            if constexpr (Format::Zeros::ARE_STORED) weights[i].zeros = load_once(unit_zeros(from) - lane / 4);
        }
    };
    auto load_inputs = [&](RowInputs(&inputs)[ROW_TILES], unsigned ahead) {
#pragma unroll
        for (unsigned i = 0; i < ROW_TILES; ++i) {
            inputs[i] = *reinterpret_cast<const RowInputs*>(rows + row_starts[i] + ahead * TILE_INPUTS);
        }
    };
    // Of the part, and where units have scales of the unit.
    Sums sums[OUTPUT_TILES][ROW_TILES] = {};
    [[maybe_unused]] Sums unit_sums[OUTPUT_TILES][ROW_TILES] = {};
    auto multiply = [&](const Weights(&weights)[OUTPUT_TILES], const RowInputs(&inputs)[ROW_TILES], unsigned tile) {
        auto& chains = SCALES_UNITS ? unit_sums : sums;
        for (unsigned square = 0; square < TILE_SQUARES; ++square) {
#pragma unroll
            for (unsigned i = 0; i < OUTPUT_TILES; ++i) {
                typename Format::Zeros zeros(weights[i].zeros);
                RowsOperand operand = Format::square(weights[i].access, tile * TILE_SQUARES + square, zeros);
#pragma unroll
                for (unsigned j = 0; j < ROW_TILES; ++j) multiply_add<T>(chains[i][j], operand, inputs[j].square[square]);
            }
        }
        if constexpr (SCALES_UNITS) {
            if (tile + 1 < Format::TILES) return;
#pragma unroll
            for (unsigned i = 0; i < OUTPUT_TILES; ++i) {
#pragma unroll
                for (unsigned j = 0; j < ROW_TILES; ++j) {
                    add_unit<Format>(sums[i][j], unit_sums[i][j], weights[i].scales);
                    unit_sums[i][j] = {};
                }
            }
        }
    };

    // Request the first units.
    Weights weights[DEPTH][OUTPUT_TILES];
    RowInputs inputs[X_DEPTH][ROW_TILES];
#pragma unroll
    for (unsigned slot = 0; slot < DEPTH; ++slot) {
        if (slot < count) load_weights(weights[slot], slot);
    }
    wait_for_kernels_before();
#pragma unroll
    for (unsigned slot = 0; slot < X_DEPTH; ++slot) {
        if (slot < count * Format::TILES) load_inputs(inputs[slot], slot);
    }

    // Multiply what has come, and request into the same registers what comes DEPTH units or X_DEPTH tiles later.
    for (unsigned unit = 0; unit < count; unit += DEPTH) {
#pragma unroll
        for (unsigned slot = 0; slot < DEPTH; ++slot) {
#pragma unroll
            for (unsigned tile = 0; tile < Format::TILES; ++tile) {
                unsigned x_slot = slot * Format::TILES + tile;
                if (unit + slot < count) multiply(weights[slot], inputs[x_slot % X_DEPTH], tile);
                if (tile + 1 == Format::TILES && unit + slot + DEPTH < count) load_weights(weights[slot], slot + DEPTH);
                if (unit * Format::TILES + x_slot + X_DEPTH < count * Format::TILES) {
                    load_inputs(inputs[x_slot % X_DEPTH], x_slot + X_DEPTH);
                }
            }
        }
        accesses += DEPTH * UNIT_ACCESSES;
        scales += DEPTH * UNIT_WORDS<Format>;
        rows += DEPTH * UNIT_INPUTS;
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
            Finish<Format> finish(bias, weight, output, n, units);
            out[size_t(first_row + row) * n + output] = round_to<Out>(finish.of(total));
        }
        // The next tile's sums take the place of what slower threads still read.
        __syncthreads();
    }
}

#define ROWS_KERNEL(NAME, FORMAT, T, OUT, BLOCKS, ...)                                                                   \
    KERNEL __launch_bounds__(ROWS_THREADS, BLOCKS)                                                                       \
        NAME(OUT* out, const T* x, const void* weight, const float* bias, u32 m, u32 n, u32 k) {                         \
        linear_rows<FORMAT<T>, OUT, __VA_ARGS__>(out, x, weight, bias, m, n, k, rows_block());                           \
    }                                                                                                                    \
    EXPORT(NAME)
