//! A shard group in this process: real sockets and gRPC in front of the [`TinyShard`], with accidents by script.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proto::v1::{self, InfoResponse, Mask, Plan, from_shard};
use tokio::sync::Semaphore;
use tonic::Status;

use super::scripted_rank::{self, Ranks, Sender};
use crate::scheduler::Capacity;
use crate::scheduler::tiny_shard::{EOS, Refusal, TinyShard, VOCAB_SIZE};

/// What a rank does instead of executing a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Accident {
    /// Its stream ends.
    StreamDies,
    /// It says Fatal.
    Fatal,
    /// It acknowledges another plan (not for rank 0).
    WrongAck,
    /// It answers with a result of garbage.
    Garbage,
}

/// A group of ranks, each behind its own socket. Dropping it ends the servers.
pub(super) struct ScriptedGroup {
    pub(super) ranks: Ranks,
    pub(super) script: Arc<Script>,
}

/// What the ranks share with the test.
pub(super) struct Script {
    world_size: u32,
    block_size: u32,
    max_slots: u32,
    max_step_tokens: u32,
    /// KV blocks that the next Welcome announces.
    pub(super) num_blocks: AtomicU32,
    /// (epoch, rank, plan) → what happens there.
    pub(super) accidents: Mutex<HashMap<(u64, u32, u64), Accident>>,
    /// The (epoch, plan) that each rank has come to.
    reached: Mutex<Vec<(u64, u64)>>,
    /// Rank 0 takes one permit per plan.
    pub(super) steps: Semaphore,
    /// `Run` streams that are open.
    pub(super) open_streams: AtomicU64,
    /// The last epoch that was greeted.
    pub(super) epoch: AtomicU64,
    /// Rules of the protocol that the router broke.
    pub(super) broken: Mutex<Vec<String>>,
}

impl ScriptedGroup {
    /// Starts `world_size` ranks with `num_blocks` blocks of 4 tokens and `max_slots` slots, free to run.
    pub(super) fn start(world_size: u32, num_blocks: u32, max_slots: u32) -> Self {
        let script = Arc::new(Script {
            world_size,
            block_size: 4,
            max_slots,
            max_step_tokens: 16,
            num_blocks: AtomicU32::new(num_blocks),
            accidents: Mutex::default(),
            reached: Mutex::new(vec![(0, 0); world_size as usize]),
            steps: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            open_streams: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            broken: Mutex::default(),
        });
        Self { ranks: Ranks::start(world_size, &script), script }
    }

    /// Number of ranks.
    pub(super) fn servers(&self) -> u32 {
        self.script.world_size
    }

    /// Something happens to `rank` at a plan of an epoch.
    pub(super) fn plan_accident(&self, epoch: u64, rank: u32, seq: u64, accident: Accident) {
        self.script.accidents.lock().unwrap().insert((epoch, rank, seq), accident);
    }

    /// From now on rank 0 executes only as many plans as it is allowed.
    pub(super) fn hold(&self) {
        self.script.steps.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Allows rank 0 this many plans more.
    pub(super) fn allow(&self, plans: usize) {
        self.script.steps.add_permits(plans);
    }
}

impl Drop for ScriptedGroup {
    fn drop(&mut self) {
        let broken = self.script.broken.lock().unwrap();
        assert!(broken.is_empty() || std::thread::panicking(), "the router broke the protocol: {broken:?}");
    }
}

/// A rank with an open stream.
pub(super) struct Slots {
    script: Arc<Script>,
    rank: u32,
    epoch: u64,
    shard: TinyShard,
    is_wrecked: bool,
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.script.open_streams.fetch_sub(1, Ordering::SeqCst);
    }
}

impl scripted_rank::Script for Script {
    type Slots = Slots;

    fn info(&self, rank: u32) -> InfoResponse {
        InfoResponse {
            protocol_version: proto::PROTOCOL_VERSION,
            rank,
            world_size: self.world_size,
            vocab_size: VOCAB_SIZE,
            max_position_embeddings: 4096,
            block_size: self.block_size,
            num_blocks: self.num_blocks.load(Ordering::SeqCst),
            max_slots: self.max_slots,
            max_step_tokens: self.max_step_tokens,
            max_logit_rows: self.max_slots + 2,
            eos_token_ids: vec![EOS],
            max_top_n_tokens: 5,
            ..Default::default()
        }
    }

    fn open(self: &Arc<Self>, rank: u32) -> Slots {
        self.open_streams.fetch_add(1, Ordering::SeqCst);
        let info = self.info(rank);
        let capacity = Capacity {
            num_blocks: info.num_blocks,
            max_slots: info.max_slots,
            max_step_tokens: info.max_step_tokens,
            max_logit_rows: info.max_logit_rows,
        };
        let shard = TinyShard::new(capacity, info.block_size);
        Slots { script: self.clone(), rank, epoch: 0, shard, is_wrecked: false }
    }

    fn greet(&self, slots: &mut Slots, epoch: u64) {
        slots.epoch = epoch;
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    /// After its accident a rank executes nothing more; the router must have ended the epoch.
    fn is_ready(&self, slots: &Slots, plan: &Plan, has_masks: bool) -> bool {
        !slots.is_wrecked && (has_masks || slots.shard.masked_rows(plan).is_empty())
    }

    async fn execute(
        &self,
        slots: &mut Slots,
        plan: Plan,
        masks: Vec<Mask>,
        sender: &Sender,
    ) -> Result<Option<from_shard::Message>, Status> {
        let (rank, at) = (slots.rank, (slots.epoch, plan.seq));
        self.reached.lock().unwrap()[rank as usize] = at;
        if rank == 0 {
            self.steps.acquire().await.expect("never closed").forget();
            if !self.collective(at, sender).await {
                return Ok(None);
            }
        }
        let accident = self.accidents.lock().unwrap().get(&(slots.epoch, rank, plan.seq)).copied();
        slots.is_wrecked = accident.is_some();
        self.answer(&mut slots.shard, rank, &plan, &masks, accident).map(Some)
    }
}

impl Script {
    /// Waits, as a collective does, until every rank has come to `plan`. False if the router went away meanwhile.
    async fn collective(&self, plan: (u64, u64), sender: &Sender) -> bool {
        while self.reached.lock().unwrap().iter().any(|reached| *reached < plan) {
            if sender.is_closed() {
                return false;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        true
    }

    fn answer(
        &self,
        shard: &mut TinyShard,
        rank: u32,
        plan: &Plan,
        masks: &[Mask],
        accident: Option<Accident>,
    ) -> Result<from_shard::Message, Status> {
        Ok(match accident {
            Some(Accident::StreamDies) => return Err(Status::aborted("killed by the script")),
            Some(Accident::Fatal) => from_shard::Message::Fatal(v1::Fatal { reason: "by the script".into() }),
            Some(Accident::WrongAck) => from_shard::Message::Ack(v1::Ack { seq: plan.seq + 1 }),
            Some(Accident::Garbage) => {
                let samples = vec![1, 2, 3].into();
                from_shard::Message::Result(v1::StepResult { seq: plan.seq, samples, ..Default::default() })
            }
            None => match shard.execute(plan, masks) {
                Ok(result) if rank == 0 => from_shard::Message::Result(result),
                Ok(_) => from_shard::Message::Ack(v1::Ack { seq: plan.seq }),
                Err(Refusal::Crash) => return Err(Status::aborted("poisoned")),
                Err(Refusal::Broken(rule)) => {
                    self.broken.lock().unwrap().push(rule.clone());
                    from_shard::Message::Fatal(v1::Fatal { reason: rule })
                }
            },
        })
    }
}
