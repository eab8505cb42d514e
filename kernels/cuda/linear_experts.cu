// Linear layers of experts: tiles of rows, each times the weight of its expert, in the bits of `linear_rows.cuh`, `linear_tiles.cuh` and,
// on Hopper, `linear_wgmma.cuh`, which compute them.
//
// Grids follow from how many tiles there can be; what a block computes stands in its tile, which the kernels before this one make. So
// the weight cannot be asked for before they are over. Tiles of one expert are neighbours in the list and so in time: its weight comes
// from memory once.
//
// Shapes:  out: [pairs][n], x: [pairs][k], weights: of every expert ceil(n / 16) tiles of outputs, one expert behind the other.
// Grid:    as those of these files; where they have blocks of rows, there are tiles.
#include "experts.cuh"
#include "linear_rows.cuh"
#include "linear_tiles.cuh"
#include "linear_wgmma.cuh"

// The tile's rows and the weight of its expert.
template <typename T>
struct ExpertOperands {
    T* out;
    const T* x;
    const RowsOperand* weight;

    DEVICE ExpertOperands(T* all_out, const T* all_x, const void* weights, const ExpertTile& tile, u32 n, u32 k)
        : out(all_out + size_t(tile.first_pair) * n),
          x(all_x + size_t(tile.first_pair) * k),
          weight(static_cast<const RowsOperand*>(weights) +
                 unit_start<Plain<T>>(tile.expert * output_tiles_of(n), 0, units_of<Plain<T>>(k))) {}
};

// As the macro of the same name in `linear_rows.cu`.
#define ROWS(T, ROW_TILES, BLOCKS, ...)                                                                             \
    KERNEL __launch_bounds__(ROWS_THREADS, BLOCKS) linear_experts_rows_##ROW_TILES##_##T(                           \
        T* out, const T* x, const void* weights, const ExpertTile* tiles, u32 n, u32 k) {                           \
        allow_kernel_behind();                                                                                      \
        wait_for_kernels_before();                                                                                  \
        RowsBlock block = rows_block();                                                                             \
        ExpertTile tile = tiles[block.rows];                                                                        \
        if (tile.rows == 0) return;                                                                                 \
        ExpertOperands<T> at(out, x, weights, tile, n, k);                                                          \
        linear_rows<Plain<T>, T, ROW_TILES, __VA_ARGS__>(                                                           \
            at.out, at.x, at.weight, nullptr, tile.rows, n, k, {0, block.outputs});                                 \
    }                                                                                                               \
    EXPORT(linear_experts_rows_##ROW_TILES##_##T)

#define TILES(T, OUTPUTS)                                                                                           \
    KERNEL __launch_bounds__(TILES_THREADS, 1) linear_experts_tiles_##OUTPUTS##_##T(                                \
        T* out, const T* x, const void* weights, const ExpertTile* tiles, u32 n, u32 k, u32 parts) {                \
        allow_kernel_behind();                                                                                      \
        wait_for_kernels_before();                                                                                  \
        ExpertTile tile = tiles[blockIdx.x];                                                                        \
        if (tile.rows == 0) return;                                                                                 \
        ExpertOperands<T> at(out, x, weights, tile, n, k);                                                          \
        linear_tiles<Plain<T>, T, 128, OUTPUTS, 2>(                                                                 \
            at.out, at.x, at.weight, nullptr, tile.rows, n, k, parts, 0, blockIdx.y);                               \
    }                                                                                                               \
    EXPORT(linear_experts_tiles_##OUTPUTS##_##T)

#define WGMMA(T)                                                                                                    \
    KERNEL __launch_bounds__(WGMMA_THREADS, 1) linear_experts_wgmma_128_##T(                                        \
        T* out, const T* x, const void* weights, const ExpertTile* tiles, u32 n, u32 k, u32 parts) {                \
        allow_kernel_behind();                                                                                      \
        wait_for_kernels_before();                                                                                  \
        ExpertTile tile = tiles[blockIdx.x];                                                                        \
        if (tile.rows == 0) return;                                                                                 \
        ExpertOperands<T> at(out, x, weights, tile, n, k);                                                          \
        linear_wgmma<T, T>(at.out, at.x, at.weight, nullptr, tile.rows, n, k, parts, 0, blockIdx.y);                \
    }                                                                                                               \
    EXPORT(linear_experts_wgmma_128_##T)

#define LINEAR(T)             \
    ROWS(T, 1, 2, 1, 8, 8)    \
    ROWS(T, 2, 2, 2, 4, 2)    \
    ROWS(T, 4, 2, 2, 3, 1)    \
    ROWS(T, 8, 1, 4, 2, 1)    \
    TILES(T, 128)

LINEAR(bf16)
LINEAR(f16)

// Other architectures have no such instruction, and no kernel.
#if defined(CUSIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
WGMMA(bf16)
WGMMA(f16)
#endif
