//! Sixteen rows into one panel: the transposition that packing is.
//!
//! A panel holds, for each step over the inputs, a few bytes of each of sixteen rows. Written lane by lane, every element is a
//! store to another cache line, and loading a model is bound by them. Blocks of 16 rows × 64 bytes are transposed in registers
//! instead: each cache line is read once and written once, and the memory is the limit.

use crate::simd::LANES;

/// Bytes of a block that come from one row: one cache line.
const BLOCK_BYTES: usize = 64;

/// The rows of a panel as bytes; an empty one is a lane that does not exist.
pub(crate) type LaneRows<'a> = [&'a [u8]; LANES];

/// Writes rows of equal length into `panel`: `UNIT` bytes of each lane, then the next of each.
///
/// # Shapes
/// `panel`: `[ceil(L / UNIT)][16][UNIT]` bytes, all zeros; `rows`: sixteen of L bytes, or none. What does not exist (lanes
/// without a row, the end of the last unit) stays zero.
pub(crate) fn interleave<const UNIT: usize>(panel: &mut [u8], rows: &LaneRows<'_>) {
    let len = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    assert_eq!(panel.len(), len.div_ceil(UNIT) * UNIT * LANES, "a panel is as long as its rows");
    let mut done = 0;
    if (UNIT == 2 || UNIT == 4) && rows.iter().all(|row| row.len() == len) {
        let rows = rows.map(|row| row.as_chunks::<BLOCK_BYTES>().0);
        for (at, block) in panel.as_chunks_mut::<{ BLOCK_BYTES * LANES }>().0.iter_mut().enumerate() {
            if at < rows[0].len() {
                prefetch(&rows, at + PREFETCH_BLOCKS);
                transpose_block(block, &rows.map(|row| &row[at]));
                if UNIT == 2 {
                    split_pairs(block);
                }
            }
        }
        done = rows[0].len() * BLOCK_BYTES;
    }
    interleave_plainly::<UNIT>(&mut panel[done * LANES..], &rows.map(|row| row.get(done..).unwrap_or(&[])));
}

/// [`interleave`] of the few bytes that fill no block, of panels with missing lanes, and of other units.
fn interleave_plainly<const UNIT: usize>(panel: &mut [u8], rows: &LaneRows<'_>) {
    for (lane, row) in rows.iter().enumerate() {
        let (units, rest) = row.as_chunks::<UNIT>();
        for (step, unit) in units.iter().enumerate() {
            panel[(step * LANES + lane) * UNIT..][..UNIT].copy_from_slice(unit);
        }
        if !rest.is_empty() {
            panel[(units.len() * LANES + lane) * UNIT..][..rest.len()].copy_from_slice(rest);
        }
    }
}

/// A block for units of four bytes: `[16 rows][16 units]` to `[16 units][16 rows]`, in tiles of 4 × 4.
#[inline(always)]
fn transpose_block(block: &mut [u8; BLOCK_BYTES * LANES], rows: &[&[u8; BLOCK_BYTES]; LANES]) {
    const TILE_BYTES: usize = 16;
    let out = block.as_chunks_mut::<TILE_BYTES>().0;
    for (lane_tile, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
        let rows = rows.map(|row| row.as_chunks::<TILE_BYTES>().0);
        // All of a row's line at once: rows of a power of two lie in the same few sets of the cache.
        for step_tile in 0..BLOCK_BYTES / TILE_BYTES {
            let tile = transpose_tile(&rows.map(|row| row[step_tile]));
            for (step, units) in tile.iter().enumerate() {
                out[(step_tile * 4 + step) * 4 + lane_tile] = *units;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose_tile(rows: &[[u8; 16]; 4]) -> [[u8; 16]; 4] {
    use std::arch::x86_64::*;

    #[inline]
    #[target_feature(enable = "sse2")]
    fn transpose([a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
        let (ab_low, cd_low) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        [
            _mm_unpacklo_epi64(ab_low, cd_low),
            _mm_unpackhi_epi64(ab_low, cd_low),
            _mm_unpacklo_epi64(ab_high, cd_high),
            _mm_unpackhi_epi64(ab_high, cd_high),
        ]
    }
    // SAFETY: SSE2 is part of x86-64.
    unsafe { transpose(rows.map(bytemuck::cast)) }.map(bytemuck::cast)
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transpose_tile(rows: &[[u8; 16]; 4]) -> [[u8; 16]; 4] {
    let rows = rows.map(|row| bytemuck::cast::<[u8; 16], [[u8; 4]; 4]>(row));
    std::array::from_fn(|step| bytemuck::cast(rows.map(|row| row[step])))
}

/// A block of units of four bytes as one of units of two: `[16][2]` becomes `[2][16]`, line by line.
#[inline(always)]
fn split_pairs(block: &mut [u8; BLOCK_BYTES * LANES]) {
    for line in block.as_chunks_mut::<BLOCK_BYTES>().0 {
        // A plain loop, which becomes shuffles of vectors; mapped arrays were a call for each line, a sixth of a model's loading.
        let pairs: [[u16; 2]; LANES] = bytemuck::cast(*line);
        let mut split = [[0_u16; LANES]; 2];
        for lane in 0..LANES {
            split[0][lane] = pairs[lane][0];
            split[1][lane] = pairs[lane][1];
        }
        *line = bytemuck::cast(split);
    }
}

/// How far ahead the rows are asked for: sixteen streams are more than the processor follows by itself.
const PREFETCH_BLOCKS: usize = 4;

#[inline(always)]
fn prefetch(rows: &[&[[u8; BLOCK_BYTES]]; LANES], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if at < rows[0].len() {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for row in rows {
            // SAFETY: a prefetch has no effect but on caches, whatever the address; this one lies inside the row.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(row[at].as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, at);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the function means.
    fn definition(rows: &LaneRows<'_>, unit: usize) -> Vec<u8> {
        let len = rows.iter().map(|row| row.len()).max().unwrap();
        let mut panel = vec![0; len.div_ceil(unit) * unit * LANES];
        for (lane, row) in rows.iter().enumerate() {
            for (at, byte) in row.iter().enumerate() {
                panel[(at / unit * LANES + lane) * unit + at % unit] = *byte;
            }
        }
        panel
    }

    fn check<const UNIT: usize>(len: usize, lanes: usize) {
        let bytes: Vec<u8> = (0..len * LANES + 1).map(|at| ((at * 2654435761) >> 7) as u8).collect();
        // From an odd address: checkpoints are not aligned.
        let rows: LaneRows<'_> = std::array::from_fn(|lane| match lane < lanes {
            true => &bytes[1 + lane * len..][..len],
            false => &[],
        });
        let mut panel = vec![0; len.div_ceil(UNIT) * UNIT * LANES];
        interleave::<UNIT>(&mut panel, &rows);
        assert!(panel == definition(&rows, UNIT), "{lanes} rows of {len} bytes, units of {UNIT}");
    }

    #[test]
    fn every_length_lane_count_and_unit_is_as_defined() {
        for len in (0..8).chain([62, 63, 64, 65, 66, 126, 128, 130, 1000, 1024, 4098]) {
            for lanes in [1, 2, 15, 16] {
                check::<1>(len, lanes);
                check::<2>(len, lanes);
                check::<4>(len, lanes);
                check::<8>(len, lanes);
            }
        }
    }
}
