// Rotary position embedding of queries and keys, and the write of keys and values into the paged cache.
// `ops/rope.rs` says what it means. Angles come from a table in f32, products are f32, and the result is rounded once; for a cache
// of eight-bit floats what was rounded is rounded again.
#include "fp8.cuh"
#include "kv_cache.cuh"
#include "types.cuh"

constexpr unsigned THREADS = 256;
// Of a row that only fills up its step: it is left as it is.
constexpr unsigned NO_SLOT = 0xffffffff;

// What the cache has of an element.
template <typename T>
struct Same {
    using Stored = T;

    DEVICE T operator()(T element) const { return element; }
};

template <typename T>
struct AsFp8 {
    using Stored = fp8;

    Fp8Format format;

    DEVICE fp8 operator()(T element) const { return round_to_fp8(to_f32(element), format); }
};

// A block per row of qkv: [T, (heads + 2 * kv_heads) * dim]. cosines, sines: [positions, pairs]; positions, slots: [T].
template <typename T, typename Store, typename C = typename Store::Stored>
DEVICE void rope_and_store_kv(
    T* qkv, const float* cosines, const float* sines, const unsigned* positions, const unsigned* slots, C* keys, C* values,
    unsigned heads, unsigned kv_heads, unsigned dim, unsigned pairs, const Store& stored) {
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
            C* squares = keys + block_start(block, kv_heads, head - heads, dim);
            *key_at(squares, offset, i, dim) = stored(*low);
            *key_at(squares, offset, i + pairs, dim) = stored(*high);
        }
    }
    // What is not rotated of the keys, and the values.
    unsigned rest = dim - 2 * pairs;
    for (unsigned at = threadIdx.x; at < kv_heads * rest; at += THREADS) {
        unsigned head = at / rest, d = 2 * pairs + at % rest;
        C* squares = keys + block_start(block, kv_heads, head, dim);
        *key_at(squares, offset, d, dim) = stored(qkv[(heads + head) * dim + d]);
    }
    for (unsigned at = threadIdx.x; at < kv_heads * dim; at += THREADS) {
        unsigned head = at / dim, d = at % dim;
        C* squares = values + block_start(block, kv_heads, head, dim);
        *value_at(squares, offset, d, dim) = stored(qkv[(heads + kv_heads + head) * dim + d]);
    }
}

// ...: parameters of what is stored, each behind a comma.
#define ROPE_KERNEL(NAME, T, C, STORED, ...)                                                                                    \
    KERNEL __launch_bounds__(THREADS) NAME(                                                                                     \
        T* qkv, const float* cosines, const float* sines, const unsigned* positions, const unsigned* slots, C* keys, C* values, \
        unsigned heads, unsigned kv_heads, unsigned dim, unsigned pairs __VA_ARGS__) {                                          \
        rope_and_store_kv(qkv, cosines, sines, positions, slots, keys, values, heads, kv_heads, dim, pairs, STORED);            \
    }                                                                                                                           \
    EXPORT(NAME)

#define FP8_PARAMETERS , u32 mantissa_bits, u32 largest
#define ROPE(T)                                         \
    ROPE_KERNEL(rope_and_store_kv_##T, T, T, Same<T>()) \
    ROPE_KERNEL(rope_and_store_kv_##T##_fp8, T, fp8, (AsFp8<T>{{mantissa_bits, largest}}), FP8_PARAMETERS)

ROPE(bf16)
ROPE(f16)
