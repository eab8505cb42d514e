//! Sampling where the logits are: rows of a step on a GPU, a token each, and how the next step takes these before the host has them.

use crate::contract::{expect_entries, expect_f32};
use crate::cuda::{Argument, KernelName};
use crate::step_lists::{CudaLists, Indices, PendingResults, StepLists};
use crate::{Device, Error, Result, Tensor};

/// A row of logits that its device samples from.
#[derive(Clone, Copy, Debug)]
pub struct SampleRow {
    /// Which row.
    pub row: u32,
    /// The absolute position of the token to sample.
    pub position: u32,
    /// How it is drawn; `None` takes the largest.
    pub draw: Option<Draw>,
}

/// A draw from the softmax of logits / temperature, of those that stay: the `top_k` largest and what equals the last of them; of those
/// the fewest that hold `top_p` of the probability, equal ones by ascending id; of those what is at least `min_p` times as likely as the
/// likeliest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The seed of its noise.
    pub seed: u64,
    /// Above 0.
    pub temperature: f32,
    /// At least 1.
    pub top_k: Option<u32>,
    /// Above 0, below 1.
    pub top_p: Option<f32>,
    /// Above 0, at most 1.
    pub min_p: Option<f32>,
}

impl Draw {
    /// From all logits as they are.
    pub fn plain(seed: u64) -> Draw {
        Draw { seed, temperature: 1.0, top_k: None, top_p: None, min_p: None }
    }

    /// Whether some do not stay.
    fn truncates(&self) -> bool {
        self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some()
    }
}

/// What sampling says of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// ln Σ e^logit over the row.
    pub log_sum_exp: f32,
    /// The lowest id whose logit is NaN or infinite, if there is one: the others then mean nothing.
    pub unsound: Option<u32>,
}

/// Rows to sample from, where their device has them.
pub struct SampleRows {
    address: u64,
    len: usize,
    /// The rows of logits that there have to be.
    logit_rows: usize,
    /// Whether some are not drawn from all logits.
    truncates: bool,
}

/// Words of a row to sample from, and of what comes of it, as `sample.cuh` has them.
pub(crate) const SAMPLE_ROW_WORDS: usize = 12;
pub(crate) const SAMPLED_WORDS: usize = 4;

/// Threads of a row, as `sample.cuh` has them.
const CUDA_THREADS: usize = 512;

/// An id that is none.
const NO_ID: u32 = u32::MAX;

impl SampleRows {
    pub(crate) fn of(lists: &mut CudaLists, rows: &[SampleRow]) -> Result<SampleRows> {
        // What is not truncated ends behind everything.
        const NO_LIMIT: u32 = u32::MAX;
        let words = |row: &SampleRow| {
            let draw = row.draw.unwrap_or(Draw::plain(0));
            [
                draw.seed as u32,
                (draw.seed >> 32) as u32,
                row.row,
                row.position,
                u32::from(row.draw.is_some()),
                draw.temperature.to_bits(),
                draw.top_k.unwrap_or(NO_LIMIT),
                draw.top_p.unwrap_or(1.0).to_bits(),
                draw.min_p.map_or(f32::NEG_INFINITY, f32::ln).to_bits(),
                0,
                NO_LIMIT,
                0,
            ]
        };
        let words: Vec<[u32; SAMPLE_ROW_WORDS]> = rows.iter().map(words).collect();
        let logit_rows = rows.iter().map(|row| row.row as usize + 1).max().unwrap_or(0);
        let truncates = rows.iter().any(|row| row.draw.is_some_and(|draw| draw.truncates()));
        Ok(SampleRows { address: lists.push(words.as_flattened())?, len: rows.len(), logit_rows, truncates })
    }
}

/// Samples from rows of `logits` (`[S, V]` f32) on their GPU, one token each: as [`argmax`](super::argmax) and [`gumbel_argmax`](super::gumbel_argmax) do. Does not wait.
///
/// # Errors
/// [`Error::UnsupportedDevice`] elsewhere; [`Error::Cuda`].
pub fn sample_rows(logits: &Tensor, rows: &SampleRows, lists: &mut StepLists) -> Result<PendingSamples> {
    const OP: &str = "sample_rows";
    expect_f32(OP, &[("logits", logits)])?;
    let (Device::Cuda(cuda), Some(lists)) = (logits.device(), lists.cuda_mut()) else {
        return Err(Error::UnsupportedDevice { op: OP, arg: "logits", device: logits.device().describe() });
    };
    if rows.logit_rows > logits.rows() {
        return Err(Error::Index { op: OP, arg: "rows", index: rows.logit_rows - 1, limit: logits.rows() });
    }
    if rows.len > lists.limits.max_logit_rows {
        return Err(Error::Index { op: OP, arg: "rows", index: rows.len, limit: lists.limits.max_logit_rows + 1 });
    }
    if rows.truncates {
        let addresses = [rows.address, logits.address()].map(Argument::Pointer);
        let arguments = [&addresses[..], &[Argument::count(logits.cols())]].concat();
        let grid = [rows.len, 1, 1];
        // SAFETY: truncate.cu: a block for every row of the list, which names rows of the logits (checked above) and is the device's own
        // copy; all live as long as their stream's work.
        unsafe { cuda.launch(KernelName::plain("truncate_rows"), grid, CUDA_THREADS, &arguments)? };
    }
    let addresses = [lists.sampled.address(), logits.address(), rows.address].map(Argument::Pointer);
    let arguments = [&addresses[..], &[Argument::count(logits.cols())]].concat();
    // SAFETY: sample.cu: a block for every row of the list, which names rows of the logits, and room for as many results
    // (both checked above); all live as long as their stream's work.
    unsafe { cuda.launch(KernelName::plain(OP), [rows.len, 1, 1], CUDA_THREADS, &arguments)? };
    lists.copy_results(rows.len * SAMPLED_WORDS).map(PendingSamples)
}

/// What [`sample_rows`] says, on its way to the host. To be read before another step but one samples.
#[derive(Debug)]
pub struct PendingSamples(PendingResults);

impl PendingSamples {
    /// Whether it has come.
    ///
    /// # Errors
    /// [`Error::Cuda`]: what went wrong meanwhile.
    pub fn is_ready(&self, lists: &StepLists) -> Result<bool> {
        lists.cuda().expect("they sampled").has_results(&self.0)
    }

    /// One result a row, once they have come.
    ///
    /// # Errors
    /// [`Error::Cuda`]: what went wrong meanwhile.
    pub fn wait(&self, lists: &StepLists) -> Result<Vec<Sampled>> {
        let words = lists.cuda().expect("they sampled").results(&self.0)?;
        let sampled = |&[id, logprob, log_sum_exp, unsound]: &[u32; SAMPLED_WORDS]| Sampled {
            id,
            logprob: f32::from_bits(logprob),
            log_sum_exp: f32::from_bits(log_sum_exp),
            unsound: (unsound != NO_ID).then_some(unsound),
        };
        Ok(words.as_chunks().0.iter().map(sampled).collect())
    }
}

/// Rows of a step whose tokens are results of the step before, which the host need not know yet.
#[derive(Clone, Copy, Debug)]
pub struct ContinuedRows {
    ids: u64,
    from: u64,
    sampled: u64,
    len: usize,
}

/// No result: the token of such a row is known.
pub const NO_RESULT: u32 = u32::MAX;

impl ContinuedRows {
    pub(crate) fn of(lists: &mut CudaLists, ids: Indices<'_>, from: &[u32]) -> Result<ContinuedRows> {
        const OP: &str = "continue_rows";
        expect_entries(OP, "from", from.len(), ids.host().len())?;
        let unknown = from.iter().filter(|from| **from != NO_RESULT).map(|from| *from as usize);
        let limit = lists.limits.max_logit_rows;
        if let Some(index) = unknown.max().filter(|index| *index >= limit) {
            return Err(Error::Index { op: OP, arg: "from", index, limit });
        }
        let (ids, sampled) = (ids.address(OP, "ids")?, lists.sampled.address());
        Ok(ContinuedRows { ids, from: lists.push(from)?, sampled, len: from.len() })
    }
}

/// Replaces ids of a step on its GPU by what the step before has sampled.
///
/// # Errors
/// [`Error::UnsupportedDevice`] elsewhere; [`Error::Cuda`].
pub fn continue_rows(device: &Device, rows: &ContinuedRows) -> Result<()> {
    const OP: &str = "continue_rows";
    let Device::Cuda(cuda) = device else {
        return Err(Error::UnsupportedDevice { op: OP, arg: "rows", device: device.describe() });
    };
    let arguments = [rows.ids, rows.sampled, rows.from].map(Argument::Pointer);
    let arguments = [&arguments[..], &[Argument::count(rows.len)]].concat();
    let grid = [rows.len.div_ceil(CONTINUED_THREADS), 1, 1];
    // SAFETY: sample.cu: lists of as many rows, and results that `sampled` has room for (checked by `of`; what a graph is given later,
    // whoever launches it answers for). Results are ids of the vocabulary.
    unsafe { cuda.launch(KernelName::plain(OP), grid, CONTINUED_THREADS, &arguments) }
}

/// Rows of a block that continues rows.
const CONTINUED_THREADS: usize = 32;
