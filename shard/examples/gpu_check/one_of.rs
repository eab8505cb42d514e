//! One rank of several, without the others: a GPU computes what it does in a group, and sums and gathers take a stated time.
//!
//! What it computes is not the model's: a sum is this rank's part alone, and logits of other ranks are zeros. The time of a step does not
//! depend on that.

use std::time::Duration;

use kernels::machine::spin;
use kernels::ops::{RmsScale, add_rms_norm, concat_columns};
use kernels::{DType, Device, Tensor};
use shard::comm::{Comm, GpuCollectives, StepTag};

use crate::shape::Shape;

/// Rank 0 of `ranks`.
pub(crate) struct OneOf {
    ranks: usize,
    gpu: AloneGpu,
}

struct AloneGpu {
    device: Device,
    sum: Duration,
    /// As many as other ranks have logits.
    zeros: Tensor,
}

impl OneOf {
    /// With sums and gathers that take `sum`, for steps of up to `max_rows` rows of logits.
    pub(crate) fn new(
        ranks: usize,
        sum: Duration,
        shape: &Shape,
        max_rows: usize,
        device: &Device,
    ) -> kernels::Result<OneOf> {
        let others = (ranks - 1) * shape.vocab.div_ceil(ranks) * max_rows;
        let zeros = Tensor::zeros(device, &[others], DType::F32)?;
        Ok(OneOf { ranks, gpu: AloneGpu { device: device.clone(), sum, zeros } })
    }
}

impl Comm for OneOf {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        self.ranks
    }

    fn begin_step(&self, _tag: StepTag) -> shard::error::Result<()> {
        Ok(())
    }

    fn gpus(&self) -> Option<&dyn GpuCollectives> {
        Some(&self.gpu)
    }

    fn all_reduce(&self, _values: &mut [f32]) -> shard::error::Result<()> {
        Ok(())
    }

    fn all_gather(&self, local: &[f32], out: &mut [f32]) -> shard::error::Result<()> {
        let (own, others) = out.split_at_mut(local.len());
        own.copy_from_slice(local);
        others.fill(0.0);
        Ok(())
    }

    fn barrier(&self) -> shard::error::Result<()> {
        Ok(())
    }
}

impl GpuCollectives for AloneGpu {
    fn all_reduce(&self, _x: &mut Tensor) -> kernels::Result<()> {
        spin(&self.device, self.sum)
    }

    /// With the norm as a kernel of its own, which a group's kernel over mapped memory has in itself.
    fn all_reduce_add_rms_norm(
        &self,
        out: &mut Tensor,
        residual: &mut Tensor,
        x: &mut Tensor,
        scale: RmsScale<'_>,
    ) -> kernels::Result<()> {
        spin(&self.device, self.sum)?;
        add_rms_norm(out, residual, x, scale)
    }

    fn all_gather(&self, local: &Tensor, out: &mut Tensor) -> kernels::Result<()> {
        spin(&self.device, self.sum)?;
        // Its operation copies one matrix just as well.
        let copy = |to: Tensor, from: &Tensor| {
            let len = to.len();
            concat_columns(&mut to.view(&[1, len])?, &from.view(&[1, 1, len])?)
        };
        copy(out.narrow_rows(0, 1)?, local)?;
        let others = out.narrow_rows(1, out.shape()[0] - 1)?;
        let zeros = self.zeros.narrow_rows(0, others.len())?;
        copy(others, &zeros)
    }
}
