//! Token embeddings, cut by token id.

use std::sync::Arc;

use kernels::{Tensor, ops};

use super::{Loader, all_reduce};
use crate::comm::Comm;
use crate::error::Result;

/// Each rank holds the rows of some token ids and gives zeros for the others; the sum over the ranks is the embedding.
pub struct VocabParallelEmbedding {
    table: Tensor,
    first_id: u32,
    comm: Arc<dyn Comm>,
}

impl VocabParallelEmbedding {
    /// Loads this rank's rows of `{name}.weight` (`[vocab_size, hidden_size]`).
    ///
    /// # Errors
    /// Whatever is wrong with that tensor.
    pub fn load(
        loader: &Loader<'_>,
        comm: &Arc<dyn Comm>,
        name: &str,
        [vocab_size, hidden_size]: [usize; 2],
    ) -> Result<VocabParallelEmbedding> {
        let ids = loader.partition.vocab(vocab_size);
        let table = loader.checkpoint.matrix(&format!("{name}.weight"), vocab_size, hidden_size)?;
        Ok(VocabParallelEmbedding {
            first_id: ids.start as u32,
            table: loader.matrix(&table.row_slice(ids))?,
            comm: comm.clone(),
        })
    }

    /// `out`: `[T, hidden_size]`; `input_ids`: T.
    ///
    /// # Errors
    /// As [`ops::embedding`] and [`Comm::all_reduce`].
    pub fn forward(&self, out: &mut Tensor, input_ids: &[u32]) -> Result<()> {
        ops::embedding(out, input_ids, &self.table, self.first_id)?;
        all_reduce(&*self.comm, out)
    }
}
