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
                match UNIT {
                    2 => transpose_block::<2, 8>(block, &rows, at),
                    _ => transpose_block::<4, 4>(block, &rows, at),
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

/// Bytes of a row in a tile: a register of every x86-64.
const TILE_BYTES: usize = 16;

/// Block `at` of the rows, `[16 rows][units]` to `[units][16 rows]`, in tiles of N rows and as many units.
#[inline(always)]
fn transpose_block<const UNIT: usize, const N: usize>(
    block: &mut [u8; BLOCK_BYTES * LANES],
    rows: &[&[[u8; BLOCK_BYTES]]; LANES],
    at: usize,
) {
    let out = block.as_chunks_mut::<TILE_BYTES>().0;
    for (lane_tile, rows) in rows.as_chunks::<N>().0.iter().enumerate() {
        // All of a row's line at once: rows of a power of two lie in the same few sets of the cache.
        for step_tile in 0..BLOCK_BYTES / TILE_BYTES {
            let mut tile = [[0; TILE_BYTES]; N];
            for (units, row) in tile.iter_mut().zip(rows) {
                *units = row[at].as_chunks().0[step_tile];
            }
            for (step, units) in transpose_tile::<UNIT, N>(tile).iter().enumerate() {
                out[(step_tile * N + step) * (LANES / N) + lane_tile] = *units;
            }
        }
    }
}

/// N rows of N units as perfect shuffles: each takes the highest bit of the row's number to the lowest of the column's, and the
/// other way round, so as many of them as a number has bits exchange rows and columns. (Mapped arrays in here were not
/// inlined: a quarter of a model's loading.)
#[inline(always)]
fn transpose_tile<const UNIT: usize, const N: usize>(mut tile: [[u8; TILE_BYTES]; N]) -> [[u8; TILE_BYTES]; N] {
    for _ in 0..N.ilog2() {
        let mut shuffled = tile;
        for row in 0..N / 2 {
            [shuffled[2 * row], shuffled[2 * row + 1]] = zip::<UNIT>(tile[row], tile[row + N / 2]);
        }
        tile = shuffled;
    }
    tile
}

/// Units of `a` and `b` in turn: those of the first halves, those of the second.
#[inline(always)]
fn zip<const UNIT: usize>(a: [u8; TILE_BYTES], b: [u8; TILE_BYTES]) -> [[u8; TILE_BYTES]; 2] {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;

        let (a, b): (__m128i, __m128i) = (bytemuck::cast(a), bytemuck::cast(b));
        // SAFETY: SSE2 is part of x86-64.
        let (low, high) = unsafe {
            match UNIT {
                2 => (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b)),
                4 => (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b)),
                _ => unreachable!("units of blocks have two bytes or four"),
            }
        };
        [bytemuck::cast(low), bytemuck::cast(high)]
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let mut zipped = [[0; TILE_BYTES]; 2];
        let (a, b) = (a.as_chunks::<UNIT>().0, b.as_chunks::<UNIT>().0);
        for (unit, out) in zipped.as_flattened_mut().as_chunks_mut::<UNIT>().0.iter_mut().enumerate() {
            *out = if unit % 2 == 0 { a[unit / 2] } else { b[unit / 2] };
        }
        zipped
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
