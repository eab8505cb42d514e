// Few rows times weights as they are.
#include "linear_rows.cuh"

// ROW_TILES; BLOCKS: of a multiprocessor at least, that one streams while another begins or ends; OUTPUT_TILES, DEPTH, X_DEPTH.
#define ROWS(T, ROW_TILES, BLOCKS, ...)                                                        \
    ROWS_KERNEL(linear_rows_##ROW_TILES##_##T, Plain, T, T, BLOCKS, ROW_TILES, __VA_ARGS__)    \
    ROWS_KERNEL(linear_rows_##ROW_TILES##_##T##_f32, Plain, T, float, BLOCKS, ROW_TILES, __VA_ARGS__)

#define LINEAR(T)             \
    ROWS(T, 1, 2, 1, 8, 8)    \
    ROWS(T, 2, 2, 2, 4, 2)    \
    ROWS(T, 4, 2, 2, 3, 1)    \
    ROWS(T, 8, 1, 4, 2, 1)

LINEAR(bf16)
LINEAR(f16)
