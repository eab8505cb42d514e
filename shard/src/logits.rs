//! The logits of a step, where sampling needs them: most rows are sampled where they were computed, the others are read by the
//! processor.

use std::ops::Range;

use kernels::ops::sample::{
    PendingSamples, ProcessRows, ProcessedRows, SampleRow, SampleRows, Sampled, process_rows, sample_rows,
};
use kernels::{StepLists, Tensor, Values};

use crate::error::Result;
use crate::masks::StepMasks;
use crate::sampling::Params;
use crate::slots::{Prediction, Rows, SampledRow, Slots};

/// Rows that their device samples from, chosen before the forward pass.
#[derive(Default)]
pub(crate) struct DeviceRows {
    rows: Vec<SampleRow>,
    /// Of every sampled row of the step, in its order: which of `rows` are its own and its draft's.
    of_sampled: Vec<Range<usize>>,
    /// Of every scored and of every kept row, which of `rows` is its own.
    of_scored: Vec<Option<usize>>,
    of_kept: Vec<Option<usize>>,
    /// Slots with a mask, in the order of the step.
    masked: Vec<u32>,
    sent: Option<SampleRows>,
    /// What happens to their logits first.
    processed: Option<ProcessRows>,
}

impl DeviceRows {
    /// Adds those of a step to its lists.
    ///
    /// # Errors
    /// If there are more than the lists were made for.
    pub(crate) fn choose(
        &mut self,
        rows: &Rows,
        slots: &Slots,
        eos_token_ids: &[u32],
        lists: &mut StepLists,
    ) -> Result<()> {
        self.rows.clear();
        self.of_sampled.clear();
        self.of_scored.clear();
        self.of_kept.clear();
        self.masked.clear();
        let mut processed = Vec::new();
        for row in &rows.sampled {
            let first = self.rows.len();
            let slot = slots.get(row.slot);
            // What a failed row would be given is not looked at.
            if slot.on_device && slot.failure.is_none() {
                self.rows.extend(device_rows(row, &slot.params));
                processed.extend(processed_rows(row, &slot.params, eos_token_ids));
                self.masked.extend(slot.params.masked.then_some(row.slot));
            }
            self.of_sampled.push(first..self.rows.len());
        }
        let prompt_rows = &mut self.rows;
        let mut add = |slot: u32, row: usize, known: Option<u32>| {
            let slot = slots.get(slot);
            let is_for_device = slot.on_device && slot.failure.is_none();
            is_for_device.then(|| {
                let top = slot.params.device_top();
                prompt_rows.push(SampleRow { row: row as u32, position: 0, draw: None, known, top });
                prompt_rows.len() - 1
            })
        };
        self.of_scored.extend(rows.scored.iter().map(|token| match token.predicted_by {
            Prediction::Row(row) => add(token.slot, row, Some(token.token_id)),
            Prediction::Kept => None,
        }));
        self.of_kept.extend(rows.kept.iter().map(|&(slot, row)| add(slot, row, None)));
        self.sent = lists.samples(&self.rows)?;
        self.processed = lists.processed(&processed)?;
        Ok(())
    }

    /// Whether the device can sample only when the masks of its rows are there.
    pub(crate) fn wait_for_masks(&self) -> bool {
        !self.masked.is_empty()
    }

    /// Asks the device to sample; `masks` has those of its rows. `None` where there is none; else what comes of it is on its way.
    ///
    /// # Errors
    /// [`kernels::Error::Cuda`].
    pub(crate) fn sample(
        &self,
        logits: &Tensor,
        masks: &StepMasks,
        lists: &mut StepLists,
    ) -> Result<Option<PendingSamples>> {
        let Some(sent) = &self.sent else { return Ok(None) };
        if let Some(processed) = &self.processed {
            lists.send_masks(self.masked.iter().map(|slot| &masks[slot][..]))?;
            process_rows(logits, processed, lists)?;
        }
        Ok(Some(sample_rows(logits, sent, lists)?))
    }

    /// Whether the processor reads nothing of a step but what its device has sampled, one token a row.
    pub(crate) fn are_all(&self, rows: &Rows) -> bool {
        self.sent.is_some()
            && rows.scored.is_empty()
            && rows.kept.is_empty()
            && !self.wait_for_masks()
            && rows.sampled.iter().all(|row| row.draft_tokens == 0)
            && self.of_sampled.iter().all(|range| range.len() == 1)
    }

    /// Of the sampled rows of a step that has no others, which result is each one's.
    pub(crate) fn results(&self) -> impl Iterator<Item = usize> {
        self.of_sampled.iter().map(|range| range.start)
    }
}

/// Those of a row and its draft.
fn device_rows(row: &SampledRow, params: &Params) -> impl Iterator<Item = SampleRow> {
    let (draw, top) = (params.device_draw(), params.device_top());
    let (first_row, position) = (row.logits as u32, row.position);
    let device_row = move |at| SampleRow { row: first_row + at, position: position + at, draw, known: None, top };
    (0..=row.draft_tokens as u32).map(device_row)
}

/// What happens to their logits; `None` if nothing does.
fn processed_rows<'a>(row: &SampledRow, params: &'a Params, eos_token_ids: &'a [u32]) -> Option<ProcessedRows<'a>> {
    let (lists, may_end_from) = (params.device_lists(), params.may_end_from());
    let penalties = params.device_penalties().map(|penalties| (row.slot, penalties));
    let is_early = row.position < may_end_from;
    let is_processed =
        penalties.is_some() || is_early || params.masked || !lists.biases.is_empty() || !lists.bans.is_empty();
    is_processed.then_some(ProcessedRows {
        first_row: row.logits as u32,
        num_rows: 1 + row.draft_tokens as u32,
        first_position: row.position,
        penalties,
        biases: &lists.biases,
        bans: &lists.bans,
        early_bans: if is_early { (eos_token_ids, may_end_from) } else { (&[], 0) },
        is_masked: params.masked,
    })
}

/// What sampling reads.
pub(crate) struct StepLogits<'a> {
    vocab_size: usize,
    values: HostLogits<'a>,
    sampled: Vec<Sampled>,
    device_rows: &'a DeviceRows,
}

/// Logits that the processor reads.
enum HostLogits<'a> {
    /// All of them, where they were computed.
    All(Values<'a, f32>),
    /// Copies of the rows that are needed.
    Copied {
        values: Vec<f32>,
        /// Which row of `values` a row is; of neighbours the places are neighbours.
        places: Vec<usize>,
    },
}

impl<'a> StepLogits<'a> {
    /// Waits for what the device samples, and copies what the processor reads.
    ///
    /// # Errors
    /// Whatever the device did wrong meanwhile.
    pub(crate) fn read(
        logits: &'a Tensor,
        device_rows: &'a DeviceRows,
        samples: Option<&PendingSamples>,
        rows: &Rows,
        lists: &StepLists,
    ) -> Result<StepLogits<'a>> {
        let vocab_size = logits.cols();
        let Some(samples) = samples else {
            return Ok(StepLogits {
                vocab_size,
                values: HostLogits::All(logits.as_f32()),
                sampled: Vec::new(),
                device_rows,
            });
        };
        let sampled = samples.wait(lists)?;

        let mut is_needed = vec![false; logits.rows()];
        for (row, on_device) in rows.sampled.iter().zip(&device_rows.of_sampled) {
            if on_device.is_empty() {
                is_needed[row.logits..=row.logits + row.draft_tokens].fill(true);
            }
        }
        let scored = rows.scored.iter().zip(&device_rows.of_scored);
        let scored = scored.filter_map(|(token, on_device)| match (token.predicted_by, on_device) {
            (Prediction::Row(index), None) => Some(index),
            _ => None,
        });
        // Of those that are kept the token is not known yet.
        scored.chain(rows.kept.iter().map(|&(_, index)| index)).for_each(|index| is_needed[index] = true);

        let needed = is_needed.iter().filter(|is_needed| **is_needed).count();
        let (mut values, mut places) = (vec![0.0; needed * vocab_size], Vec::with_capacity(logits.rows()));
        let mut place = 0;
        for part in is_needed.chunk_by(|one, next| one == next) {
            let first = places.len();
            places.extend(place..place + part.len());
            if part[0] {
                let out = &mut values[place * vocab_size..][..part.len() * vocab_size];
                logits.read_f32(first * vocab_size..(first + part.len()) * vocab_size, out)?;
                place += part.len();
            }
        }
        Ok(StepLogits { vocab_size, values: HostLogits::Copied { values, places }, sampled, device_rows })
    }

    /// What the device says of a sampled row and its draft; `None` if the processor samples it.
    pub(crate) fn sampled(&self, index: usize) -> Option<&[Sampled]> {
        let range = self.device_rows.of_sampled[index].clone();
        (!range.is_empty()).then(|| &self.sampled[range])
    }

    /// What it says of a scored row; `None` if the processor scores it.
    pub(crate) fn scored(&self, index: usize) -> Option<&Sampled> {
        self.device_rows.of_scored[index].map(|row| &self.sampled[row])
    }

    /// What it says of a kept row, whose token is not known yet.
    pub(crate) fn kept(&self, index: usize) -> Option<&Sampled> {
        self.device_rows.of_kept[index].map(|row| &self.sampled[row])
    }

    /// Neighbouring rows, of which the processor reads each.
    pub(crate) fn rows(&self, first: usize, count: usize) -> &[f32] {
        let (values, first) = match &self.values {
            HostLogits::All(values) => (&values[..], first),
            HostLogits::Copied { values, places } => (&values[..], places[first]),
        };
        &values[first * self.vocab_size..][..count * self.vocab_size]
    }
}
