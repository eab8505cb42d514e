// Mixture of experts, but for its products (`linear_experts.cu`): which experts a row goes to, the order in which pairs of a row and an
// expert are computed, and the sum over a row's experts. `ops/experts/` says what they mean.
//
// Nothing of it is measured yet. Choosing reads a row's logits once for every expert that it takes, from L1; grouping reads all pairs
// twice in every expert's block, from L2: 128 experts and 4096 rows of 8 are 32 MiB, less than a hundredth of what a layer reads.
#include "experts.cuh"
#include "reduce.cuh"
#include "types.cuh"

// As in `kernels/src/limits.rs`.
constexpr unsigned MAX_EXPERTS = 1024;

// --- Choosing --------------------------------------------------------------------------------------------------------

// An expert, or none, and its logit as it is compared: what is no number is the least.
struct Candidate {
    u32 expert;
    float logit;
};

constexpr u32 NO_EXPERT = ~0u;

DEVICE Candidate candidate(const float* logits, u32 expert) {
    float logit = logits[expert];
    return {expert, logit == logit ? logit : -infinity()};
}

// Whether `a` is chosen before `b`. NO_EXPERT is the largest number, so of the least logits it comes last.
DEVICE bool is_before(Candidate a, Candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}

// The candidate that is chosen first of those of all lanes.
DEVICE Candidate first_of_warp(Candidate best) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        Candidate other = {__shfl_xor_sync(ALL_LANES, best.expert, distance), __shfl_xor_sync(ALL_LANES, best.logit, distance)};
        if (is_before(other, best)) best = other;
    }
    return best;
}

// Shapes:  logits: [T, num_experts]; weights, experts: [T, per_row], by ascending expert; 1 <= per_row <= 32, <= num_experts.
// Grid:    a block of one warp per row.
// Order:   a lane's exponentials by ascending expert, then lanes as a tree; those that are chosen as they are.
KERNEL __launch_bounds__(WARP) route_experts(
    float* weights, u32* experts, const float* logits, u32 num_experts, u32 per_row, u32 normalises) {
    allow_kernel_behind();
    wait_for_kernels_before();
    unsigned lane = threadIdx.x;
    logits += size_t(blockIdx.x) * num_experts;

    // Choose. A lane keeps what is chosen in its turn.
    Candidate last = {NO_EXPERT, infinity()}, own = last;
    for (unsigned turn = 0; turn < per_row; ++turn) {
        Candidate best = {NO_EXPERT, -infinity()};
        for (u32 expert = lane; expert < num_experts; expert += WARP) {
            Candidate next = candidate(logits, expert);
            if ((turn == 0 || is_before(last, next)) && is_before(next, best)) best = next;
        }
        last = first_of_warp(best);
        if (lane == turn) own = last;
    }

    // Weigh.
    float max = __shfl_sync(ALL_LANES, own.logit, 0);
    float total = 0.0f, chosen = 0.0f;
    for (u32 expert = lane; expert < num_experts; expert += WARP) total += expf(logits[expert] - max);
    total = warp_sum(total);
    float exponential = lane < per_row ? expf(logits[own.expert] - max) : 0.0f;
    // Of those with lower numbers there are as many as its place is.
    unsigned place = 0;
    for (unsigned turn = 0; turn < per_row; ++turn) {
        chosen += __shfl_sync(ALL_LANES, exponential, turn);
        if (__shfl_sync(ALL_LANES, own.expert, turn) < own.expert) ++place;
    }
    // A total that is no number makes all weights of the row that, also where it is not what divides.
    float denominator = normalises && total == total ? chosen : total;
    if (lane >= per_row) return;
    size_t at = size_t(blockIdx.x) * per_row + place;
    weights[at] = exponential / denominator;
    experts[at] = own.expert;
}
EXPORT(route_experts)

// --- Grouping --------------------------------------------------------------------------------------------------------

constexpr unsigned GROUP_THREADS = 256;
constexpr unsigned GROUP_WARPS = GROUP_THREADS / WARP;

DEVICE u32 tiles_of(u32 pairs, u32 tile_rows) { return (pairs + tile_rows - 1) / tile_rows; }

// Sorts pairs by expert, and cuts each expert's into tiles.
//
// Shapes:  experts, places: [pairs]; rows: [pairs], of each sorted pair; tiles: [num_tiles].
// Grid:    a block per expert, which places its own pairs.
KERNEL __launch_bounds__(GROUP_THREADS) group_pairs(
    u32* places, u32* rows, ExpertTile* tiles, const u32* experts, u32 pairs, u32 per_row, u32 tile_rows, u32 num_tiles) {
    SHARED(u32, counts, MAX_EXPERTS);
    SHARED(u32, warp_counts, GROUP_WARPS);
    allow_kernel_behind();
    wait_for_kernels_before();
    unsigned expert = blockIdx.x, num_experts = gridDim.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

    // Count the pairs of every expert.
    for (unsigned i = threadIdx.x; i < num_experts; i += GROUP_THREADS) counts[i] = 0;
    __syncthreads();
    for (u32 pair = threadIdx.x; pair < pairs; pair += GROUP_THREADS) atomicAdd(&counts[experts[pair]], 1u);
    __syncthreads();

    // Where this expert's pairs begin (the lower half), and its tiles.
    u64 before = 0;
    for (unsigned i = threadIdx.x; i < expert; i += GROUP_THREADS) before += u64(tiles_of(counts[i], tile_rows)) << 32 | counts[i];
    before = block_sum<GROUP_WARPS>(before);
    u32 first = u32(before), first_tile = u32(before >> 32), count = counts[expert];

    // Cut. The last expert's block empties the tiles behind all.
    u32 own_tiles = tiles_of(count, tile_rows);
    for (u32 i = threadIdx.x; i < own_tiles; i += GROUP_THREADS) {
        tiles[first_tile + i] = {expert, first + i * tile_rows, min(tile_rows, count - i * tile_rows)};
    }
    if (expert + 1 == num_experts) {
        for (u32 i = first_tile + own_tiles + threadIdx.x; i < num_tiles; i += GROUP_THREADS) tiles[i] = {0, 0, 0};
    }
    if (count == 0) return;

    // Place: pairs in their order, as many at a time as there are threads.
    for (u32 start = 0; start < pairs; start += GROUP_THREADS) {
        u32 pair = start + threadIdx.x;
        bool is_own = pair < pairs && experts[pair] == expert;
        // Of the warp's pairs, up to this one.
        u32 up_to = is_own ? 1 : 0;
        for (unsigned distance = 1; distance < WARP; distance *= 2) {
            u32 more = __shfl_sync(ALL_LANES, up_to, lane >= distance ? lane - distance : lane);
            if (lane >= distance) up_to += more;
        }
        if (lane == WARP - 1) warp_counts[warp] = up_to;
        __syncthreads();
        u32 of_warps_before = 0, of_all = 0;
        for (unsigned i = 0; i < GROUP_WARPS; ++i) {
            if (i < warp) of_warps_before += warp_counts[i];
            of_all += warp_counts[i];
        }
        if (is_own) {
            u32 place = first + of_warps_before + up_to - 1;
            places[pair] = place;
            rows[place] = pair / per_row;
        }
        first += of_all;
        // What slower threads still read.
        __syncthreads();
    }
}
EXPORT(group_pairs)

// --- Combining -------------------------------------------------------------------------------------------------------

constexpr unsigned COMBINE_THREADS = 128;

// Shapes:  out: [T, cols]; x: [pairs, cols]; weights, places: [T, per_row].
// Grid:    a block per row; each thread sums every COMBINE_THREADS-th vector.
// Order:   a row's experts by ascending number.
template <typename T>
DEVICE void combine_experts(T* out, const T* x, const float* weights, const u32* places, u32 per_row, u32 cols) {
    allow_kernel_behind();
    wait_for_kernels_before();
    out += size_t(blockIdx.x) * cols;
    weights += size_t(blockIdx.x) * per_row;
    places += size_t(blockIdx.x) * per_row;
    for (u32 col = threadIdx.x * VECTOR; col < cols; col += COMBINE_THREADS * VECTOR) {
        float sums[VECTOR] = {};
        for (unsigned at = 0; at < per_row; ++at) {
            float weight = weights[at];
            Vector<T> vector = load(x + size_t(places[at]) * cols + col);
            for (unsigned i = 0; i < VECTOR; ++i) sums[i] = fmaf(weight, to_f32(vector.at[i]), sums[i]);
        }
        Vector<T> rounded;
        for (unsigned i = 0; i < VECTOR; ++i) rounded.at[i] = round_to<T>(sums[i]);
        store(out + col, rounded);
    }
}

#define COMBINE_EXPERTS(T)                                                                              \
    KERNEL __launch_bounds__(COMBINE_THREADS) combine_experts_##T(                                      \
        T* out, const T* x, const float* weights, const u32* places, u32 per_row, u32 cols) {           \
        combine_experts(out, x, weights, places, per_row, cols);                                        \
    }                                                                                                   \
    EXPORT(combine_experts_##T)

COMBINE_EXPERTS(bf16)
COMBINE_EXPERTS(f16)
