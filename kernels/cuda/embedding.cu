// Rows of an embedding table, of which a rank may hold a part. `ops/embedding.rs` says what it means.
#include "types.cuh"

constexpr unsigned THREADS = 128;

// A block per row of out: [T, cols]; ids: [T]; table: [num_rows, cols], the ids from first_id on. Other ids give zeros.
template <typename T>
DEVICE void embedding(
    T* out, const unsigned* ids, const T* table, unsigned first_id, unsigned num_rows, unsigned cols) {
    // An id below the first wraps round to one beyond the last.
    unsigned row = ids[blockIdx.x] - first_id;
    out += size_t(blockIdx.x) * cols;
    for (unsigned col = threadIdx.x * VECTOR; col < cols; col += THREADS * VECTOR) {
        Vector<T> vector = {};
        if (row < num_rows) vector = load(table + size_t(row) * cols + col);
        store(out + col, vector);
    }
}

#define EMBEDDING(T)                                                                                             \
    KERNEL __launch_bounds__(THREADS) embedding_##T(                                                             \
        T* out, const unsigned* ids, const T* table, unsigned first_id, unsigned num_rows, unsigned cols) {      \
        embedding(out, ids, table, first_id, num_rows, cols);                                                    \
    }                                                                                                            \
    EXPORT(embedding_##T)

EMBEDDING(bf16)
EMBEDDING(f16)
