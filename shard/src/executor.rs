//! One plan in, one result out: check, apply, forward, sample.
//!
//! A step is asked for ([`Executor::submit`]) and later finished ([`Executor::finish`]). Where a device samples, the next one may be
//! asked for in between, and takes its tokens from the device: so the device goes from step to step without waiting for anybody.
//!
//! Deterministic and without I/O. The engine thread (`engine/`) calls it for a router, tests call it directly.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kernels::ops::sample::{PendingSamples, Sampled};
use kernels::{Arena, Device, KvCache, Mark, StepLists, Tensor};
use prost::Message;
use proto::v1::{Plan, PromptLogprobs, RowError, StepResult, Timings, TopTokens as WireTopTokens};
use proto::{Sample, pack_f32, pack_u32};

use crate::comm::{Comm, StepTag};
use crate::logits::{DeviceRows, StepLogits};
use crate::masks::{MaskError, MaskSource, StepMasks};
use crate::models::{DecodeGraphs, Model, SequenceRows, StepInput, StepRows};
use crate::sampling::{Choice, History, Row, RowFailure, Sampler, TopTokens};
use crate::slots::{Prediction, Rows, ScoredToken, Slot, SlotLimits, Slots};
use crate::violation::Violation;

/// Why an epoch cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The router broke the protocol.
    #[error("protocol violation: {0}")]
    Violation(#[from] Violation),
    /// The forward pass failed on this rank, or another rank failed this one.
    #[error("step {seq} failed: {source}")]
    Forward {
        /// The plan.
        seq: u64,
        /// Why.
        source: crate::Error,
    },
    /// The epoch ended while the step waited for grammar masks.
    #[error("step {seq} was interrupted: the stream ended while it waited for its grammar masks")]
    Interrupted {
        /// The plan.
        seq: u64,
    },
    /// A defect of ours.
    #[error("step {seq} panicked: {message}")]
    Panic {
        /// The plan.
        seq: u64,
        /// What the panic said.
        message: String,
    },
}

/// A model with its KV cache and the rows that live in it.
pub struct Executor {
    model: Model,
    comm: Arc<dyn Comm>,
    /// The processor, whose threads sample.
    host: Device,
    kv: KvCache,
    arena: Arena,
    lists: StepLists,
    graphs: DecodeGraphs,
    slots: Slots,
    /// The height of the arena's stack between two steps.
    floor: Mark,
    /// What finished steps leave for the next ones.
    spare: Vec<StepRowLists>,
    /// One per thread of the host.
    samplers: Vec<Mutex<RowSampler>>,
    encoded_plan: Vec<u8>,
    /// The grammar masks of the last step with rows.
    masks: StepMasks,
    /// When the last step was finished.
    last_finished: Instant,
}

/// A step that was asked for.
pub struct StepInFlight {
    seq: u64,
    /// Since when.
    asked: Instant,
    queued: Duration,
    lists: StepRowLists,
    /// `None` if it has no rows.
    computed: Option<Computed>,
}

/// Its rows.
#[derive(Default)]
struct StepRowLists {
    rows: Rows,
    device_rows: DeviceRows,
}

/// What becomes of them.
struct Computed {
    logits: Tensor,
    /// What the device says of them, if it samples.
    samples: Option<PendingSamples>,
    /// Whether that is all that is needed, and the logits may be overwritten.
    is_on_device: bool,
}

impl StepInFlight {
    /// Whether nothing of it is read but what the device has sampled, so that the next step may be asked for before it is finished.
    pub fn is_on_device(&self) -> bool {
        self.computed.as_ref().is_some_and(|computed| computed.is_on_device)
    }

    /// Token rows.
    pub fn tokens(&self) -> usize {
        self.lists.rows.input_ids.len()
    }

    /// When it was asked for.
    pub fn asked(&self) -> Instant {
        self.asked
    }
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

impl Executor {
    /// An executor without live rows.
    pub fn new(
        model: Model,
        comm: Arc<dyn Comm>,
        device: &Device,
        kv: KvCache,
        arena: Arena,
        lists: StepLists,
        limits: SlotLimits,
        threads: usize,
    ) -> Executor {
        let host = device.host().clone();
        let sampler = || RowSampler {
            sampler: Sampler::new(host.clone()),
            top: TopTokens::default(),
            runs: Vec::with_capacity(limits.max_slots.div_ceil(threads)),
            outcomes: Vec::with_capacity(limits.max_slots.div_ceil(threads)),
            scores: Vec::new(),
        };
        let samplers = (0..threads).map(|_| Mutex::new(sampler())).collect();
        Executor {
            floor: arena.mark(),
            model,
            comm,
            host,
            kv,
            arena,
            lists,
            graphs: DecodeGraphs::default(),
            slots: Slots::new(limits),
            spare: Vec::new(),
            samplers,
            encoded_plan: Vec::new(),
            masks: StepMasks::new(),
            last_finished: Instant::now(),
        }
    }

    /// Captures steps of so many single rows as graphs, where the device has graphs. From then on they are computed by them.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn capture_graphs(&mut self, rows: &[usize]) -> Result<(), crate::Error> {
        let Executor { model, kv, arena, lists, .. } = self;
        let device = kv.device().clone();
        // Graphs find their activations where steps begin.
        arena.release(self.floor);
        self.graphs = DecodeGraphs::capture(rows, model, &device, arena, kv, lists)?;
        Ok(())
    }

    /// The numbers of rows that have a graph, ascending.
    pub fn graph_rows(&self) -> Vec<usize> {
        self.graphs.rows().collect()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The live rows.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Whether this rank reports the results.
    pub fn is_first_rank(&self) -> bool {
        self.comm.rank() == 0
    }

    /// Ranks that run the same steps.
    pub fn world_size(&self) -> usize {
        self.comm.world_size()
    }

    /// Whether a token ends a sequence.
    pub fn is_eos(&self, token_id: u32) -> bool {
        self.model.spec().eos_token_ids.contains(&token_id)
    }

    /// Frees all slots and expects plan 1 next.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.masks.clear();
    }

    /// As [`Executor::clear`], and lets collectives run again after an abort.
    pub fn begin_epoch(&mut self) {
        self.comm.resume();
        self.clear();
    }

    /// Carries out one plan. `queued` is how long it waited; `masks` has the grammar masks of its rows, or will have them
    /// when the forward pass is over. No step is in flight.
    ///
    /// # Errors
    /// [`StepError`]: the slots are then in no defined state, and [`Executor::clear`] has to come next.
    pub fn step(
        &mut self,
        epoch: u64,
        plan: &Plan,
        queued: Duration,
        masks: &mut dyn MaskSource,
    ) -> Result<StepResult, StepError> {
        let step = self.submit(epoch, plan, queued)?;
        self.finish(step, masks)
    }

    /// Whether a plan may be asked for while `newest` is in flight, and its tokens are not known here.
    pub fn can_follow(&self, newest: &StepInFlight, plan: &Plan) -> bool {
        // A draft is looked up by the token before it.
        newest.is_on_device() && plan.draft_limits.iter().all(|limit| *limit == 0)
    }

    /// Asks for the step of a plan: of two in flight, the first is finished before a third is asked for, and one that is not on the
    /// device ([`StepInFlight::is_on_device`]) before any.
    ///
    /// # Errors
    /// As [`Executor::step`].
    pub fn submit(&mut self, epoch: u64, plan: &Plan, queued: Duration) -> Result<StepInFlight, StepError> {
        self.slots.check(plan)?;
        // Here and not beside the forward pass, so that a step that failed half-way leaves nothing on the stack.
        self.arena.release(self.floor);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.ask(epoch, plan, queued)));
        outcome.map_err(|panic| StepError::Panic { seq: plan.seq, message: panic_message(&*panic) })?
    }

    /// Whether a step would be finished without waiting for its device.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn is_ready(&self, step: &StepInFlight) -> Result<bool, StepError> {
        let samples = step.computed.as_ref().and_then(|computed| computed.samples.as_ref());
        let failed = |error: kernels::Error| StepError::Forward { seq: step.seq, source: error.into() };
        samples.map_or(Ok(true), |samples| samples.is_ready(&self.lists).map_err(failed))
    }

    /// Waits for a step, the oldest in flight, and samples what its device has not.
    ///
    /// # Errors
    /// As [`Executor::step`].
    pub fn finish(&mut self, step: StepInFlight, masks: &mut dyn MaskSource) -> Result<StepResult, StepError> {
        let seq = step.seq;
        let outcome = catch_unwind(AssertUnwindSafe(|| self.answer(step, masks)));
        self.last_finished = Instant::now();
        outcome.map_err(|panic| StepError::Panic { seq, message: panic_message(&*panic) })?
    }

    /// Whether after this error nothing but a new process will do: a device that has failed, or other ranks that wait for this one.
    pub fn is_lost(&self, error: &StepError) -> bool {
        use kernels::Error::{Cuda, Group};
        let of_device =
            matches!(error, StepError::Forward { source: crate::Error::Kernel(Cuda { .. } | Group { .. }), .. });
        of_device || self.comm.is_lost()
    }

    /// Asks for the step of a plan that was checked.
    fn ask(&mut self, epoch: u64, plan: &Plan, queued: Duration) -> Result<StepInFlight, StepError> {
        let mut lists = self.spare.pop().unwrap_or_default();
        self.slots.apply(plan, &mut lists.rows);
        let mut step = StepInFlight { seq: plan.seq, asked: Instant::now(), queued, lists, computed: None };
        // A plan without rows only frees or fills slots; it takes no collective on any rank.
        if !step.lists.rows.input_ids.is_empty() {
            let failed = |source| StepError::Forward { seq: plan.seq, source };
            let plan_hash = self.plan_hash(plan);
            self.comm.begin_step(StepTag { epoch, seq: plan.seq, plan_hash }).map_err(failed)?;
            step.computed = Some(self.compute(&mut step.lists).map_err(failed)?);
        }
        if step.is_on_device() {
            // They have none; and whether the step before is finished already differs from rank to rank.
            self.masks.clear();
            for (row, result) in step.lists.rows.sampled.iter().zip(step.lists.device_rows.results()) {
                self.slots.expect(row.slot, plan.seq, result as u32);
            }
        }
        Ok(step)
    }

    /// What comes of a step.
    fn answer(&mut self, step: StepInFlight, masks: &mut dyn MaskSource) -> Result<StepResult, StepError> {
        let StepInFlight { seq, asked, queued, mut lists, computed } = step;
        let mut timings = Timings { queue_ns: nanos(queued), ..Timings::default() };
        let mut result = StepResult { seq, ..StepResult::default() };
        let failed = |source| StepError::Forward { seq, source };
        // The device had others to compute until the last one was finished.
        let began = asked.max(self.last_finished);
        match computed {
            None => drop(take_masks(masks, seq, &[])?),
            Some(Computed { samples: Some(samples), is_on_device: true, .. }) => {
                let sampled = samples.wait(&self.lists).map_err(|error| failed(error.into()))?;
                self.comm.finish_step().map_err(failed)?;
                timings.forward_ns = nanos(began.elapsed());
                take_masks(masks, seq, &[])?;
                self.collect_device(seq, &lists, &sampled, &mut result);
            }
            Some(computed) => {
                let StepRowLists { rows, device_rows } = &lists;
                let Computed { logits, samples, .. } = &computed;
                let logits = StepLogits::read(logits, device_rows, samples.as_ref(), rows, &self.lists);
                let logits = logits.map_err(failed)?;
                self.comm.finish_step().map_err(failed)?;
                timings.forward_ns = nanos(began.elapsed());
                self.sample(seq, &logits, rows, masks, &mut timings)?;
                self.collect(rows, &mut result);
            }
        }
        result.draft_tokens = std::mem::take(&mut lists.rows.draft_tokens).into();
        result.timings = Some(timings);
        self.spare.push(lists);
        Ok(result)
    }

    /// Tells ranks apart that were sent different plans.
    fn plan_hash(&mut self, plan: &Plan) -> u64 {
        if self.comm.world_size() == 1 {
            return 0;
        }
        self.encoded_plan.clear();
        plan.encode(&mut self.encoded_plan).expect("a Vec takes any number of bytes");
        // Ranks whose last masks differ hold different tokens now, which their plans do not show.
        self.masks.values().for_each(|allowed| self.encoded_plan.extend_from_slice(allowed));
        let [h0, h1, h2, h3, h4, h5, h6, h7, ..] = *blake3::hash(&self.encoded_plan).as_bytes();
        u64::from_le_bytes([h0, h1, h2, h3, h4, h5, h6, h7])
    }

    /// Asks for the logits of the rows, and for what the device samples from them.
    fn compute(&mut self, StepRowLists { rows, device_rows }: &mut StepRowLists) -> Result<Computed, crate::Error> {
        let Executor { model, kv, arena, lists, graphs, slots, .. } = self;
        let sequences = rows.spans.iter().map(|span| SequenceRows {
            first_row: span.first_row,
            num_rows: span.num_rows,
            start_position: span.start_position,
            block_table: &slots.get(span.slot).block_table,
        });
        let sequences: Vec<SequenceRows<'_>> = sequences.collect();
        let step_rows = StepRows {
            input_ids: &rows.input_ids,
            continued: &rows.continued,
            positions: &rows.positions,
            slot_mapping: &rows.slot_mapping,
            sequences: &sequences,
            sample_rows: &rows.logit_rows,
        };
        let logits = match graphs.begin(&step_rows, lists)? {
            Some(step) => {
                device_rows.choose(rows, slots, lists)?;
                lists.send()?;
                step.forward(model, arena)?
            }
            None => {
                lists.begin()?;
                let step = StepInput::new(&step_rows, lists)?;
                device_rows.choose(rows, slots, lists)?;
                lists.send()?;
                model.forward(arena, kv, &step)?
            }
        };
        let samples = device_rows.sample(&logits, lists)?;
        Ok(Computed { logits, samples, is_on_device: device_rows.are_all(rows) })
    }

    /// Samples from the logits of the rows, and scores the prompt tokens that are asked for.
    fn sample(
        &mut self,
        seq: u64,
        logits: &StepLogits<'_>,
        rows: &Rows,
        source: &mut dyn MaskSource,
        timings: &mut Timings,
    ) -> Result<(), StepError> {
        let Executor { model, slots, host, samplers, masks, .. } = self;
        // Only now: the masks may have been on their way while the forward pass ran.
        let masked = rows.sampled.iter().map(|row| row.slot).filter(|&slot| slots.get(slot).params.masked);
        let masked: Vec<u32> = masked.collect();
        *masks = take_masks(source, seq, &masked)?;

        let started = Instant::now();
        let threads = samplers.len();
        samplers.iter_mut().for_each(|sampler| idle(sampler).clear());
        for (index, row) in rows.sampled.iter().enumerate() {
            let history = std::mem::take(&mut slots.get_mut(row.slot).history);
            idle(&mut samplers[index % threads]).runs.push(Run { history, outcomes: 0..0 });
        }
        let masks = &*masks;
        let (all_slots, eos_token_ids) = (&*slots, &model.spec().eos_token_ids[..]);
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
            for token in rows.scored.iter().skip(thread).step_by(threads) {
                let slot = all_slots.get(token.slot);
                let logits = match token.predicted_by {
                    Prediction::Row(index) => logits.rows(index, 1),
                    Prediction::Kept => &slot.kept_logits[..],
                };
                sampler.score(slot, logits, token);
            }
        });
        for span in &rows.spans {
            slots.get_mut(span.slot).kept_logits = Vec::new();
        }
        for &(slot, index) in &rows.kept {
            slots.get_mut(slot).kept_logits.extend_from_slice(logits.rows(index, 1));
        }
        timings.sample_ns = nanos(started.elapsed());
        Ok(())
    }

    /// Writes what the device has sampled into the slots and the result, in row order.
    fn collect_device(&mut self, seq: u64, lists: &StepRowLists, sampled: &[Sampled], result: &mut StepResult) {
        let mut samples = Vec::with_capacity(sampled.len());
        for (row, index) in lists.rows.sampled.iter().zip(lists.device_rows.results()) {
            let slot = row.slot;
            match self.slots.arrive(row, seq, Choice::of_device(&sampled[index], row.position)) {
                Ok(Choice { token_id, logprob }) => samples.push(Sample { slot, token_id, logprob }),
                Err(reason) => result.row_errors.push(RowError { slot, reason: reason.to_string() }),
            }
        }
        result.samples = Sample::pack(&samples);
    }

    /// Writes the outcomes of a step into the slots and its result, in row order.
    fn collect(&mut self, rows: &Rows, result: &mut StepResult) {
        self.collect_scores(rows, result);
        let threads = self.samplers.len();
        let mut samples = Vec::with_capacity(rows.sampled.len());
        for (index, row) in rows.sampled.iter().enumerate() {
            let RowSampler { runs, outcomes, .. } = idle(&mut self.samplers[index % threads]);
            let (run, slot_id) = (&mut runs[index / threads], row.slot);
            let slot = self.slots.get_mut(slot_id);
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
            self.slots.settle(row, rows.draft_of(row), run.outcomes.len() - 1);
        }
        result.samples = Sample::pack(&samples);
    }

    /// Writes the log-probabilities of prompt tokens into the result, chunk by chunk. A slot with a token that has none fails;
    /// that is reported when it is sampled.
    fn collect_scores(&mut self, rows: &Rows, result: &mut StepResult) {
        let threads = self.samplers.len();
        let mut index = 0;
        for chunk in rows.scored.chunk_by(|one, next| one.slot == next.slot) {
            let ScoredToken { slot: slot_id, position: first_token_position, .. } = chunk[0];
            let slot = self.slots.get_mut(slot_id);
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

/// The masks of a step.
fn take_masks(source: &mut dyn MaskSource, seq: u64, slots: &[u32]) -> Result<StepMasks, StepError> {
    source.take(seq, slots).map_err(|error| match error {
        MaskError::Violation(violation) => StepError::Violation(violation),
        MaskError::Interrupted => StepError::Interrupted { seq },
    })
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
        outcomes.push(RowOutcome { choice, top_tokens: wanted.then(|| wire(top)) });
        token_id
    }

    /// Scores one prompt token; whatever goes wrong is the outcome of its slot alone.
    fn score(&mut self, slot: &Slot, logits: &[f32], token: &ScoredToken) {
        let RowSampler { sampler, top, scores, .. } = self;
        let &ScoredToken { token_id, position, .. } = token;
        let top_n_tokens = slot.params.sampling.top_n_tokens();
        let score = AssertUnwindSafe(|| sampler.score(logits, token_id, position, top_n_tokens, top));
        let logprob = catch_unwind(score).unwrap_or_else(|panic| Err(RowFailure::Panic(panic_message(&*panic))));
        let wanted = top_n_tokens > 0 && logprob.is_ok();
        scores.push(TokenScore { logprob, top_tokens: wanted.then(|| wire(top)) });
    }
}

/// A sampler that no thread is using.
fn idle(sampler: &mut Mutex<RowSampler>) -> &mut RowSampler {
    sampler.get_mut().expect("row panics are caught")
}

/// As a message, whose slot is still to be filled in.
fn wire(top: &TopTokens) -> WireTopTokens {
    WireTopTokens {
        slot: 0,
        ids: pack_u32(top.tokens().iter().map(|&(token_id, _)| token_id)),
        logprobs: pack_f32(top.tokens().iter().map(|&(_, logprob)| logprob)),
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
