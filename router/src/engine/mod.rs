//! The engine: the way from a validated request to its tokens, over shards that may die.
//!
//! ```text
//! EngineHandle::submit ─▶ Command ─▶ scheduler thread ─▶ Plan ─▶ one stream per rank ─▶ shards
//! ResponseStream::next ◀─ Event  ◀──        │         ◀─ StepResult, Ack ◀─┘
//! ```
//! The tokens of a reply under a grammar go to the mask workers too (`masks.rs`), whose masks follow the plans.
//! The thread (`thread.rs`) owns the pure [`Scheduler`](crate::scheduler::Scheduler) and everything that has a clock; tasks
//! (`link.rs`) only carry messages. When an epoch dies, clients see a pause, not an error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::kv::PrefixKey;
use crate::limits;
use crate::request::GenerateRequest;
use crate::scheduler::{Capacity, RequestId, SchedulerConfig};

mod admission;
mod command;
mod error;
mod facts;
mod link;
mod liveness;
mod mask_workers;
pub(crate) mod masks;
pub mod metrics;
mod response;
#[cfg(test)]
pub(crate) mod scripted_rank;
#[cfg(test)]
mod scripted_shard;
#[cfg(test)]
mod tests;
mod thread;
pub(crate) mod wire;

pub use error::{EngineError, RequestError, SubmitError};
pub use facts::ShardFacts;
pub use response::{Event, FinishReason, PromptLogprob, ResponseStream};

use admission::Admission;
use command::{Command, Commands, Submission};
use link::{Address, Group, LinkRuntime};

/// What the operator decides.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sockets are `{prefix}-{rank}`.
    pub shard_uds_prefix: String,
    /// Number of ranks.
    pub world_size: u32,
    /// How long the ranks may take to say Welcome at the start.
    pub connect_timeout: Duration,
    /// Requests waiting or running; more are refused.
    pub max_concurrent_requests: usize,
    /// Token budget of a step, if lower than the shards'.
    pub max_step_tokens: Option<u32>,
    /// Rows that run at once, if fewer than the shards' slots.
    pub max_batch_size: Option<u32>,
    /// The longest draft of a row, in tokens; 0 for none.
    pub max_draft_tokens: u8,
    /// Tokens of KV cache to use, if fewer than the shards have.
    pub max_batch_total_tokens: Option<u32>,
}

impl EngineConfig {
    /// What the scheduler may use of what the shards have.
    fn restrict(&self, facts: &mut ShardFacts) {
        let at_most = |value: u32, limit: Option<u32>| value.min(limit.unwrap_or(u32::MAX)).max(1);
        facts.max_step_tokens = at_most(facts.max_step_tokens, self.max_step_tokens);
        facts.max_slots = at_most(facts.max_slots, self.max_batch_size);
        facts.num_blocks =
            at_most(facts.num_blocks, self.max_batch_total_tokens.map(|tokens| tokens.div_ceil(facts.block_size)));
    }
}

/// How the engine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The scheduler thread runs: restarting this process would help nobody.
    pub live: bool,
    /// The shards answer.
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
}

impl Health {
    fn ready() -> Self {
        Self { live: true, ready: true, reason: None }
    }
}

/// The engine, for request handlers. Clones share it; when the last one goes, it stops.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    commands: Commands,
    admission: Arc<Admission>,
    facts: ShardFacts,
    capacity: Capacity,
    health: watch::Receiver<Health>,
    next_id: AtomicU64,
    is_draining: AtomicBool,
}

impl EngineHandle {
    /// Connects to every rank, waits for their Welcome and starts the scheduler thread.
    ///
    /// # Errors
    /// [`EngineError::Unreachable`] after `connect_timeout`, [`EngineError::Group`] if the ranks do not fit together.
    pub async fn start(config: EngineConfig) -> Result<Self, EngineError> {
        let address = Address { uds_prefix: config.shard_uds_prefix.clone(), world_size: config.world_size };
        let (commands, receiver) = command::channel(config.max_concurrent_requests, config.world_size);
        let links = LinkRuntime::new()?;
        let opening = {
            let (address, commands, patience) = (address.clone(), commands.clone(), Some(config.connect_timeout));
            links.spawn(async move { Group::open_patiently(&address, 1, &commands, patience).await })
        };
        let mut group = opening.await.expect("the task is not aborted, and passes on no panic")?;
        config.restrict(&mut group.facts);
        let facts = group.facts.clone();
        let capacity = capacity(&facts);
        let max_queued_tokens = limits::QUEUED_CACHE_FILLINGS * u64::from(facts.capacity_tokens());
        let admission = Admission::new(config.max_concurrent_requests, max_queued_tokens);
        let (health_sender, health) = watch::channel(Health::ready());
        let scheduler = SchedulerConfig {
            block_size: facts.block_size,
            vocab_size: facts.vocab_size,
            eos_token_ids: facts.eos_token_ids.clone(),
            run_ahead: limits::RUN_AHEAD,
            max_draft_tokens: config.max_draft_tokens,
            prefix_key: PrefixKey::random(),
        };
        thread::spawn(thread::Setup {
            config,
            address,
            scheduler,
            group,
            admission: admission.clone(),
            health: health_sender,
            commands: commands.clone(),
            receiver,
            links,
        })?;
        let shared = Shared {
            commands,
            admission,
            facts,
            capacity,
            health,
            next_id: AtomicU64::new(1),
            is_draining: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Queues a request. Never blocks.
    ///
    /// # Errors
    /// [`SubmitError`]: 429, a request that cannot ever fit, or an engine that takes no more.
    pub fn submit(&self, request: GenerateRequest) -> Result<ResponseStream, SubmitError> {
        let shared = &self.shared;
        if shared.is_draining.load(Ordering::Relaxed) {
            return Err(SubmitError::Stopped);
        }
        shared.capacity.check(shared.facts.block_size, &request)?;
        let permit = shared.admission.admit(u64::from(request.input_tokens()))?;
        let id = RequestId(shared.next_id.fetch_add(1, Ordering::Relaxed));
        let (events, stream) = ResponseStream::new(id, request.parts().max_new_tokens, shared.commands.clone());
        shared.commands.submit(Submission { id, request, events, permit, at: Instant::now() })?;
        Ok(stream)
    }

    /// What the shard group is and holds, as far as the operator lets the router use it.
    pub fn facts(&self) -> &ShardFacts {
        &self.shared.facts
    }

    /// How the engine is now.
    pub fn health(&self) -> Health {
        self.shared.health.borrow().clone()
    }

    /// Takes no more requests, and returns when those that run have ended and the streams to the shards are closed.
    pub async fn drain(&self) {
        self.shared.is_draining.store(true, Ordering::Relaxed);
        let (done, wait) = oneshot::channel();
        if self.shared.commands.send(Command::Drain(done)).await {
            // An error means that the thread has ended, which is what we wait for.
            let _ = wait.await;
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.commands.stop();
    }
}

fn capacity(facts: &ShardFacts) -> Capacity {
    Capacity {
        num_blocks: facts.num_blocks,
        max_slots: facts.max_slots,
        max_step_tokens: facts.max_step_tokens,
        max_logit_rows: facts.max_logit_rows,
    }
}
