//! The logits of a step, where sampling needs them: most rows are sampled where they were computed, the others are read by the
//! processor.

use std::ops::Range;

use kernels::ops::sample::{PendingSamples, SampleRow, SampleRows, Sampled, sample_rows};
use kernels::{StepLists, Tensor, Values};

use crate::error::Result;
use crate::slots::{Prediction, Rows, SampledRow, Slots};

/// Rows that their device samples from, chosen before the forward pass.
#[derive(Default)]
pub(crate) struct DeviceRows {
    rows: Vec<SampleRow>,
    /// Of every sampled row of the step, in its order: which of `rows` are its own and its draft's.
    of_sampled: Vec<Range<usize>>,
    sent: Option<SampleRows>,
}

impl DeviceRows {
    /// Adds those of a step to its lists.
    ///
    /// # Errors
    /// If there are more than the lists were made for.
    pub(crate) fn choose(&mut self, rows: &Rows, slots: &Slots, lists: &mut StepLists) -> Result<()> {
        self.rows.clear();
        self.of_sampled.clear();
        for row in &rows.sampled {
            let first = self.rows.len();
            self.rows.extend(device_rows(row, slots));
            self.of_sampled.push(first..self.rows.len());
        }
        self.sent = lists.samples(&self.rows)?;
        if self.sent.is_none() {
            // The processor computed the logits.
            self.of_sampled.fill(0..0);
        }
        Ok(())
    }

    /// Asks the device to sample. `None` where there is none; else what comes of it is on its way.
    ///
    /// # Errors
    /// [`kernels::Error::Cuda`].
    pub(crate) fn sample(&self, logits: &Tensor, lists: &mut StepLists) -> Result<Option<PendingSamples>> {
        Ok(self.sent.as_ref().map(|sent| sample_rows(logits, sent, lists)).transpose()?)
    }

    /// Whether the processor reads nothing of a step but what its device has sampled, one token a row.
    pub(crate) fn are_all(&self, rows: &Rows) -> bool {
        self.sent.is_some()
            && rows.scored.is_empty()
            && rows.kept.is_empty()
            && rows.sampled.iter().all(|row| row.draft_tokens == 0)
            && self.of_sampled.iter().all(|range| range.len() == 1)
    }

    /// Of the sampled rows of a step that has no others, which result is each one's.
    pub(crate) fn results(&self) -> impl Iterator<Item = usize> {
        self.of_sampled.iter().map(|range| range.start)
    }
}

/// Those of a row and its draft, if all that is asked for is what the device does.
fn device_rows(row: &SampledRow, slots: &Slots) -> impl Iterator<Item = SampleRow> {
    let slot = slots.get(row.slot);
    let count = 1 + row.draft_tokens as u32;
    // What a failed row would be given is not looked at.
    let is_simple = slot.params.is_for_device() && slot.failure.is_none();
    let draw = slot.params.device_draw();
    let (first_row, position) = (row.logits as u32, row.position);
    (0..if is_simple { count } else { 0 }).map(move |draft| SampleRow {
        row: first_row + draft,
        position: position + draft,
        draw,
    })
}

/// What sampling reads.
pub(crate) struct StepLogits<'a> {
    vocab_size: usize,
    values: HostLogits<'a>,
    sampled: Vec<Sampled>,
    of_sampled: &'a [Range<usize>],
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
        let (vocab_size, of_sampled) = (logits.cols(), &device_rows.of_sampled[..]);
        let Some(samples) = samples else {
            return Ok(StepLogits {
                vocab_size,
                values: HostLogits::All(logits.as_f32()),
                sampled: Vec::new(),
                of_sampled,
            });
        };
        let sampled = samples.wait(lists)?;

        let mut is_needed = vec![false; logits.rows()];
        for (row, on_device) in rows.sampled.iter().zip(of_sampled) {
            if on_device.is_empty() {
                is_needed[row.logits..=row.logits + row.draft_tokens].fill(true);
            }
        }
        let scored = rows.scored.iter().filter_map(|token| match token.predicted_by {
            Prediction::Row(index) => Some(index),
            Prediction::Kept => None,
        });
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
        Ok(StepLogits { vocab_size, values: HostLogits::Copied { values, places }, sampled, of_sampled })
    }

    /// What the device says of a sampled row and its draft; `None` if the processor samples it.
    pub(crate) fn sampled(&self, index: usize) -> Option<&[Sampled]> {
        let range = self.of_sampled[index].clone();
        (!range.is_empty()).then(|| &self.sampled[range])
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
