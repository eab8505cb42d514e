// Kernels with the mistakes that the matrix instruction of warpgroups invites, and one without: 64 rows of sixteen twos are multiplied
// twice by columns whose sixteen elements are the column's number.
#include "warpgroup.cuh"

constexpr unsigned COLUMN_WORDS = 4;
constexpr unsigned HALF_WORDS = WARPGROUP_COLUMNS * COLUMN_WORDS;

struct Operands {
    RowsOperand rows;
    Sums sums[WARPGROUP_SUMS];
};

DEVICE u32 twice(float x) { return pair_of(round_to<f16>(x), round_to<f16>(x)); }

// A column's words in both halves, of which a thread writes those of its own column.
DEVICE void write_columns(u32* columns, float x) {
    for (unsigned word = 0; word < COLUMN_WORDS; ++word) {
        for (unsigned half = 0; half < 2; ++half) columns[half * HALF_WORDS + threadIdx.x * COLUMN_WORDS + word] = twice(x);
    }
    publish_to_products();
    __syncthreads();
}

DEVICE void begin(Operands& own, u32* columns, const float* x) {
    for (u32& pair : own.rows.pair) pair = twice(2.0f);
    for (Sums& sums : own.sums) sums = {};
    write_columns(columns, x[threadIdx.x]);
}

DEVICE void multiply_twice(Operands& own, u64 columns) {
    for (unsigned i = 0; i < 2; ++i) multiply_add_async<f16>(own.sums, own.rows, columns);
    commit_products();
}

DEVICE u64 describe(const u32* columns) { return describe_columns(shared_address(columns), HALF_WORDS * sizeof(u32), CORE_BYTES); }

DEVICE void end(float* out, const Operands& own) {
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (unsigned tile = 0; tile < WARPGROUP_SUMS; ++tile) {
        for (unsigned at = 0; at < 4; ++at) {
            unsigned row = warp * 16 + lane / 4 + at / 2 * 8, column = tile * 8 + lane % 4 * 2 + at % 2;
            out[row * WARPGROUP_COLUMNS + column] = own.sums[tile].at[at];
        }
    }
}

KERNEL multiplies(float* out, const float* x) {
    SHARED(u32, columns, 2 * HALF_WORDS);
    Operands own;
    begin(own, columns, x);
    fence_registers();
    multiply_twice(own, describe(columns));
    wait_for_products<0>();
    end(out, own);
}
EXPORT(multiplies)

KERNEL reads_sums_too_early(float* out, const float* x) {
    SHARED(u32, columns, 2 * HALF_WORDS);
    Operands own;
    begin(own, columns, x);
    fence_registers();
    multiply_twice(own, describe(columns));
    wait_for_products<1>();
    end(out, own);
    wait_for_products<0>();
}
EXPORT(reads_sums_too_early)

KERNEL replaces_columns_too_early(float* out, const float* x) {
    SHARED(u32, columns, 2 * HALF_WORDS);
    Operands own;
    begin(own, columns, x);
    fence_registers();
    multiply_twice(own, describe(columns));
    write_columns(columns, 0.0f);
    wait_for_products<0>();
    end(out, own);
}
EXPORT(replaces_columns_too_early)

KERNEL lacks_a_fence(float* out, const float* x) {
    SHARED(u32, columns, 2 * HALF_WORDS);
    Operands own;
    begin(own, columns, x);
    fence_registers();
    multiply_twice(own, describe(columns));
    multiply_twice(own, describe(columns));
    wait_for_products<0>();
    end(out, own);
}
EXPORT(lacks_a_fence)

KERNEL replaces_rows_too_early(float* out, const float* x) {
    SHARED(u32, columns, 2 * HALF_WORDS);
    Operands own;
    begin(own, columns, x);
    fence_registers();
    multiply_twice(own, describe(columns));
    own.rows.pair[0] = twice(3.0f);
    wait_for_products<0>();
    end(out, own);
}
EXPORT(replaces_rows_too_early)

KERNEL writes_sums_too_early(float* out, const float* x) {
    SHARED(u32, columns, 2 * HALF_WORDS);
    Operands own;
    begin(own, columns, x);
    fence_registers();
    multiply_twice(own, describe(columns));
    own.sums[0].at[0] = 1.0f;
    wait_for_products<0>();
    end(out, own);
}
EXPORT(writes_sums_too_early)

// Twice as far from half to half as they lie.
KERNEL describes_too_much(float* out, const float* x) {
    SHARED(u32, columns, 2 * HALF_WORDS);
    Operands own;
    begin(own, columns, x);
    fence_registers();
    multiply_twice(own, describe_columns(shared_address(columns), 2 * HALF_WORDS * sizeof(u32), CORE_BYTES));
    wait_for_products<0>();
    end(out, own);
}
EXPORT(describes_too_much)

KERNEL describes_a_swizzle(float* out, const float* x) {
    SHARED(u32, columns, 2 * HALF_WORDS);
    Operands own;
    begin(own, columns, x);
    fence_registers();
    multiply_twice(own, describe(columns) | u64(1) << 62);
    wait_for_products<0>();
    end(out, own);
}
EXPORT(describes_a_swizzle)
