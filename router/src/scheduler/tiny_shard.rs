//! A shard for tests: executes plans on a "model" that notices every mistake.
//!
//! The KV entry of a position is a hash of its token, its position and the entry before it, written to and read through
//! the block table; the next token is a hash of all entries of the row. So a wrong table, position, prefix hit or reused
//! block gives a wrong token, and a request alone ([`reference_reply`]) says which are right. Every rule of `shard.proto` that
//! a plan can break is checked. Its drafts are the right tokens up to a place that is anybody's guess, and garbage from there on.

use proto::v1::{self, Plan, RowError, StepResult};
use proto::{Sample, pack_u32, unpack_u32};

use super::{Capacity, PromptLogprob};
use crate::constraint::{Constraint, Matcher};
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
    max_logit_rows: usize,
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
    prompt_tokens: u32,
    masked: bool,
    speculates: bool,
    table: Vec<u32>,
    length: u32,
    /// Known once the prompt has ended.
    last_token: Option<u32>,
    /// All ids in order, if the parameters need them.
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
    pub(crate) fn new(capacity: Capacity, block_size: u32) -> Self {
        let Capacity { num_blocks, max_slots, max_step_tokens, max_logit_rows } = capacity;
        Self {
            block_size,
            max_step_tokens: max_step_tokens as usize,
            max_logit_rows: max_logit_rows as usize,
            seq: 0,
            last_continues: Vec::new(),
            slots: (0..max_slots).map(|_| None).collect(),
            kv: vec![vec![None; block_size as usize]; num_blocks as usize],
            has_holes: false,
        }
    }

    /// The slots whose sampled rows in `plan`, the next one, wait for masks, in row order.
    pub(crate) fn masked_rows(&self, plan: &Plan) -> Vec<u32> {
        let continues = match plan.same_rows {
            true => self.last_continues.clone(),
            false => ids(&plan.continues).unwrap_or_default(),
        };
        let sampled = plan.chunks.iter().filter(|chunk| chunk.sample).map(|chunk| chunk.slot);
        let is_masked = |slot: &u32| match plan.new_slots.iter().find(|new| new.slot == *slot) {
            Some(new) => new.masked,
            None => self.slot(*slot).as_ref().is_some_and(|slot| slot.masked),
        };
        continues.into_iter().chain(sampled).filter(is_masked).collect()
    }

    /// Executes the next plan. `masks` are those that were sent for it.
    pub(crate) fn execute(&mut self, plan: &Plan, masks: &[v1::Mask]) -> Result<StepResult, Refusal> {
        let masked: Vec<u32> = masks.iter().map(|mask| mask.slot).collect();
        rule!(masked == self.masked_rows(plan), "masks of {masked:?}, expected {:?}", self.masked_rows(plan));
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
        let limits = plan.draft_limits.to_vec();
        rule!(
            limits.is_empty() || limits.len() == continues.len(),
            "{} limits of {} rows",
            limits.len(),
            continues.len()
        );
        let drafts = limits.iter().map(|&limit| usize::from(limit)).sum::<usize>();
        let num_tokens = continues.len() + drafts + plan.chunks.iter().map(|chunk| chunk.ids.len() / 4).sum::<usize>();
        rule!(num_tokens <= self.max_step_tokens, "{num_tokens} tokens exceed {}", self.max_step_tokens);

        let logit_rows = plan.chunks.iter().map(|chunk| match self.slot(chunk.slot) {
            Some(slot) if slot.params.prompt_logprobs => chunk.ids.len() / 4,
            _ => usize::from(chunk.sample),
        });
        let logit_rows = continues.len() + drafts + logit_rows.sum::<usize>();
        rule!(logit_rows <= self.max_logit_rows, "{logit_rows} logit rows exceed {}", self.max_logit_rows);

        // So that drafts pay now and then.
        let forward_ns = 1_000_000 + mix(plan.seq) % 500_000 + 50_000 * num_tokens as u64;
        let timings = Some(v1::Timings { forward_ns, ..Default::default() });
        let mut step = StepResult { seq: plan.seq, timings, ..Default::default() };
        let mut draft_tokens = Vec::new();
        let mut samples = Vec::new();
        for (index, &slot) in continues.iter().enumerate() {
            let last = self.slot(slot).as_ref().and_then(|slot| slot.last_token);
            let Some(last) = last else { return Err(Refusal::Broken(format!("slot {slot} has nothing to continue"))) };
            self.compute(slot, &[last], true, masks, &mut samples, &mut step)?;
            if let Some(&limit) = limits.get(index) {
                draft_tokens.push(self.draft(slot, limit, &mut samples, &mut step)?);
            }
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
            self.compute(chunk.slot, &chunk_ids, chunk.sample, masks, &mut samples, &mut step)?;
        }
        self.last_continues = continues;
        step.samples = Sample::pack(&samples);
        step.draft_tokens = draft_tokens.into();
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
        let needs_ids = params.needs_cached_ids();
        rule!(!(new.speculates && new.masked), "a mask for a draft");
        let expected = if needs_ids || new.speculates { new.cached_tokens as usize } else { 0 };
        rule!(new.prompt_tokens > 0, "a request without a prompt");
        rule!(!params.prompt_logprobs || table.is_empty(), "a cached prefix has no log-probabilities");
        rule!(cached_ids.len() == expected, "{} cached ids, expected {expected}", cached_ids.len());
        self.slots[new.slot as usize] = Some(Slot {
            params,
            prompt_tokens: new.prompt_tokens,
            masked: new.masked,
            speculates: new.speculates,
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
        masks: &[v1::Mask],
        samples: &mut Vec<Sample>,
        step: &mut StepResult,
    ) -> Result<(), Refusal> {
        let mut slot = self.slots[slot_id as usize].take().expect("the caller has seen it");
        slot.has_failed |= tokens.contains(&UNCOMPUTABLE);
        self.has_holes |= slot.has_failed;
        let mut prompt_logprobs = v1::PromptLogprobs { slot: slot_id, ..Default::default() };
        let mut logprobs = Vec::new();
        for &token in tokens {
            let before = slot.length.checked_sub(1).map(|position| self.entry(&slot, position));
            let before = before.flatten().unwrap_or_default();
            if slot.params.prompt_logprobs && (1..slot.prompt_tokens).contains(&slot.length) {
                if logprobs.is_empty() {
                    prompt_logprobs.first_token_position = slot.length;
                }
                logprobs.push(prompt_logprob(before, token).to_bits());
                if slot.params.top_n_tokens() > 0 {
                    let top = v1::TopTokens { slot: slot_id, ids: pack_u32([token]), logprobs: pack_u32([0]) };
                    prompt_logprobs.top_tokens.push(top);
                }
            }
            let entry = kv_entry(before, token, slot.length);
            self.write(slot_id, &slot, slot.length, (!slot.has_failed).then_some(entry))?;
            slot.length += 1;
        }
        if let Some(ids) = &mut slot.ids {
            // A row that continues has noted its token when it sampled it.
            if slot.last_token.is_none() {
                ids.extend(tokens);
            }
        }
        if !logprobs.is_empty() && !slot.has_failed {
            step.prompt_logprobs.push(v1::PromptLogprobs { logprobs: pack_u32(logprobs), ..prompt_logprobs });
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
            let raw = next_token(state, &slot.params, slot.ids.as_deref(), slot.length);
            let mask = masks.iter().find(|mask| mask.slot == slot_id);
            let mask = mask.map(|mask| ids(&mask.allowed)).transpose()?;
            let token = allowed_token(raw, mask.as_deref());
            samples.push(Sample { slot: slot_id, token_id: token, logprob: logprob(token, slot.length) });
            if slot.params.top_n_tokens() > 0 {
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

    /// A draft of a row that has just sampled: what it gets right is computed and sampled from, the rest is garbage in the cache.
    /// Returns its length.
    fn draft(
        &mut self,
        slot_id: u32,
        limit: u8,
        samples: &mut Vec<Sample>,
        step: &mut StepResult,
    ) -> Result<u8, Refusal> {
        let Some(slot) = self.slot(slot_id) else { return Err(Refusal::Broken("a draft for a dead slot".into())) };
        rule!(limit == 0 || slot.speculates, "slot {slot_id} drafts though it does not speculate");
        let blocks = (slot.length + u32::from(limit)).div_ceil(self.block_size) as usize;
        rule!(blocks <= slot.table.len(), "slot {slot_id} has no block for its draft");
        let dice = mix(u64::from(slot.length) << 32 | self.seq);
        // Once in four times nothing like it came before.
        let drafted = if dice.is_multiple_of(4) { 0 } else { limit };
        let right = u64::from(drafted).min(dice / 4 % 8);
        for _ in 0..right {
            let last = self.slot(slot_id).as_ref().and_then(|slot| slot.last_token).expect("it has just sampled");
            self.compute(slot_id, &[last], true, &[], samples, step)?;
        }
        let slot = self.slots[slot_id as usize].take().expect("the caller has seen it");
        for wrong in 0..u32::from(drafted) - right as u32 {
            self.write(slot_id, &slot, slot.length + wrong, Some(dice))?;
        }
        self.slots[slot_id as usize] = Some(slot);
        Ok(drafted)
    }

    /// Writes an entry of a slot that is taken out of `slots`.
    fn write(&mut self, slot_id: u32, slot: &Slot, position: u32, entry: Option<u64>) -> Result<(), Refusal> {
        let (block, offset) = ((position / self.block_size) as usize, (position % self.block_size) as usize);
        rule!(block < slot.table.len(), "slot {slot_id} has no block for position {position}");
        let block = slot.table[block];
        let is_shared = self.slots.iter().flatten().any(|other| other.table.contains(&block));
        rule!(!is_shared, "slot {slot_id} writes into block {block}, which another row reads");
        self.kv[block as usize][offset] = entry;
        Ok(())
    }

    fn entry(&self, slot: &Slot, position: u32) -> Option<u64> {
        let block = slot.table[(position / self.block_size) as usize];
        self.kv[block as usize][(position % self.block_size) as usize]
    }
}

/// The tokens a request must get, computed alone and without any table. Under a grammar that fails: those before.
pub(crate) fn reference_reply(parts: &RequestParts) -> Vec<u32> {
    let params = &parts.sampling;
    let mut tokens = parts.input_ids.to_vec();
    let (mut state, mut before) = (0, 0);
    for (position, &token) in tokens.iter().enumerate() {
        before = kv_entry(before, token, position as u32);
        state = mix(state ^ before);
    }
    let mut matcher = parts.constraint.as_ref().map(|constraint| constraint.0.matcher());
    loop {
        let length = tokens.len() as u32;
        let reply_len = length - parts.input_ids.len() as u32;
        let raw = next_token(state, params, params.needs_cached_ids().then_some(&tokens), length);
        let token = match &mut matcher {
            None => raw,
            Some(matcher) => {
                let Ok(mut mask) = matcher.mask() else { return tokens.split_off(parts.input_ids.len()) };
                mask[0] &= if reply_len < params.min_tokens() { !(1 << EOS) } else { u32::MAX };
                if mask.iter().all(|word| *word == 0) {
                    return tokens.split_off(parts.input_ids.len());
                }
                let token = allowed_token(raw, Some(&mask));
                matcher.accept(token).unwrap();
                token
            }
        };
        tokens.push(token);
        let reply = &tokens[parts.input_ids.len()..];
        if reply.len() == parts.max_new_tokens as usize || (token == EOS && !parts.ignore_eos) {
            return reply.to_vec();
        }
        before = kv_entry(before, token, length);
        state = mix(state ^ before);
    }
}

/// The log-probabilities of a request's prompt, from its second token on.
pub(crate) fn reference_prompt(parts: &RequestParts) -> Vec<PromptLogprob> {
    let mut before = 0;
    let logprobs = parts.input_ids.iter().enumerate().map(|(position, &token)| {
        let logprob = prompt_logprob(before, token);
        before = kv_entry(before, token, position as u32);
        let top = (parts.sampling.top_n_tokens() > 0).then(|| Box::from([(token, 0.0)]));
        PromptLogprob { logprob, top }
    });
    logprobs.skip(1).collect()
}

/// Depends on all tokens up to this one, as `before` does.
fn prompt_logprob(before: u64, token: u32) -> f32 {
    -((mix(before ^ u64::from(token)) % 1024) as f32) / 64.0
}

/// The first token from `raw` on that the mask allows.
fn allowed_token(raw: u32, mask: Option<&[u32]>) -> u32 {
    let Some(mask) = mask else { return raw };
    let is_allowed = |token: &u32| mask.get((token / 32) as usize).is_some_and(|word| word >> (token % 32) & 1 == 1);
    (0..VOCAB_SIZE).map(|ahead| (raw + ahead) % VOCAB_SIZE).find(is_allowed).expect("a mask allows a token")
}

/// A grammar that allows some tokens; which ones depends on all that it has read.
pub(crate) struct TinyGrammar {
    pub(crate) seed: u64,
    /// Tokens after which it fails: with an error, or with a mask that allows nothing.
    pub(crate) fails_after: Option<u32>,
}

struct TinyMatcher {
    state: u64,
    read: u32,
    fails_after: Option<u32>,
}

impl Constraint for TinyGrammar {
    fn matcher(&self) -> Box<dyn Matcher> {
        Box::new(TinyMatcher { state: mix(self.seed), read: 0, fails_after: self.fails_after })
    }
}

impl TinyMatcher {
    fn allows(&self, token: u32) -> bool {
        token < VOCAB_SIZE - 2
            && (token == 1 + (self.state % 60) as u32 || mix(self.state ^ u64::from(token)).is_multiple_of(4))
    }
}

impl Matcher for TinyMatcher {
    fn mask(&mut self) -> Result<Vec<u32>, String> {
        match self.fails_after {
            Some(after) if self.read >= after && after % 2 == 0 => Err("tiny".to_owned()),
            Some(after) if self.read >= after => Ok(vec![0; 2]),
            _ => Ok((0..2)
                .map(|word| (0..32).fold(0, |bits, bit| bits | u32::from(self.allows(word * 32 + bit)) << bit))
                .collect()),
        }
    }

    fn accept(&mut self, token_id: u32) -> Result<(), String> {
        if !self.allows(token_id) {
            return Err(format!("token {token_id} is not allowed"));
        }
        self.state = mix(self.state ^ u64::from(token_id));
        self.read += 1;
        Ok(())
    }
}

/// The log-probability that goes with a token: any function will do, as long as it is not constant.
pub(crate) fn logprob(token: u32, length: u32) -> f32 {
    -((token + length) as f32) / 16.0
}

fn next_token(state: u64, params: &v1::SamplingParams, ids: Option<&[u32]>, length: u32) -> u32 {
    let seen = ids.map_or(0, |ids| ids.iter().fold(1, |hash, id| mix(hash ^ u64::from(*id))));
    (mix(state ^ mix(params.seed()) ^ seen ^ u64::from(length)) % u64::from(VOCAB_SIZE - 2)) as u32
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
