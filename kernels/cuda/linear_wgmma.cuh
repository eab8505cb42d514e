// A linear layer of many rows on Hopper. `linear.cuh` says what it means, and in which order: that of `linear_tiles.cuh`. Whether
// both matrix instructions also give the same bits, PTX does not say: the host uses this kernel only where it has seen it
// (`squares.rs`).
//
// A block computes 128 outputs of 128 rows, each of its two warpgroups half of the outputs. A warpgroup takes its weight from
// registers, so that goes there from memory as it lies, three tiles of inputs ahead, and nothing of it through shared memory. L2
// fetches it before that, as for `linear_tiles`.
//
// x is the operand in shared memory. The inputs of a tile are multiplied in the order in which lanes have those of the weight,
// which is not that of x: of 16 neighbouring bytes, each four belong to another core matrix. So x comes into registers, 16 bytes
// a lane, X_DEPTH tiles ahead, and is stored from there in four accesses, each of which fills a core matrix per warp, all banks
// once. Asynchronous copies of four bytes would take four times as many accesses of L1.
//
//   stage: u32 [2 squares][2 halves of a square][128 rows][4 lanes of a row]
//
// is for both squares an operand without swizzling, K-major: a core matrix is eight rows, the next rows lie 128 bytes further, the
// square's other half 16 bytes for every row.
//
// While the products of a tile are computed, the block stores x of the next one, asks for later ones, and waits for those before. At
// a barrier for every tile, products of two are under way.
//
// Shapes:  out: [m][n], x: [m][k], bias: [n] or null, weight: as `linear_pack.cu` makes it.
// Grid:    x: ceil(m / 128), which share a weight in L2 as neighbours in time; y: ceil(n / 128). 256 threads.
// Traffic: for a tile of inputs, 16 KiB from L2 for 512 Ki products, which take 256 cycles: 64 bytes a cycle, which may be more than
//          L2 gives. Shared memory: x once written and twice read, 192 cycles. Larger blocks would need less of L2, but totals
//          and sums of a part take half of the registers. Nothing is measured yet.
#pragma once

#include "linear_tiles.cuh"
#include "warpgroup.cuh"

// Other architectures have no such instruction, and no kernel.
#if defined(CUSIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr unsigned WGMMA_THREADS = 2 * WARPGROUP;
constexpr unsigned WGMMA_ROWS = WARPGROUP_COLUMNS;
constexpr unsigned WGMMA_OUTPUTS = 2 * WARPGROUP_ROWS;
// Tiles of inputs of which a thread has the weight: one is multiplied, the others are under way. Stages have x of as many: one is
// multiplied, one is written, and the others are of those before, which slower warps still read.
constexpr unsigned WGMMA_DEPTH = 4;
// Tiles of inputs whose x is under way to registers.
constexpr unsigned X_DEPTH = 4;

static_assert(WGMMA_DEPTH == X_DEPTH && WGMMA_DEPTH >= 3, "a tile has one place of each kind, known when it is compiled");
static_assert(RUN_BYTES % (WGMMA_DEPTH * TILE_ELEMENTS * sizeof(bf16)) == 0, "a run begins where the places do");
static_assert(WGMMA_THREADS == TILES_THREADS, "a result's store is that of `linear_tiles`");

// Words of a stage, and of the half of a square.
constexpr unsigned HALF_WORDS = WGMMA_ROWS * CORE_BYTES / CORE_COLUMNS / sizeof(u32);
constexpr unsigned X_STAGE = TILE_SQUARES * 2 * HALF_WORDS;
// Rows of which the threads copy a tile at a time.
constexpr unsigned COPIED_ROWS = WGMMA_THREADS / ROW_ACCESSES;
constexpr unsigned X_COPIES = WGMMA_ROWS / COPIED_ROWS;

// row_block, output_block: which rows and outputs, counted in blocks.
template <typename T, typename Out>
DEVICE void linear_wgmma(
    Out* out, const T* x, const void* weight, const float* bias, u32 m, u32 n, u32 k, u32 parts, unsigned row_block,
    unsigned output_block) {
    using Format = Plain<T>;
    constexpr unsigned UNIT_ACCESSES = Format::ACCESSES * WARP;
    constexpr unsigned RUN = RUN_BYTES / (UNIT_ACCESSES * sizeof(RowsOperand));
    constexpr unsigned STORED_BYTES = STORE_ROWS * STORED_STRIDE<Out, WGMMA_OUTPUTS> * sizeof(Out);
    constexpr unsigned STAGES_BYTES = WGMMA_DEPTH * X_STAGE * sizeof(u32);
    SHARED(u32, stages, (STORED_BYTES > STAGES_BYTES ? STORED_BYTES : STAGES_BYTES) / sizeof(u32));

    allow_kernel_behind();

    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    unsigned first_row = row_block * WGMMA_ROWS, first_output = output_block * WGMMA_OUTPUTS;
    unsigned units = units_of<Format>(k), output_tiles = output_tiles_of(n);

    // Behind the last tile of outputs or the last row, that one again: what nobody stores costs nothing to read twice.
    unsigned output_tile = min(first_output / TILE_OUTPUTS + warp, output_tiles - 1);
    const RowsOperand* accesses = static_cast<const RowsOperand*>(weight) + unit_start<Format>(output_tile, 0, units) + lane;
    const T* rows = x + size_t(first_row) * k + lane % ROW_ACCESSES * VECTOR;
    u32 row_starts[X_COPIES];
    for (unsigned i = 0; i < X_COPIES; ++i) {
        row_starts[i] = min(i * COPIED_ROWS + threadIdx.x / ROW_ACCESSES, m - 1 - first_row) * k;
    }
    auto load_weights = [&](RowsOperand(&weights)[TILE_SQUARES], unsigned unit) {
        if (unit >= units) return;
        for (unsigned square = 0; square < TILE_SQUARES; ++square) {
            weights[square] = load_once(accesses + size_t(unit) * UNIT_ACCESSES + square * WARP);
        }
    };
    auto load_inputs = [&](RowsOperand(&inputs)[X_COPIES], unsigned unit) {
        if (unit >= units) return;
        for (unsigned i = 0; i < X_COPIES; ++i) {
            inputs[i] = load_once(reinterpret_cast<const RowsOperand*>(rows + row_starts[i] + unit * TILE_INPUTS));
        }
    };
    // Of a lane's four pairs, the first two belong to the first square: to its first half, and to the other.
    auto store_inputs = [&](const RowsOperand(&inputs)[X_COPIES], unsigned stage) {
        u32* to = stages + stage * X_STAGE + threadIdx.x;
        for (unsigned i = 0; i < X_COPIES; ++i) {
            for (unsigned pair = 0; pair < 4; ++pair) to[pair * HALF_WORDS + i * WGMMA_THREADS] = inputs[i].pair[pair];
        }
    };
    // Units up to `end`, each thread of a tile of outputs; of the blocks that share them, the first asks.
    auto prefetch_weights = [&](unsigned unit, unsigned end) {
        unsigned tile = first_output / TILE_OUTPUTS + threadIdx.x;
        bool asks = row_block == 0 && threadIdx.x < WGMMA_OUTPUTS / TILE_OUTPUTS && tile < output_tiles;
        if (!asks || unit >= units) return;
        const RowsOperand* from = static_cast<const RowsOperand*>(weight) + unit_start<Format>(tile, unit, units);
        prefetch(from, (min(end, units) - unit) * UNIT_ACCESSES * sizeof(RowsOperand));
    };

    // Ask for the first tiles: the weight before the kernels are over that write x.
    RowsOperand weights[WGMMA_DEPTH][TILE_SQUARES], inputs[X_DEPTH][X_COPIES];
#pragma unroll
    for (unsigned unit = 0; unit + 1 < WGMMA_DEPTH; ++unit) load_weights(weights[unit], unit);
    prefetch_weights(WGMMA_DEPTH, RUNS_AHEAD * RUN);
    wait_for_kernels_before();
#pragma unroll
    for (unsigned unit = 0; unit < X_DEPTH; ++unit) load_inputs(inputs[unit], unit);
    store_inputs(inputs[0], 0);
    load_inputs(inputs[0], X_DEPTH);
    publish_to_products();
    __syncthreads();

    Sums totals[WARPGROUP_SUMS], sums[WARPGROUP_SUMS] = {};
    for (Sums& total : totals) total = {{NOTHING, NOTHING, NOTHING, NOTHING}};
    u32 address = shared_address(stages);
    unsigned part = 0, end = part_start(units, 1, parts);
    // A function of its own, which ends at any tile: leaving the unrolled loop alone, the compiler would have every round of the other one
    // wait for its products.
    auto multiply_all = [&] {
        for (unsigned first = 0;; first += WGMMA_DEPTH) {
            if (first % RUN == 0) prefetch_weights(first + RUNS_AHEAD * RUN, first + (RUNS_AHEAD + 1) * RUN);
#pragma unroll
            for (unsigned slot = 0; slot < WGMMA_DEPTH; ++slot) {
                unsigned unit = first + slot;
                if (unit >= units) return;
                fence_registers();
#pragma unroll
                for (unsigned square = 0; square < TILE_SQUARES; ++square) {
                    u32 operand = address + (slot * X_STAGE + square * 2 * HALF_WORDS) * sizeof(u32);
                    u64 columns = describe_columns(operand, HALF_WORDS * sizeof(u32), CORE_BYTES);
                    multiply_add_async<T>(sums, weights[slot][square], columns);
                }
                commit_products();

                // What is in the next tile's stage belongs to that of three before. At the last barrier, all had waited for its products.
                unsigned next_slot = (slot + 1) % X_DEPTH;
                if (unit + 1 < units) store_inputs(inputs[next_slot], next_slot);
                load_inputs(inputs[next_slot], unit + 1 + X_DEPTH);
                // The products of the tile before are done: the place of its weight is free.
                wait_for_products<1>();
                load_weights(weights[(slot + WGMMA_DEPTH - 1) % WGMMA_DEPTH], unit + WGMMA_DEPTH - 1);
                if (unit + 1 == end) {
                    wait_for_products<0>();
#pragma unroll
                    for (unsigned i = 0; i < WARPGROUP_SUMS; ++i) {
                        for (unsigned at = 0; at < 4; ++at) totals[i].at[at] += sums[i].at[at];
                        sums[i] = {};
                    }
                    end = part_start(units, ++part + 1, parts);
                }
                publish_to_products();
                __syncthreads();
            }
        }
    };
    multiply_all();
    // They are done, as the last part's end has waited; the compiler does not know that there was one.
    wait_for_products<0>();

    // Store. Of sums, a lane has two outputs, eight apart, of two rows.
    Out* staged = reinterpret_cast<Out*>(stages);
    constexpr unsigned STORED_TILES = STORE_ROWS / TILE_ROWS;
#pragma unroll
    for (unsigned start = 0; start < WARPGROUP_SUMS; start += STORED_TILES) {
        for (unsigned half = 0; half < 2; ++half) {
            unsigned output = warp * TILE_OUTPUTS + lane / 4 + half * 8;
            Finish<Format> finish(bias, weight, first_output + output, n, units);
#pragma unroll
            for (unsigned j = 0; j < STORED_TILES; ++j) {
                for (unsigned next = 0; next < 2; ++next) {
                    unsigned row = j * TILE_ROWS + lane % 4 * 2 + next;
                    float total = finish.of(totals[start + j].at[half * 2 + next]);
                    staged[row * STORED_STRIDE<Out, WGMMA_OUTPUTS> + output] = round_to<Out>(total);
                }
            }
        }
        __syncthreads();
        store_rows<WGMMA_OUTPUTS>(out, staged, first_row + start * TILE_ROWS, first_output, m, n);
        // All threads have read what the next rows replace.
        __syncthreads();
    }
}

#endif
