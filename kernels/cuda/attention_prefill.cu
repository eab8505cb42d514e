// Grouped-query attention of many neighbouring rows of a sequence: a prompt's chunk. `ops/attention/mod.rs` says what it means,
// `attention.cuh` in which order.
//
// Rows and the heads that share a KV head are pairs. Sixteen of them are the rows of a warp's matrix instructions, keys and
// dimensions of values the columns; products go from registers to registers (arXiv:2307.08691). The warp keeps its queries and
// all sums in registers. A tile's keys and values pass through shared memory in units of up to 96 dimensions, each byte copied
// once for all eight warps, and lie there as in the cache: 512 neighbouring bytes a warp, which are columns as they are.
//
// A barrier for every unit: behind it the next one can be read, and what all warps have read is overwritten. Half of the warps
// are a unit behind, so that a scheduler has one warp that multiplies while the other computes weights. A warp passes over tiles
// of which its pairs see nothing, and masks only those of which some do not see all.
//
// Values of eight bits are widened between their copy and the barrier, once for all warps, by the thread that copied them.
//
// Limits, counted and not measured, of a tile of 64 positions, 128 dimensions, two bytes an element, on Hopper:
//   shared memory: 8 warps x 32 KiB read, 32 KiB written: 2,300 cycles. The limit: 420 TFLOP/s of 132 multiprocessors.
//   products:      8 x 132 matrix instructions, 1.6 cycles each at 63 % of the rate of wgmma: 1,700 cycles (sm_80: 2,100).
//   instructions:  950 a warp, two warps a scheduler: 1,900 cycles.  Powers of two: 8,192 at 16 a cycle: 500 cycles.
//   L2:            32 KiB, 14 bytes a cycle. (Of 64 pairs in a block it would be twice that, more than L2 gives.)
// A warp of 32 pairs would read half as much for a product, but its sums of a row and of a split alone would take 256 registers.
// Of 128 dimensions not even the sums of 16 all fit: a row's last ones, which change once a split, are in shared memory.
// Heads of 256 dimensions have blocks for 64 dimensions of their values each, which all compute the scores.
//
// Grid:    x: tiles of pairs, those that see most first; y: KV heads; z: parts of the dimensions of values. 256 threads.
#include "attention.cuh"

constexpr unsigned WARPS = 8;
constexpr unsigned THREADS = WARPS * WARP;
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

// What a block computes, and of it a warp. Read at the beginning and again at the end: what lies between needs the registers.
struct Work {
    Sequence sequence;
    // Pairs of the sequence, and the first of the block.
    unsigned group, pairs, first_pair;

    DEVICE Work(const TileItem* items, const Sequence* sequences, unsigned of_group) : group(of_group) {
        TileItem item = items[blockIdx.x];
        sequence = sequences[item.sequence];
        pairs = sequence.num_rows * group;
        first_pair = item.tile * BLOCK_PAIRS;
    }

    // A row's place in a sequence, and that of a pair's query among the heads. Behind the last pair, that one again.
    DEVICE unsigned row_of(unsigned pair) const { return min(pair, pairs - 1) / group; }
    DEVICE unsigned head_of(unsigned pair) const { return blockIdx.y * group + min(pair, pairs - 1) % group; }
    DEVICE u32 position_of(unsigned pair) const { return sequence.start_position + row_of(pair); }
};

// Whether an element of the lane's is infinite or NaN.
template <typename T>
DEVICE bool has_non_finite(const Square& square) {
    constexpr u32 LOW = T::EXPONENT, HIGH = LOW << 16;
    bool found = false;
    for (u32 pair : square.pair) found |= (pair & LOW) == LOW || (pair & HIGH) == HIGH;
    return found;
}

// What values are there that not all pairs of a warp see. Their weight is zero, but zero times an infinity or a NaN is a NaN.
enum class Hidden {
    FINITE,
    // Some are not, that none of the pairs sees.
    UNSEEN,
    // Some are not, that others see: values are read once for each pair, without what it does not see.
    SEEN_BY_OTHERS,
};

// Of a unit. any: what any of the pairs sees; all: what all of them see.
template <typename T, unsigned SQUARES>
DEVICE Hidden hidden_values(const Square* unit, const Visible& any, const Visible& all, u32 tile_start) {
    bool is_harmful = false, is_seen = false;
#pragma unroll 1
    for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
        u32 first = tile_start + block * BLOCK_POSITIONS;
        if (!all.cuts(first, BLOCK_POSITIONS)) continue;
#pragma unroll 1
        for (unsigned square = 0; square < SQUARES; ++square) {
            Square loaded = unit[(block * SQUARES + square) * WARP];
            is_harmful |= has_non_finite<T>(loaded);
            is_seen |= has_non_finite<T>(without_hidden(loaded, any, first));
        }
    }
    if (__any_sync(ALL_LANES, is_seen)) return Hidden::SEEN_BY_OTHERS;
    return __any_sync(ALL_LANES, is_harmful) ? Hidden::UNSEEN : Hidden::FINITE;
}

// Merges sums of a tile into those so far, for pairs that want them.
DEVICE void merge_sums(Sums& sums, const Sums& tile_sums, const Factors (&factors)[2], const bool (&is_wanted)[2]) {
    for (unsigned i = 0; i < 4; ++i) {
        float next = merged(sums.at[i], tile_sums.at[i], factors[i / 2]);
        if (is_wanted[i / 2]) sums.at[i] = next;
    }
}

// Puts the first BY of LEN elements behind the others.
template <unsigned LEN, unsigned BY, typename Element>
DEVICE void move_on(Element* elements) {
    Element moved[BY];
    for (unsigned i = 0; i < BY; ++i) moved[i] = elements[i];
#pragma unroll
    for (unsigned i = BY; i < LEN; ++i) elements[i - BY] = elements[i];
    for (unsigned i = 0; i < BY; ++i) elements[LEN - BY + i] = moved[i];
}

// The units of a block's range of positions on their way into shared memory, in the order in which they are used: of every tile
// the keys, PART dimensions at a time, then the values.
template <unsigned DIM, unsigned VALUES, unsigned PART, typename Cache, typename C = typename Cache::Stored>
class Units {
   public:
    static constexpr unsigned OF_KEYS = DIM / PART, OF_VALUES = VALUES / PART;
    static constexpr unsigned SQUARES = PART / SQUARE;
    // Accesses of 16 bytes: of a unit as the kernel reads it, [TILE_BLOCKS][SQUARES][lanes]; of what the cache has of it.
    static constexpr unsigned ACCESSES = TILE_BLOCKS * SQUARES * WARP;
    static constexpr unsigned STORED_ACCESSES = ACCESSES / ACCESS_SQUARES<C>;
    static constexpr bool IS_WIDENED = ACCESS_SQUARES<C> > 1;
    // Units in shared memory: those that the two halves of the warps read, and one or two that come.
    static constexpr unsigned SLOTS = IS_WIDENED ? 3 : 4;
    static constexpr unsigned SHARED_ACCESSES = SLOTS * ACCESSES + (IS_WIDENED ? STORED_ACCESSES : 0);

    static_assert(OF_KEYS * PART == DIM && OF_VALUES * PART == VALUES, "units cover keys and values");
    static_assert(SQUARES % ACCESS_SQUARES<C> == 0, "no square of an access is another unit's");
    static_assert(!IS_WIDENED || STORED_ACCESSES <= THREADS, "a thread widens an access");

    // shared: [SHARED_ACCESSES]; begin, end: of the positions that any pair of the block sees.
    DEVICE Units(Square* shared, const C* keys, const C* values, const u32* tables, u32 table_start, u32 begin, u32 end,
                 unsigned kv_heads, const Cache& cache)
        : shared_(shared), keys_(keys), values_(values), tables_(tables), table_start_(table_start), end_(end),
          kv_heads_(kv_heads), cache_(cache), requested_(begin / TILE * OF_TILE) {
        look_up();
        copy();
        advance();
        if (is_late()) next();
    }

    // Waits for the next unit; the lane's part of it. What the lane had so far may be overwritten.
    DEVICE const Square* next() {
        if (!IS_WIDENED) wait_for_copies<AHEAD - 1>();
        __syncthreads();
        advance();
        return slot(requested_ - AHEAD - (is_late() ? 2 : 1)) + threadIdx.x % WARP;
    }

    // Half of the warps, of every scheduler one, are a unit behind the others: some multiply while others compute weights.
    DEVICE static bool is_late() { return threadIdx.x >= THREADS / 2; }

   private:
    static constexpr unsigned OF_TILE = OF_KEYS + OF_VALUES;
    // How many units are requested ahead of the one that is read.
    static constexpr unsigned AHEAD = 2;

    DEVICE Square* slot(u32 number) const { return shared_ + number % SLOTS * ACCESSES; }

    // Gets the next unit on its way: to its slot; or to its slot from where its bytes are, and there those of the one behind it.
    DEVICE void advance() {
        if constexpr (IS_WIDENED) {
            wait_for_copies<0>();
            // Behind the last unit that one once more, which nobody reads.
            if (STORED_ACCESSES == THREADS || threadIdx.x < STORED_ACCESSES) {
                constexpr unsigned TOGETHER = ACCESS_SQUARES<C>;
                Square access = shared_[SLOTS * ACCESSES + threadIdx.x];
                Square* to = slot(requested_ - 1) + threadIdx.x / WARP * TOGETHER * WARP + threadIdx.x % WARP;
                for (unsigned square = 0; square < TOGETHER; ++square) to[square * WARP] = cache_.square(access, square);
            }
        }
        copy();
    }

    // Requests the next unit's bytes. What is to be widened is read by the thread that has requested it.
    DEVICE void copy() {
        constexpr unsigned BLOCK_ACCESSES = STORED_ACCESSES / TILE_BLOCKS;
        if (requested_ / OF_TILE * TILE < end_) {
            unsigned part = requested_ % OF_TILE;
            bool has_keys = part < OF_KEYS;
            unsigned first_value_square = VALUES == DIM ? 0 : blockIdx.z * VALUES / SQUARE;
            unsigned square = has_keys ? part * SQUARES : first_value_square + (part - OF_KEYS) * SQUARES;
            const C* squares = (has_keys ? keys_ : values_) + square * SQUARE_ELEMENTS;
            Square* to = (IS_WIDENED ? shared_ + SLOTS * ACCESSES : slot(requested_)) + threadIdx.x;
#pragma unroll
            for (unsigned first = 0; first < STORED_ACCESSES; first += THREADS) {
                // Whole warps: each reads from one block.
                unsigned access = first + threadIdx.x;
                if (first + THREADS > STORED_ACCESSES && access >= STORED_ACCESSES) continue;
                u32 block = __shfl_sync(ALL_LANES, block_, access / BLOCK_ACCESSES);
                unsigned offset = access % BLOCK_ACCESSES * (sizeof(Square) / sizeof(C));
                copy_async(to + first, squares + offset + block_start(block, kv_heads_, blockIdx.y, DIM), true);
            }
        }
        commit_copies();
        // Well before it is needed.
        if (++requested_ % OF_TILE == 0) look_up();
    }

    // The blocks of the next tile, lane % TILE_BLOCKS each. Behind the last position that is seen, the block of that one.
    DEVICE void look_up() {
        u32 position = requested_ / OF_TILE * TILE + threadIdx.x % TILE_BLOCKS * BLOCK_POSITIONS;
        block_ = tables_[table_start_ + min(position, end_ - 1) / BLOCK_POSITIONS];
    }

    Square* shared_;
    const C *keys_, *values_;
    const u32* tables_;
    u32 table_start_, end_;
    unsigned kv_heads_;
    const Cache& cache_;
    // How many units were requested, with those of tiles before the first one; of the next tile the block that the lane knows.
    u32 requested_, block_ = 0;
};

// VALUES: dimensions of values of a block; PART: dimensions of a unit; SHARED_COLUMNS: how many eights of dimensions have
// a row's sums in shared memory.
//
// out: [T][heads * DIM]; qkv: [T][qkv_cols], queries first; tables: those of all sequences, each from its table_start on.
template <
    unsigned DIM, unsigned VALUES, unsigned PART, unsigned SHARED_COLUMNS, typename Cache,
    typename T = typename Cache::Element, typename C = typename Cache::Stored>
DEVICE void attention_prefill(
    T* out, const T* qkv, const C* keys, const C* values, const TileItem* items, const Sequence* sequences,
    const u32* tables, unsigned qkv_cols, unsigned group, unsigned kv_heads, float scale, float steepness, u32 window,
    const Cache& cache) {
    using TileUnits = Units<DIM, VALUES, PART, Cache>;
    constexpr unsigned SQUARES = TileUnits::SQUARES, VALUE_COLUMNS = VALUES / COLUMNS;
    // Units, then a row's sums of the last dimensions, each lane's own: [SHARED_COLUMNS][4][threads].
    constexpr unsigned ROW_COLUMNS = VALUE_COLUMNS - SHARED_COLUMNS;
    constexpr unsigned SUMS_ACCESSES = SHARED_COLUMNS * THREADS;
    static_assert((TileUnits::SHARED_ACCESSES + SUMS_ACCESSES) * sizeof(Square) <= 48 << 10, "more would have to be asked for");
    SHARED(Square, shared, TileUnits::SHARED_ACCESSES + SUMS_ACCESSES);
    Sums row_sums[ROW_COLUMNS] = {};
    auto shared_sum = [&](unsigned column, unsigned at) -> float& {
        float* sums = reinterpret_cast<float*>(shared + TileUnits::SHARED_ACCESSES) + threadIdx.x;
        return sums[((column - ROW_COLUMNS) * 4 + at) * THREADS];
    };
#pragma unroll
    for (unsigned column = ROW_COLUMNS; column < VALUE_COLUMNS; ++column) {
        for (unsigned at = 0; at < 4; ++at) shared_sum(column, at) = 0.0f;
    }
    allow_kernel_behind();
    wait_for_kernels_before();

    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    Work work(items, sequences, group);
    // From the first position that any of the block's pairs sees to the last.
    u32 begin = visible_of(work.position_of(work.first_pair), window).begin();
    u32 end = visible_of(work.position_of(work.first_pair + BLOCK_PAIRS - 1), window).end;
    TileUnits units(shared, keys, values, tables, work.sequence.table_start, begin, end, kv_heads, cache);

    // Of sums, a lane has two pairs, eight apart, and two columns of each.
    Visible visible[2];
    RowsOperand queries[DIM / SQUARE];
    unsigned warp_pair = work.first_pair + warp * WARP_PAIRS;
    for (unsigned i = 0; i < 2; ++i) {
        unsigned pair = warp_pair + lane / 4 + i * 8;
        visible[i] = visible_of(work.position_of(pair), window);
        size_t row = work.sequence.first_row + work.row_of(pair);
        const T* from = qkv + row * qkv_cols + work.head_of(pair) * DIM + lane % 4 * 2;
#pragma unroll
        for (unsigned square = 0; square < DIM / SQUARE; ++square) {
            queries[square].pair[i] = *reinterpret_cast<const u32*>(from + square * SQUARE);
            queries[square].pair[i + 2] = *reinterpret_cast<const u32*>(from + square * SQUARE + 8);
        }
    }
    // A warp without pairs sees nothing.
    u32 first_end = work.position_of(warp_pair) + 1;
    u32 last_end = warp_pair < work.pairs ? work.position_of(warp_pair + WARP_PAIRS - 1) + 1 : 0;

    State row_state[2] = {no_state(), no_state()};
    u32 tile_start = begin / TILE * TILE;
#pragma unroll 1
    while (tile_start < end) {
        State split_state[2] = {no_state(), no_state()};
        Sums split_sums[VALUE_COLUMNS] = {};
        // A tile is long enough.
#pragma unroll 1
        for (bool is_over = false; !is_over; tile_start += TILE, is_over = tile_start % SPLIT == 0 || tile_start >= end) {
            // No more than what all of the warp's pairs see, and no less than what any of them sees: their rows are neighbours.
            constexpr u32 MAX_APART = WARP_PAIRS - 1;
            Visible all = {first_end, max(visible[0].window, MAX_APART) - MAX_APART};
            Visible any = {last_end, visible[0].window + MAX_APART};
            if (!any.meets(tile_start, TILE)) {
#pragma unroll 1
                for (unsigned part = 0; part < TileUnits::OF_KEYS + TileUnits::OF_VALUES; ++part) units.next();
                continue;
            }
            bool is_cut = all.cuts(tile_start, TILE);

            Sums scores[TILE / COLUMNS] = {};
#pragma unroll
            for (unsigned part = 0; part < TileUnits::OF_KEYS; ++part) {
                const Square* unit = units.next();
#pragma unroll
                for (unsigned square = 0; square < SQUARES; ++square) {
#pragma unroll
                    for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                        Square loaded = unit[(block * SQUARES + square) * WARP];
                        multiply_add<T>(scores[2 * block], queries[part * SQUARES + square], columns_of(loaded, 0));
                        multiply_add<T>(scores[2 * block + 1], queries[part * SQUARES + square], columns_of(loaded, 1));
                    }
                }
            }

            if (steepness != 0.0f) {
#pragma unroll
                for (Sums& score : scores) level_off(score, steepness);
            }
            for (Sums& score : scores) {
                for (float& at : score.at) at = scaled(at, scale);
            }
            if (is_cut) {
                for (unsigned i = 0; i < 4; ++i) {
                    Visible from_lane = visible[i / 2].from(tile_start + lane % 4 * 2);
#pragma unroll
                    for (unsigned column = 0; column < TILE / COLUMNS; ++column) {
                        if (!from_lane.has(column * COLUMNS + i % 2)) scores[column].at[i] = -infinity();
                    }
                }
            }
            float maxima[2] = {-infinity(), -infinity()};
            for (const Sums& score : scores) {
                for (unsigned i = 0; i < 4; ++i) maxima[i / 2] = fmaxf(maxima[i / 2], score.at[i]);
            }
            for (unsigned distance = 1; distance < 4; distance *= 2) {
                for (float& max : maxima) max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, distance));
            }
            RowsOperand weights[TILE_BLOCKS];
            Sums total = {};
            u32 ones = pair_of_ones<T>();
#pragma unroll
            for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                for (unsigned i = 0; i < 4; ++i) {
                    // A pair that sees nothing of the tile has no maximum; what it gets is not merged.
                    const float* score = &scores[2 * block + i / 2].at[i % 2 * 2];
                    weights[block].pair[i] = rounded_pair<T>(exp2f(score[0] - maxima[i % 2]), exp2f(score[1] - maxima[i % 2]));
                }
                multiply_add<T>(total, weights[block], {{ones, ones}});
            }
            bool has_seen[2];
            Factors factors[2] = {};
            for (unsigned i = 0; i < 2; ++i) {
                has_seen[i] = visible[i].meets(tile_start, TILE);
                if (has_seen[i]) factors[i] = merge(split_state[i], {maxima[i], total.at[2 * i]});
            }

#pragma unroll
            for (unsigned part = 0; part < TileUnits::OF_VALUES; ++part) {
                const Square* unit = units.next();
                Sums* sums = split_sums + 2 * part * SQUARES;
                Hidden hidden = is_cut ? hidden_values<T, SQUARES>(unit, any, all, tile_start) : Hidden::FINITE;
                if (hidden == Hidden::FINITE) {
                    // Two squares at a time: four chains of products go on side by side, and all of a tile's sums beside the
                    // split's would not fit into the registers.
#pragma unroll
                    for (unsigned square = 0; square < SQUARES; square += 2) {
                        Sums tile_sums[2][2] = {};
#pragma unroll
                        for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
#pragma unroll
                            for (unsigned i = 0; i < 2 && square + i < SQUARES; ++i) {
                                Square loaded = unit[(block * SQUARES + square + i) * WARP];
                                multiply_add<T>(tile_sums[i][0], weights[block], columns_of(loaded, 0));
                                multiply_add<T>(tile_sums[i][1], weights[block], columns_of(loaded, 1));
                            }
                        }
#pragma unroll
                        for (unsigned i = 0; i < 2 && square + i < SQUARES; ++i) {
                            merge_sums(sums[2 * (square + i)], tile_sums[i][0], factors, has_seen);
                            merge_sums(sums[2 * (square + i) + 1], tile_sums[i][1], factors, has_seen);
                        }
                    }
                    continue;
                }
                // Once without what no pair sees, or once for each pair. Few instructions and registers for what is rare: all
                // squares, and all blocks of a square, move on by one, so that it is always the first one's turn.
                bool is_apart = hidden == Hidden::SEEN_BY_OTHERS;
#pragma unroll 1
                for (unsigned of = 0; of < (is_apart ? WARP_PAIRS : 1); ++of) {
                    u32 end_of_pair = __shfl_sync(ALL_LANES, of < 8 ? visible[0].end : visible[1].end, of % 8 * 4);
                    Visible seen = is_apart ? Visible{end_of_pair, visible[0].window} : any;
                    bool is_wanted[2];
                    for (unsigned i = 0; i < 2; ++i) is_wanted[i] = has_seen[i] && (!is_apart || lane / 4 + i * 8 == of);
#pragma unroll 1
                    for (unsigned square = 0; square < SQUARES; ++square) {
                        Sums tile_sums[2] = {};
#pragma unroll 1
                        for (unsigned block = 0; block < TILE_BLOCKS; ++block) {
                            Square loaded = unit[(block * SQUARES + square) * WARP];
                            loaded = without_hidden(loaded, seen, tile_start + block * BLOCK_POSITIONS);
                            multiply_add<T>(tile_sums[0], weights[0], columns_of(loaded, 0));
                            multiply_add<T>(tile_sums[1], weights[0], columns_of(loaded, 1));
                            move_on<TILE_BLOCKS, 1>(weights);
                        }
                        merge_sums(sums[0], tile_sums[0], factors, is_wanted);
                        merge_sums(sums[1], tile_sums[1], factors, is_wanted);
                        move_on<2 * SQUARES, 2>(sums);
                    }
                }
            }
        }
        for (unsigned i = 0; i < 2; ++i) {
            if (!visible[i].meets((tile_start - 1) / SPLIT * SPLIT, SPLIT)) continue;
            Factors factors = merge(row_state[i], split_state[i]);
#pragma unroll
            for (unsigned column = 0; column < VALUE_COLUMNS; ++column) {
                for (unsigned j = 2 * i; j < 2 * i + 2; ++j) {
                    float split_sum = split_sums[column].at[j];
                    // Chosen when it is compiled: a pointer to either would take the array out of the registers.
                    if (column < ROW_COLUMNS) {
                        row_sums[column].at[j] = merged(row_sums[column].at[j], split_sum, factors);
                    } else {
                        shared_sum(column, j) = merged(shared_sum(column, j), split_sum, factors);
                    }
                }
            }
        }
    }

    Work finished(items, sequences, group);
    T* to[2];
    for (unsigned i = 0; i < 2; ++i) {
        unsigned pair = finished.first_pair + warp * WARP_PAIRS + lane / 4 + i * 8;
        size_t row = finished.sequence.first_row + finished.row_of(pair);
        T* of_head = out + (row * kv_heads * group + finished.head_of(pair)) * DIM;
        to[i] = pair < finished.pairs ? of_head + blockIdx.z * VALUES + lane % 4 * 2 : nullptr;
    }
    // Few instructions for what happens once: it is always the first column's turn.
#pragma unroll 1
    for (unsigned column = 0; column < VALUE_COLUMNS; ++column) {
        Sums sums = row_sums[0];
        if (column < ROW_COLUMNS) {
            move_on<ROW_COLUMNS, 1>(row_sums);
        } else {
            for (unsigned at = 0; at < 4; ++at) sums.at[at] = shared_sum(column, at);
        }
        for (unsigned i = 0; i < 2; ++i) {
            float denominator = row_state[i].denominator;
            u32 both = rounded_pair<T>(sums.at[2 * i] / denominator, sums.at[2 * i + 1] / denominator);
            if (to[i] != nullptr) *reinterpret_cast<u32*>(to[i] + column * COLUMNS) = both;
        }
    }
    // The late warps have waited once more.
    if (!TileUnits::is_late()) units.next();
}

// ...: parameters of the cache, each behind a comma.
#define PREFILL_KERNEL(NAME, T, C, DIM, VALUES, PART, IN_SHARED, CACHE, ...)                                            \
    KERNEL __launch_bounds__(THREADS, 1) NAME(                                                                          \
        T* out, const T* qkv, const C* keys, const C* values, const TileItem* items, const Sequence* sequences,         \
        const u32* tables, unsigned qkv_cols, unsigned group, unsigned kv_heads, float scale, float steepness,          \
        u32 window __VA_ARGS__) {                                                                                       \
        attention_prefill<DIM, VALUES, PART, IN_SHARED>(out, qkv, keys, values, items, sequences, tables, qkv_cols,     \
                                                        group, kv_heads, scale, steepness, window, CACHE);              \
    }                                                                                                                   \
    EXPORT(NAME)

#define PREFILL(T, DIM, VALUES, PART, IN_SHARED) \
    PREFILL_KERNEL(attention_prefill_##DIM##_##T, T, T, DIM, VALUES, PART, IN_SHARED, SameCache<T>())
#define FP8_PREFILL(T, DIM, VALUES, PART, IN_SHARED)                                                      \
    PREFILL_KERNEL(attention_prefill_##DIM##_##T##_fp8, T, fp8, DIM, VALUES, PART, IN_SHARED, FP8_CACHE(T), \
                   WIDENING_PARAMETERS)

#define ATTENTION(T)              \
    PREFILL(T, 32, 32, 32, 0)     \
    PREFILL(T, 64, 64, 64, 0)     \
    PREFILL(T, 80, 80, 80, 0)     \
    PREFILL(T, 96, 96, 96, 0)     \
    PREFILL(T, 128, 128, 64, 4)   \
    PREFILL(T, 256, 64, 64, 0)    \
    FP8_PREFILL(T, 32, 32, 32, 0) \
    FP8_PREFILL(T, 64, 64, 64, 0) \
    FP8_PREFILL(T, 128, 128, 64, 5)

ATTENTION(bf16)
ATTENTION(f16)
