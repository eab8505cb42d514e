//! The output head: hidden states to logits, cut by token id, gathered on every rank.

use std::sync::Arc;

use kernels::{Arena, DType, LinearWeight, Tensor, ops};

use super::Loader;
use super::linear_source::LinearPart;
use crate::comm::Comm;
use crate::error::Result;

/// Each rank computes the logits of its token ids; all ranks then hold all of them and sample alike.
pub struct LmHead {
    /// As many outputs on every rank: those beyond the vocabulary have zero weights and are dropped.
    weight: Arc<LinearWeight>,
    comm: Arc<dyn Comm>,
}

impl LmHead {
    /// Loads this rank's rows of `{name}.weight` (`[vocab_size, hidden_size]`), which may be the embedding matrix.
    ///
    /// # Errors
    /// Whatever is wrong with that tensor, or what a quantised checkpoint has in its place.
    pub fn load(
        loader: &Loader<'_>,
        comm: &Arc<dyn Comm>,
        name: &str,
        [vocab_size, hidden_size]: [usize; 2],
    ) -> Result<LmHead> {
        let ids = loader.partition.vocab(vocab_size);
        let missing = loader.partition.vocab_stride(vocab_size) - ids.len();
        let part = LinearPart { name, shape: [vocab_size, hidden_size], outputs: ids, inputs: 0..hidden_size };
        let weight = loader.head_weight(&part, missing)?;
        Ok(LmHead { weight: Arc::new(weight), comm: comm.clone() })
    }

    /// The matrix, which may serve as embedding table too.
    pub(super) fn weight(&self) -> &Arc<LinearWeight> {
        &self.weight
    }

    /// `logits`: `[S, vocab_size]`, equal on every rank; `x`: `[S, hidden_size]`.
    ///
    /// # Errors
    /// As [`ops::linear`] and [`Comm::all_gather`].
    pub fn forward(&self, arena: &mut Arena, logits: &mut Tensor, x: &Tensor) -> Result<()> {
        let (world_size, stride) = (self.comm.world_size(), self.weight.n());
        if world_size == 1 {
            return Ok(ops::linear(logits, x, &self.weight, None)?);
        }
        let mark = arena.mark();
        let mut local = arena.tensor(&[x.rows(), stride], DType::F32)?;
        let mut gathered = arena.tensor(&[world_size, x.rows(), stride], DType::F32)?;
        ops::linear(&mut local, x, &self.weight, None)?;
        match self.comm.gpus() {
            _ if local.device().is_plan() => {}
            Some(gpus) => gpus.all_gather(&local, &mut gathered)?,
            None => self.comm.all_gather(&local.as_f32(), &mut gathered.as_f32_mut())?,
        }
        ops::concat_columns(logits, &gathered)?;
        arena.release(mark);
        Ok(())
    }
}
