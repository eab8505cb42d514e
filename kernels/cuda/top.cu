// The most likely tokens of rows that were sampled from, with their log-probabilities.
//   of the scores that stay (sample.cuh) the n largest, best first, equal ones by ascending id; then what equals the last of them,
//   up to `most` altogether; logprob = score - log_sum_exp
// Shapes:  out [S, width], filled up with NO_ID; tops [S]; entries, sampled: as in sample.cu; logits [rows, vocab_size].
// Grid:    one block per row to report.
// Traffic: a row once for each of four digits and once to collect, three times more if more tie than are reported; from L2.
#include "select.cuh"

struct Top {
    u32 id;
    float logprob;
};

// Which entry was sampled from, and how many of its tokens are reported: n, with ties `most`, no more than MAX_TOPS.
struct alignas(16) TopRow {
    u32 entry, n, most, padding;
};

constexpr unsigned MAX_TOPS = 160;

KERNEL __launch_bounds__(THREADS, 1) top_rows(
    Top* out, const TopRow* tops, const SampleRow* entries, const Sampled* sampled, const float* logits, u32 vocab_size,
    u32 width) {
    SHARED(Search, searches, 1);
    SHARED(Scored, found, MAX_TOPS);
    SHARED(u32, num_found, 1);
    Search& at = searches[0];
    TopRow top = tops[blockIdx.x];
    SampleRow entry = entries[top.entry];
    const float* row = logits + size_t(entry.row) * vocab_size;
    Top* to = out + size_t(blockIdx.x) * width;
    float log_sum_exp = sampled[top.entry].log_sum_exp;
    if (threadIdx.x == 0) num_found[0] = 0;
    __syncthreads();
    // Otherwise there is no distribution, and nothing to report.
    if (-infinity() < log_sum_exp && log_sum_exp < infinity()) {
        Nth last = nth_largest(row, entry, vocab_size, top.n, at);
        u32 last_id = NO_LIMIT, room = top.most - last.larger;
        if (last.ties > room) last_id = nth_id(row, entry, vocab_size, last.key, room, at);
        for_scores(row, entry, vocab_size, [&](float score, u32 id) {
            u32 key = key_of(score);
            if (key > last.key || (key == last.key && id <= last_id)) found[atomicAdd(num_found, 1u)] = {score, id};
        });
    }
    __syncthreads();
    u32 count = num_found[0];
    for (u32 i = threadIdx.x; i < width; i += THREADS) {
        if (i >= count) {
            to[i] = {NO_ID, 0.0f};
            continue;
        }
        // They were found in any order.
        u32 place = 0;
        for (u32 other = 0; other < count; ++other) place += is_better(found[other], found[i]) ? 1 : 0;
        to[place] = {found[i].id, found[i].score - log_sum_exp};
    }
}
EXPORT(top_rows)
