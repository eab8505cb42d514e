// A linear layer of many rows: prefill, and decode of more than 64. `linear.cuh` says what it means, and in which order: that of
// `linear_rows.cu`.
//
// A block computes 128 or 64 outputs of 128 rows, a warp half of them of 32. Tiles of inputs pass through shared memory, three or
// four of them: one is computed, the others are under way. Both operands lie there as lanes read them, 512 neighbouring bytes a
// warp, so that no two lanes want the same bank: a tile's weight is one access as it is, and the 64 bytes of eight rows of x are
// one too.
//
// A warp reads the next operands from shared memory while it multiplies with those it has, also from one tile to the next.
//
// What is under way to shared memory covers the latency of L2. It would not cover that of memory, from which the weight comes as
// fast as it can where rows are few: in a block of 128 outputs that is 16 KiB of weights, not 33 (`linear_rows.cu`). So L2
// fetches the weight eight tiles or more before it is copied, 64 or 32 KiB, the first of it before the kernel waits for those
// before it.
//
// Shapes:  out: [m][n], x: [m][k], bias: [n] or null, weight: as `pack_linear` makes it.
// Grid:    x: ceil(m / 128), which share a weight in L2 as neighbours in time; y: ceil(n / outputs). 256 threads.
// Traffic: for a block of 128 outputs and a tile of inputs, 16 KiB from L2 for 512 Ki products. Shared memory is the limit: 64 KiB
//          through it, 512 cycles, are 1024 products a cycle of a multiprocessor. A larger tile of a warp would need fewer, but the
//          sums of a part and the totals beside them take half of the registers already.
//          A block of 64 outputs, for where there are too few of 128 (`squares.rs`), needs for a product half as much again from
//          L2 and a third more of shared memory. One of 32 would need more from L2 than the 64 x 64 of `linear_rows_8`.
#include "linear.cuh"

constexpr unsigned THREADS = 256;
constexpr unsigned BLOCK_ROWS = 128;

// Warps of a block along the outputs and along the rows, and what a warp computes of the latter.
constexpr unsigned WARPS_ALONG_OUTPUTS = 2;
constexpr unsigned WARPS_ALONG_ROWS = 4;
constexpr unsigned WARP_ROW_TILES = BLOCK_ROWS / (WARPS_ALONG_ROWS * TILE_ROWS);
static_assert(WARPS_ALONG_OUTPUTS * WARPS_ALONG_ROWS * WARP == THREADS, "warps cover the block's tile");

// A thread copies 16 bytes at a time: of so many tiles of outputs, or of so many rows.
constexpr unsigned COPY_OUTPUT_TILES = THREADS * VECTOR / TILE_ELEMENTS;
constexpr unsigned COPY_ROWS = THREADS * VECTOR / TILE_INPUTS;
constexpr unsigned ROW_COPIES = BLOCK_ROWS / COPY_ROWS;

// More shared memory would have to be asked for.
constexpr unsigned SHARED_BYTES = 48 << 10;

// L2 fetches the weight in runs of neighbouring tiles, so many ahead of the one that is computed.
constexpr unsigned RUN = 4;
constexpr unsigned RUNS_AHEAD = 3;

// Rows whose results pass through shared memory at a time, on their way to whole lines of out.
constexpr unsigned STORE_ROWS = 64;

// Of sums the operands of one square each: outputs x rows.
template <typename T, unsigned OUTPUT_TILES>
DEVICE void multiply_tiles(
    Sums (&sums)[OUTPUT_TILES][WARP_ROW_TILES], const RowsOperand (&weights)[OUTPUT_TILES],
    const RowInputs (&inputs)[WARP_ROW_TILES], unsigned square) {
#pragma unroll
    for (unsigned i = 0; i < OUTPUT_TILES; ++i) {
#pragma unroll
        for (unsigned j = 0; j < WARP_ROW_TILES; ++j) multiply_add<T>(sums[i][j], weights[i], inputs[j].square[square]);
    }
}

template <typename T, typename Out, unsigned BLOCK_OUTPUTS>
DEVICE void linear_tiles(Out* out, const T* x, const T* weight, const float* bias, u32 m, u32 n, u32 k, u32 parts) {
    constexpr unsigned BLOCK_OUTPUT_TILES = BLOCK_OUTPUTS / TILE_OUTPUTS;
    constexpr unsigned WARP_OUTPUT_TILES = BLOCK_OUTPUT_TILES / WARPS_ALONG_OUTPUTS;
    constexpr unsigned WEIGHT_COPIES = BLOCK_OUTPUT_TILES / COPY_OUTPUT_TILES;
    static_assert(WEIGHT_COPIES * COPY_OUTPUT_TILES * TILE_OUTPUTS == BLOCK_OUTPUTS, "copies cover a stage");
    // Of a stage: the weight's tiles, then 32 inputs of every row.
    constexpr unsigned STAGE_WEIGHTS = BLOCK_OUTPUT_TILES * TILE_ELEMENTS;
    constexpr unsigned STAGE_ELEMENTS = STAGE_WEIGHTS + BLOCK_ROWS * TILE_INPUTS;
    constexpr unsigned STAGES = SHARED_BYTES / (STAGE_ELEMENTS * sizeof(T));
    SHARED(T, stages, STAGES * STAGE_ELEMENTS);
    allow_kernel_behind();

    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    unsigned first_row = blockIdx.x * BLOCK_ROWS, first_output = blockIdx.y * BLOCK_OUTPUTS;
    unsigned input_tiles = k / TILE_INPUTS, output_tiles = output_tiles_of(n);

    // Copy: a thread has the same places of every tile. What lies beyond the last output or row is zeros.
    const T* weight_from[WEIGHT_COPIES];
    const T* x_from[ROW_COPIES];
    bool has_weight[WEIGHT_COPIES], has_row[ROW_COPIES];
    unsigned chunk = threadIdx.x * VECTOR;
    for (unsigned i = 0; i < WEIGHT_COPIES; ++i) {
        unsigned output_tile = first_output / TILE_OUTPUTS + i * COPY_OUTPUT_TILES + chunk / TILE_ELEMENTS;
        has_weight[i] = output_tile < output_tiles;
        weight_from[i] = weight + tile_start(has_weight[i] ? output_tile : 0, 0, input_tiles) + chunk % TILE_ELEMENTS;
    }
    for (unsigned i = 0; i < ROW_COPIES; ++i) {
        unsigned row = first_row + i * COPY_ROWS + chunk / TILE_INPUTS;
        has_row[i] = row < m;
        x_from[i] = x + size_t(has_row[i] ? row : 0) * k + chunk % TILE_INPUTS;
    }
    auto copy_weights = [&](unsigned tile) {
        T* to = stages + tile % STAGES * STAGE_ELEMENTS + threadIdx.x * VECTOR;
        for (unsigned i = 0; i < WEIGHT_COPIES; ++i) {
            copy_async(to + i * THREADS * VECTOR, weight_from[i] + size_t(tile) * TILE_ELEMENTS, has_weight[i]);
        }
    };
    auto copy_rows = [&](unsigned tile) {
        T* to = stages + tile % STAGES * STAGE_ELEMENTS + STAGE_WEIGHTS + threadIdx.x * VECTOR;
        for (unsigned i = 0; i < ROW_COPIES; ++i) {
            copy_async(to + i * THREADS * VECTOR, x_from[i] + tile * TILE_INPUTS, has_row[i]);
        }
    };
    // A thread has a tile of outputs; of the blocks that share them, the first asks.
    auto prefetch_weights = [&](unsigned tile) {
        unsigned output_tile = first_output / TILE_OUTPUTS + threadIdx.x;
        bool asks = blockIdx.x == 0 && threadIdx.x < BLOCK_OUTPUT_TILES && output_tile < output_tiles;
        if (!asks || tile >= input_tiles) return;
        unsigned elements = min(RUN, input_tiles - tile) * TILE_ELEMENTS;
        prefetch(weight + tile_start(output_tile, tile, input_tiles), elements * sizeof(T));
    };
    unsigned warp_tile = warp % WARPS_ALONG_OUTPUTS * WARP_OUTPUT_TILES;
    unsigned warp_row = warp / WARPS_ALONG_OUTPUTS * WARP_ROW_TILES * TILE_ROWS;
    auto load_weights = [&](RowsOperand(&weights)[WARP_OUTPUT_TILES], unsigned stage, unsigned square) {
        const T* from = stages + stage * STAGE_ELEMENTS + warp_tile * TILE_ELEMENTS + lane * VECTOR;
#pragma unroll
        for (unsigned i = 0; i < WARP_OUTPUT_TILES; ++i) {
            weights[i] = *reinterpret_cast<const RowsOperand*>(from + i * TILE_ELEMENTS + square * SQUARE_ELEMENTS);
        }
    };
    // Lane 4 r + c has the inputs from 8 c on of row r: 16 bytes at 16 * lane.
    auto load_inputs = [&](RowInputs(&inputs)[WARP_ROW_TILES], unsigned stage) {
        const T* from = stages + stage * STAGE_ELEMENTS + STAGE_WEIGHTS + warp_row * TILE_INPUTS + lane * VECTOR;
#pragma unroll
        for (unsigned i = 0; i < WARP_ROW_TILES; ++i) {
            inputs[i] = *reinterpret_cast<const RowInputs*>(from + i * TILE_ROWS * TILE_INPUTS);
        }
    };

    // Fill the stages: the weight before the kernels are over that write x. A group of copies for every tile, also for those
    // that are not there, so that their number says which have landed.
    for (unsigned tile = 0; tile < min(STAGES, input_tiles); ++tile) copy_weights(tile);
    for (unsigned run = 1; run < RUNS_AHEAD; ++run) prefetch_weights(run * RUN);
    wait_for_kernels_before();
    for (unsigned tile = 0; tile < STAGES; ++tile) {
        if (tile < input_tiles) copy_rows(tile);
        commit_copies();
    }
    wait_for_copies<STAGES - 1>();
    __syncthreads();

    // Multiply.
    Sums totals[WARP_OUTPUT_TILES][WARP_ROW_TILES], sums[WARP_OUTPUT_TILES][WARP_ROW_TILES] = {};
    for (auto& outputs : totals) {
        for (Sums& total : outputs) total = {{NOTHING, NOTHING, NOTHING, NOTHING}};
    }
    RowsOperand first_square[WARP_OUTPUT_TILES], second_square[WARP_OUTPUT_TILES];
    RowInputs inputs[WARP_ROW_TILES], next_inputs[WARP_ROW_TILES];
    load_weights(first_square, 0, 0);
    load_inputs(inputs, 0);
    unsigned tile = 0, stage = 0;
    for (unsigned part = 0; part < parts; ++part) {
        for (unsigned end = part_start(input_tiles, part + 1, parts); tile < end; ++tile) {
            if (tile % RUN == 0) prefetch_weights(tile + RUNS_AHEAD * RUN);
            load_weights(second_square, stage, 1);
            multiply_tiles<T>(sums, first_square, inputs, 0);

            // Of the groups so far, those from tile + 2 on may be under way. Behind the barrier all threads have what they need
            // of this tile, whose stage is free, and all copies of the next one can be seen. Behind the last tile there is
            // nothing, and nobody uses it.
            wait_for_copies<STAGES - 2>();
            __syncthreads();
            stage = stage + 1 < STAGES ? stage + 1 : 0;
            load_weights(first_square, stage, 0);
            load_inputs(next_inputs, stage);
            if (tile + STAGES < input_tiles) {
                copy_weights(tile + STAGES);
                copy_rows(tile + STAGES);
            }
            commit_copies();
            multiply_tiles<T>(sums, second_square, inputs, 1);
#pragma unroll
            for (unsigned i = 0; i < WARP_ROW_TILES; ++i) inputs[i] = next_inputs[i];
        }
#pragma unroll
        for (unsigned i = 0; i < WARP_OUTPUT_TILES; ++i) {
#pragma unroll
            for (unsigned j = 0; j < WARP_ROW_TILES; ++j) {
                for (unsigned at = 0; at < 4; ++at) totals[i][j].at[at] += sums[i][j].at[at];
                sums[i][j] = {};
            }
        }
    }

    // Store. Of sums, a lane has two outputs, eight apart, of two rows. Four more elements of 4 bytes a row than there are
    // outputs, and lanes that write different rows at the same time have different banks.
    struct alignas(16) Access {
        Out at[16 / sizeof(Out)];
    };
    constexpr unsigned ACCESS = 16 / sizeof(Out), STRIDE = BLOCK_OUTPUTS + ACCESS;
    static_assert(STORE_ROWS * STRIDE * sizeof(Out) <= STAGES * STAGE_ELEMENTS * sizeof(T), "it takes the place of the stages");
    Out* staged = reinterpret_cast<Out*>(stages);
    bool has_whole_accesses = n % ACCESS == 0;
    for (unsigned start = 0; start < BLOCK_ROWS; start += STORE_ROWS) {
        // All threads have read what lies there, and all copies have landed: the groups behind the last tile are empty.
        __syncthreads();
        if (warp_row / STORE_ROWS * STORE_ROWS == start) {
#pragma unroll
            for (unsigned i = 0; i < WARP_OUTPUT_TILES; ++i) {
                for (unsigned half = 0; half < 2; ++half) {
                    unsigned output = (warp_tile + i) * TILE_OUTPUTS + lane / 4 + half * 8;
                    float addend = bias_of(bias, first_output + output, n);
#pragma unroll
                    for (unsigned j = 0; j < WARP_ROW_TILES; ++j) {
                        unsigned row = warp_row - start + j * TILE_ROWS + lane % 4 * 2;
                        for (unsigned next = 0; next < 2; ++next) {
                            float total = totals[i][j].at[half * 2 + next] + addend;
                            staged[(row + next) * STRIDE + output] = round_to<Out>(total);
                        }
                    }
                }
            }
        }
        __syncthreads();
        for (unsigned at = threadIdx.x * ACCESS; at < STORE_ROWS * BLOCK_OUTPUTS; at += THREADS * ACCESS) {
            unsigned staged_row = at / BLOCK_OUTPUTS, row = first_row + start + staged_row;
            unsigned staged_output = at % BLOCK_OUTPUTS, output = first_output + staged_output;
            if (row >= m || output >= n) continue;
            Out* to = out + size_t(row) * n + output;
            const Out* from = staged + staged_row * STRIDE + staged_output;
            if (has_whole_accesses) {
                *reinterpret_cast<Access*>(to) = *reinterpret_cast<const Access*>(from);
            } else {
                for (unsigned i = 0; i < min(ACCESS, n - output); ++i) to[i] = from[i];
            }
        }
    }
}

#define TILES_KERNEL(NAME, T, OUT, OUTPUTS)                                                                             \
    KERNEL __launch_bounds__(THREADS, 1)                                                                                \
        NAME(OUT* out, const T* x, const T* weight, const float* bias, u32 m, u32 n, u32 k, u32 parts) {                \
        linear_tiles<T, OUT, OUTPUTS>(out, x, weight, bias, m, n, k, parts);                                            \
    }                                                                                                                   \
    EXPORT(NAME)

#define TILES(T, OUTPUTS)                                     \
    TILES_KERNEL(linear_tiles_##OUTPUTS##_##T, T, T, OUTPUTS) \
    TILES_KERNEL(linear_tiles_##OUTPUTS##_##T##_f32, T, float, OUTPUTS)

#define LINEAR(T)  \
    TILES(T, 128)  \
    TILES(T, 64)

LINEAR(bf16)
LINEAR(f16)
