//! The scheduler against random schedules: arrivals, lengths, ends, cancellations, a cache that is nearly always full,
//! crashes. After every move the invariants hold, and every reply equals the one computed alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use proto::v1::{Mask, Plan, StepResult};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::tiny_shard::{
    EOS, POISON, Refusal, TinyGrammar, TinyShard, UNCOMPUTABLE, VOCAB_SIZE, logprob, reference_prompt, reference_reply,
};
use super::*;
use crate::constraint::SharedConstraint;
use crate::engine::masks::{Job, Masks};
use crate::engine::wire;
use crate::request::{RequestLimits, RequestParts};

/// What a schedule is made of.
#[derive(Clone, Copy, Debug)]
struct Weather {
    seed: u64,
    num_requests: usize,
    crashes: bool,
    bad_rows: bool,
    grammars: bool,
    speculation: bool,
}

struct Simulation {
    weather: Weather,
    rng: StdRng,
    scheduler: Scheduler,
    shard: TinyShard,
    capacity: Capacity,
    block_size: u32,
    masks: Masks,
    /// What the mask workers have to do.
    jobs: Vec<Job>,
    /// Plans the shard has not executed yet, because it waits for masks.
    waiting: VecDeque<Plan>,
    /// Masks that were sent for them.
    sent_masks: HashMap<u64, Vec<Mask>>,
    /// Results the router has not seen yet.
    results: VecDeque<StepResult>,
    requests: BTreeMap<RequestId, Client>,
    epochs: u32,
    /// Requests that may have to fail because they were around at crashes.
    met_crashes: HashMap<RequestId, u32>,
}

#[derive(Debug)]
struct Client {
    parts: RequestParts,
    prompt: Option<Vec<PromptLogprob>>,
    reply: Vec<u32>,
    scheduled: u32,
    end: Option<End>,
}

#[derive(Debug, PartialEq)]
enum End {
    Finished(FinishReason),
    Failed(Failure),
    Cancelled,
}

impl Simulation {
    fn new(weather: Weather) -> Self {
        let mut rng = StdRng::seed_from_u64(weather.seed);
        let block_size = if rng.random_bool(0.5) { 4 } else { 16 };
        let capacity = Capacity {
            num_blocks: rng.random_range(2..=24),
            max_slots: rng.random_range(1..=8),
            max_step_tokens: rng.random_range(3..=40),
            max_logit_rows: rng.random_range(1..=12),
        };
        let config = SchedulerConfig {
            block_size,
            vocab_size: VOCAB_SIZE,
            eos_token_ids: vec![EOS],
            run_ahead: rng.random_range(1..=3),
            max_draft_tokens: if weather.speculation { rng.random_range(1..=8) } else { 0 },
            prefix_key: PrefixKey::from_bytes([weather.seed as u8; 32]),
        };
        Self {
            weather,
            rng,
            scheduler: Scheduler::new(config, capacity),
            shard: Self::shard(capacity, block_size),
            capacity,
            block_size,
            masks: Masks::new(VOCAB_SIZE, &[EOS]),
            jobs: Vec::new(),
            waiting: VecDeque::new(),
            sent_masks: HashMap::new(),
            results: VecDeque::new(),
            requests: BTreeMap::new(),
            epochs: 1,
            met_crashes: HashMap::new(),
        }
    }

    fn shard(capacity: Capacity, block_size: u32) -> TinyShard {
        TinyShard::new(capacity, block_size)
    }

    fn run(mut self) -> Counters {
        let mut moves = 0;
        while self.requests.len() < self.weather.num_requests || !self.scheduler.is_idle() {
            match self.rng.random_range(0..100) {
                0..15 if self.requests.len() < self.weather.num_requests => self.submit(),
                15..17 => self.cancel(),
                17 if self.weather.crashes && self.rng.random_bool(0.2) => self.crash(),
                20..50 => self.plan(),
                50..80 => self.apply(),
                80..100 => self.compute_mask(),
                _ => continue,
            }
            self.check_invariants();
            moves += 1;
            assert!(moves < 200_000, "{:?}: no end in sight, {:?}", self.weather, self.scheduler.load());
        }
        while !self.results.is_empty() || !self.waiting.is_empty() {
            assert!(!self.results.is_empty(), "{:?}: the shard waits for masks that nobody wants", self.weather);
            self.apply();
        }
        self.check_replies();
        self.scheduler.counters()
    }

    fn submit(&mut self) {
        let id = RequestId(self.requests.len() as u64 + 1);
        let total = self.capacity.num_blocks * self.block_size;
        let max_new_tokens = self.rng.random_range(1..=(total / 2).min(40));
        let longest = total - max_new_tokens;
        let input_tokens = if self.rng.random_bool(0.2) { longest } else { self.rng.random_range(1..=longest.min(40)) };
        // Three families of prompts share their beginnings; a prompt leaves its family at a random place.
        let family = self.rng.random_range(0..3u32);
        let leaves_at = self.rng.random_range(0..=input_tokens);
        let mut input_ids: Vec<u32> = (0..input_tokens).map(|idx| 1 + (idx * 7 + family) % 50).collect();
        input_ids[leaves_at as usize..].iter_mut().for_each(|id| *id = self.rng.random_range(1..60));
        if self.weather.bad_rows && self.rng.random_bool(0.1) {
            let at = self.rng.random_range(0..input_ids.len());
            input_ids[at] = UNCOMPUTABLE;
        }
        let grammar = TinyGrammar {
            seed: self.rng.random(),
            fails_after: self.rng.random_bool(0.2).then(|| self.rng.random_range(0..10)),
        };
        let is_constrained = self.weather.grammars && self.rng.random_bool(0.5);
        let parts = RequestParts {
            input_ids: input_ids.into(),
            sampling: proto::v1::SamplingParams {
                seed: Some(self.rng.random_range(0..3)),
                repetition_penalty: self.rng.random_bool(0.3).then_some(1.2),
                top_n_tokens: Some(self.rng.random_range(0..2)),
                prompt_logprobs: self.rng.random_bool(0.2),
                min_tokens: is_constrained.then(|| self.rng.random_range(0..=max_new_tokens.min(5))),
                ..Default::default()
            },
            max_new_tokens,
            ignore_eos: self.rng.random_bool(0.2),
            cache_prompt: self.rng.random_bool(0.9),
            salt: self.rng.random_bool(0.2).then(|| Arc::from("tenant")),
            constraint: is_constrained.then(|| SharedConstraint(Arc::new(grammar))),
        };
        let limits = RequestLimits { max_total_tokens: total, vocab_size: VOCAB_SIZE, max_top_n_tokens: 5 };
        let request = GenerateRequest::new(parts.clone(), &limits).unwrap();
        self.masks.begin(id, &request);
        self.jobs.extend(self.masks.take_jobs(Instant::now()));
        self.scheduler.submit(id, request).unwrap();
        self.requests.insert(id, Client { parts, prompt: None, reply: Vec::new(), scheduled: 0, end: None });
    }

    fn cancel(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let id = RequestId(self.rng.random_range(1..=self.requests.len() as u64));
        let client = self.requests.get_mut(&id).unwrap();
        assert_eq!(self.scheduler.cancel(id), client.end.is_none(), "{:?}: {id:?} is live or not", self.weather);
        client.end.get_or_insert(End::Cancelled);
        self.masks.forget(id);
        self.send_masks();
    }

    /// A mask worker does one of the jobs.
    fn compute_mask(&mut self) {
        if self.jobs.is_empty() {
            return;
        }
        let job = self.jobs.swap_remove(self.rng.random_range(0..self.jobs.len()));
        if let Some((id, reason)) = self.masks.computed(job.run()) {
            self.scheduler.fail(id, Failure::Grammar { reason });
        }
        self.listen();
    }

    fn send_masks(&mut self) {
        while let Some(masks) = self.masks.next(&self.scheduler) {
            assert!(self.sent_masks.keys().all(|seq| *seq < masks.seq), "{:?}: masks come in order", self.weather);
            self.sent_masks.insert(masks.seq, masks.masks);
        }
        while let Some(plan) = self.waiting.front() {
            let masks = self.sent_masks.get(&plan.seq).map_or(&[][..], Vec::as_slice);
            if masks.is_empty() && !self.shard.masked_rows(plan).is_empty() {
                break;
            }
            match self.shard.execute(plan, masks) {
                Ok(result) => self.results.push_back(result),
                Err(refusal) => panic!("{:?}: {refusal:?}\n{plan:#?}", self.weather),
            }
            self.sent_masks.remove(&plan.seq);
            self.waiting.pop_front();
        }
    }

    fn crash(&mut self) {
        self.epochs += 1;
        for plan in &self.scheduler.in_flight {
            for row in &plan.rows {
                if let Some(row) =
                    self.scheduler.slots[row.slot.0 as usize].as_ref().filter(|live| live.tenancy == row.tenancy)
                {
                    self.met_crashes.entry(row.sequence.id).or_default();
                }
            }
        }
        self.met_crashes.values_mut().for_each(|count| *count += 1);
        self.results.clear();
        self.waiting.clear();
        self.sent_masks.clear();
        self.masks.end_epoch();
        self.shard = Self::shard(self.capacity, self.block_size);
        self.scheduler.reset(self.capacity);
        self.listen();
    }

    fn plan(&mut self) {
        let run_ahead = self.scheduler.config.run_ahead;
        if let Some(step) = self.scheduler.plan() {
            let plan = wire::encode(step);
            assert!(step.num_tokens() <= self.capacity.max_step_tokens as usize);
            for new in &step.new_slots {
                let prompt_tokens = self.requests[&new.request].parts.input_ids.len();
                assert_eq!(new.prompt_tokens as usize, prompt_tokens, "{:?}: at every stay", self.weather);
            }
            self.masks.owe(step.seq, &step.masked);
            self.waiting.push_back(plan);
        }
        assert!(self.scheduler.in_flight.len() <= run_ahead);
        self.listen();
    }

    fn apply(&mut self) {
        if let Some(result) = self.results.pop_front() {
            self.scheduler.apply(wire::decode(&result).unwrap()).unwrap();
            self.masks.answered(result.seq);
            self.listen();
        }
    }

    fn listen(&mut self) {
        self.masks.hear(self.scheduler.outputs());
        self.jobs.extend(self.masks.take_jobs(Instant::now()));
        for output in self.scheduler.take_outputs() {
            let client = self.requests.get_mut(&output.request).unwrap();
            assert!(client.end.is_none(), "{:?}: {output:?} after the end", self.weather);
            match output.event {
                OutputEvent::Scheduled { cached_tokens } => {
                    assert!(cached_tokens < client.parts.input_ids.len() as u32);
                    client.scheduled += 1;
                }
                OutputEvent::Prompt { logprobs } => {
                    assert!(client.reply.is_empty() && client.parts.sampling.prompt_logprobs, "{:?}", self.weather);
                    assert_eq!(client.prompt.replace(logprobs), None, "{:?}: reported once", self.weather);
                }
                OutputEvent::Token { id, logprob: actual, top } => {
                    assert_eq!(client.scheduled, 1);
                    client.reply.push(id);
                    let length = client.parts.input_ids.len() + client.reply.len() - 1;
                    assert_eq!(actual, logprob(id, length as u32));
                    assert_eq!(top.is_some(), client.parts.sampling.top_n_tokens() > 0);
                    assert!(top.is_none_or(|top| top[0].0 == id));
                }
                OutputEvent::Finished(reason) => client.end = Some(End::Finished(reason)),
                OutputEvent::Failed(failure) => client.end = Some(End::Failed(failure)),
            }
        }
        self.send_masks();
    }

    /// What must be true between any two moves.
    fn check_invariants(&self) {
        let scheduler = &self.scheduler;
        let seed = self.weather;

        // Blocks: counted once per table, shared only if full and indexed, and all of them are somewhere.
        let mut owners: HashMap<BlockId, u32> = HashMap::new();
        let rows: Vec<&Row> = scheduler.slots.iter().flatten().collect();
        for row in &rows {
            assert!(row.cached <= row.committed, "{seed:?}");
            let reach = row.computed + row.drafts_in_flight;
            assert!(reach <= row.blocks.len() as u32 * self.block_size, "{seed:?}: blocks cover the row");
            assert!(row.longest() <= row.sequence.request.max_total_tokens(), "{seed:?}: nothing beyond the end");
            assert!(
                row.committed * self.block_size <= row.computed.min(row.sequence.len()),
                "{seed:?}: committed blocks are full"
            );
            assert_eq!(
                row.blocks.iter().collect::<BTreeSet<_>>().len(),
                row.blocks.len(),
                "{seed:?}: a block twice in a table"
            );
            row.blocks.iter().for_each(|block| *owners.entry(*block).or_default() += 1);
        }
        for row in &rows {
            for block in &row.blocks[row.committed as usize..] {
                assert_eq!(owners[block], 1, "{seed:?}: a block that is still written has one owner");
            }
        }
        for block in (0..self.capacity.num_blocks).map(BlockId) {
            assert_eq!(
                scheduler.cache.ref_count(block),
                owners.get(&block).copied().unwrap_or(0),
                "{seed:?}: {block:?}"
            );
        }
        let counts = scheduler.cache.counts();
        assert_eq!(counts.used as usize, owners.len(), "{seed:?}");
        assert_eq!(counts.used + counts.cached + counts.free, self.capacity.num_blocks, "{seed:?}");

        // Requests: each live one is in exactly one place, and nobody else is.
        let queues = [&scheduler.waiting, &scheduler.recovered, &scheduler.suspects];
        let waiting: Vec<&Sequence> = queues.into_iter().flatten().collect();
        let mut present: Vec<RequestId> =
            waiting.iter().map(|s| s.id).chain(rows.iter().map(|row| row.sequence.id)).collect();
        present.sort_unstable();
        let live: Vec<RequestId> = self.requests.iter().filter(|(_, c)| c.end.is_none()).map(|(id, _)| *id).collect();
        assert_eq!(present, live, "{seed:?}");
        for queue in queues {
            assert!(queue.iter().is_sorted_by_key(|sequence| sequence.id), "{seed:?}: queues are in order of age");
        }

        // Slots and sums.
        let order: Vec<RequestId> = scheduler.order.iter().map(|&slot| scheduler.row(slot).sequence.id).collect();
        assert!(order.is_sorted() && order.len() == rows.len(), "{seed:?}: {order:?}");
        assert_eq!(scheduler.free_slots.len() + rows.len(), self.capacity.max_slots as usize, "{seed:?}");
        let load = scheduler.load();
        assert_eq!(load.waiting_tokens, waiting.iter().map(|s| u64::from(s.len())).sum::<u64>(), "{seed:?}");
        let running: u64 = rows.iter().map(|row| u64::from(row.sequence.request.max_total_tokens())).sum();
        assert_eq!(load.running_max_tokens, running, "{seed:?}");
    }

    fn check_replies(&self) {
        for (id, client) in &self.requests {
            let context = || format!("{:?} {id:?} {client:?}", self.weather);
            let reference = reference_reply(&client.parts);
            if let Some(prompt) = &client.prompt {
                assert_eq!(*prompt, reference_prompt(&client.parts), "{}", context());
            }
            let has_prompt = client.prompt.is_some() || !client.parts.sampling.prompt_logprobs;
            assert!(client.reply.is_empty() || has_prompt, "{}", context());
            let is_uncomputable = client.parts.input_ids.contains(&UNCOMPUTABLE);
            match client.end.as_ref().unwrap() {
                End::Finished(reason) => {
                    assert!(!is_uncomputable, "{}", context());
                    assert_eq!(client.reply, reference, "{}", context());
                    let is_eos = reference.last() == Some(&EOS) && !client.parts.ignore_eos;
                    assert_eq!(*reason == FinishReason::EosToken, is_eos, "{}", context());
                }
                End::Cancelled => assert!(is_uncomputable || reference.starts_with(&client.reply), "{}", context()),
                End::Failed(Failure::Row { .. }) => {
                    assert!(is_uncomputable && client.reply.is_empty(), "{}", context())
                }
                End::Failed(Failure::Poison { crashes }) => {
                    assert!(*crashes >= 2 && *crashes <= self.met_crashes[id], "{}", context());
                    assert!(reference.starts_with(&client.reply), "{}", context());
                }
                End::Failed(Failure::Grammar { .. }) => {
                    assert!(is_uncomputable || client.reply == reference, "{}", context());
                    let is_complete = reference.len() as u32 == client.parts.max_new_tokens;
                    assert!(client.parts.constraint.is_some() && !is_complete, "{}", context());
                }
                End::Failed(Failure::Misfit(_)) => panic!("{}", context()),
            }
        }
    }
}

/// Runs many schedules and returns what happened in all of them, so that a test can see that it has tested something.
fn simulate(seeds: std::ops::Range<u64>, weather: Weather) -> Counters {
    println!("seeds {seeds:?}");
    seeds.fold(Counters::default(), |sum, seed| {
        let counters = Simulation::new(Weather { seed, ..weather }).run();
        Counters {
            preemptions: sum.preemptions + counters.preemptions,
            prefix_hit_tokens: sum.prefix_hit_tokens + counters.prefix_hit_tokens,
            wasted_rows: sum.wasted_rows + counters.wasted_rows,
            draft_tokens: sum.draft_tokens + counters.draft_tokens,
            accepted_draft_tokens: sum.accepted_draft_tokens + counters.accepted_draft_tokens,
        }
    })
}

const CALM: Weather =
    Weather { seed: 0, num_requests: 20, crashes: false, bad_rows: false, grammars: false, speculation: false };

#[test]
fn random_schedules_give_every_request_its_own_reply() {
    let counters = simulate(0..2_000, CALM);
    println!("{counters:?}");
    assert!(
        counters.preemptions > 1_000 && counters.prefix_hit_tokens > 10_000 && counters.wasted_rows > 1_000,
        "{counters:?}"
    );
}

#[test]
fn random_schedules_survive_crashes() {
    simulate(10_000..11_000, Weather { crashes: true, ..CALM });
}

#[test]
fn rows_that_fail_alone_poison_nobody() {
    simulate(20_000..20_500, Weather { bad_rows: true, crashes: true, ..CALM });
}

/// Every token waits for its mask, which comes late or, for rows that nobody wants any more, at once.
#[test]
fn random_schedules_obey_grammars() {
    let counters = simulate(40_000..41_000, Weather { grammars: true, ..CALM });
    assert!(counters.preemptions > 100 && counters.wasted_rows > 500, "{counters:?}");
}

#[test]
fn grammars_survive_crashes_and_bad_rows() {
    simulate(50_000..51_000, Weather { grammars: true, crashes: true, bad_rows: true, ..CALM });
}

/// Every step brings as many tokens as its drafts had right, which the plans in flight do not know.
#[test]
fn random_schedules_may_draft() {
    let counters = simulate(60_000..61_000, Weather { speculation: true, ..CALM });
    println!("{counters:?}");
    assert!(counters.accepted_draft_tokens > 5_000, "{counters:?}");
    assert!(counters.draft_tokens - counters.accepted_draft_tokens > 5_000, "{counters:?}");
    assert!(counters.preemptions > 500 && counters.prefix_hit_tokens > 5_000, "{counters:?}");
}

#[test]
fn drafts_survive_crashes_bad_rows_and_grammars_beside_them() {
    let all = Weather { speculation: true, crashes: true, bad_rows: true, grammars: true, ..CALM };
    let counters = simulate(70_000..70_800, all);
    assert!(counters.accepted_draft_tokens > 2_000, "{counters:?}");
}

/// A request that kills the shards on sight fails after two crashes, alone; the others get their whole replies.
#[test]
fn a_poisoned_request_is_found_and_fails_alone() {
    for seed in 30_000..30_200 {
        let mut simulation = Simulation::new(Weather { seed, ..CALM });
        simulation.capacity = Capacity { num_blocks: 32, max_slots: 8, max_step_tokens: 24, max_logit_rows: 8 };
        simulation.crash();
        simulation.epochs = 0;
        (0..6).for_each(|_| simulation.submit());
        let poisoned = RequestId(simulation.rng.random_range(1..=6));
        let scheduler = &mut simulation.scheduler;
        let sequence = scheduler.waiting.iter_mut().find(|sequence| sequence.id == poisoned).unwrap();
        let at = simulation.rng.random_range(0..sequence.tokens.len());
        sequence.tokens[at] = POISON;
        if !sequence.chain.is_empty() {
            sequence.chain.truncate(1);
            scheduler.cache.extend_chain(&mut sequence.chain, &sequence.tokens);
        }
        while !simulation.scheduler.is_idle() {
            match simulation.scheduler.plan().map(wire::encode) {
                Some(plan) => match simulation.shard.execute(&plan, &[]) {
                    Ok(result) => simulation.results.push_back(result),
                    Err(Refusal::Crash) => simulation.crash(),
                    Err(broken) => panic!("{seed}: {broken:?}"),
                },
                None => simulation.apply(),
            }
            simulation.listen();
            simulation.check_invariants();
        }
        assert!(simulation.epochs <= 3, "{seed}: {} crashes", simulation.epochs);
        for (id, client) in &simulation.requests {
            let has_failed = matches!(client.end, Some(End::Failed(Failure::Poison { .. })));
            assert_eq!(has_failed, *id == poisoned, "{seed}: {id:?} {client:?}");
            assert!(has_failed || client.reply == reference_reply(&client.parts), "{seed}: {id:?} {client:?}");
        }
    }
}
