// Selection by digits: the n-th largest score of a row, or the shortest prefix that holds a part of the weights, without sorting.
// A block searches a row; each digit of eight bits is a pass over it, all but the first from L2.
// Order:   weights are integers, in units of 2^-40 of the largest: their sums are exact, whoever adds first.
// Source:  as in `shard/src/sampling/select.rs`.
#pragma once

#include "sample.cuh"

constexpr unsigned DIGITS = 256;
constexpr unsigned DIGIT_BITS = 8;
// Weights as integers. 128 thousand of the largest are below 2^58.
constexpr float WEIGHT_UNITS = float(1ull << 40);

// A sum of 64 bits that threads add to: the hardware adds 32 in shared memory, and more only by trying again and again.
struct Sum {
    u32 low, high;

    DEVICE void add(u64 x) {
        u32 part = u32(x), before = atomicAdd(&low, part), carried = u32(x >> 32) + (before + part < before ? 1 : 0);
        if (carried > 0) atomicAdd(&high, carried);
    }
    DEVICE u64 total() const { return u64(high) << 32 | low; }
};

// What a digit's elements are together.
struct Histogram {
    u32 counts[DIGITS];
    Sum weights[DIGITS];
};

// Where a search for a digit ended: the digit, and what lies before it in the order.
struct Found {
    u32 digit, count_before;
    u64 weight_before;
};

DEVICE u64 weight_of(float score, float max) { return u64(expf(score - max) * WEIGHT_UNITS); }

// Calls f(score, id) for every score of the calling thread that is a number, possible, and among those that stay so far.
template <typename F>
DEVICE void for_scores(const float* row, const SampleRow& entry, u32 vocab_size, F f) {
    u32 groups = (vocab_size + GROUP - 1) / GROUP;
    for (u32 first = threadIdx.x; first < groups; first += BATCH * THREADS) {
        Logits batch[BATCH];
        load_batch(batch, row, first, vocab_size, vocab_size);
#pragma unroll
        for (unsigned at = 0; at < BATCH; ++at) {
            for (unsigned i = 0; i < GROUP; ++i) {
                float score = batch[at].at[i] / entry.temperature;
                u32 id = (first + at * THREADS) * GROUP + i;
                if (score > -infinity() && is_kept(entry, score, id)) f(score, id);
            }
        }
    }
}

DEVICE void clear(Histogram& histogram) {
    // What slower threads still read of the one before.
    __syncthreads();
    for (unsigned digit = threadIdx.x; digit < DIGITS; digit += THREADS) {
        histogram.counts[digit] = 0;
        histogram.weights[digit] = {0, 0};
    }
    __syncthreads();
}

// The first digit in its order with which `is_enough(count, weight)` of all up to it; the last one that has elements if there is none.
// count, weight: of what lies before all digits. A warp has eight digits a lane; is_enough is never true again false.
template <typename F>
DEVICE Found search(const Histogram& histogram, Found& found, bool descending, u32 count, u64 weight, F is_enough) {
    constexpr unsigned OF_LANE = DIGITS / WARP;
    __syncthreads();
    if (threadIdx.x < WARP) {
        unsigned lane = threadIdx.x;
        auto digit_of = [=](unsigned at) { return descending ? DIGITS - 1 - at : at; };
        u32 elements = 0;
        u64 weights = 0;
        for (unsigned at = lane * OF_LANE; at < (lane + 1) * OF_LANE; ++at) {
            elements += histogram.counts[digit_of(at)];
            weights += histogram.weights[digit_of(at)].total();
        }
        // Of the lanes up to this one, then of those before it.
        for (unsigned distance = 1; distance < WARP; distance *= 2) {
            unsigned from = lane >= distance ? lane - distance : lane;
            u32 more = __shfl_sync(ALL_LANES, elements, from);
            u64 heavier = __shfl_sync(ALL_LANES, weights, from);
            if (lane < distance) continue;
            elements += more;
            weights += heavier;
        }
        u32 all = __shfl_sync(ALL_LANES, elements, WARP - 1);
        u64 all_weights = __shfl_sync(ALL_LANES, weights, WARP - 1);
        bool ends = is_enough(count + all, weight + all_weights);
        u32 seen = elements;
        u64 seen_weights = weights;
        // Its own, the last one first, so that what is left to look at is what lies before.
        for (unsigned i = OF_LANE; i > 0; --i) {
            u32 digit = digit_of(lane * OF_LANE + i - 1), own = histogram.counts[digit];
            u32 before = seen - own;
            u64 weight_before = seen_weights - histogram.weights[digit].total();
            bool is_first = ends ? is_enough(count + seen, weight + seen_weights) &&
                                       (before == 0 || !is_enough(count + before, weight + weight_before))
                                 : seen == all;
            if (own > 0 && is_first) found = {digit, count + before, weight + weight_before};
            seen = before;
            seen_weights = weight_before;
        }
    }
    __syncthreads();
    return found;
}

// What a search works with, in shared memory.
struct Search {
    Histogram histogram;
    Found found;
};

// The key of the n-th largest score, how many are larger, and how many have that key. Of fewer than n the least.
struct Nth {
    u32 key, larger, ties;
};

DEVICE Nth nth_largest(const float* row, const SampleRow& entry, u32 vocab_size, u32 n, Search& at) {
    Nth nth = {};
    u32 known = 0;
#pragma unroll 1
    for (unsigned shift = 32; shift > 0;) {
        shift -= DIGIT_BITS;
        clear(at.histogram);
        for_scores(row, entry, vocab_size, [&](float score, u32) {
            u32 key = key_of(score);
            if ((key & known) == nth.key) atomicAdd(&at.histogram.counts[key >> shift & (DIGITS - 1)], 1u);
        });
        Found found =
            search(at.histogram, at.found, true, nth.larger, 0, [=](u32 count, u64) { return count >= n; });
        nth = {nth.key | found.digit << shift, found.count_before, at.histogram.counts[found.digit]};
        known |= (DIGITS - 1) << shift;
    }
    return nth;
}

// The n-th lowest id of those whose scores have a key; there are as many.
DEVICE u32 nth_id(const float* row, const SampleRow& entry, u32 vocab_size, u32 key, u32 n, Search& at) {
    u32 count = 0, so_far = 0, known = 0;
    // Ids have three digits.
#pragma unroll 1
    for (unsigned shift = 24; shift > 0;) {
        shift -= DIGIT_BITS;
        clear(at.histogram);
        for_scores(row, entry, vocab_size, [&](float score, u32 id) {
            if (key_of(score) != key || (id & known) != so_far) return;
            atomicAdd(&at.histogram.counts[id >> shift & (DIGITS - 1)], 1u);
        });
        Found found = search(at.histogram, at.found, false, count, 0, [=](u32 count, u64) { return count >= n; });
        so_far |= found.digit << shift;
        known |= (DIGITS - 1) << shift;
        count = found.count_before;
    }
    return so_far;
}

// The last of the fewest that hold a part of the weights together, in descending order of their keys: its key, what those with
// larger ones hold, and what is to be held; how many have that key, and what each of them weighs.
struct Prefix {
    u32 key;
    u64 before, mass;
    u32 ties;
    u64 each;
};

// max: the largest score. key(score): the larger, the earlier.
template <typename Key>
DEVICE Prefix shortest_prefix(
    const float* row, const SampleRow& entry, u32 vocab_size, float part, float max, Key key, Search& at) {
    Prefix prefix = {};
    u32 known = 0;
#pragma unroll 1
    for (unsigned shift = 32; shift > 0;) {
        shift -= DIGIT_BITS;
        clear(at.histogram);
        for_scores(row, entry, vocab_size, [&](float score, u32) {
            u32 of_score = key(score), digit = of_score >> shift & (DIGITS - 1);
            if ((of_score & known) != prefix.key) return;
            atomicAdd(&at.histogram.counts[digit], 1u);
            at.histogram.weights[digit].add(weight_of(score, max));
        });
        if (known == 0) {
            __syncthreads();
            // All of the weight, as the sum over the first digit.
            u64 total = 0;
            for (unsigned digit = 0; digit < DIGITS; ++digit) total += at.histogram.weights[digit].total();
            double wanted = double(part) * double(total);
            prefix.mass = u64(wanted);
            if (double(prefix.mass) < wanted) ++prefix.mass;
        }
        u64 mass = prefix.mass;
        Found found = search(at.histogram, at.found, true, 0, prefix.before,
                             [=](u32, u64 weight) { return weight >= mass; });
        prefix.key |= found.digit << shift;
        known |= (DIGITS - 1) << shift;
        prefix.before = found.weight_before;
        prefix.ties = at.histogram.counts[found.digit];
        prefix.each = at.histogram.weights[found.digit].total() / prefix.ties;
    }
    return prefix;
}
