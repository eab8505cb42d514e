//! Linear layers of experts: every pair's row times the weight of its expert.

use super::{ExpertRoutes, ExpertTile, with_words};
use crate::contract::{expect_activations, expect_device, expect_matrix, expect_on};
use crate::ops::linear::{self, squares};
use crate::{Device, Error, ExpertWeights, Result, Tensor};

/// `out[p] = x[p] · wᵀ` with the weight of the expert of pair p: for every expert what [`ops::linear`](crate::ops::linear()) gives, in its
/// bits.
///
/// # Shapes
/// `out`: `[T · k, N]`; `x`: `[T · k, K]`; `w`: of N × K.
/// # Errors
/// [`Error::Shape`], [`Error::DType`],
/// [`Error::UnsupportedDevice`].
pub fn linear(out: &mut Tensor, x: &Tensor, w: &ExpertWeights, routes: &ExpertRoutes) -> Result<()> {
    const OP: &str = "experts_linear";
    expect_activations(OP, &[("out", out), ("x", x)])?;
    expect_matrix(OP, "x", x, routes.pairs(), w.k())?;
    expect_matrix(OP, "out", out, routes.pairs(), w.n())?;
    if w.num_experts() != routes.num_experts {
        let (expected, actual) = (vec![routes.num_experts], vec![w.num_experts()]);
        return Err(Error::Shape { op: OP, arg: "w", expected, actual });
    }
    match out.device().clone() {
        Device::Cpu(_) => {
            expect_device(OP, out.device(), &[("x", x), ("routes", &routes.tiles)])?;
            expect_on(OP, out.device(), "w", w.stack().device())?;
            with_words(&routes.tiles, |tiles: &[ExpertTile]| {
                tiles.iter().take_while(|tile| tile.rows > 0).try_for_each(|tile| {
                    let (first, rows) = (tile.first_pair as usize, tile.rows as usize);
                    let mut out = out.narrow_rows(first, rows)?;
                    linear::linear(&mut out, &x.narrow_rows(first, rows)?, w.expert(tile.expert as usize), None)
                })
            })?;
        }
        Device::Cuda(cuda) => {
            expect_device(OP, out.device(), &[("x", x), ("routes", &routes.tiles)])?;
            expect_on(OP, out.device(), "w", w.stack().device())?;
            let (kernel, count) = routes.kernel(&cuda);
            // SAFETY: `route` lists `count` tiles of that kernel, of pairs and experts that there are.
            unsafe { squares::run_experts(&cuda, out, x, w, kernel, (routes.tiles.address(), count))? };
        }
        Device::Plan(ledger) => {
            // Of every expert that can have pairs, the weight once.
            let experts = routes.num_experts.min(routes.pairs());
            let weight_bytes = w.stack().bytes() / w.num_experts() * experts;
            ledger.count(OP, out.bytes() + x.bytes() + weight_bytes, 2 * out.len() * w.k());
        }
    }
    Ok(())
}
