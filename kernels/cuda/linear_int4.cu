// Weights as 4-bit integers with a zero point, as checkpoints of AWQ and GPTQ have them: code - zero, times a scale in f16; a zero
// and a scale per output and 64 inputs. `ops/linear/squares.rs` packs them. k is a multiple of 64.
//
// A weight is [ceil(n / 16)][k / 64] units of 512 bytes, then for each of them 16 scales and 16 zeros, 48 bytes.
//
// A lane's 32 bits for a square are its four pairs: in the lower half their first elements, in the upper half the second ones, in
// both by ascending bits of the output lane / 4, that eight further on, and again. So eight codes become elements by nine
// instructions: a shift by eight bits, and for each pair a mask and a multiplication that also takes the zeros away.
#include "linear_quantized.cuh"
#include "linear_rows.cuh"
#include "linear_tiles.cuh"

// As `Bytes`, of codes in the next four bits too: those are sixteen times as large where they stand. 2^123 and 2^11.
template <typename T>
struct UpperCodes;

template <>
struct UpperCodes<bf16> {
    static constexpr u32 MULTIPLIER = 0x7d007d00;
};

template <>
struct UpperCodes<f16> {
    static constexpr u32 MULTIPLIER = 0x68006800;
};

template <typename T>
struct Int4 {
    using Element = T;
    static constexpr unsigned TILES = 2;
    static constexpr unsigned ACCESSES = 1;
    static constexpr Scales SCALES = Scales::UNITS;
    using UnitScale = f16;
    static constexpr float FACTOR = Bytes<T>::FACTOR;

    // What is added to the codes of either output: minus its zero, in units of 1 / FACTOR.
    struct Zeros {
        static constexpr bool ARE_STORED = true;
        u32 first, second;

        DEVICE explicit Zeros(u32 bytes)
            : first(negated(permute_bytes(bytes, 0, 0x4040))), second(negated(permute_bytes(bytes, 0, 0x4141))) {}

        static DEVICE u32 negated(u32 zeros) {
            constexpr u32 SIGNS = 0x80008000, NO_ADDEND = 0x80008000;
            return multiply_add_pairs<T>(zeros, Bytes<T>::MULTIPLIER | SIGNS, NO_ADDEND);
        }
    };

    // Exact: code - zero is a whole number from -16 to 15.
    static DEVICE RowsOperand square(const RowsOperand (&accesses)[ACCESSES], unsigned square, Zeros zeros) {
        RowsOperand operand;
        for (unsigned i = 0; i < 2; ++i) {
            u32 codes = accesses[0].pair[square] >> (i * 8);
            operand.pair[i * 2] = multiply_add_pairs<T>(codes & 0x000f000f, Bytes<T>::MULTIPLIER, zeros.first);
            operand.pair[i * 2 + 1] = multiply_add_pairs<T>(codes & 0x00f000f0, UpperCodes<T>::MULTIPLIER, zeros.second);
        }
        return operand;
    }
};

// As those of NF4 (`linear_nf4.cu`). Zeros take registers: with two tiles of rows three units are under way, not four.
#define ROWS(T, ROW_TILES, BLOCKS, ...)    \
    ROWS_KERNEL(linear_int4_rows_##ROW_TILES##_##T, Int4, T, T, BLOCKS, ROW_TILES, __VA_ARGS__)

#define TILES(T, OUTPUTS) TILES_KERNEL(linear_int4_tiles_##OUTPUTS##_##T, Int4, T, T, 64, OUTPUTS, 4)

#define LINEAR(T)             \
    ROWS(T, 1, 2, 1, 8, 8)    \
    ROWS(T, 2, 2, 2, 3, 2)    \
    ROWS(T, 4, 2, 2, 2, 1)    \
    ROWS(T, 8, 1, 2, 4, 1)    \
    TILES(T, 128)

LINEAR(bf16)
LINEAR(f16)
