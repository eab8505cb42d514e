// Grouped-query attention of many neighbouring rows of a sequence: a prompt's chunk. `ops/attention/mod.rs` says what it means,
// `attention.cuh` in which order.
//
// Rows and the heads that share a KV head are pairs, sixteen of which are the rows of a warp's matrix instructions; keys and
// dimensions of values are their columns. (Matrix products from registers to registers: arXiv:2307.08691.)
#include "attention.cuh"

constexpr unsigned WARPS = 4;
constexpr unsigned THREADS = WARPS * WARP;
// Blocks of a multiprocessor, at least: 168 registers a thread. For a fourth block ptxas would spill; on Blackwell for a third.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr unsigned BLOCKS = 2;
#else
constexpr unsigned BLOCKS = 3;
#endif
constexpr unsigned WARP_PAIRS = 16;
constexpr unsigned BLOCK_PAIRS = WARPS * WARP_PAIRS;
// Columns of a matrix instruction.
constexpr unsigned COLUMNS = 8;

// The rows of one sequence.
struct Sequence {
    u32 first_row, num_rows, start_position, table_start;
};

// A piece of work: BLOCK_PAIRS pairs of a sequence, of which `tile` times as many come before.
struct TileItem {
    u32 sequence, tile;
};

// Whether an element of the lane's is infinite or NaN.
template <typename T>
DEVICE bool has_non_finite(const RowsOperand& square) {
    constexpr u32 LOW = T::EXPONENT, HIGH = LOW << 16;
    bool found = false;
    for (u32 pair : square.pair) found |= (pair & LOW) == LOW || (pair & HIGH) == HIGH;
    return found;
}

// Blocks of the grid: items along x, KV heads along y, DIM / VALUES parts of the dimensions of the values along z.
//
// out: [T][heads * DIM]; qkv: [T][qkv_cols], queries first; tables: those of all sequences, each from its table_start on.
template <
    unsigned DIM, unsigned VALUES, typename Cache, typename T = typename Cache::Element, typename C = typename Cache::Stored>
DEVICE void attention_prefill(
    T* out, const T* qkv, const C* keys, const C* values, const TileItem* items, const Sequence* sequences,
    const u32* tables, unsigned qkv_cols, unsigned group, unsigned kv_heads, float scale, u32 window, const Cache& cache) {
    constexpr unsigned VALUE_TILES = VALUES / COLUMNS, TILE_COLUMNS = TILE / COLUMNS;
    allow_kernel_behind();
    wait_for_kernels_before();
    // A row's sums so far, each lane's own: [VALUE_TILES][4][threads].
    SHARED(float, row_sums, VALUE_TILES * 4 * THREADS);

    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    unsigned kv_head = blockIdx.y, first_square = blockIdx.z * VALUES / SQUARE;
    TileItem item = items[blockIdx.x];
    Sequence sequence = sequences[item.sequence];
    unsigned pairs = sequence.num_rows * group, first_pair = item.tile * BLOCK_PAIRS + warp * WARP_PAIRS;
    if (first_pair >= pairs) return;

    // Of sums, a lane has two pairs, eight apart, and two columns of each. Behind the last pair it computes that one again.
    Visible visible[2];
    // Where their queries begin in qkv, which is never near 2^32 elements: half a pointer each.
    u32 query[2];
    for (unsigned i = 0; i < 2; ++i) {
        unsigned pair = min(first_pair + lane / 4 + i * 8, pairs - 1);
        u32 row = pair / group;
        visible[i] = visible_of(sequence.start_position + row, window);
        query[i] = (sequence.first_row + row) * qkv_cols + (kv_head * group + pair % group) * DIM;
    }
    // From the first position that any of the warp's pairs sees to the last.
    unsigned last_pair = min(first_pair + WARP_PAIRS, pairs) - 1;
    Visible any = {
        visible_of(sequence.start_position + first_pair / group, window).begin,
        visible_of(sequence.start_position + last_pair / group, window).end,
    };

    State row_state[2] = {no_state(), no_state()};
    for (unsigned i = 0; i < VALUE_TILES * 4; ++i) row_sums[i * THREADS + threadIdx.x] = 0.0f;
    for (u32 split_start = any.begin / SPLIT * SPLIT; split_start < any.end; split_start += SPLIT) {
        State split_state[2] = {no_state(), no_state()};
        Sums split_sums[VALUE_TILES] = {};
        // A tile is long enough.
#pragma unroll 1
        for (u32 tile_start = split_start; tile_start < split_start + SPLIT; tile_start += TILE) {
            if (!any.meets(tile_start, TILE)) continue;

            // Where pairs see different positions of a block, one that only others see has a weight of zero, but zero times an
            // infinity or a NaN is a NaN. If there is one, values are read once for each pair, without what it does not see. Looked
            // for here, where the fewest registers are in use.
            bool is_apart = false;
#pragma unroll 1
            for (u32 first = tile_start; first < tile_start + TILE; first += BLOCK_POSITIONS) {
                // Pairs differ by less than WARP_PAIRS positions, so all see a block that is farther from both ends.
                bool is_inside = any.begin + WARP_PAIRS <= first && first + BLOCK_POSITIONS + WARP_PAIRS <= any.end;
                if (is_inside || !any.meets(first, BLOCK_POSITIONS)) continue;
                const C* squares = values + block_start(tables[sequence.table_start + first / BLOCK_POSITIONS], kv_heads, kv_head, DIM);
#pragma unroll 1
                for (unsigned square = 0; square < VALUES / SQUARE; ++square) {
                    RowsOperand loaded = cache.square(load_square<DIM>(squares, first_square, square), 0);
                    is_apart |= has_non_finite<T>(without_hidden(loaded, any, first));
                }
            }
            is_apart = __any_sync(ALL_LANES, is_apart);

            Sums scores[TILE_COLUMNS] = {};
            for (unsigned square = 0; square < DIM / SQUARE; ++square) {
                RowsOperand queries;
                for (unsigned i = 0; i < 4; ++i) {
                    unsigned d = square * SQUARE + lane % 4 * 2 + i / 2 * 8;
                    queries.pair[i] = *reinterpret_cast<const u32*>(qkv + query[i % 2] + d);
                }
#pragma unroll
                for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                    u32 first = tile_start + block * BLOCK_POSITIONS;
                    if (!any.meets(first, BLOCK_POSITIONS)) continue;
                    const C* squares = keys + block_start(tables[sequence.table_start + first / BLOCK_POSITIONS], kv_heads, kv_head, DIM);
                    RowsOperand loaded = cache.square(load_square<DIM>(squares, 0, square), 0);
                    multiply_add<T>(scores[2 * block], queries, columns_of(loaded, 0));
                    multiply_add<T>(scores[2 * block + 1], queries, columns_of(loaded, 1));
                }
            }

            float maxima[2] = {-infinity(), -infinity()};
#pragma unroll
            for (unsigned column = 0; column < TILE_COLUMNS; ++column) {
                for (unsigned i = 0; i < 4; ++i) {
                    u32 position = tile_start + column * COLUMNS + lane % 4 * 2 + i % 2;
                    float& score = scores[column].at[i];
                    score = visible[i / 2].has(position) ? score * (scale * LOG2_E) : -infinity();
                    maxima[i / 2] = fmaxf(maxima[i / 2], score);
                }
            }
            for (unsigned distance = 1; distance < 4; distance *= 2) {
                for (float& max : maxima) max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, distance));
            }

            RowsOperand weights[TILE_BLOCKS] = {};
            Sums total = {};
            u32 ones = pair_of_ones<T>();
#pragma unroll
            for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                if (!any.meets(tile_start + block * BLOCK_POSITIONS, BLOCK_POSITIONS)) continue;
                for (unsigned i = 0; i < 4; ++i) {
                    // A pair that sees nothing of the tile has no maximum; what it gets is not merged.
                    const float* score = &scores[2 * block + i / 2].at[i % 2 * 2];
                    weights[block].pair[i] = pair_of(round_to<T>(exp2f(score[0] - maxima[i % 2])),
                                                     round_to<T>(exp2f(score[1] - maxima[i % 2])));
                }
                multiply_add<T>(total, weights[block], {{ones, ones}});
            }
            bool has_seen[2];
            Factors factors[2] = {};
            for (unsigned i = 0; i < 2; ++i) {
                has_seen[i] = visible[i].meets(tile_start, TILE);
                if (has_seen[i]) factors[i] = merge(split_state[i], {maxima[i], total.at[2 * i]});
            }

#pragma unroll 1
            for (unsigned of = 0; of < (is_apart ? WARP_PAIRS : 1); ++of) {
                Visible seen = any;
                if (is_apart) {
                    Visible own = of < 8 ? visible[0] : visible[1];
                    seen = {__shfl_sync(ALL_LANES, own.begin, of % 8 * 4), __shfl_sync(ALL_LANES, own.end, of % 8 * 4)};
                }
                bool is_wanted[2];
                for (unsigned i = 0; i < 2; ++i) is_wanted[i] = has_seen[i] && (!is_apart || lane / 4 + i * 8 == of);
                // A square of dimensions at a time: all of a tile's sums beside the split's would not fit into the registers.
#pragma unroll
                for (unsigned square = 0; square < VALUES / SQUARE; ++square) {
                    Sums tile_sums[2] = {};
#pragma unroll
                    for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                        u32 first = tile_start + block * BLOCK_POSITIONS;
                        if (!seen.meets(first, BLOCK_POSITIONS)) continue;
                        const C* squares = values + block_start(tables[sequence.table_start + first / BLOCK_POSITIONS], kv_heads, kv_head, DIM);
                        RowsOperand loaded = cache.square(load_square<DIM>(squares, first_square, square), 0);
                        if (seen.cuts(first, BLOCK_POSITIONS)) loaded = without_hidden(loaded, seen, first);
                        multiply_add<T>(tile_sums[0], weights[block], columns_of(loaded, 0));
                        multiply_add<T>(tile_sums[1], weights[block], columns_of(loaded, 1));
                    }
                    for (unsigned half = 0; half < 2; ++half) {
                        for (unsigned i = 0; i < 4; ++i) {
                            float& sum = split_sums[2 * square + half].at[i];
                            if (is_wanted[i / 2]) sum = merged(sum, tile_sums[half].at[i], factors[i / 2]);
                        }
                    }
                }
            }
        }
        for (unsigned i = 0; i < 2; ++i) {
            if (!visible[i].meets(split_start, SPLIT)) continue;
            Factors factors = merge(row_state[i], split_state[i]);
#pragma unroll
            for (unsigned column = 0; column < VALUE_TILES; ++column) {
                for (unsigned j = 2 * i; j < 2 * i + 2; ++j) {
                    float& sum = row_sums[(column * 4 + j) * THREADS + threadIdx.x];
                    sum = merged(sum, split_sums[column].at[j], factors);
                }
            }
        }
    }

    for (unsigned i = 0; i < 2; ++i) {
        unsigned pair = first_pair + lane / 4 + i * 8;
        if (pair >= pairs) continue;
        size_t row = sequence.first_row + pair / group;
        T* to = out + (row * kv_heads * group + kv_head * group + pair % group) * DIM + blockIdx.z * VALUES;
        for (unsigned column = 0; column < VALUE_TILES; ++column) {
            const float* sums = row_sums + (column * 4 + 2 * i) * THREADS + threadIdx.x;
            u32 both = pair_of(round_to<T>(sums[0] / row_state[i].denominator),
                               round_to<T>(sums[THREADS] / row_state[i].denominator));
            *reinterpret_cast<u32*>(to + column * COLUMNS + lane % 4 * 2) = both;
        }
    }
}

// ...: parameters of the cache, each behind a comma.
#define PREFILL_KERNEL(NAME, T, C, DIM, VALUES, CACHE, ...)                                                             \
    KERNEL __launch_bounds__(THREADS, BLOCKS) NAME(                                                                     \
        T* out, const T* qkv, const C* keys, const C* values, const TileItem* items, const Sequence* sequences,         \
        const u32* tables, unsigned qkv_cols, unsigned group, unsigned kv_heads, float scale, u32 window __VA_ARGS__) { \
        attention_prefill<DIM, VALUES>(out, qkv, keys, values, items, sequences, tables, qkv_cols, group, kv_heads,     \
                                       scale, window, CACHE);                                                           \
    }                                                                                                                   \
    EXPORT(NAME)

#define PREFILL(T, DIM, VALUES) PREFILL_KERNEL(attention_prefill_##DIM##_##T, T, T, DIM, VALUES, SameCache<T>())
#define FP8_PREFILL(T, DIM, VALUES) \
    PREFILL_KERNEL(attention_prefill_##DIM##_##T##_fp8, T, fp8, DIM, VALUES, FP8_CACHE(T), WIDENING_PARAMETERS)

#define ATTENTION(T)         \
    PREFILL(T, 32, 32)       \
    PREFILL(T, 64, 64)       \
    PREFILL(T, 80, 80)       \
    PREFILL(T, 96, 96)       \
    PREFILL(T, 128, 128)     \
    PREFILL(T, 256, 128)     \
    FP8_PREFILL(T, 32, 32)   \
    FP8_PREFILL(T, 64, 64)   \
    FP8_PREFILL(T, 128, 128)

ATTENTION(bf16)
ATTENTION(f16)
