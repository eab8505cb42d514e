//! The weights of a layer's experts, packed as one.

use crate::ops::linear::squares;
use crate::simd::LANES;
use crate::{Device, Error, LinearWeight, Result, WeightType};

/// One projection of every expert of a layer: matrices of one shape, stacked expert by expert in one memory, each beginning with a panel
/// of its own. Thousands of memories of their own would each be rounded up to a large page.
pub struct ExpertWeights {
    stack: LinearWeight,
    /// Parts of the stack.
    experts: Vec<LinearWeight>,
}

impl ExpertWeights {
    /// The outputs that an expert of `n` takes in a stack: the others, which fill its last panel, are zeros.
    pub fn stride(n: usize) -> usize {
        n.next_multiple_of(LANES)
    }

    /// Whether experts of this type can be multiplied with on a device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if not: on a GPU the scales of quantised weights lie behind the whole stack.
    pub fn expect_type(device: &Device, weight_type: WeightType) -> Result<()> {
        match device {
            Device::Cuda(_) => squares::expect_parts(weight_type),
            Device::Cpu(_) | Device::Plan(_) => Ok(()),
        }
    }

    /// The experts of a stack, `n` outputs each, [`stride`](ExpertWeights::stride) outputs apart.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has not as many outputs; [`Error::Unsupported`] as [`expect_type`](ExpertWeights::expect_type).
    pub fn new(stack: LinearWeight, num_experts: usize, n: usize) -> Result<ExpertWeights> {
        let stride = ExpertWeights::stride(n);
        if stack.n() != num_experts * stride || num_experts == 0 {
            let (expected, actual) = (vec![num_experts * stride, stack.k()], vec![stack.n(), stack.k()]);
            return Err(Error::Shape { op: "experts", arg: "stack", expected, actual });
        }
        let experts = (0..num_experts).map(|expert| stack.part(expert * stride, n)).collect::<Result<_>>()?;
        Ok(ExpertWeights { stack, experts })
    }

    /// How many there are.
    pub fn num_experts(&self) -> usize {
        self.experts.len()
    }

    /// Outputs of each.
    pub fn n(&self) -> usize {
        self.experts[0].n()
    }

    /// Inputs of each.
    pub fn k(&self) -> usize {
        self.stack.k()
    }

    /// One of them.
    pub(crate) fn expert(&self, expert: usize) -> &LinearWeight {
        &self.experts[expert]
    }

    /// All of them.
    pub(crate) fn stack(&self) -> &LinearWeight {
        &self.stack
    }
}
