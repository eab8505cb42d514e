// What the kernels of attention share: the order of a row's sums, which both keep, so that a row has the same bits whether a
// prompt's chunk or a decode step computes it.
//
// Positions are cut at absolute places into splits of 256, and those into tiles of 64. A tile's scores have a maximum of their own;
// its weights are powers of two below it, rounded to the type of the queries; weighted values and the sum of the weights are
// chains of matrix instructions over ascending positions. Tiles merge in ascending order into their split, splits into the
// row. Which operand of the instruction keys and values are differs between the kernels, the products and their order do not.
#pragma once

#include "fp8.cuh"
#include "kv_cache.cuh"
#include "ptx.cuh"

constexpr unsigned SPLIT = 256;
constexpr unsigned TILE = 64;
constexpr unsigned TILE_BLOCKS = TILE / BLOCK_POSITIONS;
constexpr unsigned SPLIT_TILES = SPLIT / TILE;
constexpr float LOG2_E = 1.44269504f;

// A score as a power of two, from the product of a query and a key. Never contracted with what is done to it next: a fused
// subtraction of the maximum would skip a rounding that the maximum had.
DEVICE float scaled(float product, float scale) { return __fmul_rn(product, scale * LOG2_E); }

// The positions that a row sees: `window` of them before `end`, or all.
struct Visible {
    u32 end, window;

    DEVICE u32 begin() const { return end > window ? end - window : 0; }
    DEVICE bool has(u32 position) const { return end - 1 - position < window; }
    // The same with positions counted from `first` on, whether it sees that one or not.
    DEVICE Visible from(u32 first) const { return {end - first, window}; }
    // Whether it sees some, and whether it sees not all, of `len` positions from `first` on.
    DEVICE bool meets(u32 first, u32 len) const { return first < end && end < first + len + window; }
    DEVICE bool cuts(u32 first, u32 len) const { return end < first + len || first + window < end; }
};

// More than there are positions, and no sum with one overflows.
constexpr u32 NO_WINDOW = 1u << 31;

// Of a row at `position`; window: how many positions it sees at most, its own included.
DEVICE Visible visible_of(u32 position, u32 window) { return {position + 1, min(window, NO_WINDOW)}; }

// Where scores level off: what is scaled behind this is tanh(x), x = product * steepness / (2 LOG2_E), rather than the product. 0: nowhere.
// The tangent as 1 - 2 / (1 + e^2x) is off by 1e-7, which no type of weights sees.
DEVICE void level_off(Sums& products, float steepness) {
    for (float& product : products.at) product = fmaf(-2.0f, reciprocal(1.0f + exp2f(product * steepness)), 1.0f);
}

// A softmax so far: the largest score as a power of two, and the sum of the weights below it.
struct State {
    float max, denominator;
};

// Nothing seen. The maximum is the least number rather than -inf, whose difference to itself would be none.
DEVICE State no_state() { return {-3.402823466e38f, 0.0f}; }

// Factors for what was there and what comes, when `next` is merged into `state`. The same for every sum of the row:
// sum * keep first, then + next * take in one rounding.
struct Factors {
    float keep, take;
};

DEVICE Factors merge(State& state, const State& next) {
    float max = fmaxf(state.max, next.max);
    Factors factors = {exp2f(state.max - max), exp2f(next.max - max)};
    state.denominator = fmaf(next.denominator, factors.take, state.denominator * factors.keep);
    state.max = max;
    return factors;
}

DEVICE float merged(float sum, float next, const Factors& factors) { return fmaf(next, factors.take, sum * factors.keep); }

// A cache of the type that a kernel computes in.
template <typename T>
struct SameCache {
    // What it computes in, and what is stored.
    using Element = T;
    using Stored = T;

    // A square of an access.
    DEVICE Square square(const Square& access, unsigned) const { return access; }
};

// A cache of eight-bit floats: squares are widened in registers, exactly.
template <typename T>
struct Fp8Cache {
    using Element = T;
    using Stored = fp8;

    Widening widening;

    DEVICE Square square(const Square& access, unsigned square) const {
        Square widened;
        for (unsigned i = 0; i < 4; ++i) {
            widened.pair[i] = widened_pair<T>(widening, access.pair[square * 2 + i / 2], i % 2 == 1);
        }
        return widened;
    }
};

// What a kernel over such a cache takes behind its other parameters, and the cache of it.
#define WIDENING_PARAMETERS , u32 shift_factor, u32 kept, u32 multiplier, u32 to_infinity
#define FP8_CACHE(T) (Fp8Cache<T>{{shift_factor, kept, multiplier, to_infinity}})

// Half of an access.
DEVICE Square load_half(const void* from) {
    u64 half = *static_cast<const u64*>(from);
    return {{u32(half), u32(half >> 32), 0, 0}};
}

// The blocks of a tile, from a sequence's table: known before anything is loaded from them, so that these loads do not wait for each
// other. Behind the last position that is seen, the block of that one.
struct TileTable {
    u32 block[TILE_BLOCKS];

    DEVICE TileTable(const u32* table, const Visible& visible, u32 tile_start) {
#pragma unroll
        for (unsigned i = 0; i < TILE_BLOCKS; ++i) {
            block[i] = table[min(tile_start + i * BLOCK_POSITIONS, visible.end - 1) / BLOCK_POSITIONS];
        }
    }
};

// What one access has of the squares of a head, from `square` on, in the registers of a warp.
template <unsigned DIM, typename C>
DEVICE Square load_access(const C* squares, unsigned square) {
    const C* from = lane_start(squares, square, threadIdx.x % WARP, DIM);
    bool is_alone = DIM / SQUARE % ACCESS_SQUARES<C> != 0 && square + 1 == DIM / SQUARE;
    return is_alone ? load_half(from) : *reinterpret_cast<const Square*>(from);
}

// A square as the 16-row operand.
DEVICE RowsOperand rows_of(const Square& square) { return {{square.pair[0], square.pair[2], square.pair[1], square.pair[3]}}; }

// A square as columns: of the rows 0 to 7 (half 0) or 8 to 15 (half 1).
DEVICE ColumnsOperand columns_of(const Square& square, unsigned half) {
    return {{square.pair[2 * half], square.pair[2 * half + 1]}};
}

// A square of values from position `first` on without those of positions outside of `visible`, which may be anything: zero times
// them could be no number.
DEVICE Square without_hidden(Square square, const Visible& visible, u32 first) {
    Visible from_lane = visible.from(first + threadIdx.x % 4 * 2);
    for (unsigned pair = 0; pair < 4; ++pair) {
        u32 position = pair % 2 * 8;
        square.pair[pair] &= (from_lane.has(position) ? 0x0000ffffu : 0) | (from_lane.has(position + 1) ? 0xffff0000u : 0);
    }
    return square;
}

// Ones as every element of an operand.
template <typename T>
DEVICE u32 pair_of_ones() {
    return pair_of(round_to<T>(1.0f), round_to<T>(1.0f));
}
