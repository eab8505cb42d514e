// Rows of an embedding table, of which a rank may hold a part. `ops/embedding.rs` says what it means.
#include "linear.cuh"

constexpr unsigned THREADS = 128;

// The elements of a row, each times what the model scales them by, rounded; times 1 they stay what they are.
template <typename T>
DEVICE Vector<T> scaled(Vector<T> vector, float scale) {
    for (T& element : vector.at) element = round_to<T>(to_f32(element) * scale);
    return vector;
}

// A block per row of out: [T, cols]; ids: [T]; table: [num_rows, cols], the ids from first_id on. Other ids give zeros.
template <typename T>
DEVICE void embedding(
    T* out, const unsigned* ids, const T* table, unsigned first_id, unsigned num_rows, unsigned cols, float scale) {
    allow_kernel_behind();
    wait_for_kernels_before();
    // An id below the first wraps round to one beyond the last.
    unsigned row = ids[blockIdx.x] - first_id;
    out += size_t(blockIdx.x) * cols;
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += THREADS * VECTOR) {
        Vector<T> vector = {};
        if (row < num_rows) vector = load(table + size_t(row) * cols + col);
        store(out + col, scaled(vector, scale));
    }
}

// The same from the weight of the output head, packed as `linear.cuh` says, which many models tie to their embedding: a row's
// eight neighbours are four places in a tile. cols is a multiple of 32.
template <typename T>
DEVICE void embedding_head(
    T* out, const u32* ids, const T* weight, u32 first_id, u32 num_rows, u32 cols, float scale) {
    allow_kernel_behind();
    wait_for_kernels_before();
    u32 row = ids[blockIdx.x] - first_id;
    out += size_t(blockIdx.x) * cols;
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += THREADS * VECTOR) {
        RowInputs inputs = {};
        if (row < num_rows) {
            const T* tile = weight + tile_start(row / TILE_OUTPUTS, col / TILE_INPUTS, cols / TILE_INPUTS);
            for (unsigned pair = 0; pair < 4; ++pair) {
                const T* from = tile + in_tile(row % TILE_OUTPUTS, col % TILE_INPUTS / VECTOR, pair);
                inputs.square[pair / 2].pair[pair % 2] = *reinterpret_cast<const u32*>(from);
            }
        }
        store(out + col, scaled(*reinterpret_cast<const Vector<T>*>(&inputs), scale));
    }
}

#define EMBEDDING(T)                                                                                                     \
    KERNEL __launch_bounds__(THREADS) embedding_##T(                                                                     \
        T* out, const unsigned* ids, const T* table, unsigned first_id, unsigned num_rows, unsigned cols, float scale) { \
        embedding(out, ids, table, first_id, num_rows, cols, scale);                                                     \
    }                                                                                                                    \
    EXPORT(embedding_##T)                                                                                                \
    KERNEL __launch_bounds__(THREADS) embedding_head_##T(                                                                \
        T* out, const u32* ids, const T* weight, u32 first_id, u32 num_rows, u32 cols, float scale) {                    \
        embedding_head(out, ids, weight, first_id, num_rows, cols, scale);                                               \
    }                                                                                                                    \
    EXPORT(embedding_head_##T)

EMBEDDING(bf16)
EMBEDDING(f16)
