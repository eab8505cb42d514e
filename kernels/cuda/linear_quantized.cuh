// What the formats of quantised weights share: bytes that become pairs of elements, and the packing of rows.
//
// The numbers are those of the processor's formats, bit by bit, scales too (`ops/linear/int8.rs`, `fp8.rs`, `nf4.rs`); here
// they are multiplied with inputs as they are. A lane's 32 bits are four bytes, or the levels of eight, for the outputs lane /
// 4 and eight further on: of an input those of both, then of the next input. So a pair of neighbouring inputs, as operands hold
// it, is two bytes with one between them.
#pragma once

#include "linear.cuh"

// Whole numbers as bytes that count from -127: no byte is negative.
constexpr u32 BYTE_ZERO = 127;

// A byte in the lower half of an element is below its normal numbers or among the least of them: so many times the least number
// that there is, of bf16 with all eight bits too. One multiplication makes it normal, and what is added makes it signed: exact,
// and in units of 1 / FACTOR, with which scales are multiplied.
template <typename T>
struct Bytes;

template <>
struct Bytes<bf16> {
    static constexpr float FACTOR = 64.0f;
    // 2^127 and -127 / 64: the least number is 2^-133.
    static constexpr u32 MULTIPLIER = 0x7f007f00, ADDEND = 0xbffebffe;
};

template <>
struct Bytes<f16> {
    static constexpr float FACTOR = 512.0f;
    // 2^15 and -127 / 512: the least number is 2^-24.
    static constexpr u32 MULTIPLIER = 0x78007800, ADDEND = 0xb3f0b3f0;
};

// The pairs of both outputs.
template <typename T>
DEVICE void expand_bytes(u32 bytes, u32& first, u32& second) {
    first = multiply_add_pairs<T>(bytes & 0x00ff00ff, Bytes<T>::MULTIPLIER, Bytes<T>::ADDEND);
    second = multiply_add_pairs<T>(permute_bytes(bytes, 0, 0x4341), Bytes<T>::MULTIPLIER, Bytes<T>::ADDEND);
}

// --- Packing ---------------------------------------------------------------------------------------------------------

constexpr unsigned PACK_WARPS = 8;
constexpr unsigned PACK_THREADS = PACK_WARPS * WARP;

// What maps values up to `absmax` to numbers up to `largest`, and back.
struct Scaling {
    float scale, inverse;
};

// Zeros where all values are zero, or so small that the inverse could overflow; a scale that is none where a value is none.
DEVICE Scaling scaling_of(float absmax, float largest) {
    if (absmax < 1e-30f) return {0.0f, 0.0f};
    if (absmax < infinity()) return {absmax / largest, largest / absmax};
    return {absmax - absmax, 0.0f};
}

// The bits of a value without its sign: in the order of the values, infinities and what is no number above all.
template <typename T>
DEVICE u32 magnitude_of(T value) { return value.bits & 0x7fff; }

template <typename T>
DEVICE u32 largest_magnitude(const Vector<T>& values) {
    u32 largest = 0;
    for (unsigned i = 0; i < VECTOR; ++i) largest = max(largest, magnitude_of(values.at[i]));
    return largest;
}

template <typename T>
DEVICE float absmax_of(u32 magnitude) { return to_f32(T{static_cast<unsigned short>(magnitude)}); }

// The largest of `lanes` neighbouring lanes.
DEVICE u32 warp_max(u32 x, unsigned lanes) {
    for (unsigned distance = lanes / 2; distance > 0; distance /= 2) x = max(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// The two outputs of a lane in a tile, and where they are among `num_rows` rows, the outputs from first_output on. Those before
// the first wrap round to rows beyond the last.
struct LaneRows {
    u32 row[2];
    bool exists[2];

    DEVICE LaneRows(u32 output_tile, u32 first_output, u32 num_rows) {
        for (unsigned i = 0; i < 2; ++i) {
            row[i] = output_tile * TILE_OUTPUTS + threadIdx.x % WARP / 4 + i * 8 - first_output;
            exists[i] = row[i] < num_rows;
        }
    }

    // Eight neighbouring inputs of one of them, from `input` on.
    template <typename T>
    DEVICE Vector<T> load(const T* rows, unsigned i, u32 k, u32 input) const {
        return exists[i] ? ::load(rows + size_t(row[i]) * k + input) : Vector<T>{};
    }

    // Writes a lane's access, of an output that is not among the rows what was there. `first_bits`: those of the first.
    DEVICE void store(RowsOperand* to, RowsOperand access, u32 first_bits) const {
        if (!exists[0] && !exists[1]) return;
        u32 keep = (exists[0] ? 0 : first_bits) | (exists[1] ? 0 : ~first_bits);
        if (keep != 0) {
            RowsOperand before = *to;
            for (unsigned i = 0; i < 4; ++i) access.pair[i] = (before.pair[i] & keep) | (access.pair[i] & ~keep);
        }
        *to = access;
    }
};

// Rows of a weight with a byte for every element and a scale for every output, whose format says how a scaled value becomes a
// byte.
//
// rows: [num_rows][k], the outputs from first_output on. What the weight has of other outputs is not touched; n: of the weight.
// Grid:    x: the tiles of outputs that the rows touch, ceil((first_output + num_rows) / 16) - first_output / 16, or more; y:
//          any number, which share the inputs, but each reads its rows to the end first: 1. PACK_THREADS threads.
// Traffic: two reads, the second from L2, and one write.
template <typename Format, typename T>
DEVICE void pack_bytes(void* weight, const T* rows, u32 first_output, u32 num_rows, u32 k, u32 n) {
    SHARED(u32, magnitudes, TILE_OUTPUTS);
    unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, vector = lane % 4;
    unsigned output_tile = first_output / TILE_OUTPUTS + blockIdx.x, units = units_of<Format>(k);

    // Scales: a warp has every eighth row.
    for (unsigned at = warp; at < TILE_OUTPUTS; at += PACK_WARPS) {
        u32 output = output_tile * TILE_OUTPUTS + at, row = output - first_output;
        if (row >= num_rows) continue;
        u32 magnitude = 0;
        for (u32 input = lane * VECTOR; input < k; input += WARP * VECTOR) {
            magnitude = max(magnitude, largest_magnitude(load(rows + size_t(row) * k + input)));
        }
        magnitude = warp_max(magnitude, WARP);
        if (lane != 0) continue;
        magnitudes[at] = magnitude;
        if (blockIdx.y == 0) {
            float* scales = const_cast<float*>(scales_of<Format, float>(weight, n, units));
            scales[output] = scaling_of(absmax_of<T>(magnitude), Format::LARGEST).scale;
        }
    }
    __syncthreads();

    LaneRows lane_rows(output_tile, first_output, num_rows);
    float inverse[2] = {};
    for (unsigned i = 0; i < 2; ++i) {
        if (!lane_rows.exists[i]) continue;
        inverse[i] = scaling_of(absmax_of<T>(magnitudes[lane / 4 + i * 8]), Format::LARGEST).inverse;
    }
    RowsOperand* accesses = static_cast<RowsOperand*>(weight) + unit_start<Format>(output_tile, 0, units) + lane;
    for (unsigned unit = blockIdx.y * PACK_WARPS + warp; unit < units; unit += gridDim.y * PACK_WARPS) {
        RowsOperand access = {};
        for (unsigned i = 0; i < 2; ++i) {
            Vector<T> values = lane_rows.load(rows, i, k, unit * TILE_INPUTS + vector * VECTOR);
            for (unsigned at = 0; at < VECTOR; ++at) {
                u32 byte = Format::encode(to_f32(values.at[at]) * inverse[i]);
                access.pair[at / 2] |= byte << (at % 2 * 16 + i * 8);
            }
        }
        lane_rows.store(accesses + unit * WARP, access, 0x00ff00ff);
    }
}

// A packing kernel of every source type.
#define PACK_KERNEL(NAME, T, PACK, FORMAT)                                                                          \
    KERNEL __launch_bounds__(PACK_THREADS)                                                                          \
        NAME##_##T(void* weight, const T* rows, u32 first_output, u32 num_rows, u32 k, u32 n) {                     \
        PACK<FORMAT<T>>(weight, rows, first_output, num_rows, k, n);                                                \
    }                                                                                                               \
    EXPORT(NAME##_##T)
