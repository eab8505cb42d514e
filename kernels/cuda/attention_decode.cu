// Grouped-query attention of single rows: decode. `ops/attention/mod.rs` says what it means, `attention.cuh` in which order.
//
// One kernel computes splits, each by itself, a warp a tile; a second merges a row's splits. Up to eight heads of a KV head are the
// columns of one matrix instruction, whose 16 rows are keys or dimensions of values: what is read once is used for all of them.
// (GQA: arXiv:2305.13245; a row in parts: flash-decoding.) One list of splits serves layers with and without a window: splits of
// which a row sees nothing are passed over.
#include "attention.cuh"

constexpr unsigned WARPS = SPLIT_TILES;
constexpr unsigned THREADS = WARPS * WARP;
// Blocks of a multiprocessor, at least: while one waits for memory, others compute. Not said, ptxas would sooner spill than use more
// registers.
template <unsigned DIM>
constexpr unsigned BLOCKS = DIM > 128 ? 3 : 4;
// Columns of a matrix instruction: heads of a block, at most.
constexpr unsigned HEADS = 8;

// A piece of work: a row, and the number of a split. A row has all of 0 .. ceil((position + 1) / SPLIT), ascending.
struct SplitItem {
    u32 row, split;
};

// Some heads' queries as columns: of head lane / 4 the dimensions of a square. Heads that are not there are zeros.
template <typename T>
DEVICE ColumnsOperand load_queries(const T* queries, unsigned dim, unsigned heads, unsigned square) {
    unsigned lane = threadIdx.x % WARP, head = lane / 4;
    if (head >= heads) return {{0, 0}};
    const T* from = queries + head * dim + square * SQUARE + lane % 4 * 2;
    return {{*reinterpret_cast<const u32*>(from), *reinterpret_cast<const u32*>(from + 8)}};
}

// Blocks of the grid: any number along x, which take the items in turn; up to HEADS heads of a KV head along y.
//
// sums: [items][heads][DIM]; states: [items][heads], both unwritten where the row sees nothing; qkv: [T][qkv_cols], queries
// first; items: [*num_items]; positions: [T]; tables: those of all rows, of which a row's begins at table_starts[row]: [T].
template <unsigned DIM, typename Cache, typename T = typename Cache::Element, typename C = typename Cache::Stored>
DEVICE void attention_splits(
    float* sums, State* states, const T* qkv, const C* keys, const C* values, const SplitItem* items, const u32* num_items,
    const u32* positions, const u32* tables, const u32* table_starts, unsigned qkv_cols, unsigned group,
    unsigned kv_heads, float scale, float steepness, u32 window, const Cache& cache) {
    constexpr unsigned SQUARES = DIM / SQUARE, TOGETHER = ACCESS_SQUARES<C>;
    // A warp's weights as columns: [blocks][lanes][2 pairs][2].
    SHARED(T, all_weights, WARPS * TILE_BLOCKS * WARP * 4);
    SHARED(State, tile_states, WARPS * HEADS);
    SHARED(float, tile_sums, WARPS * HEADS * DIM);

    allow_kernel_behind();
    wait_for_kernels_before();
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Of sums, a lane has two columns (heads) of two rows (positions or dimensions), eight apart.
    unsigned first_head = lane % 4 * 2, first_row = lane / 4;
    T* weights = all_weights + warp * TILE_BLOCKS * WARP * 4;
    unsigned parts = (group + HEADS - 1) / HEADS, kv_head = blockIdx.y / parts;
    // Of the heads that share the KV head: how many other blocks compute, and this one.
    unsigned before = blockIdx.y % parts * HEADS, heads = min(group - before, HEADS);
    for (unsigned at = blockIdx.x; at < *num_items; at += gridDim.x) {
        SplitItem item = items[at];
        Visible visible = visible_of(positions[item.row], window);
        u32 split_start = item.split * SPLIT, tile_start = split_start + warp * TILE;
        // All threads of the block skip it, so none waits at a barrier for another.
        if (!visible.meets(split_start, SPLIT)) continue;

        if (visible.meets(tile_start, TILE)) {
            TileTable table(tables + table_starts[item.row], visible, tile_start);
            const T* queries = qkv + size_t(item.row) * qkv_cols + (kv_head * group + before) * DIM;
            ColumnsOperand query[SQUARES];
#pragma unroll
            for (unsigned square = 0; square < SQUARES; ++square) query[square] = load_queries(queries, DIM, heads, square);

            Sums scores[TILE_BLOCKS] = {};
            float maxima[2] = {-infinity(), -infinity()};
#pragma unroll
            for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                u32 first = tile_start + block * BLOCK_POSITIONS;
                if (visible.meets(first, BLOCK_POSITIONS)) {
                    const C* squares = keys + block_start(table.block[block], kv_heads, kv_head, DIM);
#pragma unroll
                    for (unsigned square = 0; square < SQUARES; square += TOGETHER) {
                        Square access = load_access<DIM>(squares, square);
#pragma unroll
                        for (unsigned i = 0; i < TOGETHER && square + i < SQUARES; ++i) {
                            multiply_add<T>(scores[block], rows_of(cache.square(access, i)), query[square + i]);
                        }
                    }
                }
                if (steepness != 0.0f) level_off(scores[block], steepness);
                for (unsigned i = 0; i < 4; ++i) {
                    float& score = scores[block].at[i];
                    score = visible.has(first + first_row + i / 2 * 8) ? scaled(score, scale) : -infinity();
                    maxima[i % 2] = fmaxf(maxima[i % 2], score);
                }
            }
            for (unsigned distance = 4; distance < WARP; distance *= 2) {
                for (float& max : maxima) max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, distance));
            }
            for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                for (unsigned i = 0; i < 4; ++i) {
                    // The lane that has this head as its column, and of its pairs that of this position.
                    unsigned owner = (first_head + i % 2) * 4 + first_row / 2;
                    weights[((block * WARP + owner) * 2 + i / 2) * 2 + first_row % 2] =
                        round_to<T>(exp2f(scores[block].at[i] - maxima[i % 2]));
                }
            }
            __syncwarp();

            Sums weighted[SQUARES] = {}, total = {};
            u32 ones = pair_of_ones<T>();
#pragma unroll
            for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                u32 first = tile_start + block * BLOCK_POSITIONS;
                if (!visible.meets(first, BLOCK_POSITIONS)) continue;
                ColumnsOperand shares = reinterpret_cast<const ColumnsOperand*>(weights)[block * WARP + lane];
                const C* squares = values + block_start(table.block[block], kv_heads, kv_head, DIM);
                bool has_hidden = visible.cuts(first, BLOCK_POSITIONS);
#pragma unroll
                for (unsigned square = 0; square < SQUARES; square += TOGETHER) {
                    Square access = load_access<DIM>(squares, square);
#pragma unroll
                    for (unsigned i = 0; i < TOGETHER && square + i < SQUARES; ++i) {
                        Square loaded = cache.square(access, i);
                        if (has_hidden) loaded = without_hidden(loaded, visible, first);
                        multiply_add<T>(weighted[square + i], rows_of(loaded), shares);
                    }
                }
                multiply_add<T>(total, {{ones, ones, ones, ones}}, shares);
            }
            for (unsigned i = 0; i < 4; ++i) {
                float* tile = tile_sums + (warp * HEADS + first_head + i % 2) * DIM;
#pragma unroll
                for (unsigned square = 0; square < SQUARES; ++square) {
                    tile[square * SQUARE + first_row + i / 2 * 8] = weighted[square].at[i];
                }
                // All rows of the sums of weights are the same.
                if (first_row == 0 && i < 2) tile_states[warp * HEADS + first_head + i] = {maxima[i], total.at[i]};
            }
        }
        __syncthreads();

        // Tiles into the split.
        for (unsigned element = threadIdx.x; element < heads * DIM; element += THREADS) {
            unsigned head = element / DIM;
            State state = no_state();
            float sum = 0.0f;
            for (unsigned tile = 0; tile < SPLIT_TILES; ++tile) {
                if (!visible.meets(split_start + tile * TILE, TILE)) continue;
                Factors factors = merge(state, tile_states[tile * HEADS + head]);
                sum = merged(sum, tile_sums[(tile * HEADS + head) * DIM + element % DIM], factors);
            }
            size_t place = (size_t(at) * kv_heads + kv_head) * group + before + head;
            sums[place * DIM + element % DIM] = sum;
            if (element % DIM == 0) states[place] = state;
        }
        // The next item writes what slower threads still read.
        __syncthreads();
    }
}

// A row that is not computed by splits has none.
constexpr u32 NO_ITEM = 0xffffffff;

// A block per row and head, a thread per dimension. first_items: [T], where split 0 of a row is, or NO_ITEM, which leaves the row
// as it is; out: [T][heads][dim].
template <typename T>
DEVICE void attention_merge(
    T* out, const float* sums, const State* states, const u32* first_items, const u32* positions, u32 window) {
    allow_kernel_behind();
    wait_for_kernels_before();
    unsigned row = blockIdx.x, head = blockIdx.y, heads = gridDim.y, dim = blockDim.x;
    if (first_items[row] == NO_ITEM) return;
    Visible visible = visible_of(positions[row], window);
    State state = no_state();
    float sum = 0.0f;
    for (unsigned split = visible.begin() / SPLIT; split * SPLIT < visible.end; ++split) {
        size_t place = size_t(first_items[row] + split) * heads + head;
        Factors factors = merge(state, states[place]);
        sum = merged(sum, sums[place * dim + threadIdx.x], factors);
    }
    out[(size_t(row) * heads + head) * dim + threadIdx.x] = round_to<T>(sum / state.denominator);
}

// ...: parameters of the cache, each behind a comma.
#define SPLITS_KERNEL(NAME, T, C, DIM, CACHE, ...)                                                                 \
    KERNEL __launch_bounds__(THREADS, BLOCKS<DIM>) NAME(                                                           \
        float* sums, State* states, const T* qkv, const C* keys, const C* values, const SplitItem* items,          \
        const u32* num_items, const u32* positions, const u32* tables, const u32* table_starts, unsigned qkv_cols, \
        unsigned group, unsigned kv_heads, float scale, float steepness, u32 window __VA_ARGS__) {                 \
        attention_splits<DIM>(sums, states, qkv, keys, values, items, num_items, positions, tables, table_starts,  \
                              qkv_cols, group, kv_heads, scale, steepness, window, CACHE);                         \
    }                                                                                                              \
    EXPORT(NAME)

#define SPLITS(T, DIM) SPLITS_KERNEL(attention_splits_##DIM##_##T, T, T, DIM, SameCache<T>())
#define FP8_SPLITS(T, DIM) \
    SPLITS_KERNEL(attention_splits_##DIM##_##T##_fp8, T, fp8, DIM, FP8_CACHE(T), WIDENING_PARAMETERS)

#define ATTENTION(T)                                                                                              \
    SPLITS(T, 32)                                                                                                 \
    SPLITS(T, 64)                                                                                                 \
    SPLITS(T, 80)                                                                                                 \
    SPLITS(T, 96)                                                                                                 \
    SPLITS(T, 128)                                                                                                \
    SPLITS(T, 256)                                                                                                \
    FP8_SPLITS(T, 32)                                                                                             \
    FP8_SPLITS(T, 64)                                                                                             \
    FP8_SPLITS(T, 128)                                                                                            \
    KERNEL attention_merge_##T(T* out, const float* sums, const State* states, const u32* first_items,            \
                               const u32* positions, u32 window) {                                                \
        attention_merge(out, sums, states, first_items, positions, window);                                       \
    }                                                                                                             \
    EXPORT(attention_merge_##T)

ATTENTION(bf16)
ATTENTION(f16)
