// The token of a row of logits, the best or a drawn one, with its log-probability. `ops/sample.rs` says what they mean: ties go
// to the lowest id, a NaN is never the best, and noise is a function of (seed, position, token id).
//   scores = logits / temperature, of those that stay (sample.cuh)
//   log_sum_exp = max + ln sum_i exp(scores[i] - max);  logprob = scores[id] - log_sum_exp
// Shapes:  out, entries [S]; parts [S, PARTS]; logits [rows, vocab_size], any of whose rows an entry may name.
// Grid:    sample_parts: a block per part of an entry's row, the entry along y; a thread has every THREADS-th group of four ids, as
//          Philox makes noise for four at once. sample_rows: one thread per entry puts its parts together.
// Order:   of a part a thread's terms by ascending id, then lanes as a tree, then warps ascending; parts ascending. Where parts
//          begin depends on the vocabulary alone, so bits depend on the row alone.
// Traffic: a row twice, the second time from the first-level cache or L2: the largest logit first, then everything below it.
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
    if (is_plain(entry)) return;
#pragma unroll
    for (unsigned at = 0; at < BATCH; ++at) {
        for (unsigned i = 0; i < GROUP; ++i) {
            float score = batch[at].at[i] / entry.temperature;
            bool stays = is_kept(entry, score, (first_group + at * THREADS) * GROUP + i);
            batch[at].at[i] = stays ? score : -infinity();
        }
    }
}

// Of a row, so that a single one occupies several multiprocessors.
constexpr unsigned PARTS = 8;

// What a part says: its best as it is and with noise, the sum of its exponentials below its best, and what is unsound in it.
struct alignas(16) Part {
    Scored best, drawn;
    float sum;
    u32 unsound;
};

KERNEL __launch_bounds__(THREADS, 1)
    sample_parts(Part* parts, const float* logits, const SampleRow* entries, u32 vocab_size) {
    SHARED(Scored, of_warps, WARPS);
    SHARED(Scored, of_warps_with_noise, WARPS);
    SHARED(u32, unsound_of_warps, WARPS);
    allow_kernel_behind();
    SampleRow entry = entries[blockIdx.y];
    const float* row = logits + size_t(entry.row) * vocab_size;
    u32 groups = (vocab_size + GROUP - 1) / GROUP, of_part = (groups + PARTS - 1) / PARTS;
    u32 start = blockIdx.x * of_part, end_group = min(start + of_part, groups), end = min(end_group * GROUP, vocab_size);
    Logits batch[BATCH];

    // The best as it is, and the first that is unsound.
    Scored best = nothing();
    u32 unsound = NO_ID;
    for (u32 first = start + threadIdx.x; first < end_group; first += BATCH * THREADS) {
        load_batch(batch, row, first, vocab_size, end);
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
                // What lies behind the part is impossible here, and may be possible there.
                if (candidate.id < end && is_better(candidate, best)) best = candidate;
            }
        }
    }
    for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
        unsound = min(unsound, __shfl_xor_sync(ALL_LANES, unsound, distance));
    }
    if (threadIdx.x % WARP == 0) unsound_of_warps[threadIdx.x / WARP] = unsound;
    best = block_best(best, of_warps);
    for (unsigned warp = 0; warp < WARPS; ++warp) unsound = min(unsound, unsound_of_warps[warp]);

    // Of nothing but impossible tokens there is no draw, and no sum; of what is no number neither.
    Scored drawn = best;
    float sum = unsound == NO_ID ? 0.0f : infinity() - infinity();
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
        sum = 0.0f;
        for (u32 first = start + threadIdx.x; first < end_group; first += BATCH * THREADS) {
            load_batch(batch, row, first, vocab_size, end);
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
        sum = block_sum<WARPS>(sum);
    }
    if (threadIdx.x == 0) parts[size_t(blockIdx.y) * PARTS + blockIdx.x] = {best, drawn, sum, unsound};
}
EXPORT(sample_parts)

KERNEL __launch_bounds__(WARP) sample_rows(
    Sampled* out, const Part* parts, const float* logits, const SampleRow* entries, u32 num_entries, u32 vocab_size) {
    wait_for_kernels_before();
    u32 at = blockIdx.x * WARP + threadIdx.x;
    if (at >= num_entries) return;
    Scored best = nothing(), drawn = nothing();
    u32 unsound = NO_ID;
    for (unsigned i = 0; i < PARTS; ++i) {
        const Part& part = parts[size_t(at) * PARTS + i];
        if (is_better(part.best, best)) best = part.best;
        if (is_better(part.drawn, drawn)) drawn = part.drawn;
        unsound = min(unsound, part.unsound);
    }
    float log_sum_exp = -infinity();
    if (best.score > -infinity()) {
        float sum = 0.0f;
        for (unsigned i = 0; i < PARTS; ++i) {
            const Part& part = parts[size_t(at) * PARTS + i];
            sum = fmaf(part.sum, __expf(part.best.score - best.score), sum);
        }
        log_sum_exp = best.score + logf(sum);
    }
    const SampleRow& entry = entries[at];
    // Where nothing is a number there is none, or one behind the last.
    u32 id = drawn.id < vocab_size ? drawn.id : 0;
    if (entry.known != NO_ID) id = entry.known;
    float score = logits[size_t(entry.row) * vocab_size + id] / entry.temperature;
    out[at] = {id, score - log_sum_exp, log_sum_exp, unsound};
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
