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
    /// A token that is known: it is scored instead of what would be sampled.
    pub known: Option<u32>,
    /// The most likely tokens that are to be reported.
    pub top: Top,
}

/// So many tokens, best first, equal ones by ascending id; and what equals the last of them, up to `most` altogether.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Top {
    /// How many; none is 0.
    pub n: usize,
    /// No fewer than `n`.
    pub most: usize,
}

/// Tokens that may be reported of a row, as `top.cu` has it.
pub const MAX_TOPS: usize = 160;

/// A draw from the softmax of logits / temperature, of those that stay: the `top_k` largest and what equals the last of them; of those
/// the fewest that hold `top_p` of the probability, equal ones by ascending id; of those what is at least `min_p` times as likely as the
/// likeliest; of those, by distance from their entropy, the fewest that hold `typical_p`, and what is as far as the last of them.
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
    /// Above 0, below 1.
    pub typical_p: Option<f32>,
}

impl Draw {
    /// From all logits as they are.
    pub fn plain(seed: u64) -> Draw {
        Draw { seed, temperature: 1.0, top_k: None, top_p: None, min_p: None, typical_p: None }
    }

    /// Whether some do not stay.
    fn truncates(&self) -> bool {
        self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some() || self.typical_p.is_some()
    }
}

/// What sampling says of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// ln Σ e^logit over the row.
    pub log_sum_exp: f32,
    /// The lowest id whose logit is NaN or infinite, if there is one: the others then mean nothing.
    pub unsound: Option<u32>,
    /// The most likely tokens with their log-probabilities, if they were asked for and there is a distribution.
    pub top: Vec<(u32, f32)>,
}

/// Rows to sample from, where their device has them.
pub struct SampleRows {
    address: u64,
    len: usize,
    /// The rows of logits that there have to be.
    logit_rows: usize,
    /// Whether some are not drawn from all logits.
    truncates: bool,
    /// Which of them have tokens to report, and where the device has their list.
    tops: Vec<usize>,
    tops_address: u64,
    /// Room for the tokens of each.
    tops_width: usize,
}

/// Words of a row to sample from, and of what comes of it, as `sample.cuh` has them.
pub(crate) const SAMPLE_ROW_WORDS: usize = 16;
pub(crate) const SAMPLED_WORDS: usize = 4;

/// Words of a row that reports tokens, and of such a token, as `top.cu` has them.
pub(crate) const TOP_ROW_WORDS: usize = 4;
pub(crate) const TOP_WORDS: usize = 2;

/// Threads of a row, as `sample.cuh` has them; its parts, their words, and rows of a block that puts parts together, as `sample.cu`.
const CUDA_THREADS: usize = 512;
const PARTS: usize = 8;
pub(crate) const PART_WORDS: usize = 8 * PARTS;
const THREADS_OF_PARTS: usize = 32;

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
                draw.typical_p.unwrap_or(1.0).to_bits(),
                0,
                0,
                f32::INFINITY.to_bits(),
                row.known.unwrap_or(NO_ID),
            ]
        };
        let words: Vec<[u32; SAMPLE_ROW_WORDS]> = rows.iter().map(words).collect();
        if let Some(id) = rows.iter().filter_map(|row| row.known).find(|id| *id as usize >= lists.limits.vocab_size) {
            let (index, limit) = (id as usize, lists.limits.vocab_size);
            return Err(Error::Index { op: "sample_rows", arg: "known", index, limit });
        }
        let logit_rows = rows.iter().map(|row| row.row as usize + 1).max().unwrap_or(0);
        let truncates = rows.iter().any(|row| row.draw.is_some_and(|draw| draw.truncates()));
        let (mut tops, mut top_words, mut tops_width) = (Vec::new(), Vec::new(), 0);
        for (at, Top { n, most }) in rows.iter().map(|row| row.top).enumerate().filter(|(_, top)| top.n > 0) {
            let limit = lists.limits.max_tops.min(MAX_TOPS);
            if most > limit || n > most {
                return Err(Error::Index { op: "sample_rows", arg: "top", index: n.max(most), limit: limit + 1 });
            }
            tops.push(at);
            top_words.extend([at, n, most, 0].map(|word| word as u32));
            tops_width = tops_width.max(most);
        }
        Ok(SampleRows {
            address: lists.push(words.as_flattened())?,
            len: rows.len(),
            logit_rows,
            truncates,
            tops,
            tops_address: lists.push(&top_words)?,
            tops_width,
        })
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
    let addresses = [lists.parts.address(), logits.address(), rows.address].map(Argument::Pointer);
    let arguments = [&addresses[..], &[Argument::count(logits.cols())]].concat();
    // SAFETY: sample.cu: a block for every part of every row of the list, which names rows of the logits, and room for as many parts
    // (both checked above); all live as long as their stream's work.
    unsafe { cuda.launch(KernelName::plain("sample_parts"), [PARTS, rows.len, 1], CUDA_THREADS, &arguments)? };
    let addresses = [lists.sampled.address(), lists.parts.address(), logits.address(), rows.address];
    let arguments = [&addresses.map(Argument::Pointer)[..], &[rows.len, logits.cols()].map(Argument::count)].concat();
    let grid = [rows.len.div_ceil(THREADS_OF_PARTS), 1, 1];
    // SAFETY: as above, and room for as many results.
    unsafe { cuda.launch(KernelName::plain(OP), grid, THREADS_OF_PARTS, &arguments)? };
    let sampled_words = rows.len * SAMPLED_WORDS;
    // Behind what was sampled.
    let tops = lists.sampled.address() + (sampled_words * size_of::<u32>()) as u64;
    let pointers = [tops, rows.tops_address, rows.address, lists.sampled.address(), logits.address()];
    let arguments =
        [&pointers.map(Argument::Pointer)[..], &[logits.cols(), rows.tops_width].map(Argument::count)].concat();
    // SAFETY: top.cu: a block for every row of the list, which names entries of the other, and room for as many tokens behind the
    // results of all rows (checked by `of` and above); all live as long as their stream's work.
    unsafe { cuda.launch(KernelName::plain("top_rows"), [rows.tops.len(), 1, 1], CUDA_THREADS, &arguments)? };
    let results = lists.copy_results(sampled_words + rows.tops.len() * rows.tops_width * TOP_WORDS)?;
    Ok(PendingSamples { results, rows: rows.len, tops: rows.tops.clone(), tops_width: rows.tops_width })
}

/// What [`sample_rows`] says, on its way to the host. To be read before another step but one samples.
#[derive(Debug)]
pub struct PendingSamples {
    results: PendingResults,
    rows: usize,
    tops: Vec<usize>,
    tops_width: usize,
}

impl PendingSamples {
    /// Whether it has come.
    ///
    /// # Errors
    /// [`Error::Cuda`]: what went wrong meanwhile.
    pub fn is_ready(&self, lists: &StepLists) -> Result<bool> {
        lists.cuda().expect("they sampled").has_results(&self.results)
    }

    /// One result a row, once they have come.
    ///
    /// # Errors
    /// [`Error::Cuda`]: what went wrong meanwhile.
    pub fn wait(&self, lists: &StepLists) -> Result<Vec<Sampled>> {
        let words = lists.cuda().expect("they sampled").results(&self.results)?;
        let (words, tops) = words.split_at(self.rows * SAMPLED_WORDS);
        let sampled = |&[id, logprob, log_sum_exp, unsound]: &[u32; SAMPLED_WORDS]| Sampled {
            id,
            logprob: f32::from_bits(logprob),
            log_sum_exp: f32::from_bits(log_sum_exp),
            unsound: (unsound != NO_ID).then_some(unsound),
            top: Vec::new(),
        };
        let mut sampled: Vec<Sampled> = words.as_chunks().0.iter().map(sampled).collect();
        for (row, tokens) in self.tops.iter().zip(tops.chunks((self.tops_width * TOP_WORDS).max(1))) {
            let (tokens, _) = tokens.as_chunks::<TOP_WORDS>();
            let tokens = tokens.iter().take_while(|[id, _]| *id != NO_ID);
            sampled[*row].top.extend(tokens.map(|&[id, logprob]| (id, f32::from_bits(logprob))));
        }
        Ok(sampled)
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
