//! The checks that every operation makes before it touches memory.

use crate::{DType, Error, Result, Tensor};

/// `tensor` has this shape after its outer dimensions are merged: `[rows, cols]`.
pub(crate) fn expect_matrix(
    op: &'static str,
    arg: &'static str,
    tensor: &Tensor,
    rows: usize,
    cols: usize,
) -> Result<()> {
    if (tensor.rows(), tensor.cols()) != (rows, cols) {
        return Err(Error::Shape { op, arg, expected: vec![rows, cols], actual: tensor.shape().to_vec() });
    }
    Ok(())
}

/// `tensor` holds exactly `len` elements.
pub(crate) fn expect_len(op: &'static str, arg: &'static str, tensor: &Tensor, len: usize) -> Result<()> {
    if tensor.len() != len {
        return Err(Error::Shape { op, arg, expected: vec![len], actual: tensor.shape().to_vec() });
    }
    Ok(())
}

/// A list beside the tensors has one entry per row.
pub(crate) fn expect_entries(op: &'static str, arg: &'static str, actual: usize, expected: usize) -> Result<()> {
    if actual != expected {
        return Err(Error::Shape { op, arg, expected: vec![expected], actual: vec![actual] });
    }
    Ok(())
}

/// Every listed tensor is f32.
pub(crate) fn expect_f32(op: &'static str, tensors: &[(&'static str, &Tensor)]) -> Result<()> {
    match tensors.iter().find(|(_, tensor)| tensor.dtype() != DType::F32) {
        Some((arg, tensor)) => Err(Error::DType { op, arg, expected: DType::F32, actual: tensor.dtype() }),
        None => Ok(()),
    }
}

/// Every listed tensor has memory: the output lives on a processor, so its inputs must.
pub(crate) fn expect_memory(op: &'static str, tensors: &[(&'static str, &Tensor)]) -> Result<()> {
    match tensors.iter().find(|(_, tensor)| tensor.device().is_plan()) {
        Some((arg, tensor)) => Err(Error::UnsupportedDevice { op, arg, device: tensor.device().describe() }),
        None => Ok(()),
    }
}

/// Every value is below `limit`.
pub(crate) fn expect_below(op: &'static str, arg: &'static str, values: &[u32], limit: usize) -> Result<()> {
    match values.iter().find(|value| **value as usize >= limit) {
        Some(value) => Err(Error::Index { op, arg, index: *value as usize, limit }),
        None => Ok(()),
    }
}
