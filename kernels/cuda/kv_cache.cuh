// How keys and values lie in the paged cache of a layer: blocks of 16 positions, [num_blocks][kv_heads][dim / 16] squares of
// 16 x 16 elements, each as the matrix instruction takes its operands: the elements of a lane are neighbours, so a warp needs no
// shared memory to transpose a square. Those of one byte lie in pairs of squares, of which a lane has eight elements beside eight
// of the other; where their number is odd, the last is alone. So a warp reads 512 bytes with one access of either.
//
// Rows of a square are positions for keys, dimensions for values; columns the other. Of a lane's four pairs of elements the two
// of a row are neighbours, and so are the registers that they are loaded into: with rows as columns, they are the 8-column operand
// of two instructions as they are, for prefill, which instructions may limit. For the 16-row operand, decode exchanges two of
// four registers, which costs nothing where memory is the limit.
#pragma once

#include "launch.cuh"

constexpr unsigned BLOCK_POSITIONS = 16;
constexpr unsigned SQUARE = 16;
constexpr unsigned SQUARE_ELEMENTS = SQUARE * SQUARE;

// Elements of a square that a lane has, and the squares of one access.
constexpr unsigned LANE_ELEMENTS = SQUARE_ELEMENTS / WARP;
template <typename C>
constexpr unsigned ACCESS_SQUARES = 16 / (LANE_ELEMENTS * sizeof(C));

// What a lane has of a square, or of two of one byte: pairs of neighbouring columns.
struct alignas(16) Square {
    u32 pair[4];
};

// Where a lane's elements of a square lie among `dim` / 16 squares.
template <typename C>
DEVICE C* lane_start(C* squares, unsigned square, unsigned lane, unsigned dim) {
    if (ACCESS_SQUARES<C> == 1) return squares + square * SQUARE_ELEMENTS + lane * LANE_ELEMENTS;
    unsigned of_access = square / ACCESS_SQUARES<C> * ACCESS_SQUARES<C>;
    unsigned together = min(ACCESS_SQUARES<C>, dim / SQUARE - of_access);
    // One offset and no pointers in between, which ptxas would rather keep than compute again.
    return squares + (lane * together * LANE_ELEMENTS + of_access * SQUARE_ELEMENTS + (square - of_access) * LANE_ELEMENTS);
}

// Where one element does. PTX ISA, "Matrix Fragments for mma.m16n8k16": rows of a lane are eight apart, its columns are two
// neighbours and the two eight further on.
template <typename C>
DEVICE C* element_of(C* squares, unsigned square, unsigned row, unsigned col, unsigned dim) {
    unsigned lane = row % 8 * 4 + col % 8 / 2, pair = row / 8 * 2 + col / 8;
    return lane_start(squares, square, lane, dim) + pair * 2 + col % 2;
}

// Where a head's squares of a block begin.
DEVICE size_t block_start(unsigned block, unsigned kv_heads, unsigned kv_head, unsigned dim) {
    // 2^32 heads of a block would be two terabytes.
    return size_t(block * kv_heads + kv_head) * (BLOCK_POSITIONS * dim);
}

template <typename C>
DEVICE C* key_at(C* squares, unsigned offset, unsigned d, unsigned dim) {
    return element_of(squares, d / SQUARE, offset, d % SQUARE, dim);
}

template <typename C>
DEVICE C* value_at(C* squares, unsigned offset, unsigned d, unsigned dim) {
    return element_of(squares, d / SQUARE, d % SQUARE, offset, dim);
}
