//! What becomes of rows of logits on their GPU before a token is sampled from them: penalties, biases, bans and masks; and how often each
//! token occurs in a sequence, which penalties read. The formulas and their order are those of `kernels/cuda/process.cu`.
//!
//! Counts stay on the device, a table per slot: the token that the step before has sampled is counted before the host knows it.

use crate::contract::{expect_entries, expect_f32};
use crate::cuda::{Argument, Cuda, KernelName};
use crate::step_lists::{CudaLists, Indices, StepLists};
use crate::{Device, Error, Result, Tensor};

/// What is asked of neighbouring rows of logits, which belong to one sequence.
#[derive(Clone, Copy, Debug)]
pub struct ProcessedRows<'a> {
    /// The first.
    pub first_row: u32,
    /// How many.
    pub num_rows: u32,
    /// The absolute position of the token to sample from the first, which is the number of tokens before it; those of the others follow.
    pub first_position: u32,
    /// Whose tokens are penalised, and how.
    pub penalties: Option<(u32, Penalties)>,
    /// What is added to scores: ascending tokens, each once, all of the vocabulary.
    pub biases: &'a [(u32, f32)],
    /// Tokens that must not come; such that the vocabulary does not have are passed over.
    pub bans: &'a [u32],
    /// The same for tokens below a position.
    pub early_bans: (&'a [u32], u32),
    /// Whether a mask says which tokens may come ([`StepLists::send_masks`]).
    pub is_masked: bool,
}

/// Penalties for tokens that occur already; `shard/src/sampling/` has a file for each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// 1 is none.
    pub repetition: f32,
    /// 0 is none.
    pub frequency: f32,
    /// 0 is none.
    pub presence: f32,
    /// 0 is none.
    pub occurrence: f32,
}

/// No slot, no mask.
const NONE: u32 = u32::MAX;

/// A row whose token nobody counts.
pub const NOT_COUNTED: u32 = NONE;

/// How a row's token is counted: as one of a slot's reply, or of its prompt.
pub fn counted_as(slot: u32, is_reply: bool) -> u32 {
    slot << 1 | u32::from(is_reply)
}

/// Words of an entry, as `process.cu` has them.
pub(crate) const PROCESS_ROW_WORDS: usize = 12;

/// Threads of a block, as `sample.cuh` has them, and the tokens that they take.
const THREADS: usize = 512;
const TOKENS_OF_BLOCK: usize = 4 * THREADS;

/// Rows of a block that counts tokens, and of a launch at most: what a count has room for (`process.cu`).
const COUNTED_THREADS: usize = 32;
pub(crate) const MAX_COUNTED_ROWS: usize = 0x8000;

/// Words of a slot's table of counts: whole groups of four.
pub(crate) fn table_words(vocab_size: usize) -> usize {
    vocab_size.next_multiple_of(4)
}

/// Rows to process, where their device has them.
pub struct ProcessRows {
    entries: u64,
    len: usize,
    /// The rows of logits that there have to be.
    logit_rows: usize,
    /// Masks that have to be sent first.
    masked: usize,
}

impl ProcessRows {
    pub(crate) fn of(lists: &mut CudaLists, rows: &[ProcessedRows<'_>]) -> Result<Option<ProcessRows>> {
        let (mut words, mut logit_rows, mut masked) = (Vec::new(), 0, 0);
        for asked in rows {
            let biases: Vec<u32> = asked.biases.iter().flat_map(|(id, bias)| [*id, bias.to_bits()]).collect();
            let [biases_at, bans_at] =
                [lists.push_at(&biases)?, lists.push_at(&[asked.bans, asked.early_bans.0].concat())?];
            let mask_at = if asked.is_masked { lists.mask_place(masked)? } else { NONE };
            masked += usize::from(asked.is_masked);
            let (slot, penalties) = asked.penalties.unwrap_or((NONE, Penalties::NONE));
            if slot != NONE && slot as usize >= lists.limits.max_slots {
                let (index, limit) = (slot as usize, lists.limits.max_slots);
                return Err(Error::Index { op: "process_rows", arg: "slot", index, limit });
            }
            let Penalties { repetition, frequency, presence, occurrence } = penalties;
            for at in 0..asked.num_rows {
                let (row, position) = (asked.first_row + at, asked.first_position + at);
                let (early_bans, until) = asked.early_bans;
                let bans = asked.bans.len() + if position < until { early_bans.len() } else { 0 };
                words.extend([row, slot, position]);
                words.extend([repetition, frequency, presence, occurrence].map(f32::to_bits));
                words.extend([biases_at, asked.biases.len() as u32, bans_at, bans as u32, mask_at]);
                logit_rows = logit_rows.max(row as usize + 1);
            }
        }
        if words.is_empty() {
            return Ok(None);
        }
        let len = words.len() / PROCESS_ROW_WORDS;
        Ok(Some(ProcessRows { entries: lists.push(&words)?, len, logit_rows, masked }))
    }
}

impl Penalties {
    /// None of them.
    pub const NONE: Penalties = Penalties { repetition: 1.0, frequency: 0.0, presence: 0.0, occurrence: 0.0 };
}

/// Changes rows of `logits` (`[S, V]` f32) on their GPU as their requests ask. Masks were sent. Does not wait.
///
/// # Errors
/// [`Error::UnsupportedDevice`] elsewhere; [`Error::Index`] for rows that `logits` does not have, [`Error::Shape`] for another vocabulary
/// than the lists were made for; [`Error::Cuda`].
///
/// # Panics
/// If other masks were sent than the rows have.
pub fn process_rows(logits: &Tensor, rows: &ProcessRows, lists: &StepLists) -> Result<()> {
    const OP: &str = "process_rows";
    expect_f32(OP, &[("logits", logits)])?;
    let (Device::Cuda(cuda), Some(lists)) = (logits.device(), lists.cuda()) else {
        return Err(Error::UnsupportedDevice { op: OP, arg: "logits", device: logits.device().describe() });
    };
    if rows.logit_rows > logits.rows() {
        return Err(Error::Index { op: OP, arg: "rows", index: rows.logit_rows - 1, limit: logits.rows() });
    }
    assert_eq!(lists.masks_sent(), rows.masked, "each sequence that is masked has its mask");
    let vocab_size = lists.limits.vocab_size;
    if logits.cols() != vocab_size {
        let (expected, actual) = (vec![logits.rows(), vocab_size], vec![logits.rows(), logits.cols()]);
        return Err(Error::Shape { op: OP, arg: "logits", expected, actual });
    }
    let pointers = [logits.address(), lists.counts.address(), rows.entries, lists.address()].map(Argument::Pointer);
    let arguments = [&pointers[..], &[Argument::count(vocab_size)]].concat();
    let grid = [vocab_size.div_ceil(TOKENS_OF_BLOCK), rows.len, 1];
    // SAFETY: process.cu: entries name rows of the logits, slots that have tables, and lists of the step's words (all checked above and by
    // `of`); all live as long as their stream's work.
    unsafe { cuda.launch(KernelName::plain(OP), grid, THREADS, &arguments) }
}

/// What a step does to the counts of tokens, where their device has them.
pub struct CountedTokens {
    /// Slots whose counts begin anew, and how many.
    forgotten: (u64, usize),
    ids: u64,
    /// How each of `ids` is counted, and how many there are.
    counted: (u64, usize),
}

impl CountedTokens {
    pub(crate) fn of(
        lists: &mut CudaLists,
        forgotten: &[u32],
        ids: Indices<'_>,
        counted: &[u32],
    ) -> Result<CountedTokens> {
        const OP: &str = "count_tokens";
        let limit = lists.limits.max_slots;
        let slots_of_rows = counted.iter().filter(|counted| **counted != NOT_COUNTED).map(|counted| counted >> 1);
        if let Some(slot) = slots_of_rows.chain(forgotten.iter().copied()).find(|slot| *slot as usize >= limit) {
            return Err(Error::Index { op: OP, arg: "slot", index: slot as usize, limit });
        }
        if counted.len() > ids.host().len() {
            expect_entries(OP, "counted", counted.len(), ids.host().len())?;
        }
        let ids = ids.address(OP, "ids")?;
        let forgotten = (lists.push(forgotten)?, forgotten.len());
        Ok(CountedTokens { forgotten, ids, counted: (lists.push(counted)?, counted.len()) })
    }
}

/// Lets the counts of slots begin anew: before anything of the step is counted.
///
/// # Errors
/// [`Error::UnsupportedDevice`] where no device counts; [`Error::Cuda`].
pub fn forget_slots(device: &Device, tokens: &CountedTokens, lists: &StepLists) -> Result<()> {
    const OP: &str = "forget_slots";
    let (Device::Cuda(cuda), Some(lists)) = (device, lists.cuda()) else {
        return Err(Error::UnsupportedDevice { op: OP, arg: "slots", device: device.describe() });
    };
    let (slots, len) = tokens.forgotten;
    let vocab_size = lists.limits.vocab_size;
    let pointers = [lists.counts.address(), slots].map(Argument::Pointer);
    let arguments = [&pointers[..], &[Argument::count(vocab_size)]].concat();
    let grid = [vocab_size.div_ceil(TOKENS_OF_BLOCK), len, 1];
    // SAFETY: process.cu: a list of slots that have tables (checked by `of`); all live as long as their stream's work.
    unsafe { cuda.launch(KernelName::plain(OP), grid, THREADS, &arguments) }
}

/// Counts the tokens of the step's rows, behind what [continues](super::continue_rows) them.
///
/// # Errors
/// As [`forget_slots`].
pub fn count_tokens(device: &Device, tokens: &CountedTokens, lists: &StepLists) -> Result<()> {
    let (Device::Cuda(cuda), Some(lists)) = (device, lists.cuda()) else {
        return Err(Error::UnsupportedDevice { op: "count_tokens", arg: "rows", device: device.describe() });
    };
    let (counted, len) = tokens.counted;
    for first in (0..len).step_by(MAX_COUNTED_ROWS) {
        let place = (first * size_of::<u32>()) as u64;
        count(cuda, lists, [tokens.ids + place, counted + place], MAX_COUNTED_ROWS.min(len - first))?;
    }
    Ok(())
}

/// Counts tokens of the host, `(id, how)` as [`counted_as`] says it: those before a sequence's first row, where another had computed them.
/// Behind [`forget_slots`]. Waits for the device: sequences with penalties whose beginning is known begin seldom.
///
/// # Errors
/// As [`forget_slots`]; [`Error::Index`] for tokens that the vocabulary does not have, and for slots that do not exist.
pub fn count_earlier_tokens(device: &Device, tokens: &[(u32, u32)], lists: &StepLists) -> Result<()> {
    const OP: &str = "count_earlier_tokens";
    let (Device::Cuda(cuda), Some(lists)) = (device, lists.cuda()) else {
        return Err(Error::UnsupportedDevice { op: OP, arg: "tokens", device: device.describe() });
    };
    for (arg, index, limit) in tokens.iter().flat_map(|&(id, counted)| {
        [("id", id, lists.limits.vocab_size), ("slot", counted >> 1, lists.limits.max_slots)]
    }) {
        if index as usize >= limit {
            return Err(Error::Index { op: OP, arg, index: index as usize, limit });
        }
    }
    for part in tokens.chunks(MAX_COUNTED_ROWS) {
        let words: Vec<u32> = part.iter().map(|(id, _)| *id).chain(part.iter().map(|(_, counted)| *counted)).collect();
        let ids = lists.earlier.address();
        // SAFETY: `earlier` has room for two words of as many tokens, and the turn before has passed: uploading waits.
        unsafe { cuda.context.upload(ids, bytemuck::cast_slice(&words))? };
        count(cuda, lists, [ids, ids + size_of_val(part) as u64 / 2], part.len())?;
    }
    Ok(())
}

/// One launch of at most [`MAX_COUNTED_ROWS`] rows, whose ids and slots were checked.
fn count(cuda: &Cuda, lists: &CudaLists, rows: [u64; 2], len: usize) -> Result<()> {
    let [ids, counted] = rows;
    let pointers = [lists.counts.address(), ids, counted].map(Argument::Pointer);
    let arguments = [&pointers[..], &[len, lists.limits.vocab_size].map(Argument::count)].concat();
    let grid = [len.div_ceil(COUNTED_THREADS), 1, 1];
    // SAFETY: process.cu: lists of `len` rows, ids of the vocabulary, slots that have tables (the caller's obligation); all live as long
    // as their stream's work.
    unsafe { cuda.launch(KernelName::plain("count_tokens"), grid, COUNTED_THREADS, &arguments) }
}
