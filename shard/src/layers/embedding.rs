//! Token embeddings, cut by token id.

use std::sync::Arc;

use kernels::ops::{self, EmbeddingTable};
use kernels::{Indices, LinearWeight, Tensor};

use super::{LmHead, Loader, all_reduce};
use crate::comm::Comm;
use crate::error::Result;

/// Each rank holds the rows of some token ids and gives zeros for the others; the sum over the ranks is the embedding.
pub struct VocabParallelEmbedding {
    table: Table,
    first_id: u32,
    /// Multiplies every embedding.
    scale: f32,
    comm: Arc<dyn Comm>,
}

enum Table {
    Dense(Tensor),
    /// The first rows of the output head, which would be the same matrix a second time.
    Head(Arc<LinearWeight>, usize),
}

impl VocabParallelEmbedding {
    /// Loads this rank's rows of `{name}.weight` (`[vocab_size, hidden_size]`), which `scale` multiplies when they are used.
    ///
    /// # Errors
    /// Whatever is wrong with that tensor.
    pub fn load(
        loader: &Loader<'_>,
        comm: &Arc<dyn Comm>,
        name: &str,
        [vocab_size, hidden_size]: [usize; 2],
        scale: f32,
    ) -> Result<VocabParallelEmbedding> {
        let ids = loader.partition.vocab(vocab_size);
        let table = loader.checkpoint.matrix(&format!("{name}.weight"), vocab_size, hidden_size)?;
        let first_id = ids.start as u32;
        Ok(VocabParallelEmbedding {
            first_id,
            table: Table::Dense(loader.matrix(&table.row_slice(ids))?),
            scale,
            comm: comm.clone(),
        })
    }

    /// The embedding of a model that ties it to its head `{name}.weight`: of the head itself, where it holds its rows as they
    /// are, loaded beside it where it does not.
    ///
    /// # Errors
    /// As [`load`](VocabParallelEmbedding::load).
    pub fn tied(
        loader: &Loader<'_>,
        comm: &Arc<dyn Comm>,
        name: &str,
        vocab: [usize; 2],
        head: &LmHead,
        scale: f32,
    ) -> Result<VocabParallelEmbedding> {
        if !head.weight().is_table() {
            return VocabParallelEmbedding::load(loader, comm, name, vocab, scale);
        }
        let ids = loader.partition.vocab(vocab[0]);
        let table = Table::Head(head.weight().clone(), ids.len());
        Ok(VocabParallelEmbedding { first_id: ids.start as u32, table, scale, comm: comm.clone() })
    }

    /// `out`: `[T, hidden_size]`; `input_ids`: T.
    ///
    /// # Errors
    /// As [`ops::embedding`] and [`Comm::all_reduce`].
    pub fn forward(&self, out: &mut Tensor, input_ids: Indices<'_>) -> Result<()> {
        let table = match &self.table {
            Table::Dense(table) => EmbeddingTable::Dense(table),
            Table::Head(weight, rows) => EmbeddingTable::Head { weight, rows: *rows },
        };
        ops::embedding(out, input_ids, table, self.first_id, self.scale)?;
        all_reduce(&*self.comm, out)
    }
}
