//! Rows in the order of their experts.

use super::{ExpertRoutes, with_words};
use crate::contract::{expect_activations, expect_device, expect_matrix};
use crate::ops::gather_rows;
use crate::{Device, Result, Tensor};

/// Copies every row of `x` to the places of its pairs in `out`.
///
/// # Shapes
/// `out`: `[T · k, E]`; `x`: `[T, E]`.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType).
pub fn gather(out: &mut Tensor, x: &Tensor, routes: &ExpertRoutes) -> Result<()> {
    const OP: &str = "gather";
    expect_activations(OP, &[("out", out), ("x", x)])?;
    expect_matrix(OP, "x", x, routes.experts.rows(), out.cols())?;
    expect_matrix(OP, "out", out, routes.pairs(), x.cols())?;
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device(OP, out.device(), &[("x", x), ("routes", &routes.rows)])?;
            with_words(&routes.rows, |rows| gather_rows::cpu_arm(&cpu, out, x, rows));
        }
        Device::Cuda(cuda) => {
            expect_device(OP, out.device(), &[("x", x), ("routes", &routes.rows)])?;
            // SAFETY: `route` lists a row of `x` for every row of `out`.
            unsafe { gather_rows::cuda_arm(&cuda, out, x, routes.rows.address())? };
        }
        Device::Plan(ledger) => ledger.count(OP, x.bytes() + out.bytes() + routes.rows.bytes(), 0),
    }
    Ok(())
}
