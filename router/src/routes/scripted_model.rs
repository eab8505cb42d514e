//! A one-rank shard group whose model always says the same text, so that answers can be compared byte for byte. Where a
//! grammar forbids a token of it, the model says the first one that is allowed.
//!
//! Unlike the engine's own scripted group, which checks the step protocol, this one only obeys it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use proto::v1::{self, InfoResponse, Mask, Plan, SamplingParams, StepResult, from_shard};
use proto::{Sample, pack_u32, unpack_u32};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::engine::scripted_rank::{self, Ranks, Sender};

/// Positions of the model in most tests.
pub(super) const CONTEXT: u32 = 64;
/// The end-of-sequence token of the test tokenizer.
pub(super) const EOS: u32 = 257;

/// The model behind its socket. Dropping it ends the server.
pub(super) struct ScriptedModel {
    pub(super) ranks: Ranks,
    pub(super) script: Arc<Script>,
}

/// What the model says and what it has heard.
pub(super) struct Script {
    /// Every reply; [`EOS`] follows its last token.
    reply: Vec<u32>,
    /// Positions of the model.
    context: u32,
    /// One permit per plan.
    pub(super) steps: Semaphore,
    /// The sampling parameters and the prompt of every request, in the order of their arrival.
    pub(super) heard: Mutex<Vec<(SamplingParams, Vec<u32>)>>,
    /// Slots freed so far.
    pub(super) freed: Mutex<usize>,
}

impl ScriptedModel {
    /// A model of `context` positions that says `reply`.
    pub(super) fn with_context(reply: Vec<u32>, context: u32) -> Self {
        let script = Arc::new(Script {
            reply,
            context,
            steps: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            heard: Mutex::default(),
            freed: Mutex::default(),
        });
        Self { ranks: Ranks::start(1, &script), script }
    }
}

/// The rows of the model, and those that go on.
#[derive(Default)]
pub(super) struct Slots {
    rows: HashMap<u32, Row>,
    continues: Vec<u32>,
}

/// A row: how it entered, what has been computed of its prompt, and how much of the reply it has said.
struct Row {
    params: SamplingParams,
    prompt_tokens: u32,
    masked: bool,
    prompt: Vec<u32>,
    said: usize,
}

impl Row {
    /// A token at position p has the log-probability -p / 2, and itself and the next id as the most likely ones.
    fn prompt_logprobs(&self, chunk: &v1::Chunk) -> Option<v1::PromptLogprobs> {
        let first_token_position = chunk.start_position.max(1);
        let positions = first_token_position..(self.prompt.len() as u32).min(self.prompt_tokens);
        if !self.params.prompt_logprobs || positions.is_empty() {
            return None;
        }
        let logprob = |position: u32| -(position as f32) / 2.0;
        let top = |position: u32| v1::TopTokens {
            slot: chunk.slot,
            ids: pack_u32([self.prompt[position as usize], self.prompt[position as usize] + 1]),
            logprobs: pack_u32([logprob(position).to_bits(), (logprob(position) - 1.0).to_bits()]),
        };
        let has_top = self.params.top_n_tokens() > 0;
        Some(v1::PromptLogprobs {
            slot: chunk.slot,
            first_token_position,
            logprobs: pack_u32(positions.clone().map(|position| logprob(position).to_bits())),
            top_tokens: if has_top { positions.map(top).collect() } else { Vec::new() },
        })
    }
}

/// Whether a sampled row of the plan needs a mask.
fn waits(rows: &HashMap<u32, Row>, continues: &[u32], plan: &Plan) -> bool {
    let sent: Vec<u32> = unpack_u32(&plan.continues).unwrap().collect();
    let continues = if plan.same_rows { continues } else { &sent };
    let sampled = plan.chunks.iter().filter(|chunk| chunk.sample).map(|chunk| chunk.slot);
    continues.iter().copied().chain(sampled).any(|slot| match plan.new_slots.iter().find(|new| new.slot == slot) {
        Some(new) => new.masked,
        None => rows.get(&slot).is_some_and(|row| row.masked),
    })
}

/// `wanted` if the mask allows it, else the first token that it does.
fn allowed(wanted: u32, mask: &[u8]) -> u32 {
    let words: Vec<u32> = unpack_u32(mask).unwrap().collect();
    let is_allowed = |id: &u32| words.get((id / 32) as usize).is_some_and(|word| word >> (id % 32) & 1 == 1);
    std::iter::once(wanted).chain(0..300).find(is_allowed).expect("a mask allows a token")
}

impl scripted_rank::Script for Script {
    type Slots = Slots;

    fn info(&self, rank: u32) -> InfoResponse {
        InfoResponse {
            protocol_version: proto::PROTOCOL_VERSION,
            rank,
            world_size: 1,
            device: "cpu".into(),
            dtype: "float32".into(),
            model_type: "llama".into(),
            vocab_size: 300,
            max_position_embeddings: self.context,
            block_size: 16,
            num_blocks: 64,
            max_slots: 8,
            max_step_tokens: 32,
            max_logit_rows: 8,
            eos_token_ids: vec![EOS],
            max_top_n_tokens: 128,
            ..Default::default()
        }
    }

    fn open(self: &Arc<Self>, _: u32) -> Slots {
        Slots::default()
    }

    fn is_ready(&self, slots: &Slots, plan: &Plan, has_masks: bool) -> bool {
        has_masks || !waits(&slots.rows, &slots.continues, plan)
    }

    async fn execute(
        &self,
        slots: &mut Slots,
        plan: Plan,
        masks: Vec<Mask>,
        _: &Sender,
    ) -> Result<Option<from_shard::Message>, Status> {
        self.steps.acquire().await.expect("never closed").forget();
        let result = self.step(&mut slots.rows, &mut slots.continues, plan, &masks);
        Ok(Some(from_shard::Message::Result(result)))
    }
}

impl Script {
    fn step(&self, rows: &mut HashMap<u32, Row>, continues: &mut Vec<u32>, plan: Plan, masks: &[Mask]) -> StepResult {
        for slot in unpack_u32(&plan.freed_slots).unwrap() {
            rows.remove(&slot);
            *self.freed.lock().unwrap() += 1;
        }
        for slot in plan.new_slots {
            let v1::NewSlot { slot, params, prompt_tokens, masked, .. } = slot;
            let params = params.unwrap_or_default();
            rows.insert(slot, Row { params, prompt_tokens, masked, prompt: Vec::new(), said: 0 });
        }
        if !plan.same_rows {
            *continues = unpack_u32(&plan.continues).unwrap().collect();
        }
        let mut sampled = continues.clone();
        let mut result = StepResult { seq: plan.seq, timings: Some(v1::Timings::default()), ..Default::default() };
        for chunk in plan.chunks {
            let row = rows.get_mut(&chunk.slot).expect("chunks are of live slots");
            row.prompt.extend(unpack_u32(&chunk.ids).unwrap());
            result.prompt_logprobs.extend(row.prompt_logprobs(&chunk));
            if chunk.sample {
                self.heard.lock().unwrap().push((row.params.clone(), row.prompt.clone()));
                sampled.push(chunk.slot);
            }
        }
        let mut samples = Vec::new();
        for slot in sampled {
            let row = rows.get_mut(&slot).expect("sampled rows are live slots");
            let wanted = self.reply.get(row.said).copied().unwrap_or(EOS);
            let mask = masks.iter().find(|mask| mask.slot == slot);
            let token_id = mask.map_or(wanted, |mask| allowed(wanted, &mask.allowed));
            row.said += 1;
            // Greedy rows are always this sure; the others by their seed, so that best_of has something to choose.
            let logprob = if row.params.do_sample { -1.0 - (row.params.seed() % 64) as f32 / 64.0 } else { -0.5 };
            samples.push(Sample { slot, token_id, logprob });
            if row.params.top_n_tokens() > 0 {
                let ids: Vec<u32> = (0..row.params.top_n_tokens()).map(|n| token_id + n).collect();
                let logprobs = ids.iter().enumerate().flat_map(|(n, _)| (logprob - n as f32).to_le_bytes());
                let logprobs: Vec<u8> = logprobs.collect();
                result.top_tokens.push(v1::TopTokens { slot, ids: pack_u32(ids), logprobs: logprobs.into() });
            }
        }
        result.samples = Sample::pack(&samples);
        result
    }
}
