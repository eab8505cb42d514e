// Rotary position embedding of queries and keys, and the write of keys and values into the paged cache.
// `ops/rope.rs` says what it means. Angles come from a table in f32, products are f32, and the result is rounded once.
#include "kv_cache.cuh"
#include "types.cuh"

constexpr unsigned THREADS = 256;
// Of a row that only fills up its step: it is left as it is.
constexpr unsigned NO_SLOT = 0xffffffff;

// A block per row of qkv: [T, (heads + 2 * kv_heads) * dim]. cosines, sines: [positions, pairs]; positions, slots: [T].
template <typename T>
DEVICE void rope_and_store_kv(
    T* qkv, const float* cosines, const float* sines, const unsigned* positions, const unsigned* slots, T* keys, T* values,
    unsigned heads, unsigned kv_heads, unsigned dim, unsigned pairs) {
    qkv += size_t(blockIdx.x) * (heads + 2 * kv_heads) * dim;
    cosines += size_t(positions[blockIdx.x]) * pairs;
    sines += size_t(positions[blockIdx.x]) * pairs;
    unsigned slot = slots[blockIdx.x];
    if (slot == NO_SLOT) return;
    unsigned block = slot / BLOCK_POSITIONS, offset = slot % BLOCK_POSITIONS;

    for (unsigned at = threadIdx.x; at < (heads + kv_heads) * pairs; at += THREADS) {
        unsigned head = at / pairs, i = at % pairs;
        T* low = qkv + head * dim + i;
        T* high = low + pairs;
        float a = to_f32(*low), b = to_f32(*high);
        *low = round_to<T>(fmaf(-b, sines[i], a * cosines[i]));
        *high = round_to<T>(fmaf(a, sines[i], b * cosines[i]));
        if (head >= heads) {
            T* squares = keys + block_start(block, kv_heads, head - heads, dim);
            squares[key_at(offset, i)] = *low;
            squares[key_at(offset, i + pairs)] = *high;
        }
    }
    // What is not rotated of the keys, and the values.
    unsigned rest = dim - 2 * pairs;
    for (unsigned at = threadIdx.x; at < kv_heads * rest; at += THREADS) {
        unsigned head = at / rest, d = 2 * pairs + at % rest;
        keys[block_start(block, kv_heads, head, dim) + key_at(offset, d)] = qkv[(heads + head) * dim + d];
    }
    for (unsigned at = threadIdx.x; at < kv_heads * dim; at += THREADS) {
        unsigned head = at / dim, d = at % dim;
        values[block_start(block, kv_heads, head, dim) + value_at(offset, d)] = qkv[(heads + kv_heads + head) * dim + d];
    }
}

#define ROPE(T)                                                                                                         \
    KERNEL __launch_bounds__(THREADS) rope_and_store_kv_##T(                                                            \
        T* qkv, const float* cosines, const float* sines, const unsigned* positions, const unsigned* slots, T* keys, T* values, \
        unsigned heads, unsigned kv_heads, unsigned dim, unsigned pairs) {                                               \
        rope_and_store_kv(qkv, cosines, sines, positions, slots, keys, values, heads, kv_heads, dim, pairs);                   \
    }                                                                                                                   \
    EXPORT(rope_and_store_kv_##T)

ROPE(bf16)
ROPE(f16)
