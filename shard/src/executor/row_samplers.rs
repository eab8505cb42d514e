//! What the processor samples and scores in a step: rows, dealt out over its threads.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use kernels::Device;
use kernels::ops::sample::Sampled;
use proto::v1::{PromptLogprobs, RowError, StepResult, TopTokens as WireTopTokens};
use proto::{Sample, pack_f32, pack_u32};

use super::panic_message;
use crate::logits::StepLogits;
use crate::masks::StepMasks;
use crate::sampling::{Choice, History, Row, RowFailure, Sampler, TopTokens};
use crate::slots::{KeptLogits, Prediction, Rows, ScoredToken, Slot, Slots};

/// The samplers of all threads, and what they have made of a step.
pub(super) struct RowSamplers {
    host: Device,
    /// One per thread of the host.
    samplers: Vec<Mutex<RowSampler>>,
}

/// One thread's share of the sampling.
struct RowSampler {
    sampler: Sampler,
    top: TopTokens,
    runs: Vec<Run>,
    outcomes: Vec<RowOutcome>,
    scores: Vec<TokenScore>,
}

/// A row and its draft: what is sampled from one of them after the other, until a token is not the draft's.
struct Run {
    /// Its slot's, which grows by every token that the draft had right.
    history: History,
    /// Where its outcomes are, of the thread's.
    outcomes: Range<usize>,
}

/// What a run is sampled from.
struct DraftedRow<'a> {
    slot: &'a Slot,
    scores: Scores<'a>,
    /// Position of the first token to sample.
    position: u32,
    draft: &'a [u32],
    allowed: Option<&'a [u8]>,
    eos_token_ids: &'a [u32],
}

/// What its tokens are chosen by.
#[derive(Clone, Copy)]
enum Scores<'a> {
    /// Logits, `[1 + draft tokens, vocab_size]`.
    Logits(&'a [f32]),
    /// The device's choices, `[1 + draft tokens]`.
    Sampled(&'a [Sampled]),
}

/// What a prompt token is scored by.
enum PredictedToken<'a> {
    /// What the device says of it.
    Known(&'a Sampled),
    /// Logits, and what the device says of them if it did not know the token.
    Logits(&'a [f32], Option<&'a Sampled>),
}

/// What became of one sampled token.
struct RowOutcome {
    choice: Result<Choice, RowFailure>,
    top_tokens: Option<WireTopTokens>,
}

/// The log-probability of one prompt token.
struct TokenScore {
    logprob: Result<f32, RowFailure>,
    top_tokens: Option<WireTopTokens>,
}

impl RowSamplers {
    /// For steps of at most `max_slots` rows.
    pub(super) fn new(host: Device, threads: usize, max_slots: usize) -> RowSamplers {
        let rows = max_slots.div_ceil(threads);
        let sampler = || RowSampler {
            sampler: Sampler::new(host.clone()),
            top: TopTokens::default(),
            runs: Vec::with_capacity(rows),
            outcomes: Vec::with_capacity(rows),
            scores: Vec::new(),
        };
        RowSamplers { samplers: (0..threads).map(|_| Mutex::new(sampler())).collect(), host }
    }

    /// Samples from the logits of the rows, and scores the prompt tokens that are asked for.
    pub(super) fn sample(
        &mut self,
        rows: &Rows,
        logits: &StepLogits<'_>,
        masks: &StepMasks,
        slots: &mut Slots,
        eos_token_ids: &[u32],
    ) {
        let RowSamplers { host, samplers } = self;
        let threads = samplers.len();
        samplers.iter_mut().for_each(|sampler| idle(sampler).clear());
        for (index, row) in rows.sampled.iter().enumerate() {
            let history = std::mem::take(&mut slots.get_mut(row.slot).history);
            idle(&mut samplers[index % threads]).runs.push(Run { history, outcomes: 0..0 });
        }
        let (samplers, all_slots) = (&*samplers, &*slots);
        // Rows are dealt out by index; which thread samples a row cannot be seen in the result.
        host.for_each(threads, |thread| {
            let mut sampler = samplers[thread].lock().expect("row panics are caught below");
            let sampler = &mut *sampler;
            for (run, (index, row)) in rows.sampled.iter().enumerate().skip(thread).step_by(threads).enumerate() {
                let drafted = DraftedRow {
                    slot: all_slots.get(row.slot),
                    scores: match logits.sampled(index) {
                        Some(sampled) => Scores::Sampled(sampled),
                        None => Scores::Logits(logits.rows(row.logits, 1 + row.draft_tokens)),
                    },
                    position: row.position,
                    draft: rows.draft_of(row),
                    allowed: masks.get(&row.slot).map(|allowed| &allowed[..]),
                    eos_token_ids,
                };
                sampler.run(run, &drafted);
            }
            for (index, token) in rows.scored.iter().enumerate().skip(thread).step_by(threads) {
                let slot = all_slots.get(token.slot);
                let prediction = match (token.predicted_by, logits.scored(index), &slot.kept) {
                    (Prediction::Row(_), Some(sampled), _) => PredictedToken::Known(sampled),
                    (Prediction::Row(row), None, _) => PredictedToken::Logits(logits.rows(row, 1), None),
                    (Prediction::Kept, _, Some(kept)) => PredictedToken::Logits(&kept.logits, kept.of_device.as_ref()),
                    (Prediction::Kept, _, None) => unreachable!("a slot that keeps nothing predicts nothing"),
                };
                sampler.score(slot, prediction, token);
            }
        });
        for span in &rows.spans {
            slots.get_mut(span.slot).kept = None;
        }
        for (index, &(slot, row)) in rows.kept.iter().enumerate() {
            let (logits, of_device) = (logits.rows(row, 1).to_vec(), logits.kept(index).cloned());
            slots.get_mut(slot).kept = Some(KeptLogits { logits, of_device });
        }
    }

    /// Writes the outcomes of a step into the slots and its result, in row order.
    pub(super) fn collect(&mut self, rows: &Rows, slots: &mut Slots, result: &mut StepResult) {
        self.collect_scores(rows, slots, result);
        let threads = self.samplers.len();
        let mut samples = Vec::with_capacity(rows.sampled.len());
        for (index, row) in rows.sampled.iter().enumerate() {
            let RowSampler { runs, outcomes, .. } = idle(&mut self.samplers[index % threads]);
            let (run, slot_id) = (&mut runs[index / threads], row.slot);
            let slot = slots.get_mut(slot_id);
            slot.history = std::mem::take(&mut run.history);
            for outcome in &mut outcomes[run.outcomes.clone()] {
                // A prompt that could not be scored is no prompt to continue.
                let choice = slot.failure.clone().map_or_else(|| outcome.choice.clone(), Err);
                match choice {
                    Ok(choice) => {
                        slot.last_token = choice.token_id;
                        samples.push(Sample { slot: slot_id, token_id: choice.token_id, logprob: choice.logprob });
                        let top = outcome.top_tokens.take();
                        result.top_tokens.extend(top.map(|top| WireTopTokens { slot: slot_id, ..top }));
                    }
                    Err(reason) => {
                        slot.last_token = 0;
                        result.row_errors.push(RowError { slot: slot_id, reason: reason.to_string() });
                        slot.failure = Some(reason);
                    }
                }
            }
            // Another token was sampled only where the draft had the one before it right.
            slots.settle(row, rows.draft_of(row), run.outcomes.len() - 1);
        }
        result.samples = Sample::pack(&samples);
    }

    /// Writes the log-probabilities of prompt tokens into the result, chunk by chunk. A slot with a token that has none fails;
    /// that is reported when it is sampled.
    fn collect_scores(&mut self, rows: &Rows, slots: &mut Slots, result: &mut StepResult) {
        let threads = self.samplers.len();
        let mut index = 0;
        for chunk in rows.scored.chunk_by(|one, next| one.slot == next.slot) {
            let ScoredToken { slot: slot_id, position: first_token_position, .. } = chunk[0];
            let slot = slots.get_mut(slot_id);
            let (mut logprobs, mut top_tokens) = (Vec::with_capacity(chunk.len()), Vec::new());
            for _ in chunk {
                let score = &mut idle(&mut self.samplers[index % threads]).scores[index / threads];
                match &score.logprob {
                    Ok(logprob) => logprobs.push(*logprob),
                    Err(reason) => drop(slot.failure.get_or_insert_with(|| reason.clone())),
                }
                top_tokens.extend(score.top_tokens.take().map(|top| WireTopTokens { slot: slot_id, ..top }));
                index += 1;
            }
            if slot.failure.is_none() {
                let logprobs = pack_f32(logprobs);
                result.prompt_logprobs.push(PromptLogprobs {
                    slot: slot_id,
                    first_token_position,
                    logprobs,
                    top_tokens,
                });
            }
        }
    }
}

impl RowSampler {
    /// Forgets the step before.
    fn clear(&mut self) {
        self.runs.clear();
        self.outcomes.clear();
        self.scores.clear();
    }

    /// Samples from a row, and then from those of its draft as far as it is right: every token is the one that a step of its own
    /// would have sampled.
    fn run(&mut self, run: usize, row: &DraftedRow<'_>) {
        let first = self.outcomes.len();
        let mut history = std::mem::take(&mut self.runs[run].history);
        for (position, index) in (row.position..).zip(0..=row.draft.len()) {
            let token_id = self.sample(row, index, &history, position);
            match row.draft.get(index) {
                Some(&draft) if token_id == Some(draft) => history.push(&row.slot.params, position, draft),
                _ => break,
            }
        }
        self.runs[run] = Run { history, outcomes: first..self.outcomes.len() };
    }

    /// Samples one token, behind `index` of the draft's; whatever goes wrong is the outcome of this row alone.
    fn sample(&mut self, row: &DraftedRow<'_>, index: usize, history: &History, position: u32) -> Option<u32> {
        let RowSampler { sampler, top, outcomes, .. } = self;
        let &DraftedRow { slot: Slot { params, failure, .. }, scores, draft, eos_token_ids, allowed, .. } = row;
        let choice = match (failure, scores) {
            // Its last token is unknown, so nothing after it means anything.
            (Some(failure), _) => Err(failure.clone()),
            (None, Scores::Sampled(sampled)) => Choice::of_device(&sampled[index], position),
            (None, Scores::Logits(logits)) => {
                let vocab_size = logits.len() / (1 + draft.len());
                let logits = &logits[index * vocab_size..][..vocab_size];
                let row = Row { logits, params, history, eos_token_ids, allowed, position };
                catch_unwind(AssertUnwindSafe(|| sampler.sample(row, top)))
                    .unwrap_or_else(|panic| Err(RowFailure::Panic(panic_message(&*panic))))
            }
        };
        let token_id = choice.as_ref().ok().map(|choice| choice.token_id);
        let wanted = params.sampling.top_n_tokens() > 0 && choice.is_ok();
        let top = match scores {
            Scores::Sampled(sampled) => &sampled[index].top,
            Scores::Logits(_) => top.tokens(),
        };
        outcomes.push(RowOutcome { choice, top_tokens: wanted.then(|| wire(top)) });
        token_id
    }

    /// Scores one prompt token; whatever goes wrong is the outcome of its slot alone.
    fn score(&mut self, slot: &Slot, predicted: PredictedToken<'_>, token: &ScoredToken) {
        let RowSampler { sampler, top, scores, .. } = self;
        let &ScoredToken { token_id, position, .. } = token;
        let top_n_tokens = slot.params.sampling.top_n_tokens();
        let (logprob, top) = match predicted {
            PredictedToken::Known(sampled) => {
                (Choice::of_device(sampled, position).map(|choice| choice.logprob), &sampled.top[..])
            }
            // As the device would have said it, had it known the token.
            PredictedToken::Logits(logits, Some(sampled)) => {
                let choice = Choice::of_device(sampled, position);
                (choice.map(|_| logits[token_id as usize] - sampled.log_sum_exp), &sampled.top[..])
            }
            PredictedToken::Logits(logits, None) => {
                let score = AssertUnwindSafe(|| sampler.score(logits, token_id, position, top_n_tokens, top));
                let panicked = |panic: Box<dyn Any + Send>| Err(RowFailure::Panic(panic_message(&*panic)));
                (catch_unwind(score).unwrap_or_else(panicked), top.tokens())
            }
        };
        let wanted = top_n_tokens > 0 && logprob.is_ok();
        scores.push(TokenScore { logprob, top_tokens: wanted.then(|| wire(top)) });
    }
}

/// A sampler that no thread is using.
fn idle(sampler: &mut Mutex<RowSampler>) -> &mut RowSampler {
    sampler.get_mut().expect("row panics are caught")
}

/// As a message, whose slot is still to be filled in.
pub(super) fn wire(top: &[(u32, f32)]) -> WireTopTokens {
    WireTopTokens {
        slot: 0,
        ids: pack_u32(top.iter().map(|&(token_id, _)| token_id)),
        logprobs: pack_f32(top.iter().map(|&(_, logprob)| logprob)),
    }
}
