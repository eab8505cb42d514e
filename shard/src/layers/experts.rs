//! Mixture of experts: MLPs of which every row goes through a few.

use std::sync::Arc;

use kernels::ops::{self, Activation, experts::ExpertRoutes};
use kernels::{Arena, DType, ExpertWeights, LinearWeight, Tensor};

use super::linear_source::LinearPart;
use super::{Loader, Norm, RmsNorm};
use crate::comm::Comm;
use crate::config::ExpertsSpec;
use crate::error::Result;

/// Each rank has its part of every expert's intermediate width, and so a part of every expert's sums; all ranks choose alike.
pub struct Experts {
    /// The router, whole.
    gate: LinearWeight,
    gate_up_proj: ExpertWeights,
    down_proj: ExpertWeights,
    experts_per_row: usize,
    normalise: bool,
    activation: Activation,
    comm: Arc<dyn Comm>,
}

/// How a checkpoint calls the tensors of a layer's experts, without ".weight".
pub struct ExpertNames {
    /// The router.
    pub gate: String,
    /// `{}` stands for the expert's number.
    pub gate_proj: String,
    /// As `gate_proj`.
    pub up_proj: String,
    /// As `gate_proj`.
    pub down_proj: String,
}

impl Experts {
    /// Loads the router and this rank's part of every expert.
    ///
    /// # Errors
    /// Whatever is wrong with the tensors `{gate}.weight` (`[num_experts, hidden_size]`), and of every expert `{gate_proj}.weight`,
    /// `{up_proj}.weight` (`[I, hidden_size]`) and `{down_proj}.weight` (`[hidden_size, I]`), or what a quantised checkpoint has in their
    /// place; [`kernels::Error::Unsupported`] for quantised ones on a GPU.
    pub fn load(
        loader: &Loader<'_>,
        comm: &Arc<dyn Comm>,
        names: &ExpertNames,
        hidden_size: usize,
        spec: &ExpertsSpec,
        activation: Activation,
    ) -> Result<Experts> {
        let ExpertsSpec { num_experts, intermediate_size, experts_per_row, normalise, .. } = *spec;
        let mine = loader.partition.even(intermediate_size);
        let of_experts = |templates: &[&str]| -> Vec<String> {
            let of_expert = |expert| templates.iter().map(move |name| name.replacen("{}", &format!("{expert}"), 1));
            (0..num_experts).flat_map(of_expert).collect()
        };
        let gate_up_names = of_experts(&[&names.gate_proj, &names.up_proj]);
        let gate_up = gate_up_names.iter().map(|name| LinearPart {
            name,
            shape: [intermediate_size, hidden_size],
            outputs: mine.clone(),
            inputs: 0..hidden_size,
        });
        let down_names = of_experts(&[&names.down_proj]);
        let down = down_names.iter().map(|name| LinearPart {
            name,
            shape: [hidden_size, intermediate_size],
            outputs: 0..hidden_size,
            inputs: mine.clone(),
        });
        Ok(Experts {
            gate: loader.router_weight(&names.gate, [num_experts, hidden_size])?,
            gate_up_proj: loader.expert_weights(&gate_up.collect::<Vec<_>>(), num_experts)?,
            down_proj: loader.expert_weights(&down.collect::<Vec<_>>(), num_experts)?,
            experts_per_row,
            normalise,
            activation,
            comm: comm.clone(),
        })
    }

    /// `out`: `[T, E]`, this rank's part of the sum; `x`: `[T, E]`. Of each row k of X experts, with I of the intermediate width on this
    /// rank.
    ///
    /// # Errors
    /// As the operations of [`ops::experts`]; a full arena.
    pub fn forward_part(&self, arena: &mut Arena, out: &mut Tensor, x: &Tensor) -> Result<()> {
        let (num_experts, dtype, gate_up_width) = (self.gate.n(), x.dtype(), self.gate_up_proj.n());
        let mark = arena.mark();
        let mut logits = arena.tensor(&[x.rows(), num_experts], DType::F32)?; // [T, X]
        let mut routes = ExpertRoutes::new(arena, x.rows(), num_experts, self.experts_per_row)?;
        let pairs = routes.pairs();
        let mut rows = arena.tensor(&[pairs, x.cols()], dtype)?; // [T·k, E], what goes to experts, and what comes from them
        let mut gate_up = arena.tensor(&[pairs, gate_up_width], dtype)?; // [T·k, 2·I]
        let mut activated = arena.tensor(&[pairs, gate_up_width / 2], dtype)?; // [T·k, I]

        ops::linear(&mut logits, x, &self.gate, None)?;
        ops::experts::route(&mut routes, &logits, self.normalise)?;
        ops::experts::gather(&mut rows, x, &routes)?;
        ops::experts::linear(&mut gate_up, &rows, &self.gate_up_proj, &routes)?;
        ops::activate(&mut activated, &gate_up, self.activation)?;
        ops::experts::linear(&mut rows, &activated, &self.down_proj, &routes)?;
        ops::experts::combine(out, &rows, &routes)?; // [T, E], to be summed over ranks

        arena.release(mark);
        Ok(())
    }

    /// As [`RowParallelLinear::add_to`](super::RowParallelLinear::add_to), of what [`forward_part`](Experts::forward_part) made.
    ///
    /// # Errors
    /// As [`Norm::forward_add_sum`].
    pub fn add_to(
        &self,
        residual: &mut Tensor,
        part: &mut Tensor,
        norm_after: Option<&RmsNorm>,
        norm: &Norm,
        out: &mut Tensor,
    ) -> Result<()> {
        norm.forward_add_sum(&*self.comm, out, residual, part, norm_after)
    }
}
