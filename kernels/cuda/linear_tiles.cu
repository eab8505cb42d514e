// Many rows times weights as they are.
#include "linear_tiles.cuh"

#define TILES(T, OUTPUTS)                                                       \
    TILES_KERNEL(linear_tiles_##OUTPUTS##_##T, Plain, T, T, 128, OUTPUTS, 2)    \
    TILES_KERNEL(linear_tiles_##OUTPUTS##_##T##_f32, Plain, T, float, 128, OUTPUTS, 2)

#define LINEAR(T)    \
    TILES(T, 128)    \
    TILES(T, 64)

LINEAR(bf16)
LINEAR(f16)
