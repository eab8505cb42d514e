//! Matrices of FP8 numbers, as FP8 checkpoints have them, on their way into a [`LinearWeight`](crate::LinearWeight).
//!
//! weight[o, i] = scale[o] · code[o, i], the codes E4M3. Weights in memory are E4M3 without subnormals (`ops/linear/fp8.rs`). A checkpoint
//! may have one scale for a whole matrix, and then outputs of which most numbers are subnormal; so every output is multiplied by
//! the power of two that brings its largest number below 448, which costs no digit, and its scale divided by it. What is subnormal
//! then is rounded to zero or 2^-6: nothing against numbers of at least 224.

use std::ops::Range;
use std::sync::LazyLock;

use crate::ops::linear::fp8::{LARGEST, encode};
use crate::simd::LANES;
use crate::simd::float8::E4M3;
use crate::{Error, Result};

/// A matrix of E4M3 numbers with a scale per output, perhaps a part of a larger one.
#[derive(Clone, Copy)]
pub struct Fp8View<'a> {
    /// Where its rows lie, `row_stride` bytes apart.
    pub codes: &'a [u8],
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Columns of the matrix that it is a part of.
    pub row_stride: usize,
    /// The first of its columns in that matrix.
    pub first_col: usize,
    /// `[rows]`.
    pub scales: &'a [f32],
}

impl Fp8View<'_> {
    /// Whether all its rows lie in `codes`, and have scales.
    fn is_inside(&self) -> bool {
        let end = self.rows.checked_sub(1).map_or(Some(0), |last| {
            last.checked_mul(self.row_stride)?.checked_add(self.first_col)?.checked_add(self.cols)
        });
        end.is_some_and(|end| end <= self.codes.len()) && self.scales.len() == self.rows
    }
}

/// A row: its codes, each to be looked up in `raised`, and the scale of what is found there.
#[derive(Clone, Copy)]
pub(crate) struct Fp8Row<'a> {
    codes: &'a [u8],
    raised: &'static [u8; 256],
    pub(crate) scale: f32,
}

impl<'a> Fp8Row<'a> {
    fn new(codes: &'a [u8], scale: f32) -> Fp8Row<'a> {
        const NAN: u8 = 0x7f;
        let largest = codes.iter().fold(0, |largest, code| largest.max(code & 0x7f));
        let (shift, scale) = match largest {
            0 => (0, scale),
            // Every output with it is no number, as with a weight that is none.
            NAN => (0, f32::NAN),
            _ => {
                // The exponent of what is left up to 448.
                let shift = ((LARGEST / E4M3.decode(largest)).to_bits() >> 23) as usize - 127;
                (shift, scale / (1u32 << shift) as f32)
            }
        };
        Fp8Row { codes, raised: &RAISED[shift], scale }
    }

    /// Its numbers, without subnormals.
    pub(crate) fn codes(&self) -> impl ExactSizeIterator<Item = u8> + use<'a> {
        let raised = self.raised;
        self.codes.iter().map(|code| raised[usize::from(*code)])
    }
}

/// By how many powers of two a row can be raised: from the least subnormal, 2^-9, to 256.
const MAX_SHIFT: usize = 17;

/// What becomes of every code in a row that is raised by so many powers of two.
static RAISED: LazyLock<[[u8; 256]; MAX_SHIFT + 1]> = LazyLock::new(|| {
    let raise = |shift: usize, code: usize| encode(E4M3.decode(code as u8) * (1u32 << shift) as f32);
    std::array::from_fn(|shift| std::array::from_fn(|code| raise(shift, code)))
});

/// The rows of a panel: none beyond the last.
pub(crate) type Fp8Lanes<'a> = [Option<Fp8Row<'a>>; LANES];

/// Matrices stacked along their rows.
#[derive(Clone, Copy)]
pub(crate) struct Fp8Stack<'a> {
    matrices: &'a [Fp8View<'a>],
    n: usize,
    k: usize,
}

impl<'a> Fp8Stack<'a> {
    /// # Errors
    /// [`Error::Shape`] if their columns differ, or a view reaches beyond its codes or has another number of scales than rows.
    pub(crate) fn new(matrices: &'a [Fp8View<'a>]) -> Result<Fp8Stack<'a>> {
        let k = matrices.first().map_or(0, |matrix| matrix.cols);
        if let Some(other) = matrices.iter().find(|matrix| matrix.cols != k || !matrix.is_inside()) {
            let (expected, actual) = (vec![other.rows, k], vec![other.scales.len(), other.cols]);
            return Err(Error::Shape { op: "pack", arg: "matrices", expected, actual });
        }
        Ok(Fp8Stack { matrices, n: matrices.iter().map(|matrix| matrix.rows).sum(), k })
    }

    /// Outputs and inputs.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// Calls `pack(at, lanes)` with each of these panels, the first being number 0; of none beyond the last.
    pub(crate) fn for_panels(&self, panels: Range<usize>, mut pack: impl FnMut(usize, &Fp8Lanes<'_>)) {
        let end = panels.end.min(self.n.div_ceil(LANES));
        for (at, panel) in (panels.start..end).enumerate() {
            pack(at, &std::array::from_fn(|lane| self.row(panel * LANES + lane)));
        }
    }

    fn row(&self, mut row: usize) -> Option<Fp8Row<'a>> {
        for matrix in self.matrices {
            if row < matrix.rows {
                let start = row * matrix.row_stride + matrix.first_col;
                return Some(Fp8Row::new(&matrix.codes[start..start + matrix.cols], matrix.scales[row]));
            }
            row -= matrix.rows;
        }
        None
    }
}

/// The number that an E4M3 code is; NaN for the one code of each sign that is none.
pub fn e4m3_to_f32(code: u8) -> f32 {
    E4M3.decode(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{cpus, random};
    use crate::{Device, LinearWeight, MatrixView, WeightType};

    fn numbers(row: &Fp8Row<'_>) -> Vec<f32> {
        row.codes().map(|code| e4m3_to_f32(code) * row.scale).collect()
    }

    #[test]
    fn rows_keep_their_numbers() {
        // Every number of either sign that is none of 16 lowest magnitudes: none of them becomes subnormal.
        for largest in [0x7e_u8, 0x77, 0x40, 0x10] {
            let lowest = largest.saturating_sub(0x60).max(8);
            let codes: Vec<u8> = (lowest..=largest).flat_map(|code| [code, code | 0x80]).chain([0]).collect();
            let expected: Vec<f32> = codes.iter().map(|code| e4m3_to_f32(*code) * 0.75).collect();
            assert_eq!(numbers(&Fp8Row::new(&codes, 0.75)), expected, "up to {largest:#x}");
        }
        // Subnormals alone, up to the largest and the least of them.
        for largest in 1..8_u8 {
            let codes: Vec<u8> = (0..=largest).collect();
            let expected: Vec<f32> = codes.iter().map(|code| f32::from(*code) / 512.0).collect();
            assert_eq!(numbers(&Fp8Row::new(&codes, 1.0)), expected, "up to {largest}");
        }
    }

    #[test]
    fn the_largest_number_of_a_row_is_at_least_224() {
        for largest in 1..0x7f_u8 {
            let codes = [largest | 0x80, 1, 0x81, 0];
            let row = Fp8Row::new(&codes, 2.0);
            let raised: Vec<f32> = row.codes().map(e4m3_to_f32).collect();
            assert!((224.0..=448.0).contains(&-raised[0]), "{largest:#x}: {raised:?}");
            assert_eq!(raised[0] * row.scale, -2.0 * e4m3_to_f32(largest));
            // The least subnormal is exact or rounded to a multiple of 2^-6.
            let error = (raised[1] * row.scale - 2.0 / 512.0).abs();
            assert!(error <= row.scale / 128.0 && raised[2] == -raised[1] && raised[3] == 0.0, "{largest:#x}");
        }
        assert!(Fp8Row::new(&[0x7f, 3], 1.0).scale.is_nan() && Fp8Row::new(&[3, 0xff], 1.0).scale.is_nan());
        assert_eq!(Fp8Row::new(&[0, 0x80], 3.0).scale, 3.0);
    }

    /// Quantising while loading makes E4M3 numbers and scales of floats: given these, packing makes the same bytes.
    #[test]
    fn what_was_quantised_before_is_packed_as_what_is_quantised_now() {
        let (rows, cols) = (53, 200);
        let values = random(3, rows * cols);
        let absmax = |row: &[f32]| row.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let scales: Vec<f32> = values.chunks(cols).map(|row| absmax(row) / 448.0).collect();
        let codes: Vec<u8> =
            values.chunks(cols).flat_map(|row| row.iter().map(move |x| encode(x * (448.0 / absmax(row))))).collect();
        // A part of a wider matrix, in two pieces of which the second begins within a panel.
        let wide: Vec<u8> = codes.chunks(cols).flat_map(|row| [&[0x7f; 5][..], row, &[0x7f; 3]].concat()).collect();
        let view = |rows: Range<usize>| Fp8View {
            codes: &wide[rows.start * 208..],
            rows: rows.len(),
            cols,
            row_stride: 208,
            first_col: 5,
            scales: &scales[rows],
        };
        for device in cpus() {
            let floats = MatrixView::dense(bytemuck::cast_slice(&values), crate::DType::F32, rows, cols);
            let expected = LinearWeight::pack_as(&device, &[floats], WeightType::Fp8).unwrap();
            let actual = LinearWeight::pack_fp8(&device, &[view(0..21), view(21..21), view(21..rows)]).unwrap();
            assert_eq!(actual.panel_shape(), expected.panel_shape());
            assert!(actual.packed_bytes() == expected.packed_bytes(), "{}", device.describe());
        }
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        let view = Fp8View { codes: &[0; 64], rows: 2, cols: 32, row_stride: 32, first_col: 0, scales: &[1.0; 2] };
        let narrow = Fp8View { cols: 31, ..view };
        let unscaled = Fp8View { scales: &[1.0], ..view };
        let beyond = Fp8View { first_col: 1, ..view };
        for device in [Device::plan(), cpus().swap_remove(0)] {
            for matrices in [&[view, narrow][..], &[unscaled], &[beyond]] {
                assert!(matches!(LinearWeight::pack_fp8(&device, matrices), Err(Error::Shape { .. })));
            }
            assert_eq!(LinearWeight::pack_fp8(&device, &[]).unwrap().bytes(), 0);
            assert_eq!(LinearWeight::pack_fp8(&device, &[view]).unwrap().n(), 2);
        }
    }
}
