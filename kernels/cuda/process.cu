// What a request's parameters make of its logits before a token is chosen, and the counts that its penalties read.
// `shard/src/sampling/` says what they mean; its order is kept, and its bits: each operation is rounded by itself.
//   logit bias:          score + bias
//   repetition penalty:  score / p if score > 0, score * p otherwise,  if prompt or reply have the token
//   frequency penalty:   score - p * (count / position),               count over prompt and reply
//   presence penalty:    score - p,                                    if the reply has the token
//   occurrence penalty:  score - p * count,                            count over the reply
//   bans, grammar mask:  -inf
// Shapes:  logits [rows, vocab_size], of which every entry has one of its own; tables [slots, vocab_size rounded up to GROUP], so
//          that each begins at a multiple of 16 bytes; entries [S]; ids, of_rows [T].
// Grid:    one thread per group of four ids, and blocks along y per entry or slot; count_tokens: one thread per row.
// Order:   a token's bias is one thread's, and behind a barrier all the rest another's. Nobody adds to what others add to.
// Traffic: a row's table and mask once, and of its logits those groups in which something changes, once each way.
#include "sample.cuh"

constexpr u32 NONE = 0xffffffff;

// Ids of a block.
constexpr unsigned RANGE = THREADS * GROUP;

// --- Counts --------------------------------------------------------------------------------------------------------

// A word of a table says how often its token occurs: in the reply in the lower half, in the prompt in the upper one. Fifteen bits
// count; the sixteenth takes what the rows of one launch add beyond them, each having seen a number that others were still adding
// to. So an addition is all it takes, which never carries into the other half; whoever reads the number cuts it.
constexpr u32 MAX_COUNT = 0x7fff;
// Rows of a launch of count_tokens.
constexpr u32 MAX_COUNTED_ROWS = 0x8000;
static_assert(MAX_COUNT - 1 + MAX_COUNTED_ROWS <= 0xffff, "a half holds what a launch adds to the last number that it adds to");

constexpr unsigned PROMPT_SHIFT = 16;

struct alignas(16) Counts {
    u32 at[GROUP];
};

// Words from the start of one table to that of the next.
DEVICE size_t table_stride(u32 vocab_size) { return (size_t(vocab_size) + GROUP - 1) / GROUP * GROUP; }

// Empties the tables of slots that are opened. slots: [gridDim.y].
KERNEL __launch_bounds__(THREADS) forget_slots(u32* tables, const u32* slots, u32 vocab_size) {
    u32 first = (blockIdx.x * THREADS + threadIdx.x) * GROUP;
    if (first >= vocab_size) return;
    *reinterpret_cast<Counts*>(tables + slots[blockIdx.y] * table_stride(vocab_size) + first) = Counts{};
}
EXPORT(forget_slots)

// Counts the tokens of a step's rows, behind continue_rows. of_rows: twice the slot, and one more if the token is part of the
// reply; NONE where nobody reads the counts. At most MAX_COUNTED_ROWS rows.
KERNEL __launch_bounds__(WARP) count_tokens(u32* tables, const u32* ids, const u32* of_rows, u32 num_rows, u32 vocab_size) {
    u32 row = blockIdx.x * WARP + threadIdx.x;
    u32 of_row = row < num_rows ? of_rows[row] : NONE;
    if (of_row == NONE) return;
    u32 shift = of_row & 1 ? 0 : PROMPT_SHIFT;
    u32* word = tables + (of_row >> 1) * table_stride(vocab_size) + ids[row];
    // The number may be older than this moment, but no older than the launch, which is what MAX_COUNTED_ROWS allows for.
    if ((*word >> shift & 0xffff) < MAX_COUNT) atomicAdd(word, 1u << shift);
}
EXPORT(count_tokens)

// --- Scores --------------------------------------------------------------------------------------------------------

// What an entry asks for. Lists begin at words of `lists`.
struct alignas(16) ProcessRow {
    // slot: whose counts the penalties read; NONE where there are no penalties. position: the number of tokens before the one to
    // sample.
    u32 row, slot, position;
    // 1, 0, 0, 0: none.
    float repetition_penalty, frequency_penalty, presence_penalty, occurrence_penalty;
    // Pairs of a token and what is added to its score, each token once; at an even word.
    u32 biases, num_biases;
    // Tokens that must not come. Those that the vocabulary does not have are passed over.
    u32 bans, num_bans;
    // Bit id % 32 of word id / 32 allows a token, for the whole vocabulary; NONE: all are allowed.
    u32 mask;
};

struct alignas(8) Bias {
    u32 id;
    float addend;
};

DEVICE Logits load_group(const float* row, u32 first, u32 vocab_size) {
    // Rows begin at multiples of 16 bytes only if they are whole groups long.
    if (vocab_size % GROUP == 0) return *reinterpret_cast<const Logits*>(row + first);
    Logits group;
    for (unsigned i = 0; i < GROUP; ++i) group.at[i] = first + i < vocab_size ? row[first + i] : -infinity();
    return group;
}

DEVICE void store_group(float* row, u32 first, u32 vocab_size, const Logits& group) {
    if (vocab_size % GROUP == 0) {
        *reinterpret_cast<Logits*>(row + first) = group;
        return;
    }
    for (unsigned i = 0; i < GROUP; ++i) {
        if (first + i < vocab_size) row[first + i] = group.at[i];
    }
}

// A score after the penalties. Those that are off are left out, as their zeros could still change the sign of a zero. No plain
// products: with the subtraction behind it, each would become one operation, which rounds once.
DEVICE float penalise(float score, u32 counts, const ProcessRow& entry) {
    u32 reply = min(counts & 0xffff, MAX_COUNT), all = reply + min(counts >> PROMPT_SHIFT, MAX_COUNT);
    if (all == 0) return score;
    if (entry.repetition_penalty != 1.0f) {
        float penalty = entry.repetition_penalty;
        score = score > 0.0f ? score / penalty : __fmul_rn(score, penalty);
    }
    if (entry.frequency_penalty != 0.0f) {
        score -= __fmul_rn(entry.frequency_penalty, float(all) / float(entry.position));
    }
    if (reply == 0) return score;
    if (entry.presence_penalty != 0.0f) score -= entry.presence_penalty;
    if (entry.occurrence_penalty != 0.0f) score -= __fmul_rn(entry.occurrence_penalty, float(reply));
    return score;
}

// Three blocks are all threads that a multiprocessor of an L4 has.
KERNEL __launch_bounds__(THREADS, 3)
    process_rows(float* logits, const u32* tables, const ProcessRow* entries, const u32* lists, u32 vocab_size) {
    SHARED(u32, banned, RANGE / 32);
    ProcessRow entry = entries[blockIdx.y];
    float* row = logits + size_t(entry.row) * vocab_size;
    u32 start = blockIdx.x * RANGE, at = threadIdx.x * GROUP, first = start + at;

    // Requested before the lists, which they do not wait for.
    Counts counts = {};
    u32 allowed = ALL_LANES;
    if (first < vocab_size) {
        if (entry.slot != NONE) {
            counts = *reinterpret_cast<const Counts*>(tables + entry.slot * table_stride(vocab_size) + first);
        }
        if (entry.mask != NONE) allowed = lists[entry.mask + first / 32] >> first % 32;
    }

    // Of the lists what falls into the block's range.
    if (threadIdx.x < RANGE / 32) banned[threadIdx.x] = 0;
    __syncthreads();
    const Bias* biases = reinterpret_cast<const Bias*>(lists + entry.biases);
    for (u32 i = threadIdx.x; i < entry.num_biases; i += THREADS) {
        Bias bias = biases[i];
        if (bias.id - start < RANGE) row[bias.id] += bias.addend;
    }
    for (u32 i = threadIdx.x; i < entry.num_bans; i += THREADS) {
        u32 in_range = lists[entry.bans + i] - start;
        if (in_range < RANGE) atomicOr(&banned[in_range / 32], 1u << in_range % 32);
    }
    __syncthreads();

    // The thread's own tokens.
    allowed &= ~(banned[at / 32] >> at % 32);
    constexpr u32 WHOLE_GROUP = (1u << GROUP) - 1;
    u32 any_counts = counts.at[0] | counts.at[1] | counts.at[2] | counts.at[3];
    if (first >= vocab_size || (any_counts == 0 && (allowed & WHOLE_GROUP) == WHOLE_GROUP)) return;
    Logits group = load_group(row, first, vocab_size);
    for (unsigned i = 0; i < GROUP; ++i) {
        // What is NaN or +inf is a failed computation, which sample_rows shall see also where nothing may come of it.
        bool is_score = group.at[i] < infinity();
        group.at[i] = penalise(group.at[i], counts.at[i], entry);
        if (is_score && !(allowed >> i & 1)) group.at[i] = -infinity();
    }
    store_group(row, first, vocab_size, group);
}
EXPORT(process_rows)
