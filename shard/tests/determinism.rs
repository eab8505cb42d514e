//! The invariant on which recovery rests: token ids and log-probability bits of a request do not depend on batch mates,
//! arrival, chunking, cached prefixes, preemption, slots, blocks, threads or drafts.

#![allow(clippy::unwrap_used, reason = "the exemption for tests does not reach helpers of integration tests")]

mod runner;
mod support;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proto::v1::{Chunk, NewSlot, Plan, SamplingParams, StepResult, TokenBias, TokenSequence, TopTokens, Watermark};
use proto::{Sample, pack_u32, unpack_u32};
use runner::with_ranks;
use shard::comm::{Comm, Single};
use shard::executor::Executor;
use shard::masks::{MaskError, MaskSource, StepMasks};
use shard::start;
use support::{Random, TinyModel, VOCAB_SIZE};

const BLOCK_SIZE: usize = 16;
const MAX_SLOTS: usize = 8;
const NUM_BLOCKS: usize = 128;
const MAX_STEP_TOKENS: usize = 64;

/// What a request is answered with, as bits: token, log-probability, and the top tokens with theirs.
type Answer = Vec<(u32, u32, Vec<(u32, u32)>)>;

/// Log-probability bits of a prompt's tokens by position, and the top tokens with theirs.
type Prefill = BTreeMap<u32, (u32, Vec<(u32, u32)>)>;

#[derive(Clone, Debug)]
struct Request {
    prompt: Vec<u32>,
    params: SamplingParams,
    new_tokens: usize,
    /// Its grammar, if it has one: what is allowed at a position depends on this and the position.
    grammar: Option<u64>,
}

impl Request {
    /// A mask is for one position, so there is none for a draft.
    fn speculates(&self) -> bool {
        self.grammar.is_none()
    }

    /// Three tokens of four.
    fn mask(&self, position: usize) -> Option<bytes::Bytes> {
        let mut random = Random(self.grammar? ^ position as u64);
        Some(pack_u32((0..VOCAB_SIZE / 32).map(|_| (random.next() | random.next()) as u32)))
    }

    /// Whether every prompt token but the first has its log-probability, or none is wanted.
    fn is_scored(&self, prefill: &Prefill) -> bool {
        !self.params.prompt_logprobs || prefill.len() + 1 == self.prompt.len()
    }
}

/// The masks of a step, which is known before the step here.
struct Ready(StepMasks);

impl MaskSource for Ready {
    fn take(&mut self, _seq: u64, slots: &[u32]) -> Result<StepMasks, MaskError> {
        let mut expected = slots.to_vec();
        expected.sort_unstable();
        assert_eq!(self.0.keys().copied().collect::<Vec<_>>(), expected);
        Ok(std::mem::take(&mut self.0))
    }
}

fn executor(model: &TinyModel, threads: &str) -> Executor {
    rank(model, threads, Arc::new(Single))
}

fn rank(model: &TinyModel, threads: &str, comm: Arc<dyn Comm>) -> Executor {
    start::start_with(&model.args(&["--threads", threads]), comm).unwrap().executor
}

fn random_request(random: &mut Random, shared_prefix: &[u32]) -> Request {
    // Half of the prompts share a prefix, so that the prefix cache has something to find.
    let mut prompt =
        if random.one_in(2) { shared_prefix[..random.below(shared_prefix.len())].to_vec() } else { vec![] };
    let more = 1 + random.below(60);
    // Every third one repeats itself, so that there is something to draft.
    let period = if random.one_in(3) { 1 + random.below(6) } else { more };
    let phrase: Vec<u32> = (0..period).map(|_| random.below(VOCAB_SIZE) as u32).collect();
    prompt.extend(phrase.into_iter().cycle().take(more));
    let mut maybe = |value: f32| random.one_in(3).then_some(value);
    let params = SamplingParams {
        temperature: maybe(0.7),
        top_k: maybe(20.0).map(|top_k| top_k as i32),
        top_p: maybe(0.9),
        typical_p: maybe(0.8),
        repetition_penalty: maybe(1.3),
        frequency_penalty: maybe(0.5),
        top_n_tokens: maybe(3.0).map(|n| n as u32),
        do_sample: maybe(1.0).or(maybe(1.0)).is_some(),
        min_p: maybe(0.05),
        presence_penalty: maybe(0.8),
        occurrence_penalty: maybe(0.3),
        min_tokens: maybe(15.0).map(|min_tokens| min_tokens as u32),
        prompt_logprobs: maybe(1.0).is_some(),
        watermark: maybe(1.0).map(|delta| Watermark { gamma: 0.4, delta }),
        ..SamplingParams::default()
    };
    let mut params = SamplingParams { seed: Some(random.next()), ..params };
    if random.one_in(3) {
        let biases = [(3, 2.0), (40, f32::NEG_INFINITY), (77, -1.5)];
        params.logit_bias = biases.map(|(token_id, bias)| TokenBias { token_id, bias }).to_vec();
    }
    if random.one_in(2) {
        // Every pair of one half of the vocabulary with one token, some longer words, and a single token.
        let pairs = (0..VOCAB_SIZE as u32 / 2).map(|first| vec![first, first + 7]);
        let word = |length: usize, random: &mut Random| (0..length).map(|_| random.below(4) as u32).collect();
        let words = [word(3, random), word(5, random), vec![random.below(VOCAB_SIZE) as u32]];
        params.bad_words = pairs.chain(words).map(|ids| TokenSequence { ids }).collect();
    }
    let (mut grammar, mut new_tokens) = (random.one_in(3).then(|| random.next()), 1 + random.below(40));
    if random.one_in(2) {
        // Replies that fall into a loop, so that drafts are right; penalties keep most of the others from it.
        params.do_sample = random.one_in(2);
        (params.temperature, params.repetition_penalty, params.presence_penalty) = (Some(0.02), None, None);
        (params.frequency_penalty, params.occurrence_penalty, params.typical_p) = (None, Some(0.01), None);
        params.bad_words.clear();
        (grammar, new_tokens) = (None, new_tokens + 30);
    }
    Request { prompt, params, new_tokens, grammar }
}

/// The reference: nothing else is there, the prompt goes in as few chunks as fit.
fn alone(executor: &mut Executor, request: &Request) -> (Answer, Prefill) {
    executor.clear();
    let requests = [request.clone()];
    let mut schedule = Schedule::new(executor, &requests, Random(0), Style::Plain);
    schedule.run();
    (schedule.answers.remove(0), schedule.prefills.remove(0))
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    /// As soon and as much as possible.
    Plain,
    /// Whatever the dice say.
    Random,
}

/// A router without a plan: admits, chunks, pauses, preempts and shares blocks at random.
struct Schedule<'a> {
    executor: &'a mut Executor,
    requests: &'a [Request],
    random: Random,
    style: Style,
    seq: u64,
    waiting: VecDeque<usize>,
    slots: Vec<Option<Live>>,
    /// References per block; a block without one may be given out.
    references: Vec<usize>,
    /// Blocks by the tokens up to their end.
    prefixes: HashMap<Vec<u32>, u32>,
    answers: Vec<Answer>,
    prefills: Vec<Prefill>,
    cached_tokens: usize,
    preemptions: usize,
    /// Draft tokens that were computed, and those of them that were right.
    drafted: usize,
    accepted: usize,
}

struct Live {
    request: usize,
    /// Prompt, and what was emitted before the row entered.
    ids: Vec<u32>,
    /// Tokens whose KV is computed.
    length: usize,
    blocks: Vec<u32>,
}

impl<'a> Schedule<'a> {
    fn new(executor: &'a mut Executor, requests: &'a [Request], random: Random, style: Style) -> Schedule<'a> {
        Schedule {
            executor,
            requests,
            random,
            style,
            seq: 0,
            waiting: (0..requests.len()).collect(),
            slots: (0..MAX_SLOTS).map(|_| None).collect(),
            references: vec![0; NUM_BLOCKS],
            prefixes: HashMap::new(),
            answers: vec![Answer::new(); requests.len()],
            prefills: vec![Prefill::new(); requests.len()],
            cached_tokens: 0,
            preemptions: 0,
            drafted: 0,
            accepted: 0,
        }
    }

    fn run(&mut self) {
        while self.answers.iter().zip(self.requests).any(|(answer, request)| answer.len() < request.new_tokens) {
            self.step();
            assert!(self.seq < 100_000, "the schedule makes no progress");
        }
    }

    fn chance(&mut self, n: usize) -> bool {
        self.style == Style::Random && self.random.one_in(n)
    }

    fn step(&mut self) {
        self.seq += 1;
        let mut plan = Plan { seq: self.seq, ..Plan::default() };
        let mut freed = vec![];
        for slot in 0..MAX_SLOTS {
            let Some(live) = &self.slots[slot] else { continue };
            let request = live.request;
            let done = self.answers[request].len() >= self.requests[request].new_tokens;
            if done || self.chance(40) {
                freed.push(slot as u32);
                self.free(slot);
                if !done {
                    self.preemptions += 1;
                    self.waiting.push_front(request);
                }
            }
        }
        plan.freed_slots = pack_u32(freed);
        while !self.waiting.is_empty() && !self.chance(3) {
            let Some(slot) = self.slots.iter().position(Option::is_none) else { break };
            let request = self.waiting.pop_front().unwrap();
            plan.new_slots.push(self.admit(slot, request));
        }

        let (mut budget, mut continues, mut appended) = (MAX_STEP_TOKENS, vec![], vec![]);
        let may_draft = self.style == Style::Random && !self.chance(4);
        let mut draft_limits = vec![];
        let mut masks = StepMasks::new();
        for slot in 0..MAX_SLOTS {
            // A row may pause: nothing says that every row runs in every step.
            if self.slots[slot].is_none() || budget == 0 || self.chance(6) {
                continue;
            }
            let live = self.slots[slot].as_ref().unwrap();
            let (left, start) = (live.ids.len().saturating_sub(live.length), live.length);
            let tokens = match (left, self.style) {
                (0, _) => 1,
                (_, Style::Plain) => left.min(budget),
                (_, Style::Random) => 1 + self.random.below(left.min(budget)),
            };
            let request = &self.requests[live.request];
            let wanted = request.new_tokens - self.answers[live.request].len() - 1;
            let draft_limit = match left == 0 && may_draft && request.speculates() {
                true => self.random.below(9).min(wanted).min(budget - 1),
                false => 0,
            };
            while self.slots[slot].as_ref().unwrap().blocks.len() * BLOCK_SIZE < start + tokens + draft_limit {
                let block = self.allocate();
                appended.extend([slot as u32, block]);
                self.slots[slot].as_mut().unwrap().blocks.push(block);
            }
            budget -= tokens + draft_limit;
            let live = self.slots[slot].as_mut().unwrap();
            live.length += tokens;
            let request = &self.requests[live.request];
            if tokens >= left {
                masks.extend(request.mask(live.length).map(|mask| (slot as u32, mask)));
            }
            if left == 0 {
                continues.push(slot as u32);
                draft_limits.push(draft_limit as u8);
            } else {
                let ids = pack_u32(live.ids[start..start + tokens].iter().copied());
                plan.chunks.push(Chunk {
                    slot: slot as u32,
                    start_position: start as u32,
                    ids,
                    sample: tokens == left,
                });
            }
        }
        (plan.continues, plan.appended_blocks) = (pack_u32(continues), pack_u32(appended));
        if may_draft {
            plan.draft_limits = draft_limits.into();
        }
        let result = self.executor.step(1, &plan, Duration::ZERO, &mut Ready(masks)).unwrap();
        self.apply(&result);
    }

    /// Fills a slot, with the longest prefix that is cached.
    fn admit(&mut self, slot: usize, request: usize) -> NewSlot {
        let Request { prompt, params, .. } = &self.requests[request];
        let emitted = self.answers[request].iter().map(|&(id, ..)| id);
        let ids: Vec<u32> = prompt.iter().copied().chain(emitted).collect();
        let mut blocks = vec![];
        // At least one token is computed, because its logits are needed.
        // Nor is a prefix taken from the cache whose log-probabilities are still wanted.
        let is_scored = self.requests[request].is_scored(&self.prefills[request]);
        while self.style == Style::Random && is_scored && (blocks.len() + 1) * BLOCK_SIZE < ids.len() {
            let Some(&block) = self.prefixes.get(&ids[..(blocks.len() + 1) * BLOCK_SIZE]) else { break };
            blocks.push(block);
        }
        blocks.iter().for_each(|&block| self.references[block as usize] += 1);
        let length = blocks.len() * BLOCK_SIZE;
        self.cached_tokens += length;
        let speculates = self.requests[request].speculates();
        let cached_ids = if speculates || params.needs_cached_ids() { &ids[..length] } else { &[] };
        let new = NewSlot {
            slot: slot as u32,
            params: Some(params.clone()),
            block_table: pack_u32(blocks.iter().copied()),
            cached_tokens: length as u32,
            cached_ids: pack_u32(cached_ids.iter().copied()),
            request_id: request as u64,
            prompt_tokens: prompt.len() as u32,
            masked: self.requests[request].grammar.is_some(),
            speculates,
        };
        self.slots[slot] = Some(Live { request, ids, length, blocks });
        new
    }

    /// A block that nobody refers to, forgotten by the prefix cache.
    fn allocate(&mut self) -> u32 {
        let free: Vec<usize> = (0..NUM_BLOCKS).filter(|&block| self.references[block] == 0).collect();
        let block = free[if self.style == Style::Random { self.random.below(free.len()) } else { 0 }] as u32;
        self.prefixes.retain(|_, cached| *cached != block);
        self.references[block as usize] = 1;
        block
    }

    fn free(&mut self, slot: usize) {
        let live = self.slots[slot].take().unwrap();
        live.blocks.iter().for_each(|&block| self.references[block as usize] -= 1);
    }

    fn apply(&mut self, result: &StepResult) {
        assert!(result.row_errors.is_empty(), "{:?}", result.row_errors);
        let mut tops = result.top_tokens.iter().peekable();
        let mut before = None;
        for Sample { slot, token_id, logprob } in Sample::unpack(&result.samples).unwrap() {
            let live = self.slots[slot as usize].as_mut().unwrap();
            // Every sample after a row's first one is a token of the draft that was right.
            let is_accepted = before.replace(slot) == Some(slot);
            live.length += usize::from(is_accepted);
            self.accepted += usize::from(is_accepted);
            let request = live.request;
            let wants_top = self.requests[request].params.top_n_tokens() > 0;
            let top = wants_top.then(|| tops.next_if(|top| top.slot == slot).expect("one per sample"));
            self.answers[request].push((token_id, logprob.to_bits(), top.map_or_else(Vec::new, top_bits)));
        }
        assert_eq!(tops.next(), None);
        self.drafted += result.draft_tokens.iter().map(|&tokens| usize::from(tokens)).sum::<usize>();
        for scored in &result.prompt_logprobs {
            let Live { request, ids, .. } = self.slots[scored.slot as usize].as_ref().unwrap();
            let top_n_tokens = self.requests[*request].params.top_n_tokens() as usize;
            let logprobs: Vec<u32> = unpack_u32(&scored.logprobs).unwrap().collect();
            assert_eq!(scored.top_tokens.len(), if top_n_tokens > 0 { logprobs.len() } else { 0 });
            for (index, bits) in logprobs.into_iter().enumerate() {
                let position = scored.first_token_position + index as u32;
                let top: Vec<(u32, u32)> = scored.top_tokens.get(index).map(top_bits).unwrap_or_default();
                let own = top.iter().find(|(id, _)| *id == ids[position as usize]);
                assert!(own.is_none_or(|&(_, own)| own == bits), "the token's own logprob is that of the list");
                let value = (bits, top);
                // After a preemption the prompt is scored again.
                let known = self.prefills[*request].entry(position).or_insert_with(|| value.clone());
                assert_eq!(*known, value, "position {position}");
            }
        }
        // Full blocks of what is computed can be shared: prompt and reply alike.
        for live in self.slots.iter().flatten() {
            let prompt = &self.requests[live.request].prompt;
            let emitted = self.answers[live.request].iter().map(|&(id, ..)| id);
            let ids: Vec<u32> = prompt.iter().copied().chain(emitted).take(live.length).collect();
            for (index, &block) in live.blocks.iter().enumerate().take(live.length / BLOCK_SIZE) {
                self.prefixes.entry(ids[..(index + 1) * BLOCK_SIZE].to_vec()).or_insert(block);
            }
        }
    }
}

fn top_bits(top: &TopTokens) -> Vec<(u32, u32)> {
    unpack_u32(&top.ids).unwrap().zip(unpack_u32(&top.logprobs).unwrap()).collect()
}

#[test]
fn answers_do_not_depend_on_the_schedule() {
    let model = TinyModel::new();
    let (mut one, mut two) = (executor(&model, "1"), executor(&model, "2"));
    let (mut cached_tokens, mut preemptions, mut distinct, mut scored) = (0, 0, 0, 0);
    let (mut drafted, mut accepted) = (0, 0);
    for seed in 1..=6 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let prefix: Vec<u32> = (0..200).map(|_| random.below(VOCAB_SIZE) as u32).collect();
        let requests: Vec<Request> = (0..24).map(|_| random_request(&mut random, &prefix)).collect();
        let expected: Vec<(Answer, Prefill)> = requests.iter().map(|request| alone(&mut one, request)).collect();
        for _ in 0..3 {
            two.clear();
            let mut schedule = Schedule::new(&mut two, &requests, random.clone(), Style::Random);
            schedule.run();
            for (index, answer) in schedule.answers.iter().enumerate() {
                let (expected, prefill) = &expected[index];
                assert_eq!(answer, expected, "seed {seed}, request {index}: {:?}", requests[index]);
                assert_eq!(&schedule.prefills[index], prefill, "seed {seed}, request {index}: {:?}", requests[index]);
                assert!(requests[index].is_scored(prefill));
                scored += prefill.len();
            }
            (cached_tokens, preemptions) = (cached_tokens + schedule.cached_tokens, preemptions + schedule.preemptions);
            (drafted, accepted) = (drafted + schedule.drafted, accepted + schedule.accepted);
            random.next();
        }
        let mut tokens: Vec<u32> = expected.iter().flat_map(|(answer, _)| answer).map(|&(id, ..)| id).collect();
        tokens.sort_unstable();
        tokens.dedup();
        distinct = distinct.max(tokens.len());
    }
    // The test means nothing if the schedules were tame or the model says one word.
    println!("{cached_tokens} cached tokens, {preemptions} preemptions, {distinct} distinct tokens, {scored} scored");
    println!("{drafted} draft tokens, {accepted} of them right");
    assert!(scored > 1000 && accepted > 500 && drafted - accepted > 500);
    assert!(cached_tokens > 1000 && preemptions > 100 && distinct > VOCAB_SIZE / 2);
}

#[test]
fn rows_of_one_request_and_seed_agree_in_every_slot() {
    let model = TinyModel::new();
    let mut executor = executor(&model, "2");
    let params = SamplingParams { do_sample: true, seed: Some(5), ..SamplingParams::default() };
    let request = Request { prompt: vec![1, 2, 3], params, new_tokens: 20, grammar: None };
    let same = vec![request; MAX_SLOTS];
    let mut schedule = Schedule::new(&mut executor, &same, Random(9), Style::Plain);
    schedule.run();
    assert!(schedule.answers.iter().all(|answer| *answer == schedule.answers[0]));
}

/// Ranks are sent the same plans and nothing of each other's samples: they must draft alike, or their collectives do not fit.
#[test]
fn drafts_change_nothing_on_two_ranks() {
    let model = TinyModel::new();
    let mut random = Random(77);
    let prefix: Vec<u32> = (0..60).map(|_| random.below(VOCAB_SIZE) as u32).collect();
    let requests: Vec<Request> = (0..16).map(|_| random_request(&mut random, &prefix)).collect();
    let ranks = with_ranks(2, |comm| {
        let mut executor = rank(&model, "1", comm);
        let expected: Vec<(Answer, Prefill)> = requests.iter().map(|request| alone(&mut executor, request)).collect();
        executor.clear();
        // Each rank throws the same dice.
        let mut schedule = Schedule::new(&mut executor, &requests, Random(5), Style::Random);
        schedule.run();
        for (index, (expected, _)) in expected.iter().enumerate() {
            assert_eq!(&schedule.answers[index], expected, "request {index}: {:?}", requests[index]);
        }
        (schedule.accepted, schedule.answers)
    });
    assert!(ranks[0].0 > 20, "{} tokens of drafts were right: the test shows nothing", ranks[0].0);
    assert!(ranks[0] == ranks[1]);
}
