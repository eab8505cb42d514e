// Which scores of a row stay when it is drawn from: top-k, then top-p, then min-p. Each keeps the first in descending order, equal
// scores by ascending id, so that all together keep the shortest of the three: a bound, which is written into the row's entry.
//   top-k: the k largest and what equals the last of them
//   top-p: the fewest that hold a part p of the weights exp(score - max) that top-k leaves
//   min-p: scores of at least max + ln min_p
// Shapes:  entries [S]; logits [rows, vocab_size].
// Grid:    one block per entry; a thread has every THREADS-th group of four ids, as in sample.cu.
// Order:   weights are integers, in units of 2^-40 of the largest: their sums are exact, whoever adds first.
// Traffic: a row once for its maximum, and once for each of four digits of eight bits of a bound's key, and of three of an id
//          where equal scores are told apart; all but the first from L2.
// Source:  select by digits as in `shard/src/sampling/select.rs`; arXiv:1904.09751 (top-p), arXiv:2407.01082 (min-p).
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

// Calls f(score, id) for every score of the calling thread that is a number and possible.
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
                if (score > -infinity()) f(score, (first + at * THREADS) * GROUP + i);
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

// A block per entry. logits: [rows, vocab_size].
KERNEL __launch_bounds__(THREADS, 1) truncate_rows(SampleRow* entries, const float* logits, u32 vocab_size) {
    SHARED(Scored, of_warps, WARPS);
    SHARED(Histogram, histograms, 1);
    SHARED(Found, founds, 1);
    Histogram& histogram = histograms[0];
    SampleRow entry = entries[blockIdx.x];
    if (entry.top_k == NO_LIMIT && entry.top_p >= 1.0f && entry.log_min_p == -infinity()) return;
    const float* row = logits + size_t(entry.row) * vocab_size;

    Scored best = nothing();
    for_scores(row, entry, vocab_size, [&](float score, u32 id) {
        if (is_better({score, id}, best)) best = {score, id};
    });
    float max = block_best(best, of_warps).score;
    // Nothing is possible.
    if (max == -infinity()) return;
    u32 bound_key = 0, bound_id = NO_LIMIT;

    // The key of the k-th largest.
    if (entry.top_k < vocab_size) {
        u32 count = 0, known = 0;
        for (unsigned shift = 32; shift > 0;) {
            shift -= DIGIT_BITS;
            clear(histogram);
            for_scores(row, entry, vocab_size, [&](float score, u32) {
                u32 key = key_of(score);
                if ((key & known) == bound_key) atomicAdd(&histogram.counts[key >> shift & (DIGITS - 1)], 1u);
            });
            u32 wanted = entry.top_k;
            Found found =
                search(histogram, founds[0], true, count, 0, [=](u32 count, u64) { return count >= wanted; });
            bound_key |= found.digit << shift;
            known |= (DIGITS - 1) << shift;
            count = found.count_before;
        }
    }

    // The key and id of the last of those that hold a part of the weights together.
    if (entry.top_p < 1.0f) {
        u32 least_key = bound_key;
        // All of the weight, as the sum over the first digit.
        u64 mass = 0, before = 0;
        u32 key_so_far = 0, known = 0, ties = 0;
        for (unsigned shift = 32; shift > 0;) {
            shift -= DIGIT_BITS;
            clear(histogram);
            for_scores(row, entry, vocab_size, [&](float score, u32) {
                u32 key = key_of(score), digit = key >> shift & (DIGITS - 1);
                if (key < least_key || (key & known) != key_so_far) return;
                atomicAdd(&histogram.counts[digit], 1u);
                atomicAdd(&histogram.weights[digit], weight_of(score, max));
            });
            if (known == 0) {
                __syncthreads();
                u64 total = 0;
                for (unsigned digit = 0; digit < DIGITS; ++digit) total += histogram.weights[digit];
                double part = double(entry.top_p) * double(total);
                mass = u64(part);
                if (double(mass) < part) ++mass;
            }
            Found found =
                search(histogram, founds[0], true, 0, before, [=](u32, u64 weight) { return weight >= mass; });
            key_so_far |= found.digit << shift;
            known |= (DIGITS - 1) << shift;
            before = found.weight_before;
            ties = histogram.counts[found.digit];
        }
        bound_key = key_so_far;

        // Of equal scores, as many as it takes, of the lowest ids.
        u64 each = histogram.weights[key_so_far & (DIGITS - 1)] / ties;
        u64 wanted = each == 0 || mass <= before ? 1 : (mass - before + each - 1) / each;
        if (wanted < ties) {
            u32 count = 0, id_so_far = 0;
            known = 0;
            for (unsigned shift = 24; shift > 0;) {
                shift -= DIGIT_BITS;
                clear(histogram);
                for_scores(row, entry, vocab_size, [&](float score, u32 id) {
                    if (key_of(score) != bound_key || (id & known) != id_so_far) return;
                    atomicAdd(&histogram.counts[id >> shift & (DIGITS - 1)], 1u);
                });
                Found found =
                    search(histogram, founds[0], false, count, 0, [=](u32 count, u64) { return count >= wanted; });
                id_so_far |= found.digit << shift;
                known |= (DIGITS - 1) << shift;
                count = found.count_before;
            }
            bound_id = id_so_far;
        }
    }

    u32 min_p_key = key_of(max + entry.log_min_p);
    if (entry.log_min_p > -infinity() && min_p_key > bound_key) {
        bound_key = min_p_key;
        bound_id = NO_LIMIT;
    }
    if (threadIdx.x == 0) {
        entries[blockIdx.x].bound_key = bound_key;
        entries[blockIdx.x].bound_id = bound_id;
    }
}
EXPORT(truncate_rows)
