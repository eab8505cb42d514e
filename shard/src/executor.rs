//! One plan in, one result out: check, apply, forward, sample.
//!
//! Deterministic and without I/O. The engine thread (`engine/`) calls it for a router, tests call it directly.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kernels::{Arena, Device, KvCache};
use prost::Message;
use proto::v1::{Plan, RowError, StepResult, Timings, TopTokens as WireTopTokens};
use proto::{Sample, pack_u32};

use crate::comm::{Comm, StepTag};
use crate::models::{Model, SequenceSpan, StepInput};
use crate::sampling::{Choice, Row, RowFailure, Sampler, TopTokens};
use crate::slots::{Rows, Slot, SlotLimits, Slots};
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
    device: Device,
    kv: KvCache,
    arena: Arena,
    slots: Slots,
    rows: Rows,
    /// One per thread of the device.
    samplers: Vec<Mutex<RowSampler>>,
    encoded_plan: Vec<u8>,
}

/// One thread's share of the sampling.
struct RowSampler {
    sampler: Sampler,
    top: TopTokens,
    outcomes: Vec<RowOutcome>,
}

/// What became of one sampled row.
struct RowOutcome {
    choice: Result<Choice, RowFailure>,
    top_tokens: Option<WireTopTokens>,
}

impl Executor {
    /// An executor without live rows.
    pub fn new(
        model: Model,
        comm: Arc<dyn Comm>,
        device: Device,
        kv: KvCache,
        arena: Arena,
        limits: SlotLimits,
        threads: usize,
    ) -> Executor {
        let sampler = || RowSampler {
            sampler: Sampler::new(device.clone()),
            top: TopTokens::default(),
            outcomes: Vec::with_capacity(limits.max_slots.div_ceil(threads)),
        };
        let samplers = (0..threads).map(|_| Mutex::new(sampler())).collect();
        Executor {
            model,
            comm,
            device,
            kv,
            arena,
            slots: Slots::new(limits),
            rows: Rows::default(),
            samplers,
            encoded_plan: Vec::new(),
        }
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

    /// Token rows of the last step.
    pub fn last_step_tokens(&self) -> usize {
        self.rows.input_ids.len()
    }

    /// Frees all slots and expects plan 1 next.
    pub fn clear(&mut self) {
        self.slots.clear();
    }

    /// As [`Executor::clear`], and lets collectives run again after an abort.
    pub fn begin_epoch(&mut self) {
        self.comm.resume();
        self.clear();
    }

    /// Carries out one plan. `queued` is how long it waited.
    ///
    /// # Errors
    /// [`StepError`]: the slots are then in no defined state, and [`Executor::clear`] has to come next.
    pub fn step(&mut self, epoch: u64, plan: &Plan, queued: Duration) -> Result<StepResult, StepError> {
        self.slots.check(plan)?;
        let (seq, mark) = (plan.seq, self.arena.mark());
        let outcome = catch_unwind(AssertUnwindSafe(|| self.run(epoch, plan, queued)));
        // Here and not beside the forward pass, so that a step that failed half-way leaves nothing on the stack.
        self.arena.release(mark);
        outcome
            .map_err(|panic| StepError::Panic { seq, message: panic_message(&*panic) })?
            .map_err(|source| StepError::Forward { seq, source })
    }

    /// Carries out a plan that was checked.
    fn run(&mut self, epoch: u64, plan: &Plan, queued: Duration) -> crate::error::Result<StepResult> {
        self.slots.apply(plan, &mut self.rows);
        let mut timings = Timings { queue_ns: nanos(queued), ..Timings::default() };
        let mut result = StepResult { seq: plan.seq, ..StepResult::default() };
        // A plan without rows only frees or fills slots; it takes no collective on any rank.
        if !self.rows.input_ids.is_empty() {
            let plan_hash = self.plan_hash(plan);
            self.comm.begin_step(StepTag { epoch, seq: plan.seq, plan_hash });
            self.compute(&mut timings)?;
            self.collect(&mut result);
        }
        result.timings = Some(timings);
        Ok(result)
    }

    /// Tells ranks apart that were sent different plans.
    fn plan_hash(&mut self, plan: &Plan) -> u64 {
        if self.comm.world_size() == 1 {
            return 0;
        }
        self.encoded_plan.clear();
        plan.encode(&mut self.encoded_plan).expect("a Vec takes any number of bytes");
        let [h0, h1, h2, h3, h4, h5, h6, h7, ..] = *blake3::hash(&self.encoded_plan).as_bytes();
        u64::from_le_bytes([h0, h1, h2, h3, h4, h5, h6, h7])
    }

    /// Computes the rows and samples from their logits.
    fn compute(&mut self, timings: &mut Timings) -> crate::error::Result<()> {
        let started = Instant::now();
        let Executor { model, kv, arena, slots, rows, device, samplers, .. } = self;
        let spans = rows.spans.iter().map(|span| SequenceSpan {
            first_row: span.first_row,
            rows: span.num_rows,
            start_position: span.start_position,
            block_table: &slots.get(span.slot).block_table,
        });
        let sequences: Vec<SequenceSpan<'_>> = spans.collect();
        let step = StepInput {
            input_ids: &rows.input_ids,
            positions: &rows.positions,
            slot_mapping: &rows.slot_mapping,
            sequences: &sequences,
            sample_rows: &rows.sample_rows,
        };
        let logits = model.forward(arena, kv, &step)?;
        timings.forward_ns = nanos(started.elapsed());

        let started = Instant::now();
        let (logits, vocab_size, threads) = (logits.as_f32(), slots.limits().vocab_size, samplers.len());
        let (logits, slots, rows) = (&*logits, &*slots, &*rows);
        // Rows are dealt out by index; which thread samples a row cannot be seen in the result.
        device.for_each(threads, |thread| {
            let mut sampler = samplers[thread].lock().expect("row panics are caught below");
            let sampler = &mut *sampler;
            sampler.outcomes.clear();
            for row in (thread..rows.sampled.len()).step_by(threads) {
                let (slot, position) = rows.sampled[row];
                let logits = &logits[row * vocab_size..][..vocab_size];
                sampler.sample(slots.get(slot), logits, position);
            }
        });
        timings.sample_ns = nanos(started.elapsed());
        Ok(())
    }

    /// Writes the outcomes of a step into the slots and its result, in row order.
    fn collect(&mut self, result: &mut StepResult) {
        let threads = self.samplers.len();
        let mut samples = Vec::with_capacity(self.rows.sampled.len());
        for (row, &(slot_id, _)) in self.rows.sampled.iter().enumerate() {
            let sampler = self.samplers[row % threads].get_mut().expect("row panics are caught");
            let outcome = &mut sampler.outcomes[row / threads];
            let slot = self.slots.get_mut(slot_id);
            match &outcome.choice {
                Ok(choice) => {
                    slot.last_token = choice.token_id;
                    samples.push(Sample { slot: slot_id, token_id: choice.token_id, logprob: choice.logprob });
                    result
                        .top_tokens
                        .extend(outcome.top_tokens.take().map(|top| WireTopTokens { slot: slot_id, ..top }));
                }
                Err(reason) => {
                    slot.last_token = 0;
                    slot.failure = Some(reason.clone());
                    result.row_errors.push(RowError { slot: slot_id, reason: reason.to_string() });
                }
            }
        }
        result.samples = Sample::pack(&samples);
    }
}

impl RowSampler {
    /// Samples one row; whatever goes wrong is the outcome of this row alone.
    fn sample(&mut self, slot: &Slot, logits: &[f32], position: u32) {
        let RowSampler { sampler, top, outcomes } = self;
        let row = Row { logits, params: &slot.params, counts: &slot.counts, position };
        let choice = match &slot.failure {
            // Its last token is unknown, so nothing after it means anything.
            Some(failure) => Err(failure.clone()),
            None => catch_unwind(AssertUnwindSafe(|| sampler.sample(row, top)))
                .unwrap_or_else(|panic| Err(RowFailure::Panic(panic_message(&*panic)))),
        };
        let wanted = slot.params.top_n_tokens > 0 && choice.is_ok();
        let top_tokens = wanted.then(|| WireTopTokens {
            slot: 0,
            ids: pack_u32(top.tokens().iter().map(|&(token_id, _)| token_id)),
            logprobs: pack_u32(top.tokens().iter().map(|&(_, logprob)| logprob.to_bits())),
        });
        outcomes.push(RowOutcome { choice, top_tokens });
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
