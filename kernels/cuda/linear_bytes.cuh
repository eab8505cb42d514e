// The kernels of formats that have a byte a weight (linear_int8.cu, linear_fp8.cu).
#pragma once

#include "linear_quantized.cuh"
#include "linear_rows.cuh"
#include "linear_tiles.cuh"

// As in `linear_rows.cu`, with twice as many units under way, which are half as long.
#define BYTE_ROWS(NAME, FORMAT, T, ROW_TILES, BLOCKS, ...)                                              \
    ROWS_KERNEL(linear_##NAME##_rows_##ROW_TILES##_##T, FORMAT, T, T, BLOCKS, ROW_TILES, __VA_ARGS__)   \
    ROWS_KERNEL(linear_##NAME##_rows_##ROW_TILES##_##T##_f32, FORMAT, T, float, BLOCKS, ROW_TILES, __VA_ARGS__)

#define BYTE_TILES(NAME, FORMAT, T, OUTPUTS, WARPS)                                              \
    TILES_KERNEL(linear_##NAME##_tiles_##OUTPUTS##_##T, FORMAT, T, T, 128, OUTPUTS, WARPS)       \
    TILES_KERNEL(linear_##NAME##_tiles_##OUTPUTS##_##T##_f32, FORMAT, T, float, 128, OUTPUTS, WARPS)

#define LINEAR_BYTES(NAME, FORMAT, T)               \
    PACK_KERNEL(pack_##NAME, T, pack_bytes, FORMAT) \
    BYTE_ROWS(NAME, FORMAT, T, 1, 2, 1, 16, 8)      \
    BYTE_ROWS(NAME, FORMAT, T, 2, 2, 2, 8, 2)       \
    BYTE_ROWS(NAME, FORMAT, T, 4, 2, 2, 6, 1)       \
    BYTE_ROWS(NAME, FORMAT, T, 8, 1, 4, 4, 1)       \
    BYTE_TILES(NAME, FORMAT, T, 128, 4)             \
    BYTE_TILES(NAME, FORMAT, T, 64, 2)
