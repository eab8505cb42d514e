//! One plan in, one result out: check, apply, forward, sample.
//!
//! A step is asked for ([`Executor::submit`]) and later finished ([`Executor::finish`]). Where a device samples, the next one may be
//! asked for in between, and takes its tokens from the device: so the device goes from step to step without waiting for anybody.
//!
//! Deterministic and without I/O. The engine thread (`engine/`) calls it for a router, tests call it directly.

mod row_samplers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::ops::sample::{PendingSamples, Sampled, count_earlier_tokens, count_tokens, forget_slots};
use kernels::{Arena, Device, Indices, KvCache, Mark, StepLists, Tensor};
use prost::Message;
use proto::Sample;
use proto::v1::{Plan, RowError, StepResult, Timings, TopTokens};

use self::row_samplers::{RowSamplers, wire};
use crate::comm::{Comm, StepTag};
use crate::logits::{DeviceRows, StepLogits};
use crate::masks::{MaskError, MaskSource, StepMasks};
use crate::models::{DecodeGraphs, GraphStep, Model, SequenceRows, StepInput, StepRows};
use crate::sampling::Choice;
use crate::slots::{Rows, SlotLimits, Slots};
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
    kv: KvCache,
    arena: Arena,
    lists: StepLists,
    graphs: DecodeGraphs,
    slots: Slots,
    /// The height of the arena's stack between two steps.
    floor: Mark,
    /// What finished steps leave for the next ones.
    spare: Vec<StepRowLists>,
    samplers: RowSamplers,
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

/// What computes it.
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and none is moved")]
enum Asked<'a> {
    Graph(GraphStep<'a>),
    Eager(StepInput<'a>),
}

impl<'a> Asked<'a> {
    /// The tokens of its rows, and maybe others behind them.
    fn input_ids(&self) -> Indices<'a> {
        match self {
            Asked::Graph(graph) => graph.input_ids(),
            Asked::Eager(input) => input.input_ids(),
        }
    }
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
        Executor {
            floor: arena.mark(),
            model,
            comm,
            kv,
            arena,
            lists,
            graphs: DecodeGraphs::default(),
            slots: Slots::new(limits),
            spare: Vec::new(),
            samplers: RowSamplers::new(device.host().clone(), threads, limits.max_slots),
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
                self.kv.device().synchronize().map_err(|error| failed(error.into()))?;
                self.comm.finish_step().map_err(failed)?;
                timings.forward_ns = nanos(began.elapsed());
                self.sample(seq, &lists, computed, masks, &mut timings)?;
                self.samplers.collect(&lists.rows, &mut self.slots, &mut result);
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
        let Executor { model, kv, arena, lists, graphs, slots, masks, .. } = self;
        let opened = slots.take_opened();
        let forgotten: Vec<u32> = opened.iter().map(|opened| opened.slot).collect();
        let device = kv.device().clone();
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
        let asked = match graphs.begin(&step_rows, lists)? {
            Some(graph) => Asked::Graph(graph),
            None => {
                lists.begin()?;
                Asked::Eager(StepInput::new(&step_rows, lists)?)
            }
        };
        device_rows.choose(rows, slots, &model.spec().eos_token_ids, lists)?;
        let counted = lists.counted(&forgotten, asked.input_ids(), &rows.counted)?;
        lists.send()?;
        if let Some(tokens) = &counted {
            forget_slots(&device, tokens, lists)?;
            opened.iter().try_for_each(|opened| count_earlier_tokens(&device, &opened.earlier, lists))?;
        }
        let logits = match asked {
            Asked::Graph(graph) => graph.forward(model, arena)?,
            Asked::Eager(input) => model.forward(arena, kv, &input)?,
        };
        if let Some(tokens) = &counted {
            count_tokens(&device, tokens, lists)?;
        }
        let samples = match device_rows.wait_for_masks() {
            true => None,
            false => device_rows.sample(&logits, masks, lists)?,
        };
        Ok(Computed { logits, samples, is_on_device: device_rows.are_all(rows) })
    }

    /// Samples what the device has not yet, and scores the prompt tokens that are asked for. The forward pass is over.
    fn sample(
        &mut self,
        seq: u64,
        StepRowLists { rows, device_rows }: &StepRowLists,
        Computed { logits, mut samples, .. }: Computed,
        source: &mut dyn MaskSource,
        timings: &mut Timings,
    ) -> Result<(), StepError> {
        let Executor { model, lists, slots, samplers, masks, .. } = self;
        let failed = |source| StepError::Forward { seq, source };
        // Only now: the masks may have been on their way while the forward pass ran.
        let masked = rows.sampled.iter().map(|row| row.slot).filter(|&slot| slots.get(slot).params.masked);
        let masked: Vec<u32> = masked.collect();
        *masks = take_masks(source, seq, &masked)?;

        let started = Instant::now();
        if device_rows.wait_for_masks() {
            samples = device_rows.sample(&logits, masks, lists).map_err(failed)?;
        }
        let logits = StepLogits::read(&logits, device_rows, samples.as_ref(), rows, lists).map_err(failed)?;
        samplers.sample(rows, &logits, masks, slots, &model.spec().eos_token_ids);
        timings.sample_ns = nanos(started.elapsed());
        Ok(())
    }

    /// Writes what the device has sampled into the slots and the result, in row order.
    fn collect_device(&mut self, seq: u64, lists: &StepRowLists, sampled: &[Sampled], result: &mut StepResult) {
        let mut samples = Vec::with_capacity(sampled.len());
        for (row, index) in lists.rows.sampled.iter().zip(lists.device_rows.results()) {
            let (slot, sampled) = (row.slot, &sampled[index]);
            match self.slots.arrive(row, seq, Choice::of_device(sampled, row.position)) {
                Ok(Choice { token_id, logprob }) => {
                    samples.push(Sample { slot, token_id, logprob });
                    if !sampled.top.is_empty() {
                        result.top_tokens.push(TopTokens { slot, ..wire(&sampled.top) });
                    }
                }
                Err(reason) => result.row_errors.push(RowError { slot, reason: reason.to_string() }),
            }
        }
        result.samples = Sample::pack(&samples);
    }
}

/// The masks of a step.
fn take_masks(source: &mut dyn MaskSource, seq: u64, slots: &[u32]) -> Result<StepMasks, StepError> {
    source.take(seq, slots).map_err(|error| match error {
        MaskError::Violation(violation) => StepError::Violation(violation),
        MaskError::Interrupted => StepError::Interrupted { seq },
    })
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
