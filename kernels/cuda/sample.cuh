// What the kernels of sampling share: a row's entry, its scores as threads read them, and the best over a block.
#pragma once

#include "reduce.cuh"

constexpr unsigned THREADS = 512;
constexpr unsigned WARPS = THREADS / WARP;
constexpr unsigned GROUP = 4;
// Groups that a thread requests at once: one row is one block's, which with fewer would wait for memory most of the time.
constexpr unsigned BATCH = 4;

// What an entry asks for. draws: whether it wants a draw from the softmax (1) or the best (0). Scores are logits / temperature. Of
// them those stay that are among the first in descending order, equal ones by ascending id, up to a bound: the last one's key and
// id; and of these what is no farther from the entropy than max_distance. `truncate_rows` finds both for top_k, top_p, min_p and
// typical_p; where nobody asks for any they lie behind all.
struct SampleRow {
    u64 seed;
    u32 row, position, draws;
    float temperature;
    // How many stay, and what equals the last of them; NO_LIMIT: all.
    u32 top_k;
    // The probability that those hold together which stay; 1: all.
    float top_p;
    // The logarithm of the least probability as a part of the largest one; -inf: all.
    float log_min_p;
    u32 bound_key, bound_id;
    // The probability that those hold together which are the nearest to the entropy; 1: all.
    float typical_p;
    // Of those that typical_p chooses among: the logarithm of the sum of their exponentials, and their entropy.
    float normalizer, entropy, max_distance;
    // A token that is scored instead of what would be sampled, or NO_ID.
    u32 known;
};

constexpr u32 NO_LIMIT = 0xffffffff;

// What comes of it. unsound: the lowest id whose logit is NaN or +inf, or NO_ID.
struct Sampled {
    u32 id;
    float logprob, log_sum_exp;
    u32 unsound;
};

struct Scored {
    float score;
    u32 id;
};

// Whatever is a number is better than this.
constexpr u32 NO_ID = 0xffffffff;
DEVICE Scored nothing() { return {-infinity(), NO_ID}; }

DEVICE bool is_better(Scored a, Scored b) { return a.score > b.score || (a.score == b.score && a.id < b.id); }

// Over the lanes of a warp, in each.
DEVICE Scored warp_best(Scored best) {
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        Scored other = {
            __shfl_xor_sync(ALL_LANES, best.score, distance),
            __shfl_xor_sync(ALL_LANES, best.id, distance),
        };
        if (is_better(other, best)) best = other;
    }
    return best;
}

// Over the threads of a block, in each. `of_warps` is free again after the next barrier.
DEVICE Scored block_best(Scored best, Scored* of_warps) {
    best = warp_best(best);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = best;
    __syncthreads();
    for (unsigned warp = 0; warp < WARPS; ++warp) {
        if (is_better(of_warps[warp], best)) best = of_warps[warp];
    }
    return best;
}

struct alignas(16) Logits {
    float at[GROUP];
};

// The next groups of the calling thread, below id `end`. Behind it there are impossible tokens, which add zeros to the sum.
DEVICE void load_batch(Logits (&batch)[BATCH], const float* row, u32 first_group, u32 vocab_size, u32 end) {
#pragma unroll
    for (unsigned at = 0; at < BATCH; ++at) {
        u32 first = (first_group + at * THREADS) * GROUP;
        // Rows begin at multiples of 16 bytes only if they are whole groups long.
        if (vocab_size % GROUP == 0 && first < end) {
            batch[at] = *reinterpret_cast<const Logits*>(row + first);
        } else {
            for (unsigned i = 0; i < GROUP; ++i) batch[at].at[i] = first + i < end ? row[first + i] : -infinity();
        }
    }
}

// A number that orders floats as they are; a NaN is the least.
DEVICE u32 key_of(float score) {
    // Adding zero turns -0 into +0, so that equal floats have equal keys.
    u32 bits = __float_as_uint(score + 0.0f);
    if (score != score) return 0;
    return bits >> 31 ? ~bits : bits | 0x80000000;
}

// How far the information of a token is from the entropy.
DEVICE float distance_of(float score, float normalizer, float entropy) { return fabsf((normalizer - score) - entropy); }

// Whether scores are the logits, and all of them stay.
DEVICE bool is_plain(const SampleRow& entry) {
    return entry.temperature == 1.0f && entry.bound_key == 0 && entry.bound_id == NO_LIMIT && entry.max_distance == infinity();
}

DEVICE bool is_kept(const SampleRow& entry, float score, u32 id) {
    u32 key = key_of(score);
    bool is_within = key > entry.bound_key || (key == entry.bound_key && id <= entry.bound_id);
    // What is no number stays, to be seen.
    return is_within && !(distance_of(score, entry.normalizer, entry.entropy) > entry.max_distance);
}
