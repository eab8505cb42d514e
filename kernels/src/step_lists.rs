//! The lists of numbers that a step's operations read: which tokens, at which positions, in which blocks of the cache.
//!
//! The processor reads them where they are. For a GPU they are gathered in pinned memory and copied there, block tables and all
//! others in one piece each, before the step's first operation; grammar masks, which may come later, before it samples. The memory is as
//! large as the largest step needs, so a step allocates nothing.

use std::ops::Range;
use std::sync::Arc;

use crate::cuda::{Context, DeviceMemory, Event, PinnedWords};
use crate::limits::{BLOCK_SIZE, KV_SPLIT, MIN_CUDA_SPLITS};
use crate::ops::AttentionRows;
use crate::ops::attention::{AttentionLists, BLOCK_PAIRS, SequenceRows};
use crate::ops::sample::{
    ContinuedRows, CountedTokens, MAX_COUNTED_ROWS, PART_WORDS, PROCESS_ROW_WORDS, ProcessRows, ProcessedRows,
    SAMPLE_ROW_WORDS, SAMPLED_WORDS, SampleRow, SampleRows, TOP_ROW_WORDS, TOP_WORDS, table_words,
};
use crate::{Device, Error, Result};

/// A list of numbers, one a row: of the host, and where an operation's device has it.
#[derive(Clone, Copy, Debug)]
pub struct Indices<'a> {
    host: &'a [u32],
    /// On a GPU; 0 where it is not.
    address: u64,
}

impl<'a> Indices<'a> {
    /// The numbers.
    pub fn host(&self) -> &'a [u32] {
        self.host
    }

    /// Where a GPU has them.
    pub(crate) fn address(&self, op: &'static str, arg: &'static str) -> Result<u64> {
        match self.address {
            0 if !self.host.is_empty() => Err(Error::UnsupportedDevice { op, arg, device: "cpu".to_owned() }),
            address => Ok(address),
        }
    }
}

impl<'a, T: AsRef<[u32]> + ?Sized> From<&'a T> for Indices<'a> {
    fn from(host: &'a T) -> Indices<'a> {
        Indices { host: host.as_ref(), address: 0 }
    }
}

/// What a step holds at most.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Rows.
    pub max_rows: usize,
    /// Sequences that they belong to.
    pub max_sequences: usize,
    /// Slots that sequences have: their numbers are below it.
    pub max_slots: usize,
    /// Rows whose logits are computed.
    pub max_logit_rows: usize,
    /// Tokens that a row of logits scores.
    pub vocab_size: usize,
    /// Words of the biases and bans of a sequence.
    pub max_list_words: usize,
    /// Tokens that are reported of a row of logits.
    pub max_tops: usize,
    /// Positions of a sequence.
    pub max_context: usize,
    /// Query heads of this rank.
    pub num_heads: usize,
    /// Its KV heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl StepLimits {
    /// Words of the block tables of the largest step.
    fn table_words(&self) -> usize {
        self.max_sequences * self.max_context.div_ceil(BLOCK_SIZE)
    }

    /// Words of a sequence's mask, and of all those of the largest step: in a step a sequence has one.
    pub(crate) fn mask_words(&self) -> [usize; 2] {
        let words = self.vocab_size.div_ceil(32).next_multiple_of(ALIGNED_WORDS);
        [words, words * self.max_sequences]
    }

    /// Words of all its other lists.
    fn words(&self) -> usize {
        // Two words a split, and a count for every launch that it takes to compute all. A fixed layout has room for one launch.
        let splits = (self.max_sequences * self.max_context.div_ceil(KV_SPLIT)).max(self.splits_of_launch());
        let groups = splits.div_ceil(self.splits_of_launch() / 2) + 1;
        // Two words for every piece of a chunk, of so many pairs of a row and a head; the last of a sequence may be shorter.
        let pairs = self.max_rows * self.num_heads / self.num_kv_heads.max(1);
        let pieces = pairs.div_ceil(BLOCK_PAIRS) + self.max_sequences;
        // Tokens and how they are counted; of attention; what continues.
        let per_row = 3 + 1 + 3 + 1;
        let per_sequence = 4 + self.max_list_words;
        let per_logit_row = 1 + PROCESS_ROW_WORDS + SAMPLE_ROW_WORDS + TOP_ROW_WORDS;
        // Every list begins at a multiple of ALIGNED_WORDS: fifteen of a step, two of every launch, and two of every sequence.
        let lists = 15 + 2 * groups + 2 * self.max_sequences;
        per_row * self.max_rows
            + per_sequence * self.max_sequences
            + self.max_slots
            + per_logit_row * self.max_logit_rows
            + 2 * splits
            + groups
            + 2 * pieces
            + lists * ALIGNED_WORDS
    }

    /// Splits of attention whose sums one launch keeps: those of a sequence at least.
    pub(crate) fn splits_of_launch(&self) -> usize {
        MIN_CUDA_SPLITS.max(self.max_context.div_ceil(KV_SPLIT))
    }

    /// Bytes of a split's sums and of its softmax, over all heads.
    fn split_bytes(&self) -> [usize; 2] {
        [self.head_dim, 2].map(|len| self.num_heads * len * size_of::<f32>())
    }

    /// Words of what the largest step samples.
    fn result_words(&self) -> usize {
        (SAMPLED_WORDS + TOP_WORDS * self.max_tops) * self.max_logit_rows
    }

    /// Words of the parts of rows that the largest step samples.
    fn part_words(&self) -> usize {
        PART_WORDS * self.max_logit_rows
    }

    /// Words of the counts of tokens of all slots.
    fn count_words(&self) -> usize {
        self.max_slots * table_words(self.vocab_size)
    }

    /// Bytes that [`StepLists`] of these limits take on `device`.
    pub fn bytes(&self, device: &Device) -> usize {
        match device {
            Device::Cuda(_) => {
                let splits: usize = self.split_bytes().map(|bytes| bytes * self.splits_of_launch()).iter().sum();
                let [_, masks] = self.mask_words();
                let lists = self.words() + self.table_words() + masks;
                let sampling = self.result_words() + self.part_words() + self.count_words() + EARLIER_WORDS;
                (lists + sampling) * size_of::<u32>() + splits
            }
            Device::Cpu(_) | Device::Plan(_) => 0,
        }
    }
}

/// Lists begin at multiples of 16 bytes.
const ALIGNED_WORDS: usize = 4;

/// Words of tokens that were computed by others, which are counted at a time.
const EARLIER_WORDS: usize = 2 * MAX_COUNTED_ROWS;

/// The lists of the present step.
pub struct StepLists {
    cuda: Option<CudaLists>,
}

/// What a GPU needs for them.
pub(crate) struct CudaLists {
    pub(crate) limits: StepLimits,
    /// Gathered here, one step after the other in turns: a step is gathered while the one before is copied.
    pinned: [PinnedWords; 2],
    copied: [Event; 2],
    turn: usize,
    words: DeviceMemory,
    /// All lists but block tables, which are behind them: a list that may be long and whose length differs from step to step
    /// would keep the others from having a fixed place.
    lists: Area,
    tables: Area,
    /// Masks, behind them: they come when the others were sent already.
    masks: Area,
    /// Rows that every list has room for, in a step whose lists have fixed places.
    fixed_rows: Option<usize>,
    /// Sums and softmaxes of the splits of one launch of attention.
    pub(crate) splits: [DeviceMemory; 2],
    /// What sampling says of each row, and behind it the likeliest tokens of those that report them.
    pub(crate) sampled: DeviceMemory,
    /// What parts of rows say, while they are put together.
    pub(crate) parts: DeviceMemory,
    /// How often each slot's sequence has each token, where somebody asks (`process.cu`).
    pub(crate) counts: DeviceMemory,
    /// Tokens that were computed by others, on the way into the counts.
    pub(crate) earlier: DeviceMemory,
    /// Copies of it for the host, in the same turns as what is sent.
    results: [Results; 2],
}

/// What a step has sampled, for the host.
struct Results {
    words: PinnedWords,
    copied: Event,
    /// Counts the copies, so that nobody takes one for another.
    number: u64,
}

/// A copy that is on its way.
#[derive(Debug)]
pub(crate) struct PendingResults {
    turn: usize,
    number: u64,
    words: usize,
}

impl StepLists {
    /// For steps within `limits`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn new(device: &Device, limits: StepLimits) -> Result<StepLists> {
        let Device::Cuda(cuda) = device else { return Ok(StepLists { cuda: None }) };
        let (context, words, table_words) = (&cuda.context, limits.words(), limits.table_words());
        let [_, mask_words] = limits.mask_words();
        let masks_start = words + table_words;
        let capacity = masks_start + mask_words;
        let memory = |bytes| DeviceMemory::zeroed(context, bytes, "step lists");
        let [sums, states] = limits.split_bytes().map(|bytes| memory(bytes * limits.splits_of_launch()));
        let lists = CudaLists {
            limits,
            pinned: [PinnedWords::zeroed(context, capacity)?, PinnedWords::zeroed(context, capacity)?],
            copied: [Event::new(context)?, Event::new(context)?],
            turn: 0,
            lists: Area { start: 0, len: 0, capacity: words },
            tables: Area { start: words, len: 0, capacity: table_words },
            masks: Area { start: masks_start, len: 0, capacity: mask_words },
            fixed_rows: None,
            words: memory(capacity * size_of::<u32>())?,
            splits: [sums?, states?],
            sampled: memory(limits.result_words() * size_of::<u32>())?,
            parts: memory(limits.part_words() * size_of::<u32>())?,
            counts: memory(limits.count_words() * size_of::<u32>())?,
            earlier: memory(EARLIER_WORDS * size_of::<u32>())?,
            results: [Results::new(context, limits)?, Results::new(context, limits)?],
        };
        Ok(StepLists { cuda: Some(lists) })
    }

    /// Forgets the lists of the step before.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn begin(&mut self) -> Result<()> {
        self.begin_with(None)
    }

    /// The same for a step of `rows` single rows whose lists lie where those of every other such step do, as a graph needs them.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn begin_fixed(&mut self, rows: usize) -> Result<()> {
        self.begin_with(Some(rows))
    }

    fn begin_with(&mut self, fixed_rows: Option<usize>) -> Result<()> {
        let Some(lists) = &mut self.cuda else { return Ok(()) };
        lists.turn ^= 1;
        (lists.lists.len, lists.tables.len, lists.masks.len) = (0, 0, 0);
        lists.fixed_rows = fixed_rows;
        lists.copied[lists.turn].wait()
    }

    /// Whether one launch has room for all splits of these single rows.
    pub fn is_one_launch(&self, sequences: &[SequenceRows<'_>]) -> bool {
        let splits = sequences.iter().map(|sequence| (sequence.start_position + 1).div_ceil(KV_SPLIT)).sum::<usize>();
        self.cuda.as_ref().is_none_or(|lists| splits <= lists.limits.splits_of_launch())
    }

    /// Adds a list.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the limits.
    pub fn indices<'a>(&mut self, host: &'a [u32]) -> Result<Indices<'a>> {
        let address = match &mut self.cuda {
            Some(lists) => lists.push(host)?,
            None => 0,
        };
        Ok(Indices { host, address })
    }

    /// Adds what attention needs to know of the rows of `sequences`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the limits.
    pub fn attention<'a>(&mut self, sequences: &'a [SequenceRows<'a>]) -> Result<AttentionRows<'a>> {
        let lists = self.cuda.as_mut().map(|lists| AttentionLists::of(lists, sequences)).transpose()?;
        Ok(AttentionRows { lists, ..AttentionRows::new(sequences) })
    }

    /// Adds the rows of logits that the device samples from; `None` where the processor does.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the limits.
    pub fn samples(&mut self, rows: &[SampleRow]) -> Result<Option<SampleRows>> {
        self.cuda.as_mut().map(|lists| SampleRows::of(lists, rows)).transpose()
    }

    /// Adds what happens to rows of logits before the device samples from them; `None` where nothing does, or the processor samples.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the limits; [`Error::Index`] for a slot beyond them.
    pub fn processed(&mut self, rows: &[ProcessedRows<'_>]) -> Result<Option<ProcessRows>> {
        self.cuda.as_mut().map_or(Ok(None), |lists| ProcessRows::of(lists, rows))
    }

    /// Adds what the step does to the counts of tokens: the slots whose counts begin anew, and how the first of `ids` are counted
    /// ([`counted_as`](crate::ops::sample::counted_as), or [`NOT_COUNTED`](crate::ops::sample::NOT_COUNTED)). `None` where nothing is
    /// counted, or no device counts.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the limits; [`Error::Index`] for a slot beyond them.
    pub fn counted(&mut self, forgotten: &[u32], ids: Indices<'_>, counted: &[u32]) -> Result<Option<CountedTokens>> {
        let is_any = !(forgotten.is_empty() && counted.is_empty());
        let Some(lists) = self.cuda.as_mut().filter(|_| is_any) else { return Ok(None) };
        CountedTokens::of(lists, forgotten, ids, counted).map(Some)
    }

    /// Sends the masks of the sequences that [`processed`](StepLists::processed) was told of as masked, in their order: bit `id % 8` of
    /// byte `id / 8` allows a token, a missing byte none. Once a step, after [`send`](StepLists::send).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the limits; [`Error::Cuda`].
    pub fn send_masks<'m>(&mut self, masks: impl IntoIterator<Item = &'m [u8]>) -> Result<()> {
        let Some(lists) = &mut self.cuda else { return Ok(()) };
        let [mask_words, _] = lists.limits.mask_words();
        for mask in masks {
            let start = lists.masks.take(mask_words)?;
            let words = &mut lists.pinned[lists.turn].as_mut_slice()[start..start + mask_words];
            let mask = &mask[..mask.len().min(size_of_val(words))];
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
            bytes[..mask.len()].copy_from_slice(mask);
            bytes[mask.len()..].fill(0);
        }
        // SAFETY: `words` holds the words of this area, and these are written next after `begin` of the next turn but one has waited for
        // the event.
        unsafe { lists.pinned[lists.turn].upload(lists.words.address(), lists.masks.taken())? };
        lists.copied[lists.turn].record()
    }

    /// Adds where the tokens of `ids` come from, row by row: from which result of the last [`sample_rows`](crate::ops::sample::sample_rows),
    /// or [`NO_RESULT`](crate::ops::sample::NO_RESULT) for those that are known. `None` if all are.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the limits.
    pub fn continued(&mut self, ids: Indices<'_>, from: &[u32]) -> Result<Option<ContinuedRows>> {
        let Some(lists) = self.cuda.as_mut().filter(|_| !from.is_empty()) else { return Ok(None) };
        ContinuedRows::of(lists, ids, from).map(Some)
    }

    /// Sends all lists to the device. The step's operations come after it.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn send(&mut self) -> Result<()> {
        let Some(lists) = &mut self.cuda else { return Ok(()) };
        for area in [&lists.lists, &lists.tables] {
            // SAFETY: `words` holds the words of both areas, no fewer than were gathered; these are written next after `begin` of the
            // next turn but one has waited for the event.
            unsafe { lists.pinned[lists.turn].upload(lists.words.address(), area.taken())? };
        }
        lists.copied[lists.turn].record()
    }

    pub(crate) fn cuda(&self) -> Option<&CudaLists> {
        self.cuda.as_ref()
    }

    pub(crate) fn cuda_mut(&mut self) -> Option<&mut CudaLists> {
        self.cuda.as_mut()
    }
}

impl Results {
    fn new(context: &Arc<Context>, limits: StepLimits) -> Result<Results> {
        let words = PinnedWords::zeroed(context, limits.result_words())?;
        Ok(Results { words, copied: Event::new(context)?, number: 0 })
    }
}

impl CudaLists {
    /// Adds a list; where the device will have it.
    pub(crate) fn push(&mut self, list: &[u32]) -> Result<u64> {
        self.push_with_room(list, 0)
    }

    /// Adds a list of at most `longest` words, for which there is room if lists have fixed places.
    pub(crate) fn push_with_room(&mut self, list: &[u32], longest: usize) -> Result<u64> {
        let room = if self.fixed_rows.is_some() { longest } else { 0 };
        let start = self.lists.take(list.len().max(room))?;
        self.write(start, list)
    }

    /// Adds a list; at which word of all the device will have it.
    pub(crate) fn push_at(&mut self, list: &[u32]) -> Result<u32> {
        let start = self.lists.take(list.len())?;
        self.write(start, list)?;
        Ok(start as u32)
    }

    /// At which word of all the device will have mask number `index` of the step.
    pub(crate) fn mask_place(&self, index: usize) -> Result<u32> {
        let ([words, _], limit) = (self.limits.mask_words(), self.limits.max_sequences);
        if index >= limit {
            return Err(Error::Index { op: "process_rows", arg: "masks", index, limit });
        }
        Ok((self.masks.start + index * words) as u32)
    }

    /// Masks that were sent for the step.
    pub(crate) fn masks_sent(&self) -> usize {
        let [words, _] = self.limits.mask_words();
        self.masks.len / words
    }

    /// Where the device has the first word of all.
    pub(crate) fn address(&self) -> u64 {
        self.words.address()
    }

    /// Adds block tables; where the device will have the first of a step's.
    pub(crate) fn push_tables(&mut self, tables: &[u32]) -> Result<u64> {
        let start = self.tables.take(tables.len())?;
        self.write(start, tables)
    }

    /// Rows of a step whose lists have fixed places.
    pub(crate) fn fixed_rows(&self) -> Option<usize> {
        self.fixed_rows
    }

    /// Asks for a copy of the first `words` of what was sampled.
    pub(crate) fn copy_results(&mut self, words: usize) -> Result<PendingResults> {
        let (turn, from) = (self.turn, self.sampled.address());
        let results = &mut self.results[turn];
        results.number += 1;
        // SAFETY: `sampled` holds as many words as each of the copies, which `download` checks; whoever reads the copy waits for the
        // event, and one that a later copy replaces is not read any more (`results`).
        unsafe { results.words.download(from, words)? };
        results.copied.record()?;
        Ok(PendingResults { turn, number: results.number, words })
    }

    /// Whether a copy has come.
    pub(crate) fn has_results(&self, pending: &PendingResults) -> Result<bool> {
        self.results[pending.turn].copied.is_passed()
    }

    /// The copy, once it has come.
    ///
    /// # Panics
    /// If two steps have sampled since.
    pub(crate) fn results(&self, pending: &PendingResults) -> Result<&[u32]> {
        let results = &self.results[pending.turn];
        assert_eq!(
            results.number, pending.number,
            "the results of a step are read before those of the next but one are asked for"
        );
        results.copied.wait()?;
        Ok(&results.words.as_slice()[..pending.words])
    }

    fn write(&mut self, start: usize, list: &[u32]) -> Result<u64> {
        self.pinned[self.turn].as_mut_slice()[start..start + list.len()].copy_from_slice(list);
        Ok(self.words.address() + (start * size_of::<u32>()) as u64)
    }
}

/// A part of the words.
struct Area {
    start: usize,
    /// Words taken so far.
    len: usize,
    capacity: usize,
}

impl Area {
    /// What was taken.
    fn taken(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// The place of the next `words`.
    fn take(&mut self, words: usize) -> Result<usize> {
        let available = self.capacity - self.len;
        if words > available {
            let [requested_bytes, available_bytes] = [words, available].map(|words| words * size_of::<u32>());
            return Err(Error::OutOfMemory { arena: "step lists", requested_bytes, available_bytes });
        }
        let start = self.start + self.len;
        self.len = (self.len + words).next_multiple_of(ALIGNED_WORDS).min(self.capacity);
        Ok(start)
    }
}
