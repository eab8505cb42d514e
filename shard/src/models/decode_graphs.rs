//! Steps of single rows as CUDA graphs: one call instead of some hundred launches, for some numbers of rows.
//!
//! A step is filled up with rows that stand for nothing to the next number for which there is a graph. Lists and activations of such
//! steps lie at fixed places, and grids do not depend on what the lists hold, so a graph that was captured without any sequence computes
//! every step. Rows do not see each other, and a row's bits do not depend on how many there are: with and without a graph they are the
//! same.

use std::ops::Range;

use kernels::ops::sample::NO_RESULT;
use kernels::{Arena, DType, Device, Graph, Indices, KvCache, NO_SLOT, StepLists, Tensor};

use super::Model;
use super::step::{StepInput, StepRows};
use crate::error::Result;

/// The graphs of a model, its cache and its arena, which have to outlive them at their places.
#[derive(Default)]
pub struct DecodeGraphs {
    /// Ascending by rows.
    graphs: Vec<DecodeGraph>,
}

struct DecodeGraph {
    rows: usize,
    graph: Graph,
    filled: FilledRows,
}

/// A step's rows and those that fill it up.
struct FilledRows {
    input_ids: Vec<u32>,
    continued: Vec<u32>,
    positions: Vec<u32>,
    slot_mapping: Vec<u32>,
    sample_rows: Vec<u32>,
}

impl DecodeGraphs {
    /// Captures a graph for each of `rows`; none where the device has no graphs.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn capture(
        rows: &[usize],
        model: &Model,
        device: &Device,
        arena: &mut Arena,
        kv: &mut KvCache,
        lists: &mut StepLists,
    ) -> Result<DecodeGraphs> {
        let mut captured = DecodeGraphs::default();
        if !matches!(device, Device::Cuda(_)) {
            return Ok(captured);
        }
        let mut wanted = rows.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        for rows in wanted {
            let filled = FilledRows::new(rows);
            let mark = arena.mark();
            lists.begin_fixed(rows)?;
            let input = StepInput::new(&filled.as_step(&[]), lists)?;
            lists.send()?;
            // Once as it is: what the driver loads when a kernel first runs cannot be part of a graph.
            model.forward(arena, kv, &input)?;
            arena.release(mark);
            let mut outcome = Ok(());
            let graph = device.capture(|| {
                outcome = model.forward(arena, kv, &input).map(drop);
                Ok(())
            })?;
            outcome?;
            arena.release(mark);
            captured.graphs.extend(graph.map(|((), graph)| DecodeGraph { rows, graph, filled }));
        }
        Ok(captured)
    }

    /// The numbers of rows that have a graph, ascending.
    pub fn rows(&self) -> impl Iterator<Item = usize> {
        self.graphs.iter().map(|graph| graph.rows)
    }

    /// Begins a step that a graph computes: with rows that each are a sequence of their own and sampled, not more than a graph has, and
    /// few enough positions for one launch of attention. `None` if it is not such a step.
    ///
    /// # Errors
    /// [`kernels::Error::Cuda`].
    pub fn begin<'g>(&'g mut self, step: &StepRows<'g>, lists: &mut StepLists) -> Result<Option<GraphStep<'g>>> {
        let rows = step.input_ids.len();
        let is_decode = step.sequences.iter().all(|sequence| sequence.num_rows == 1)
            && step.sample_rows.iter().enumerate().all(|(at, row)| at == *row as usize)
            && step.sample_rows.len() == rows
            && lists.is_one_launch(step.sequences);
        let Some(graph) = self.graphs.iter_mut().find(|graph| graph.rows >= rows).filter(|_| is_decode) else {
            return Ok(None);
        };
        lists.begin_fixed(graph.rows)?;
        graph.filled.fill(step);
        let graph = &*graph;
        // The lists are the graph's input, by their places.
        let input = StepInput::new(&graph.filled.as_step(step.sequences), lists)?;
        Ok(Some(GraphStep { graph, input_ids: input.input_ids(), sampled: 0..rows }))
    }
}

/// A step whose lists are a graph's input.
pub struct GraphStep<'g> {
    graph: &'g DecodeGraph,
    input_ids: Indices<'g>,
    sampled: Range<usize>,
}

impl<'g> GraphStep<'g> {
    /// The tokens of the rows, and behind them of those that fill it up.
    pub fn input_ids(&self) -> Indices<'g> {
        self.input_ids
    }

    /// Computes it, after its lists were sent: as [`Model::forward`]. The slots of the step were checked against the cache, its positions
    /// against the model.
    ///
    /// # Errors
    /// A full arena; [`kernels::Error::Cuda`].
    pub fn forward(&self, model: &Model, arena: &mut Arena) -> Result<Tensor> {
        // The first tensor of a forward pass, at the place where the graph writes it.
        let logits = arena.tensor(&[self.graph.rows, model.spec().vocab_size], DType::F32)?;
        // SAFETY: arena, cache and lists are those of the capture (whoever owns the graphs owns them too) and the arena's stack is as
        // high; `begin` filled the lists as the capture's were, and `Slots` has checked what they hold.
        unsafe { self.graph.graph.launch()? };
        Ok(logits.narrow_rows(self.sampled.start, self.sampled.len())?)
    }
}

impl FilledRows {
    fn new(rows: usize) -> FilledRows {
        FilledRows {
            input_ids: vec![0; rows],
            continued: vec![NO_RESULT; rows],
            positions: vec![0; rows],
            slot_mapping: vec![NO_SLOT; rows],
            sample_rows: (0..rows as u32).collect(),
        }
    }

    fn fill(&mut self, step: &StepRows<'_>) {
        let fill = |list: &mut Vec<u32>, own: &[u32], rest: u32| {
            list[..own.len()].copy_from_slice(own);
            list[own.len()..].fill(rest);
        };
        fill(&mut self.input_ids, step.input_ids, 0);
        fill(&mut self.continued, step.continued, NO_RESULT);
        fill(&mut self.positions, step.positions, 0);
        fill(&mut self.slot_mapping, step.slot_mapping, NO_SLOT);
    }

    fn as_step<'a>(&'a self, sequences: &'a [super::SequenceRows<'a>]) -> StepRows<'a> {
        let FilledRows { input_ids, continued, positions, slot_mapping, sample_rows } = self;
        StepRows { input_ids, continued, positions, slot_mapping, sequences, sample_rows }
    }
}
