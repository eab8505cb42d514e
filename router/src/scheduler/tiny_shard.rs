//! A shard for tests: executes plans on a "model" that notices every mistake.
//!
//! The KV entry of a position is a hash of its token, its position and the entry before it, written to and read through
//! the block table; the next token is a hash of all entries of the row. So a wrong table, position, prefix hit or reused
//! block gives a wrong token, and a request alone ([`reference_reply`]) says which are right. Every rule of `shard.proto` that
//! a plan can break is checked.

use proto::v1::{self, Plan, RowError, StepResult};
use proto::{Sample, pack_u32, unpack_u32};

use crate::request::RequestParts;

/// Token ids are below it.
pub(crate) const VOCAB_SIZE: u32 = 64;
/// Ends a sequence. The model samples it once in 64 tokens.
pub(crate) const EOS: u32 = 0;
/// A prompt with this token kills the shard that computes it.
pub(crate) const POISON: u32 = 62;
/// A prompt with this token fails alone.
pub(crate) const UNCOMPUTABLE: u32 = 63;

/// Why a plan was not executed.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    /// The plan breaks a rule of the protocol: a bug of the router.
    Broken(String),
    /// The shard "crashed" on [`POISON`].
    Crash,
}

pub(crate) struct TinyShard {
    block_size: u32,
    max_step_tokens: usize,
    seq: u64,
    last_continues: Vec<u32>,
    slots: Vec<Option<Slot>>,
    /// Per block and offset: the entry, once written.
    kv: Vec<Vec<Option<u64>>>,
    /// A row has failed alone. It has not written its blocks, and until the router hears of it other rows may read them:
    /// what they sample is garbage that nobody may see.
    has_holes: bool,
}

struct Slot {
    params: v1::SamplingParams,
    table: Vec<u32>,
    length: u32,
    /// Known once the prompt has ended.
    last_token: Option<u32>,
    /// All ids in order, if a penalty needs them.
    ids: Option<Vec<u32>>,
    has_failed: bool,
}

macro_rules! rule {
    ($condition:expr, $($text:tt)*) => {
        if !$condition {
            return Err(Refusal::Broken(format!($($text)*)));
        }
    };
}

impl TinyShard {
    pub(crate) fn new(num_blocks: u32, block_size: u32, max_slots: u32, max_step_tokens: u32) -> Self {
        Self {
            block_size,
            max_step_tokens: max_step_tokens as usize,
            seq: 0,
            last_continues: Vec::new(),
            slots: (0..max_slots).map(|_| None).collect(),
            kv: vec![vec![None; block_size as usize]; num_blocks as usize],
            has_holes: false,
        }
    }

    pub(crate) fn execute(&mut self, plan: &Plan) -> Result<StepResult, Refusal> {
        rule!(plan.seq == self.seq + 1, "plan {} after plan {}", plan.seq, self.seq);
        self.seq = plan.seq;
        for slot in ids(&plan.freed_slots)? {
            rule!(self.slot(slot).is_some(), "slot {slot} is freed but not live");
            self.slots[slot as usize] = None;
        }
        for new in &plan.new_slots {
            self.open(new)?;
        }
        let appended = ids(&plan.appended_blocks)?;
        rule!(appended.len().is_multiple_of(2), "appended_blocks are pairs");
        for pair in appended.chunks_exact(2) {
            rule!((pair[1] as usize) < self.kv.len(), "block {} does not exist", pair[1]);
            let slot = self.slots.get_mut(pair[0] as usize).and_then(Option::as_mut);
            let Some(slot) = slot else { return Err(Refusal::Broken(format!("block for slot {}, not live", pair[0]))) };
            slot.table.push(pair[1]);
        }

        let continues = ids(&plan.continues)?;
        let continues = match plan.same_rows {
            true => {
                rule!(continues.is_empty() && plan.chunks.is_empty(), "same_rows, yet rows are sent");
                self.last_continues.clone()
            }
            false => continues,
        };
        rule!(!continues.is_empty() || !plan.chunks.is_empty(), "a plan without rows");
        let mut rows: Vec<u32> = continues.iter().copied().chain(plan.chunks.iter().map(|chunk| chunk.slot)).collect();
        rows.sort_unstable();
        rule!(rows.windows(2).all(|pair| pair[0] != pair[1]), "a slot has two rows");
        let num_tokens = continues.len() + plan.chunks.iter().map(|chunk| chunk.ids.len() / 4).sum::<usize>();
        rule!(num_tokens <= self.max_step_tokens, "{num_tokens} tokens exceed {}", self.max_step_tokens);

        let mut step = StepResult { seq: plan.seq, timings: Some(v1::Timings::default()), ..Default::default() };
        let mut samples = Vec::new();
        for &slot in &continues {
            let last = self.slot(slot).as_ref().and_then(|slot| slot.last_token);
            let Some(last) = last else { return Err(Refusal::Broken(format!("slot {slot} has nothing to continue"))) };
            self.compute(slot, &[last], true, &mut samples, &mut step)?;
        }
        for chunk in &plan.chunks {
            let chunk_ids = ids(&chunk.ids)?;
            let Some(slot) = self.slot(chunk.slot) else { return Err(Refusal::Broken("chunk of a dead slot".into())) };
            rule!(slot.length == chunk.start_position, "chunk at {}, length is {}", chunk.start_position, slot.length);
            rule!(slot.last_token.is_none(), "slot {} has a chunk after its prompt's end", chunk.slot);
            rule!(!chunk_ids.is_empty(), "an empty chunk");
            if chunk_ids.contains(&POISON) {
                return Err(Refusal::Crash);
            }
            self.compute(chunk.slot, &chunk_ids, chunk.sample, &mut samples, &mut step)?;
        }
        self.last_continues = continues;
        step.samples = Sample::pack(&samples);
        Ok(step)
    }

    fn slot(&self, slot: u32) -> &Option<Slot> {
        self.slots.get(slot as usize).unwrap_or(&None)
    }

    fn open(&mut self, new: &v1::NewSlot) -> Result<(), Refusal> {
        rule!((new.slot as usize) < self.slots.len(), "slot {} does not exist", new.slot);
        rule!(self.slot(new.slot).is_none(), "slot {} is opened twice", new.slot);
        let params = new.params.clone().unwrap_or_default();
        let table = ids(&new.block_table)?;
        let cached_ids = ids(&new.cached_ids)?;
        rule!(new.cached_tokens == table.len() as u32 * self.block_size, "cached tokens fill their blocks");
        for block in &table {
            let entries = self.kv.get(*block as usize).into_iter().flatten();
            let is_full = entries.filter(|entry| entry.is_some()).count() == self.block_size as usize;
            rule!(is_full || self.has_holes, "block {block} is not full");
        }
        let needs_ids = needs_ids(&params);
        let expected = if needs_ids { new.cached_tokens as usize } else { 0 };
        rule!(cached_ids.len() == expected, "{} cached ids, expected {expected}", cached_ids.len());
        self.slots[new.slot as usize] = Some(Slot {
            params,
            table,
            length: new.cached_tokens,
            last_token: None,
            ids: needs_ids.then_some(cached_ids),
            has_failed: false,
        });
        Ok(())
    }

    fn compute(
        &mut self,
        slot_id: u32,
        tokens: &[u32],
        sample: bool,
        samples: &mut Vec<Sample>,
        step: &mut StepResult,
    ) -> Result<(), Refusal> {
        let mut slot = self.slots[slot_id as usize].take().expect("the caller has seen it");
        slot.has_failed |= tokens.contains(&UNCOMPUTABLE);
        self.has_holes |= slot.has_failed;
        for &token in tokens {
            let (block, offset) = ((slot.length / self.block_size) as usize, (slot.length % self.block_size) as usize);
            rule!(block < slot.table.len(), "slot {slot_id} has no block for position {}", slot.length);
            let block = slot.table[block];
            let is_shared = self.slots.iter().flatten().any(|other| other.table.contains(&block));
            rule!(!is_shared, "slot {slot_id} writes into block {block}, which another row reads");
            let before = slot.length.checked_sub(1).map(|position| self.entry(&slot, position));
            let entry = kv_entry(before.flatten().unwrap_or_default(), token, slot.length);
            self.kv[block as usize][offset] = (!slot.has_failed).then_some(entry);
            slot.length += 1;
        }
        if let Some(ids) = &mut slot.ids {
            // A row that continues has noted its token when it sampled it.
            if slot.last_token.is_none() {
                ids.extend(tokens);
            }
        }
        if slot.has_failed {
            step.row_errors.push(RowError { slot: slot_id, reason: "uncomputable".into() });
            slot.last_token = sample.then_some(EOS);
        } else if sample {
            let mut state = 0;
            for position in 0..slot.length {
                let entry = self.entry(&slot, position);
                rule!(
                    entry.is_some() || self.has_holes,
                    "slot {slot_id} reads position {position}, which nobody has written"
                );
                state = mix(state ^ entry.unwrap_or_default());
            }
            let token = next_token(state, &slot.params, slot.ids.as_deref(), slot.length);
            samples.push(Sample { slot: slot_id, token_id: token, logprob: logprob(token, slot.length) });
            if slot.params.top_n_tokens > 0 {
                let ids = pack_u32([token, 1]);
                step.top_tokens.push(v1::TopTokens { slot: slot_id, ids, logprobs: pack_u32([0, 0]) });
            }
            slot.last_token = Some(token);
            if let Some(ids) = &mut slot.ids {
                ids.push(token);
            }
        }
        self.slots[slot_id as usize] = Some(slot);
        Ok(())
    }

    fn entry(&self, slot: &Slot, position: u32) -> Option<u64> {
        let block = slot.table[(position / self.block_size) as usize];
        self.kv[block as usize][(position % self.block_size) as usize]
    }
}

/// The tokens a request must get, computed alone and without any table.
pub(crate) fn reference_reply(parts: &RequestParts) -> Vec<u32> {
    let params = v1::SamplingParams {
        seed: parts.sampling.seed,
        repetition_penalty: parts.sampling.repetition_penalty,
        ..Default::default()
    };
    let mut tokens = parts.input_ids.to_vec();
    let (mut state, mut before) = (0, 0);
    for (position, &token) in tokens.iter().enumerate() {
        before = kv_entry(before, token, position as u32);
        state = mix(state ^ before);
    }
    loop {
        let length = tokens.len() as u32;
        let token = next_token(state, &params, needs_ids(&params).then_some(&tokens), length);
        tokens.push(token);
        let reply = &tokens[parts.input_ids.len()..];
        if reply.len() == parts.max_new_tokens as usize || (token == EOS && !parts.ignore_eos) {
            return reply.to_vec();
        }
        before = kv_entry(before, token, length);
        state = mix(state ^ before);
    }
}

/// The log-probability that goes with a token: any function will do, as long as it is not constant.
pub(crate) fn logprob(token: u32, length: u32) -> f32 {
    -((token + length) as f32) / 16.0
}

fn next_token(state: u64, params: &v1::SamplingParams, ids: Option<&[u32]>, length: u32) -> u32 {
    let seen = ids.map_or(0, |ids| ids.iter().fold(1, |hash, id| mix(hash ^ u64::from(*id))));
    (mix(state ^ mix(params.seed) ^ seen ^ u64::from(length)) % u64::from(VOCAB_SIZE - 2)) as u32
}

fn needs_ids(params: &v1::SamplingParams) -> bool {
    (params.repetition_penalty != 0.0 && params.repetition_penalty != 1.0) || params.frequency_penalty != 0.0
}

fn kv_entry(before: u64, token: u32, position: u32) -> u64 {
    mix(before ^ mix(u64::from(token) << 32 | u64::from(position)))
}

/// The finaliser of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

fn ids(field: &[u8]) -> Result<Vec<u32>, Refusal> {
    unpack_u32(field).map(Iterator::collect).map_err(|error| Refusal::Broken(error.to_string()))
}
