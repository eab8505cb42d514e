// How keys and values lie in the paged cache of a layer: blocks of 16 positions, [num_blocks][kv_heads][dim / 16] squares of
// 16 x 16 elements, each as the matrix instruction takes its 16-row operand: the 16 bytes of a lane are neighbours, so a warp
// reads a square with one access of 512 bytes and needs no shared memory to transpose it.
//
// Rows of a square are positions for keys, dimensions for values; columns the other. Read with rows as columns, the same
// registers are the 8-column operand of two instructions: decode and prefill read one cache.
#pragma once

#include "launch.cuh"

constexpr unsigned BLOCK_POSITIONS = 16;
constexpr unsigned SQUARE = 16;
constexpr unsigned SQUARE_ELEMENTS = SQUARE * SQUARE;

// Where an element of a square lies in it. PTX ISA, "Matrix Fragments for mma.m16n8k16": rows of a lane are eight apart, its
// columns are two neighbours and the two eight further on.
DEVICE unsigned in_square(unsigned row, unsigned col) {
    unsigned lane = row % 8 * 4 + col % 8 / 2, pair = row / 8 + col / 8 * 2;
    return (lane * 4 + pair) * 2 + col % 2;
}

// Where a head's squares of a block begin.
DEVICE size_t block_start(unsigned block, unsigned kv_heads, unsigned kv_head, unsigned dim) {
    return (size_t(block) * kv_heads + kv_head) * BLOCK_POSITIONS * dim;
}

DEVICE unsigned key_at(unsigned offset, unsigned d) { return d / SQUARE * SQUARE_ELEMENTS + in_square(offset, d % SQUARE); }
DEVICE unsigned value_at(unsigned offset, unsigned d) { return d / SQUARE * SQUARE_ELEMENTS + in_square(d % SQUARE, offset); }
