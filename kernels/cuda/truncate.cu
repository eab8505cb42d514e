// Which scores of a row stay when it is drawn from: top-k, then top-p, then min-p, then typical-p. The first three each keep the first
// in descending order, equal scores by ascending id, so that all together keep the shortest of the three: a bound, which is written
// into the row's entry; the last keeps what is near to the entropy of these, which is written there too.
//   top-k: the k largest and what equals the last of them
//   top-p: the fewest that hold a part p of the weights exp(score - max) that top-k leaves
//   min-p: scores of at least max + ln min_p
//   typical-p: in ascending order of |-ln probability - entropy| the fewest that hold a part of the weights that min-p leaves, and
//              what is as far as the last of them
// Shapes:  entries [S]; logits [rows, vocab_size].
// Grid:    one block per entry; a thread has every THREADS-th group of four ids, as in sample.cu.
// Order:   of weights as select.cuh says; the entropy is a sum in f64: a thread's terms by ascending id, then lanes, then warps.
// Traffic: a row once for its maximum, once for each of four digits of a bound's key, of three of an id where equal scores are
//          told apart, and twice for an entropy; all but the first from L2.
// Source:  arXiv:1904.09751 (top-p), arXiv:2407.01082 (min-p), arXiv:2202.00666 (typical-p).
#include "select.cuh"

// A block per entry. logits: [rows, vocab_size].
KERNEL __launch_bounds__(THREADS, 1) truncate_rows(SampleRow* entries, const float* logits, u32 vocab_size) {
    SHARED(Scored, of_warps, WARPS);
    SHARED(Search, searches, 1);
    Search& at = searches[0];
    SampleRow entry = entries[blockIdx.x];
    bool is_cut = entry.top_k != NO_LIMIT || entry.top_p < 1.0f || entry.log_min_p > -infinity();
    if (!is_cut && entry.typical_p >= 1.0f) return;
    const float* row = logits + size_t(entry.row) * vocab_size;

    Scored best = nothing();
    for_scores(row, entry, vocab_size, [&](float score, u32 id) {
        if (is_better({score, id}, best)) best = {score, id};
    });
    float max = block_best(best, of_warps).score;
    // Nothing is possible.
    if (max == -infinity()) return;

    if (entry.top_k < vocab_size) entry.bound_key = nth_largest(row, entry, vocab_size, entry.top_k, at).key;

    if (entry.top_p < 1.0f) {
        auto largest_first = [](float score) { return key_of(score); };
        Prefix prefix = shortest_prefix(row, entry, vocab_size, entry.top_p, max, largest_first, at);
        // Of equal scores, as many as it takes, of the lowest ids.
        u64 rest = prefix.mass > prefix.before ? prefix.mass - prefix.before : 1;
        u64 wanted = prefix.each == 0 ? 1 : (rest + prefix.each - 1) / prefix.each;
        if (wanted < prefix.ties) entry.bound_id = nth_id(row, entry, vocab_size, prefix.key, u32(wanted), at);
        entry.bound_key = prefix.key;
    }

    u32 min_p_key = key_of(max + entry.log_min_p);
    if (entry.log_min_p > -infinity() && min_p_key > entry.bound_key) {
        entry.bound_key = min_p_key;
        entry.bound_id = NO_LIMIT;
    }

    if (entry.typical_p < 1.0f) {
        float sum = 0.0f;
        for_scores(row, entry, vocab_size, [&](float score, u32) { sum += expf(score - max); });
        float normalizer = max + logf(block_sum<WARPS>(sum));
        double information = 0.0;
        for_scores(row, entry, vocab_size, [&](float score, u32) {
            float probability = expf(score - normalizer);
            // A token of probability zero adds nothing.
            if (probability > 0.0f) information -= double(probability) * double(score - normalizer);
        });
        float entropy = float(block_sum<WARPS>(information));
        // The nearest comes first, so its key has to be the largest.
        auto nearness = [=](float score) { return ~key_of(distance_of(score, normalizer, entropy)); };
        Prefix prefix = shortest_prefix(row, entry, vocab_size, entry.typical_p, max, nearness, at);
        entry.normalizer = normalizer;
        entry.entropy = entropy;
        // Distances are not negative: their keys are their bits, but the first.
        entry.max_distance = __uint_as_float(~prefix.key & 0x7fffffff);
    }
    if (threadIdx.x == 0) entries[blockIdx.x] = entry;
}
EXPORT(truncate_rows)
