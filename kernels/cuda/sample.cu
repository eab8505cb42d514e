// The best token of a row of logits, as it is or with noise. `ops/sample.rs` says what they mean: ties go to the lowest id, a NaN
// is never the best, and noise is a function of (seed, position, token id).
#include "launch.cuh"

constexpr unsigned THREADS = 512;

struct Scored {
    float score;
    unsigned id;
};

// Whatever is a number is better than this.
constexpr unsigned NO_ID = 0xffffffff;
DEVICE Scored nothing() { return {-__builtin_inff(), NO_ID}; }

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
    for (unsigned warp = 0; warp < THREADS / WARP; ++warp) {
        if (is_better(of_warps[warp], best)) best = of_warps[warp];
    }
    return best;
}

DEVICE Scored row_best(const float* row, unsigned vocab_size, Scored* of_warps) {
    Scored best = nothing();
    for (unsigned id = threadIdx.x; id < vocab_size; id += THREADS) {
        Scored candidate = {row[id], id};
        if (is_better(candidate, best)) best = candidate;
    }
    return block_best(best, of_warps);
}

// Word id % 4 of the block with the counter (id / 4, position, 0, 0): Philox-4x32-10 (Salmon et al., SC 2011).
DEVICE u32 philox(u64 seed, u32 position, u32 id) {
    u32 c0 = id / 4, c1 = position, c2 = 0, c3 = 0;
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
    return id % 4 == 0 ? c0 : id % 4 == 1 ? c1 : id % 4 == 2 ? c2 : c3;
}

// In f64, where -ln u keeps its precision near u = 1: only for the few candidates that can win.
DEVICE float gumbel(u32 bits) {
    double u = (double(bits >> 8) + 0.5) / double(1 << 24);
    return float(-log(-log(u)));
}

// A block per row of logits: [S, vocab_size]; ids: [S].
KERNEL __launch_bounds__(THREADS) argmax(unsigned* ids, const float* logits, unsigned vocab_size) {
    SHARED(Scored, of_warps, THREADS / WARP);
    Scored best = row_best(logits + size_t(blockIdx.x) * vocab_size, vocab_size, of_warps);
    if (threadIdx.x == 0) ids[blockIdx.x] = best.id == NO_ID ? 0 : best.id;
}
EXPORT(argmax)

// The same of logits + Gumbel noise, one draw from their softmax; seeds, positions: [S].
KERNEL __launch_bounds__(THREADS) gumbel_argmax(
    unsigned* ids, const float* logits, const u64* seeds, const unsigned* positions, unsigned vocab_size) {
    SHARED(Scored, of_warps, THREADS / WARP);
    SHARED(Scored, of_warps_with_noise, THREADS / WARP);
    const float* row = logits + size_t(blockIdx.x) * vocab_size;
    u64 seed = seeds[blockIdx.x];
    unsigned position = positions[blockIdx.x];

    Scored best = row_best(row, vocab_size, of_warps);
    if (best.id != NO_ID) {
        best.score += gumbel(philox(seed, position, best.id));
        // With d = best - score, a candidate wins only if its noise reaches d, so only if 1 - u <= exp(-d). One per cent of room
        // for all roundings; whoever passes is computed exactly, so skipping changes no draw.
        constexpr float ROOM = 1.01f;
        for (unsigned id = threadIdx.x; id < vocab_size; id += THREADS) {
            u32 bits = philox(seed, position, id);
            float rest = float((1 << 24) - (bits >> 8)) - 0.5f;
            if (rest <= __expf(row[id] - best.score) * (ROOM * float(1 << 24))) {
                Scored candidate = {row[id] + gumbel(bits), id};
                if (is_better(candidate, best)) best = candidate;
            }
        }
    }
    best = block_best(best, of_warps_with_noise);
    if (threadIdx.x == 0) ids[blockIdx.x] = best.id == NO_ID ? 0 : best.id;
}
EXPORT(gumbel_argmax)
