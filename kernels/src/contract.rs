//! The checks that every operation makes before it touches memory.

use crate::{DType, Device, Error, Result, Tensor};

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

/// Every listed tensor is of one type: that of the first, which is the one its device computes with. On the plan device, which
/// stands for all others, it may be any.
pub(crate) fn expect_activations(op: &'static str, tensors: &[(&'static str, &Tensor)]) -> Result<()> {
    let (first, of_first) = tensors[0];
    let dtype = of_first.dtype();
    match of_first.device() {
        Device::Cpu(_) if dtype != DType::F32 => {
            return Err(Error::DType { op, arg: first, expected: DType::F32, actual: dtype });
        }
        Device::Cuda(_) if dtype == DType::F32 => {
            return Err(Error::DType { op, arg: first, expected: DType::Bf16, actual: dtype });
        }
        Device::Cpu(_) | Device::Cuda(_) | Device::Plan(_) => {}
    }
    match tensors.iter().find(|(_, tensor)| tensor.dtype() != dtype) {
        Some((arg, tensor)) => Err(Error::DType { op, arg, expected: dtype, actual: tensor.dtype() }),
        None => Ok(()),
    }
}

/// Every listed tensor lives where the output does.
pub(crate) fn expect_device(op: &'static str, device: &Device, tensors: &[(&'static str, &Tensor)]) -> Result<()> {
    tensors.iter().try_for_each(|(arg, tensor)| expect_on(op, device, arg, tensor.device()))
}

/// What `arg` is of lives on `device`.
pub(crate) fn expect_on(op: &'static str, device: &Device, arg: &'static str, actual: &Device) -> Result<()> {
    let is_there = match (device, actual) {
        (Device::Cpu(_), Device::Cpu(_)) => true,
        (Device::Cuda(one), Device::Cuda(other)) => std::sync::Arc::ptr_eq(one, other),
        _ => false,
    };
    if is_there { Ok(()) } else { Err(Error::UnsupportedDevice { op, arg, device: actual.describe() }) }
}

/// Rows of `cols` 16-bit elements are whole vectors of the kernels, 16 bytes each.
pub(crate) fn expect_vectors(op: &'static str, cols: usize) -> Result<()> {
    match cols.is_multiple_of(8) {
        true => Ok(()),
        false => {
            Err(Error::Unsupported { reason: format!("{op} on a GPU takes rows of a multiple of 8, not of {cols}") })
        }
    }
}

/// Every value is below `limit`.
pub(crate) fn expect_below(op: &'static str, arg: &'static str, values: &[u32], limit: usize) -> Result<()> {
    match values.iter().find(|value| **value as usize >= limit) {
        Some(value) => Err(Error::Index { op, arg, index: *value as usize, limit }),
        None => Ok(()),
    }
}
