//! A slice of a checkpoint's matrix, where it lies in the mapped file.

use crate::DType;

/// Rows × columns of little-endian elements, possibly a column slice of a wider matrix and not aligned. A rank's share of
/// a row-parallel layer (a slice of the columns) or of a column-parallel one (a slice of the rows) needs no copy.
#[derive(Clone, Copy)]
pub struct MatrixView<'a> {
    /// The bytes from the first element of the first row of the whole matrix (or of a row slice of it).
    pub data: &'a [u8],
    /// The element type.
    pub dtype: DType,
    /// Rows of the slice. For a linear layer: N, the outputs.
    pub rows: usize,
    /// Columns of the slice. For a linear layer: K, the inputs.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// The first column of the slice within a row.
    pub first_col: usize,
}

impl<'a> MatrixView<'a> {
    /// A whole matrix without gaps.
    pub fn dense(data: &'a [u8], dtype: DType, rows: usize, cols: usize) -> MatrixView<'a> {
        MatrixView { data, dtype, rows, cols, row_stride: cols, first_col: 0 }
    }

    /// The elements of one row. Panics if the view reaches beyond its data.
    pub(crate) fn row_bytes(&self, row: usize) -> &'a [u8] {
        let size = self.dtype.size_bytes();
        &self.data[(row * self.row_stride + self.first_col) * size..][..self.cols * size]
    }

    /// Some rows with all the columns around the slice, as far as there is data.
    pub(crate) fn rows_bytes(&self, rows: std::ops::Range<usize>) -> &'a [u8] {
        let row_bytes = self.row_stride * self.dtype.size_bytes();
        &self.data[rows.start * row_bytes..self.data.len().min(rows.end * row_bytes)]
    }

    /// Whether every row lies inside the data.
    pub(crate) fn is_inside(&self) -> bool {
        self.rows == 0
            || ((self.rows - 1) * self.row_stride + self.first_col + self.cols) * self.dtype.size_bytes()
                <= self.data.len()
    }
}
