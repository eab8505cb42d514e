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

// What a digit's elements are together.
struct Histogram {
    u32 counts[DIGITS];
    u64 weights[DIGITS];
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
        load_batch(batch, row, first, vocab_size);
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
        histogram.weights[digit] = 0;
    }
    __syncthreads();
}

// The first digit, from `from` on by `step`, with which `is_enough(count, weight)` of all up to it; the last one that has elements
// if there is none.
template <typename F>
DEVICE Found search(const Histogram& histogram, Found& found, bool descending, u32 count, u64 weight, F is_enough) {
    __syncthreads();
    if (threadIdx.x == 0) {
        found = {0, count, weight};
        for (unsigned at = 0; at < DIGITS; ++at) {
            u32 digit = descending ? DIGITS - 1 - at : at;
            if (histogram.counts[digit] == 0) continue;
            found = {digit, count, weight};
            count += histogram.counts[digit];
            weight += histogram.weights[digit];
            if (is_enough(count, weight)) break;
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
            atomicAdd(&at.histogram.weights[digit], weight_of(score, max));
        });
        if (known == 0) {
            __syncthreads();
            // All of the weight, as the sum over the first digit.
            u64 total = 0;
            for (unsigned digit = 0; digit < DIGITS; ++digit) total += at.histogram.weights[digit];
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
        prefix.each = at.histogram.weights[found.digit] / prefix.ties;
    }
    return prefix;
}
