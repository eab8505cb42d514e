// The token of a row of logits, the best or a drawn one, with its log-probability. `ops/sample.rs` says what they mean: ties go
// to the lowest id, a NaN is never the best, and noise is a function of (seed, position, token id).
//   scores = logits / temperature, of those that stay (sample.cuh)
//   log_sum_exp = max + ln sum_i exp(scores[i] - max);  logprob = scores[id] - log_sum_exp
// Shapes:  out, entries [S]; logits [rows, vocab_size], any of whose rows an entry may name.
// Grid:    one block per entry; a thread has every THREADS-th group of four ids, as Philox makes noise for four at once.
// Order:   a thread's terms by ascending id, then lanes as a tree, then warps ascending: bits depend on the row alone.
// Traffic: a row twice, of which the second time is likely to find it in L2: the largest logit first, then everything below it.
// Source:  Gumbel-max, arXiv:1411.0030 section 2; Philox-4x32-10, Salmon et al., SC 2011.
#include "sample.cuh"

struct Noise {
    u32 bits[GROUP];
};

// Of the ids 4 * group and the three behind: the words of the block with the counter (group, position, 0, 0).
DEVICE Noise philox(u64 seed, u32 position, u32 group) {
    u32 c0 = group, c1 = position, c2 = 0, c3 = 0;
    u32 key0 = u32(seed), key1 = u32(seed >> 32);
    for (unsigned round = 0; round < 10; ++round) {
        u64 a = u64(0xD2511F53) * c0, b = u64(0xCD9E8D57) * c2;
        c0 = u32(b >> 32) ^ c1 ^ key0;
        c1 = u32(b);
        c2 = u32(a >> 32) ^ c3 ^ key1;
        c3 = u32(a);
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return {{c0, c1, c2, c3}};
}

// An element by a number that is not known before: an array would have to lie in memory.
template <typename T>
DEVICE T pick(const T (&of)[GROUP], unsigned at) { return at < 2 ? (at == 0 ? of[0] : of[1]) : (at == 2 ? of[2] : of[3]); }

// In f64, where -ln u keeps its precision near u = 1: only for the few candidates that can win.
DEVICE float gumbel(u32 bits) {
    double u = (double(bits >> 8) + 0.5) / double(1 << 24);
    return float(-log(-log(u)));
}

// Logits into scores: impossible where they do not stay.
DEVICE void warp_batch(Logits (&batch)[BATCH], const SampleRow& entry, u32 first_group) {
#pragma unroll
    for (unsigned at = 0; at < BATCH; ++at) {
        for (unsigned i = 0; i < GROUP; ++i) {
            float score = batch[at].at[i] / entry.temperature;
            bool stays = is_kept(entry, score, (first_group + at * THREADS) * GROUP + i);
            batch[at].at[i] = stays ? score : -infinity();
        }
    }
}

KERNEL __launch_bounds__(THREADS, 1) sample_rows(Sampled* out, const float* logits, const SampleRow* entries, u32 vocab_size) {
    SHARED(Scored, of_warps, WARPS);
    SHARED(Scored, of_warps_with_noise, WARPS);
    SHARED(u32, unsound_of_warps, WARPS);
    SampleRow entry = entries[blockIdx.x];
    const float* row = logits + size_t(entry.row) * vocab_size;
    u32 groups = (vocab_size + GROUP - 1) / GROUP;
    Logits batch[BATCH];

    // The best as it is, and the first that is unsound.
    Scored best = nothing();
    u32 unsound = NO_ID;
    for (u32 first = threadIdx.x; first < groups; first += BATCH * THREADS) {
        load_batch(batch, row, first, vocab_size);
#pragma unroll
        for (unsigned at = 0; at < BATCH; ++at) {
            for (unsigned i = 0; i < GROUP; ++i) {
                if (!(batch[at].at[i] < infinity())) unsound = min(unsound, (first + at * THREADS) * GROUP + i);
            }
        }
        warp_batch(batch, entry, first);
#pragma unroll
        for (unsigned at = 0; at < BATCH; ++at) {
            for (unsigned i = 0; i < GROUP; ++i) {
                Scored candidate = {batch[at].at[i], (first + at * THREADS) * GROUP + i};
                if (is_better(candidate, best)) best = candidate;
            }
        }
    }
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        unsound = min(unsound, __shfl_xor_sync(ALL_LANES, unsound, distance));
    }
    if (threadIdx.x % WARP == 0) unsound_of_warps[threadIdx.x / WARP] = unsound;
    best = block_best(best, of_warps);
    for (unsigned warp = 0; warp < WARPS; ++warp) unsound = min(unsound, unsound_of_warps[warp]);

    // A row of nothing but impossible tokens and NaNs has no sum and no draw.
    Scored drawn = best;
    float log_sum_exp = -infinity();
    if (best.score > -infinity()) {
        // With d = drawn - score, a candidate wins only if its noise reaches d, so only if 1 - u <= exp(-d): the term of the sum
        // times exp(max - drawn). One per cent of room for all roundings; whoever passes is computed exactly, so skipping changes
        // no draw.
        constexpr float ROOM = 1.01f * float(1 << 24);
        float factor = 0.0f;
        if (entry.draws) {
            drawn.score += gumbel(pick(philox(entry.seed, entry.position, best.id / GROUP).bits, best.id % GROUP));
            factor = ROOM * __expf(best.score - drawn.score);
        }
        float sum = 0.0f;
        for (u32 first = threadIdx.x; first < groups; first += BATCH * THREADS) {
            load_batch(batch, row, first, vocab_size);
            warp_batch(batch, entry, first);
#pragma unroll
            for (unsigned at = 0; at < BATCH; ++at) {
                const Logits& x = batch[at];
                Logits terms;
                for (unsigned i = 0; i < GROUP; ++i) {
                    terms.at[i] = __expf(x.at[i] - best.score);
                    sum += terms.at[i];
                }
                if (!entry.draws) continue;
                u32 group = first + at * THREADS, hopeful = 0;
                Noise noise = philox(entry.seed, entry.position, group);
                for (unsigned i = 0; i < GROUP; ++i) {
                    // (1 - u) 2^24. A NaN fails the comparison.
                    float rest = float((1 << 24) - (noise.bits[i] >> 8)) - 0.5f;
                    hopeful |= u32(rest <= terms.at[i] * factor) << i;
                }
#pragma unroll 1
                for (unsigned i = 0; hopeful >> i > 0; ++i) {
                    if (hopeful >> i & 1) {
                        Scored candidate = {pick(x.at, i) + gumbel(pick(noise.bits, i)), group * GROUP + i};
                        if (is_better(candidate, drawn)) drawn = candidate;
                    }
                }
                if (hopeful > 0) factor = ROOM * __expf(best.score - drawn.score);
            }
        }
        drawn = block_best(drawn, of_warps_with_noise);
        log_sum_exp = best.score + logf(block_sum<WARPS>(sum));
    }
    if (threadIdx.x > 0) return;
    // Where nothing is a number there is none, or one behind the last.
    u32 id = drawn.id < vocab_size ? drawn.id : 0;
    if (entry.known != NO_ID) id = entry.known;
    out[blockIdx.x] = {id, row[id] / entry.temperature - log_sum_exp, log_sum_exp, unsound};
}
EXPORT(sample_rows)

// Input tokens that the host does not know yet: what the step before has sampled.
//   ids[row] = the token of sampled[from[row]], where that is not NO_ID
// Shapes:  ids, from [num_rows].
// Grid:    one thread per row.
KERNEL __launch_bounds__(WARP) continue_rows(u32* ids, const Sampled* sampled, const u32* from, u32 num_rows) {
    u32 row = blockIdx.x * WARP + threadIdx.x;
    if (row < num_rows && from[row] != NO_ID) ids[row] = sampled[from[row]].id;
}
EXPORT(continue_rows)
