// A linear layer of many rows: prefill, and decode of more than 64. `linear.cuh` says what it means, and in which order: that of
// `linear_rows.cuh`.
//
// A block computes 128 or 64 outputs of 128 rows, a warp half of them of 32. Units of inputs pass through shared memory, three or
// four of them: one is computed, the others are under way. Both operands lie there as lanes read them, 512 neighbouring bytes a
// warp, so that no two lanes want the same bank: a tile's weight is one access as it is, and the 64 bytes of eight rows of x are
// one too.
//
// A warp reads the next operands from shared memory while it multiplies with those it has, also from one tile to the next.
//
// A quantised weight lies in shared memory as it is packed and becomes operands when it is read from there, once for every warp
// that wants it. So of 128 outputs a warp computes 32, of 64 rows: of the eight warps four are neighbours along the outputs
// instead of two. Of 64 outputs it would have 16, and read x too often. Where units have scales, their sums take registers beside
// those of the part and the totals: blocks have 64 rows, warps 32.
//
// What is under way to shared memory covers the latency of L2. It would not cover that of memory, from which the weight comes as
// fast as it can where rows are few: in a block of 128 outputs that is at most 16 KiB of weights, not 33 (`linear_rows.cuh`). So
// L2 fetches the weight two runs of 4 KiB or more before it is copied, for all tiles of outputs 64 or 32 KiB, the first of it
// before the kernel waits for those before it.
//
// Shapes:  out: [m][n], x: [m][k], bias: [n] or null, weight: as the packing of its format makes it.
// Grid:    x: ceil(m / 128) (NF4, INT4: 64), which share a weight in L2 as neighbours in time; y: ceil(n / outputs).
//          256 threads.
// Traffic: for a block of 128 outputs and a tile of inputs, 16 KiB from L2 for 512 Ki products. Shared memory is the limit: 64 KiB
//          through it, 512 cycles, are 1024 products a cycle of a multiprocessor (weights of a byte: 12 and 52 KiB). A larger tile
//          of a warp would need fewer, but the sums of a part and the totals beside them take half of the registers already.
//          A block of 64 outputs, for where there are too few of 128 (`squares.rs`), needs for a product half as much again from
//          L2 and a third more of shared memory. One of 32 would need more from L2 than the 64 x 64 of `linear_rows_8`.
#pragma once

#include "linear.cuh"

constexpr unsigned TILES_THREADS = 256;

// More shared memory would have to be asked for.
constexpr unsigned TILES_SHARED_BYTES = 48 << 10;

// L2 fetches the weight in runs of neighbouring units, so many ahead of the one that is computed.
constexpr unsigned RUN_BYTES = 4 << 10;
constexpr unsigned RUNS_AHEAD = 3;

// Rows whose results pass through shared memory at a time, on their way to whole lines of out.
constexpr unsigned STORE_ROWS = 64;

// Accesses of 16 bytes that four lanes make of a tile's row of x.
constexpr unsigned ROW_ACCESSES = TILE_INPUTS / VECTOR;

// Of sums the operands of one square each: outputs x rows.
template <typename T, unsigned OUTPUT_TILES, unsigned ROW_TILES>
DEVICE void multiply_tiles(
    Sums (&sums)[OUTPUT_TILES][ROW_TILES], const RowsOperand (&weights)[OUTPUT_TILES], const RowInputs (&inputs)[ROW_TILES],
    unsigned square) {
#pragma unroll
    for (unsigned i = 0; i < OUTPUT_TILES; ++i) {
#pragma unroll
        for (unsigned j = 0; j < ROW_TILES; ++j) multiply_add<T>(sums[i][j], weights[i], inputs[j].square[square]);
    }
}

// Elements between rows of results in shared memory. Four more of 4 bytes than there are outputs, and lanes that write different rows at
// the same time have different banks.
template <typename Out, unsigned OUTPUTS>
constexpr unsigned STORED_STRIDE = OUTPUTS + 16 / sizeof(Out);

// The block copies STORE_ROWS rows of results, the first that of `first_row` and `first_output`, from shared memory to out.
template <unsigned OUTPUTS, typename Out>
DEVICE void store_rows(Out* out, const Out* staged, unsigned first_row, unsigned first_output, u32 m, u32 n) {
    struct alignas(16) Access {
        Out at[16 / sizeof(Out)];
    };
    constexpr unsigned ACCESS = 16 / sizeof(Out);
    bool has_whole_accesses = n % ACCESS == 0;
    for (unsigned at = threadIdx.x * ACCESS; at < STORE_ROWS * OUTPUTS; at += TILES_THREADS * ACCESS) {
        unsigned staged_row = at / OUTPUTS, row = first_row + staged_row;
        unsigned staged_output = at % OUTPUTS, output = first_output + staged_output;
        if (row >= m || output >= n) continue;
        Out* to = out + size_t(row) * n + output;
        const Out* from = staged + staged_row * STORED_STRIDE<Out, OUTPUTS> + staged_output;
        if (has_whole_accesses) {
            *reinterpret_cast<Access*>(to) = *reinterpret_cast<const Access*>(from);
        } else {
            for (unsigned i = 0; i < min(ACCESS, n - output); ++i) to[i] = from[i];
        }
    }
}

// BLOCK_ROWS, BLOCK_OUTPUTS: what a block computes. WARPS_ALONG_OUTPUTS: neighbours along the outputs, of eight warps; the others
// are neighbours along the rows. row_block, output_block: which rows and outputs, counted in blocks.
template <typename Format, typename Out, unsigned BLOCK_ROWS, unsigned BLOCK_OUTPUTS, unsigned WARPS_ALONG_OUTPUTS>
DEVICE void linear_tiles(
    Out* out, const typename Format::Element* x, const void* weight, const float* bias, u32 m, u32 n, u32 k, u32 parts,
    unsigned row_block, unsigned output_block) {
    using T = typename Format::Element;
    constexpr unsigned UNIT_INPUTS = Format::TILES * TILE_INPUTS;
    constexpr unsigned UNIT_ACCESSES = Format::ACCESSES * WARP;
    constexpr bool SCALES_UNITS = Format::SCALES == Scales::UNITS;
    constexpr unsigned RUN = RUN_BYTES / (UNIT_ACCESSES * sizeof(RowsOperand));

    // What a warp computes.
    constexpr unsigned BLOCK_OUTPUT_TILES = BLOCK_OUTPUTS / TILE_OUTPUTS;
    constexpr unsigned WARPS_ALONG_ROWS = TILES_THREADS / WARP / WARPS_ALONG_OUTPUTS;
    constexpr unsigned WARP_OUTPUT_TILES = BLOCK_OUTPUT_TILES / WARPS_ALONG_OUTPUTS;
    constexpr unsigned WARP_ROW_TILES = BLOCK_ROWS / (WARPS_ALONG_ROWS * TILE_ROWS);
    static_assert(WARPS_ALONG_OUTPUTS * WARPS_ALONG_ROWS * WARP == TILES_THREADS, "warps cover the block's tile");
    static_assert(STORE_ROWS % (WARP_ROW_TILES * TILE_ROWS) == 0, "a warp's rows are stored at one time");

    // Accesses of a stage: the weight's units, their scales if units have some, then the inputs of a unit of every row,
    // [TILES][BLOCK_ROWS][ROW_ACCESSES].
    constexpr unsigned STAGE_WEIGHTS = BLOCK_OUTPUT_TILES * UNIT_ACCESSES;
    constexpr unsigned SCALE_ACCESSES = SCALES_UNITS ? UNIT_WORDS<Format> * sizeof(u32) / sizeof(RowsOperand) : 0;
    constexpr unsigned STAGE_SCALES = BLOCK_OUTPUT_TILES * SCALE_ACCESSES;
    constexpr unsigned STAGE_ROWS = Format::TILES * BLOCK_ROWS * ROW_ACCESSES;
    constexpr unsigned STAGE = STAGE_WEIGHTS + STAGE_SCALES + STAGE_ROWS;
    constexpr unsigned STAGES = TILES_SHARED_BYTES / (STAGE * sizeof(RowsOperand));
    static_assert(STAGES >= 3, "two are under way");
    SHARED(RowsOperand, stages, STAGES * STAGE);

    // Copies of 16 bytes that a thread makes of either operand; where a weight has fewer than threads, of it only the first do.
    constexpr unsigned WEIGHT_THREADS = STAGE_WEIGHTS < TILES_THREADS ? STAGE_WEIGHTS : TILES_THREADS;
    constexpr unsigned WEIGHT_COPIES = STAGE_WEIGHTS / WEIGHT_THREADS, ROW_COPIES = STAGE_ROWS / TILES_THREADS;
    static_assert(WEIGHT_COPIES * WEIGHT_THREADS == STAGE_WEIGHTS, "copies cover a stage");
    static_assert(ROW_COPIES * TILES_THREADS == STAGE_ROWS, "copies cover a stage");
    static_assert(STAGE_SCALES <= TILES_THREADS, "a thread copies scales once");

    allow_kernel_behind();

    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    unsigned first_row = row_block * BLOCK_ROWS, first_output = output_block * BLOCK_OUTPUTS;
    unsigned units = units_of<Format>(k), output_tiles = output_tiles_of(n);

    // Copy: a thread has the same places of every unit. What lies beyond the last output or row is zeros.
    const RowsOperand* weight_from[WEIGHT_COPIES];
    const T* x_from[ROW_COPIES];
    bool has_weight[WEIGHT_COPIES], has_row[ROW_COPIES];
    for (unsigned i = 0; i < WEIGHT_COPIES; ++i) {
        unsigned access = i * TILES_THREADS + threadIdx.x;
        unsigned output_tile = first_output / TILE_OUTPUTS + access / UNIT_ACCESSES;
        has_weight[i] = output_tile < output_tiles;
        size_t start = unit_start<Format>(has_weight[i] ? output_tile : 0, 0, units);
        weight_from[i] = static_cast<const RowsOperand*>(weight) + start + access % UNIT_ACCESSES;
    }
    for (unsigned i = 0; i < ROW_COPIES; ++i) {
        unsigned access = i * TILES_THREADS + threadIdx.x;
        unsigned tile = access / (BLOCK_ROWS * ROW_ACCESSES), row = first_row + access / ROW_ACCESSES % BLOCK_ROWS;
        has_row[i] = row < m;
        x_from[i] = x + size_t(has_row[i] ? row : 0) * k + tile * TILE_INPUTS + access % ROW_ACCESSES * VECTOR;
    }
    const RowsOperand* scales_from = nullptr;
    bool has_scales = false;
    if constexpr (SCALES_UNITS) {
        unsigned output_tile = first_output / TILE_OUTPUTS + threadIdx.x / SCALE_ACCESSES;
        has_scales = output_tile < output_tiles;
        scales_from = scales_of<Format, RowsOperand>(weight, n, units) +
                      size_t(has_scales ? output_tile : 0) * units * SCALE_ACCESSES + threadIdx.x % SCALE_ACCESSES;
    }
    auto copy_weights = [&](unsigned unit) {
        RowsOperand* to = stages + unit % STAGES * STAGE + threadIdx.x;
        if (WEIGHT_THREADS == TILES_THREADS || threadIdx.x < WEIGHT_THREADS) {
            for (unsigned i = 0; i < WEIGHT_COPIES; ++i) {
                copy_async(to + i * TILES_THREADS, weight_from[i] + size_t(unit) * UNIT_ACCESSES, has_weight[i]);
            }
        }
        if (SCALES_UNITS && threadIdx.x < STAGE_SCALES) {
            copy_async(to + STAGE_WEIGHTS, scales_from + size_t(unit) * SCALE_ACCESSES, has_scales);
        }
    };
    auto copy_rows = [&](unsigned unit) {
        RowsOperand* to = stages + unit % STAGES * STAGE + STAGE_WEIGHTS + STAGE_SCALES + threadIdx.x;
        for (unsigned i = 0; i < ROW_COPIES; ++i) {
            copy_async(to + i * TILES_THREADS, x_from[i] + unit * UNIT_INPUTS, has_row[i]);
        }
    };
    // Units up to `end`. A thread has a tile of outputs; of the blocks that share them, the first asks.
    auto prefetch_weights = [&](unsigned unit, unsigned end) {
        unsigned output_tile = first_output / TILE_OUTPUTS + threadIdx.x;
        bool asks = row_block == 0 && threadIdx.x < BLOCK_OUTPUT_TILES && output_tile < output_tiles;
        if (!asks || unit >= units) return;
        unsigned count = min(end, units) - unit;
        const RowsOperand* from = static_cast<const RowsOperand*>(weight) + unit_start<Format>(output_tile, unit, units);
        prefetch(from, count * UNIT_ACCESSES * sizeof(RowsOperand));
        if constexpr (SCALES_UNITS) {
            const u32* scales = scales_of<Format, u32>(weight, n, units);
            size_t first_scale = (size_t(output_tile) * units + unit) * UNIT_WORDS<Format>;
            prefetch(scales + first_scale, count * UNIT_WORDS<Format> * sizeof(u32));
        }
    };
    unsigned warp_tile = warp % WARPS_ALONG_OUTPUTS * WARP_OUTPUT_TILES;
    unsigned warp_row = warp / WARPS_ALONG_OUTPUTS * WARP_ROW_TILES * TILE_ROWS;
    // Of the unit whose squares are read.
    u32 zeros[WARP_OUTPUT_TILES] = {};
    auto load_weights = [&](RowsOperand(&weights)[WARP_OUTPUT_TILES], unsigned stage, unsigned square) {
        const RowsOperand* from = stages + stage * STAGE + warp_tile * UNIT_ACCESSES + lane;
#pragma unroll
        for (unsigned i = 0; i < WARP_OUTPUT_TILES; ++i) {
            RowsOperand accesses[Format::ACCESSES];
            for (unsigned access = 0; access < Format::ACCESSES; ++access) {
                accesses[access] = from[i * UNIT_ACCESSES + access * WARP];
            }
            if constexpr (Format::Zeros::ARE_STORED) {
                const RowsOperand* scales = stages + stage * STAGE + STAGE_WEIGHTS + (warp_tile + i) * SCALE_ACCESSES;
                if (square == 0) zeros[i] = unit_zeros(reinterpret_cast<const u32*>(scales))[lane / 4];
            }
            weights[i] = Format::square(accesses, square, typename Format::Zeros(zeros[i]));
        }
    };
    auto load_scales = [&](u32(&scales)[WARP_OUTPUT_TILES], unsigned stage) {
        const RowsOperand* from = stages + stage * STAGE + STAGE_WEIGHTS + warp_tile * SCALE_ACCESSES;
#pragma unroll
        for (unsigned i = 0; i < WARP_OUTPUT_TILES; ++i) {
            scales[i] = reinterpret_cast<const u32*>(from + i * SCALE_ACCESSES)[lane / 4];
        }
    };
    // Lane 4 r + c has the inputs from 8 c on of row r: 16 bytes at 16 * lane.
    auto load_inputs = [&](RowInputs(&inputs)[Format::TILES][WARP_ROW_TILES], unsigned stage) {
        const RowsOperand* from = stages + stage * STAGE + STAGE_WEIGHTS + STAGE_SCALES + warp_row * ROW_ACCESSES + lane;
#pragma unroll
        for (unsigned tile = 0; tile < Format::TILES; ++tile) {
#pragma unroll
            for (unsigned i = 0; i < WARP_ROW_TILES; ++i) {
                const RowsOperand* access = from + (tile * BLOCK_ROWS + i * TILE_ROWS) * ROW_ACCESSES;
                inputs[tile][i] = *reinterpret_cast<const RowInputs*>(access);
            }
        }
    };

    // Fill the stages: the weight before the kernels are over that write x. A group of copies for every unit, also for those
    // that are not there, so that their number says which have landed.
    for (unsigned unit = 0; unit < min(STAGES, units); ++unit) copy_weights(unit);
    prefetch_weights(STAGES, RUNS_AHEAD * RUN);
    wait_for_kernels_before();
    for (unsigned unit = 0; unit < STAGES; ++unit) {
        if (unit < units) copy_rows(unit);
        commit_copies();
    }
    wait_for_copies<STAGES - 1>();
    __syncthreads();

    // Multiply. Sums of units that have scales are added to those of their part.
    Sums totals[WARP_OUTPUT_TILES][WARP_ROW_TILES], sums[WARP_OUTPUT_TILES][WARP_ROW_TILES] = {};
    [[maybe_unused]] Sums part_sums[WARP_OUTPUT_TILES][WARP_ROW_TILES] = {};
    for (auto& outputs : totals) {
        for (Sums& total : outputs) total = {{NOTHING, NOTHING, NOTHING, NOTHING}};
    }
    RowsOperand even_square[WARP_OUTPUT_TILES], odd_square[WARP_OUTPUT_TILES];
    RowInputs inputs[Format::TILES][WARP_ROW_TILES], next_inputs[Format::TILES][WARP_ROW_TILES];
    load_weights(even_square, 0, 0);
    load_inputs(inputs, 0);
    unsigned unit = 0, stage = 0;
    for (unsigned part = 0; part < parts; ++part) {
        for (unsigned end = part_start(units, part + 1, parts); unit < end; ++unit) {
            if (unit % RUN == 0) prefetch_weights(unit + RUNS_AHEAD * RUN, unit + (RUNS_AHEAD + 1) * RUN);
            [[maybe_unused]] u32 scales[WARP_OUTPUT_TILES];
            if constexpr (SCALES_UNITS) load_scales(scales, stage);
#pragma unroll
            for (unsigned tile = 0; tile < Format::TILES; ++tile) {
                load_weights(odd_square, stage, tile * TILE_SQUARES + 1);
                multiply_tiles<T>(sums, even_square, inputs[tile], 0);
                if (tile + 1 < Format::TILES) {
                    load_weights(even_square, stage, (tile + 1) * TILE_SQUARES);
                } else {
                    // Of the groups so far, those from unit + 2 on may be under way. Behind the barrier all threads have what
                    // they need of this unit, whose stage is free, and all copies of the next one can be seen. Behind the last
                    // unit there is nothing, and nobody uses it.
                    wait_for_copies<STAGES - 2>();
                    __syncthreads();
                    stage = stage + 1 < STAGES ? stage + 1 : 0;
                    load_weights(even_square, stage, 0);
                    load_inputs(next_inputs, stage);
                    if (unit + STAGES < units) {
                        copy_weights(unit + STAGES);
                        copy_rows(unit + STAGES);
                    }
                    commit_copies();
                }
                multiply_tiles<T>(sums, odd_square, inputs[tile], 1);
            }
#pragma unroll
            for (unsigned tile = 0; tile < Format::TILES; ++tile) {
#pragma unroll
                for (unsigned i = 0; i < WARP_ROW_TILES; ++i) inputs[tile][i] = next_inputs[tile][i];
            }
            if constexpr (SCALES_UNITS) {
#pragma unroll
                for (unsigned i = 0; i < WARP_OUTPUT_TILES; ++i) {
#pragma unroll
                    for (unsigned j = 0; j < WARP_ROW_TILES; ++j) {
                        add_unit<Format>(part_sums[i][j], sums[i][j], scales[i]);
                        sums[i][j] = {};
                    }
                }
            }
        }
#pragma unroll
        for (unsigned i = 0; i < WARP_OUTPUT_TILES; ++i) {
#pragma unroll
            for (unsigned j = 0; j < WARP_ROW_TILES; ++j) {
                Sums& finished = SCALES_UNITS ? part_sums[i][j] : sums[i][j];
                for (unsigned at = 0; at < 4; ++at) totals[i][j].at[at] += finished.at[at];
                finished = {};
            }
        }
    }

    // Store. Of sums, a lane has two outputs, eight apart, of two rows.
    constexpr unsigned STRIDE = STORED_STRIDE<Out, BLOCK_OUTPUTS>;
    static_assert(STORE_ROWS * STRIDE * sizeof(Out) <= STAGES * STAGE * sizeof(RowsOperand), "it takes the place of the stages");
    Out* staged = reinterpret_cast<Out*>(stages);
    for (unsigned start = 0; start < BLOCK_ROWS; start += STORE_ROWS) {
        // All threads have read what lies there, and all copies have landed: the groups behind the last tile are empty.
        __syncthreads();
        if (warp_row / STORE_ROWS * STORE_ROWS == start) {
#pragma unroll
            for (unsigned i = 0; i < WARP_OUTPUT_TILES; ++i) {
                for (unsigned half = 0; half < 2; ++half) {
                    unsigned output = (warp_tile + i) * TILE_OUTPUTS + lane / 4 + half * 8;
                    Finish<Format> finish(bias, weight, first_output + output, n, units);
#pragma unroll
                    for (unsigned j = 0; j < WARP_ROW_TILES; ++j) {
                        unsigned row = warp_row - start + j * TILE_ROWS + lane % 4 * 2;
                        for (unsigned next = 0; next < 2; ++next) {
                            float total = finish.of(totals[i][j].at[half * 2 + next]);
                            staged[(row + next) * STRIDE + output] = round_to<Out>(total);
                        }
                    }
                }
            }
        }
        __syncthreads();
        store_rows<BLOCK_OUTPUTS>(out, staged, first_row + start, first_output, m, n);
    }
}

// BLOCK_ROWS, BLOCK_OUTPUTS, WARPS_ALONG_OUTPUTS.
#define TILES_KERNEL(NAME, FORMAT, T, OUT, ...)                                                                         \
    KERNEL __launch_bounds__(TILES_THREADS, 1)                                                                          \
        NAME(OUT* out, const T* x, const void* weight, const float* bias, u32 m, u32 n, u32 k, u32 parts) {             \
        linear_tiles<FORMAT<T>, OUT, __VA_ARGS__>(out, x, weight, bias, m, n, k, parts, blockIdx.x, blockIdx.y);        \
    }                                                                                                                   \
    EXPORT(NAME)
