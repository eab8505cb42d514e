//! Matrices of 4-bit integers with zero points, as checkpoints of AWQ and GPTQ have them, on their way into a
//! [`LinearWeight`](crate::LinearWeight).
//!
//! Weight = scale · (code − zero); 64 neighbouring inputs of an output have one scale and one zero. How a checkpoint stores them,
//! in which order and with groups of which length, is its reader's business: packing asks a source for rows.

use std::ops::Range;

use half::f16;

use crate::simd::LANES;
use crate::{Error, Result};

/// Inputs that have one scale and one zero.
pub(crate) const GROUP: usize = 64;

/// The largest zero: some writers of GPTQ store it less one.
const MAX_ZERO: u8 = 16;

/// Where the rows of a matrix of 4-bit weights come from.
///
/// Asked from all threads that pack, each for other rows.
pub trait Int4Source: Sync {
    /// Outputs.
    fn rows(&self) -> usize;
    /// Inputs, a multiple of 64.
    fn cols(&self) -> usize;
    /// Writes some rows: `rows.len()` of each list, in place of what the lists hold.
    fn read(&self, rows: Range<usize>, out: &mut Int4Rows);
}

/// Some rows of a matrix of 4-bit weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Int4Rows {
    /// `[rows][cols / 2]`, 0..=15; the even input in the lower half of a byte.
    pub codes: Vec<u8>,
    /// `[rows][cols / 64]`: the checkpoint's own, if its scales are f16, or bf16 above f16's subnormals.
    pub scales: Vec<f16>,
    /// `[rows][cols / 64]`, 0..=16.
    pub zeros: Vec<u8>,
}

impl Int4Rows {
    fn clear(&mut self) {
        self.codes.clear();
        self.scales.clear();
        self.zeros.clear();
    }

    /// # Panics
    /// If there are other numbers of anything than `rows` rows have, or zeros that there are not.
    fn expect(&self, rows: usize, cols: usize) {
        let groups = rows * cols / GROUP;
        assert_eq!(
            (self.codes.len(), self.scales.len(), self.zeros.len()),
            (groups * GROUP / 2, groups, groups),
            "a source writes as many rows as it is asked for"
        );
        assert!(self.zeros.iter().all(|zero| *zero <= MAX_ZERO), "a source writes zeros up to {MAX_ZERO}");
    }
}

/// A row of a matrix of 4-bit weights, as [`Int4Rows`] has it.
#[derive(Clone, Copy)]
pub(crate) struct Int4Row<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [f16],
    pub(crate) zeros: &'a [u8],
}

/// The rows of a panel: none beyond the last.
pub(crate) type Int4Lanes<'a> = [Option<Int4Row<'a>>; LANES];

/// Matrices stacked along their rows.
#[derive(Clone, Copy)]
pub(crate) struct Int4Stack<'a> {
    matrices: &'a [&'a dyn Int4Source],
    n: usize,
    k: usize,
}

impl<'a> Int4Stack<'a> {
    /// # Errors
    /// [`Error::Shape`] if their columns differ.
    pub(crate) fn new(matrices: &'a [&'a dyn Int4Source]) -> Result<Int4Stack<'a>> {
        let k = matrices.first().map_or(0, |matrix| matrix.cols());
        if let Some(other) = matrices.iter().find(|matrix| matrix.cols() != k) {
            let (expected, actual) = (vec![other.rows(), k], vec![other.rows(), other.cols()]);
            return Err(Error::Shape { op: "pack", arg: "matrices", expected, actual });
        }
        Ok(Int4Stack { matrices, n: matrices.iter().map(|matrix| matrix.rows()).sum(), k })
    }

    /// Outputs and inputs.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.n, self.k]
    }

    /// Reads the rows of these panels, as many or as there are, and calls `pack(at, lanes)` with each of them, the first being number 0. A
    /// matrix may lie in its file column by column: of 64 neighbouring rows, 32 bytes of 4 bits each and 128 of scales.
    pub(crate) fn for_panels(&self, panels: Range<usize>, mut pack: impl FnMut(usize, &Int4Lanes<'_>)) {
        let first = self.n.min(panels.start * LANES);
        let count = (panels.len() * LANES).min(self.n - first);
        let rows = self.read(first..first + count);
        let (bytes, groups) = (self.k / 2, self.k / GROUP);
        for panel in 0..count.div_ceil(LANES) {
            let lanes = std::array::from_fn(|lane| {
                let row = panel * LANES + lane;
                (row < count).then(|| Int4Row {
                    codes: &rows.codes[row * bytes..][..bytes],
                    scales: &rows.scales[row * groups..][..groups],
                    zeros: &rows.zeros[row * groups..][..groups],
                })
            });
            pack(panel, &lanes);
        }
    }

    /// Rows of the stack: of one matrix as a rule, else of several behind each other.
    fn read(&self, rows: Range<usize>) -> Int4Rows {
        let (mut all, mut part) = (Int4Rows::default(), Int4Rows::default());
        let mut first = 0;
        for matrix in self.matrices {
            let (start, end) = (rows.start.max(first), rows.end.min(first + matrix.rows()));
            if start < end {
                part.clear();
                matrix.read(start - first..end - first, &mut part);
                part.expect(end - start, self.k);
                if all.scales.is_empty() {
                    std::mem::swap(&mut all, &mut part);
                } else {
                    all.codes.extend_from_slice(&part.codes);
                    all.scales.extend_from_slice(&part.scales);
                    all.zeros.extend_from_slice(&part.zeros);
                }
            }
            first += matrix.rows();
        }
        all
    }
}

/// Whether a weight of so many inputs has whole groups.
///
/// # Errors
/// [`Error::Unsupported`].
pub(crate) fn expect_groups(k: usize) -> Result<()> {
    if k.is_multiple_of(GROUP) {
        return Ok(());
    }
    Err(Error::Unsupported {
        reason: format!("a linear layer of 4-bit integers has a multiple of {GROUP} inputs, not {k}"),
    })
}

#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Mutex;

    use super::*;
    use crate::ops::testing::random;

    /// A matrix in memory.
    pub(crate) struct Matrix {
        pub(crate) rows: usize,
        pub(crate) cols: usize,
        /// `[rows][cols]`.
        pub(crate) codes: Vec<u8>,
        /// `[rows][cols / 64]`.
        pub(crate) scales: Vec<f16>,
        /// `[rows][cols / 64]`.
        pub(crate) zeros: Vec<u8>,
        /// Which rows were read.
        pub(crate) reads: Mutex<Vec<Range<usize>>>,
    }

    impl Matrix {
        /// Weights up to 1, with every code, zeros of 0 and 16, and scales of either sign and of zero.
        pub(crate) fn random(seed: u64, rows: usize, cols: usize) -> Matrix {
            let codes = random(seed, rows * cols).iter().map(|x| ((x + 1.0) * 8.0) as u8 & 15).collect();
            let groups = rows * cols / GROUP;
            let scale = |(at, x): (usize, &f32)| f16::from_f32(if at % 23 == 11 { 0.0 } else { x / 16.0 });
            let scales = random(seed + 1, groups).iter().enumerate().map(scale).collect();
            let zero = |(at, x): (usize, &f32)| match at % 5 {
                0 => 0,
                1 => 16,
                _ => ((x + 1.0) * 8.5) as u8,
            };
            let zeros = random(seed + 2, groups).iter().enumerate().map(zero).collect();
            Matrix { rows, cols, codes, scales, zeros, reads: Mutex::default() }
        }

        /// Matrices behind each other.
        pub(crate) fn stack(matrices: &[&Matrix]) -> Matrix {
            Matrix {
                rows: matrices.iter().map(|matrix| matrix.rows).sum(),
                cols: matrices[0].cols,
                codes: matrices.iter().flat_map(|matrix| matrix.codes.clone()).collect(),
                scales: matrices.iter().flat_map(|matrix| matrix.scales.clone()).collect(),
                zeros: matrices.iter().flat_map(|matrix| matrix.zeros.clone()).collect(),
                reads: Mutex::default(),
            }
        }

        /// What they mean: `[rows][cols]`.
        pub(crate) fn weights(&self) -> Vec<f64> {
            let weight = |(at, code): (usize, &u8)| {
                let (scale, zero) = (self.scales[at / GROUP], self.zeros[at / GROUP]);
                scale.to_f64() * (f64::from(*code) - f64::from(zero))
            };
            self.codes.iter().enumerate().map(weight).collect()
        }
    }

    impl Int4Source for Matrix {
        fn rows(&self) -> usize {
            self.rows
        }

        fn cols(&self) -> usize {
            self.cols
        }

        fn read(&self, rows: Range<usize>, out: &mut Int4Rows) {
            let groups = self.cols / GROUP;
            let codes = &self.codes[rows.start * self.cols..rows.end * self.cols];
            *out = Int4Rows {
                codes: codes.as_chunks::<2>().0.iter().map(|[even, odd]| even | odd << 4).collect(),
                scales: self.scales[rows.start * groups..rows.end * groups].to_vec(),
                zeros: self.zeros[rows.start * groups..rows.end * groups].to_vec(),
            };
            self.reads.lock().unwrap().push(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Matrix;
    use super::*;
    use crate::ops::testing::cpus;
    use crate::{DType, Device, LinearWeight, MatrixView, WeightType};

    /// Nobody may read it.
    struct Unread(usize, usize);

    impl Int4Source for Unread {
        fn rows(&self) -> usize {
            self.0
        }

        fn cols(&self) -> usize {
            self.1
        }

        fn read(&self, rows: Range<usize>, _out: &mut Int4Rows) {
            unreachable!("rows {rows:?} are read");
        }
    }

    #[test]
    fn every_row_is_read_once_and_many_at_a_time() {
        for device in cpus() {
            // They begin and end within panels and within turns; one is shorter than a panel, one empty.
            let matrices = [5, 150, 0, 64, 1].map(|rows| Matrix::random(rows as u64, rows, 192));
            let stacked = Matrix::stack(&matrices.each_ref());
            let sources = matrices.each_ref().map(|matrix| matrix as &dyn Int4Source);
            let weight = LinearWeight::pack_int4(&device, &sources).unwrap();
            let expected = LinearWeight::pack_int4(&device, &[&stacked]).unwrap();
            assert_eq!((weight.n(), weight.k()), (220, 192));
            assert_eq!(weight.packed_bytes(), expected.packed_bytes(), "{}", device.describe());
            for matrix in matrices.iter().chain([&stacked]) {
                let mut reads = matrix.reads.lock().unwrap().clone();
                reads.sort_by_key(|rows| rows.start);
                let all: Vec<usize> = reads.iter().cloned().flatten().collect();
                assert!(all.into_iter().eq(0..matrix.rows), "{reads:?}");
                assert!(reads.iter().all(|rows| rows.len() <= 64) && reads.len() <= matrix.rows.div_ceil(64) + 1);
            }
        }
    }

    #[test]
    fn the_plan_device_measures_without_reading() {
        let plan = Device::plan();
        let weight = LinearWeight::pack_int4(&plan, &[&Unread(100, 576), &Unread(156, 576)]).unwrap();
        // Nine groups: the scales and zeros of the tenth are padding.
        assert_eq!(weight.bytes(), 256 * (576 / 2 + 10 * 4));
        for device in [&plan, &cpus()[0]] {
            let zeroed = LinearWeight::zeroed(device, 256, 576, WeightType::Int4).unwrap();
            assert_eq!((zeroed.n(), zeroed.k(), zeroed.bytes()), (256, 576, weight.bytes()));
            assert_eq!(zeroed.panel_shape(), weight.panel_shape());
        }
        let nothing: [&[&dyn Int4Source]; 3] = [&[], &[&Unread(0, 64)], &[&Unread(7, 0)]];
        for matrices in nothing {
            assert_eq!(LinearWeight::pack_int4(&cpus()[0], matrices).unwrap().bytes(), 0);
        }
    }

    #[test]
    fn what_cannot_be_packed_is_refused() {
        for device in [Device::plan(), cpus().swap_remove(0)] {
            let differ = LinearWeight::pack_int4(&device, &[&Unread(3, 64), &Unread(3, 128)]);
            assert!(matches!(differ, Err(Error::Shape { .. })));
            let odd = [
                LinearWeight::pack_int4(&device, &[&Unread(3, 96)]),
                LinearWeight::zeroed(&device, 3, 96, WeightType::Int4),
            ];
            for refused in odd {
                let error = refused.err().unwrap().to_string();
                assert_eq!(error, "a linear layer of 4-bit integers has a multiple of 64 inputs, not 96");
            }
            let floats = vec![0; 64 * 2];
            let view = MatrixView::dense(&floats, DType::Bf16, 1, 64);
            let rounded = LinearWeight::pack_as(&device, &[view], WeightType::Int4);
            assert!(matches!(rounded, Err(Error::Unsupported { .. })));
        }
    }

    #[test]
    #[should_panic(expected = "as many rows as it is asked for")]
    fn a_source_that_writes_too_little_is_found() {
        struct Short;
        impl Int4Source for Short {
            fn rows(&self) -> usize {
                2
            }

            fn cols(&self) -> usize {
                64
            }

            fn read(&self, _rows: Range<usize>, out: &mut Int4Rows) {
                out.codes.extend([0; 32]);
                out.scales.push(f16::ONE);
                out.zeros.push(8);
            }
        }
        let _ = LinearWeight::pack_int4(&cpus()[0], &[&Short]);
    }
}
