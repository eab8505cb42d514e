// Rotary position embedding of queries and keys, and the write of keys and values into the paged cache.
// `ops/rope.rs` says what it means. Angles come from a table in f32, products are f32, and the result is rounded once; for a cache
// of eight-bit floats what was rounded is rounded again.
#include "fp8.cuh"
#include "kv_cache.cuh"
#include "types.cuh"

// Heads are short: a block has few threads, and there are many blocks.
constexpr unsigned THREADS = 64;
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

// A block per row of qkv, [T, (heads + 2 * kv_heads) * dim], along x, and per head along y, those of keys and values behind those of
// queries. cosines, sines: [positions, pairs]; positions, slots: [T].
template <typename T, typename Store, typename C = typename Store::Stored>
DEVICE void rope_and_store_kv(
    T* qkv, const float* cosines, const float* sines, const unsigned* positions, const unsigned* slots, C* keys, C* values,
    unsigned heads, unsigned kv_heads, unsigned dim, unsigned pairs, const Store& stored) {
    allow_kernel_behind();
    wait_for_kernels_before();
    unsigned head = blockIdx.y, slot = slots[blockIdx.x];
    if (slot == NO_SLOT) return;
    unsigned block = slot / BLOCK_POSITIONS, offset = slot % BLOCK_POSITIONS;
    T* x = qkv + (size_t(blockIdx.x) * (heads + 2 * kv_heads) + head) * dim;

    if (head >= heads + kv_heads) {
        C* squares = values + block_start(block, kv_heads, head - heads - kv_heads, dim);
        for (unsigned d = threadIdx.x; d < dim; d += THREADS) *value_at(squares, offset, d, dim) = stored(x[d]);
        return;
    }
    size_t angles = size_t(positions[blockIdx.x]) * pairs;
    bool is_key = head >= heads;
    C* squares = is_key ? keys + block_start(block, kv_heads, head - heads, dim) : nullptr;
    for (unsigned i = threadIdx.x; i < pairs; i += THREADS) {
        float cosine = cosines[angles + i], sine = sines[angles + i];
        float a = to_f32(x[i]), b = to_f32(x[i + pairs]);
        T low = round_to<T>(fmaf(-b, sine, a * cosine)), high = round_to<T>(fmaf(a, sine, b * cosine));
        x[i] = low;
        x[i + pairs] = high;
        if (!is_key) continue;
        *key_at(squares, offset, i, dim) = stored(low);
        *key_at(squares, offset, i + pairs, dim) = stored(high);
    }
    if (!is_key) return;
    // What is not rotated of the keys.
    for (unsigned d = 2 * pairs + threadIdx.x; d < dim; d += THREADS) *key_at(squares, offset, d, dim) = stored(x[d]);
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
