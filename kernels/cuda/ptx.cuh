// Instructions that CUDA C++ has no name for, each wrapped once. The simulator has a model of each.
#pragma once

#include "types.cuh"

// The 16 x 16 operand of the matrix instruction: four pairs of elements of a lane, as `kv_cache.cuh` lays them out.
struct alignas(16) RowsOperand {
    u32 pair[4];
};

// The 16 x 8 operand: of column lane / 4 the rows lane % 4 * 2, the next, and those eight further on.
struct ColumnsOperand {
    u32 pair[2];
};

// 16 x 8 sums: of columns lane % 4 * 2 and the next the rows lane / 4, then lane / 4 + 8.
struct Sums {
    float at[4];
};

#ifdef CUSIM

template <typename T>
void multiply_add(Sums& sums, const RowsOperand& rows, const ColumnsOperand& columns) {
    struct Lane {
        RowsOperand rows;
        ColumnsOperand columns;
    };
    cusim::Exchanged<Lane> lanes(Lane{rows, columns});
    unsigned lane = cusim::block.current->lane;
    for (unsigned at = 0; at < 4; ++at) {
        unsigned row = lane / 4 + at / 2 * 8, col = lane % 4 * 2 + at % 2;
        for (unsigned k = 0; k < 16; ++k) {
            T a[2], b[2];
            std::memcpy(a, &lanes.of(row % 8 * 4 + k % 8 / 2).rows.pair[row / 8 + k / 8 * 2], sizeof(a));
            std::memcpy(b, &lanes.of(col * 4 + k % 8 / 2).columns.pair[k / 8], sizeof(b));
            sums.at[at] += to_f32(a[k % 2]) * to_f32(b[k % 2]);
        }
    }
}

#else

// sums += rows x columns. PTX ISA, mma.sync.aligned.m16n8k16.
template <typename T>
DEVICE void multiply_add(Sums& sums, const RowsOperand& rows, const ColumnsOperand& columns);

#define MULTIPLY_ADD(T, NAME)                                                                                        \
    template <>                                                                                                      \
    DEVICE void multiply_add<T>(Sums & sums, const RowsOperand& rows, const ColumnsOperand& columns) {               \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                                           \
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                        \
            : "+f"(sums.at[0]), "+f"(sums.at[1]), "+f"(sums.at[2]), "+f"(sums.at[3])                                 \
            : "r"(rows.pair[0]), "r"(rows.pair[1]), "r"(rows.pair[2]), "r"(rows.pair[3]), "r"(columns.pair[0]),      \
              "r"(columns.pair[1]));                                                                                 \
    }
MULTIPLY_ADD(bf16, "bf16")
MULTIPLY_ADD(f16, "f16")

#endif

// Two neighbouring elements as the operands hold them, the first in the lower half.
template <typename T>
DEVICE u32 pair_of(T first, T second) {
    struct alignas(4) Pair {
        T at[2];
    } pair = {{first, second}};
    return *reinterpret_cast<const u32*>(&pair);
}
