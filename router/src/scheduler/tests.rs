//! The scheduler's rules, one script each.

use std::collections::BTreeMap;
use std::fmt::Write;

use expect_test::{Expect, expect};

use super::*;
use crate::request::{RequestLimits, RequestParts};

const EOS: u32 = 0;

/// Runs a script against shards with `blocks` blocks of 16 tokens, `slots` slots and a `budget`, `ahead` plans in flight at
/// most, and shows every plan and the ends.
///
/// Commands: `a=20+3` submits request `a`, 20 prompt tokens and at most 3 new ones; `a=20+3@x` starts like every other
/// prompt of family x; `b>a+1` submits `b` with a's prompt and reply and one more token as its prompt. `plan`; `result` answers the oldest plan; `result!a` too, and `a` gets an end-of-sequence token; `step`
/// and `step!a` do both; `skip:9` does nine steps without showing them. `cancel:a`, `crash`, `error:a` (the oldest plan is answered, but `a` failed).
///
/// A plan shows `a[0..16]` for a chunk, with `*` if it samples, `a` for a row that decodes, `a(cached 16)` for a row that
/// enters with a prefix, `=` if the rows are those of the plan before, and `-` if there is no plan.
#[track_caller]
fn check([blocks, slots, budget, ahead]: [u32; 4], script: &str, expect: Expect) {
    let capacity = Capacity { num_blocks: blocks, max_slots: slots, max_step_tokens: budget, max_logit_rows: slots };
    let config = SchedulerConfig {
        block_size: 16,
        vocab_size: 1 << 16,
        eos_token_ids: vec![EOS],
        run_ahead: ahead as usize,
        max_draft_tokens: 0,
        prefix_key: PrefixKey::from_bytes([3; 32]),
    };
    let mut stage = Stage {
        scheduler: Scheduler::new(config, capacity),
        names: BTreeMap::new(),
        tokens: BTreeMap::new(),
        rows: BTreeMap::new(),
        plans: VecDeque::new(),
        shown: Vec::new(),
    };
    script.split_whitespace().for_each(|command| stage.run(command));
    expect.assert_eq(&stage.shown.join(" | "));
}

struct Stage {
    scheduler: Scheduler,
    names: BTreeMap<RequestId, String>,
    /// Prompts and replies.
    tokens: BTreeMap<RequestId, Vec<u32>>,
    /// Who is in which slot, as the plans say.
    rows: BTreeMap<SlotId, String>,
    /// Per plan in flight: the rows that sample, then those that do not.
    plans: VecDeque<(u64, Vec<SlotId>, BTreeMap<SlotId, String>)>,
    shown: Vec<String>,
}

impl Stage {
    fn run(&mut self, command: &str) {
        if let Some((name, request)) = command.split_once('=') {
            let (request, family) = request.split_once('@').unwrap_or((request, name));
            let (input, new) = request.split_once('+').unwrap();
            let base = 1 + u32::from(family.as_bytes()[0]) * 256;
            self.submit(name, (base..base + input.parse::<u32>().unwrap()).collect(), new);
        } else if let Some((name, request)) = command.split_once('>') {
            let (before, new) = request.split_once('+').unwrap();
            let mut tokens = self.tokens[&self.id(before)].clone();
            tokens.push(1);
            self.submit(name, tokens, new);
        } else if let Some(count) = command.strip_prefix("skip:") {
            let shown = self.shown.len();
            (0..count.parse().unwrap()).for_each(|_| self.run("step"));
            self.shown.truncate(shown);
            self.shown.push("...".into());
        } else if let Some((command, eos)) = command.split_once('!') {
            if command == "step" {
                self.plan();
            }
            self.result(Some(eos), None);
        } else if let Some(name) = command.strip_prefix("cancel:") {
            assert!(self.scheduler.cancel(self.id(name)));
        } else if let Some(name) = command.strip_prefix("error:") {
            self.result(None, Some(name));
        } else {
            match command {
                "plan" => self.plan(),
                "result" => self.result(None, None),
                "step" => {
                    self.plan();
                    self.result(None, None);
                }
                "crash" => {
                    self.plans.clear();
                    self.scheduler.reset(self.scheduler.capacity());
                    self.show_ends();
                }
                other => panic!("{other}"),
            }
        }
    }

    fn submit(&mut self, name: &str, input_ids: Vec<u32>, max_new_tokens: &str) {
        let parts = RequestParts {
            input_ids: input_ids.as_slice().into(),
            sampling: proto::v1::SamplingParams::default(),
            max_new_tokens: max_new_tokens.parse().unwrap(),
            ignore_eos: false,
            cache_prompt: true,
            salt: None,
            constraint: None,
        };
        let limits = RequestLimits { max_total_tokens: 10_000, vocab_size: 1 << 16, max_top_n_tokens: 0 };
        let id = RequestId(self.names.len() as u64);
        self.names.insert(id, name.to_owned());
        self.tokens.insert(id, input_ids);
        if let Err(misfit) = self.scheduler.submit(id, GenerateRequest::new(parts, &limits).unwrap()) {
            self.shown.push(format!("{name}: {misfit}"));
        }
    }

    fn plan(&mut self) {
        let Some(step) = self.scheduler.plan() else { return self.shown.push("-".into()) };
        step.freed_slots.iter().for_each(|slot| {
            self.rows.remove(slot);
        });
        let mut shown = String::new();
        for new in &step.new_slots {
            let name = &self.names[&new.request];
            self.rows.insert(new.slot, name.clone());
            if new.cached_tokens > 0 {
                write!(shown, "{name}(cached {}) ", new.cached_tokens).unwrap();
            }
        }
        if step.same_rows {
            shown.push_str("= ");
        }
        step.continues.iter().for_each(|slot| write!(shown, "{} ", self.rows[slot]).unwrap());
        for chunk in &step.chunks {
            let end = chunk.start_position + chunk.num_tokens;
            let sample = if chunk.sample { "*" } else { "" };
            write!(shown, "{}[{}..{end}]{sample} ", self.rows[&chunk.slot], chunk.start_position).unwrap();
        }
        self.shown.push(shown.trim_end().to_owned());
        let sampling = step.chunks.iter().filter(|chunk| chunk.sample).map(|chunk| chunk.slot);
        self.plans.push_back((step.seq, step.continues.iter().copied().chain(sampling).collect(), self.rows.clone()));
    }

    fn result(&mut self, eos: Option<&str>, error: Option<&str>) {
        let (seq, sampling, rows) = self.plans.pop_front().unwrap();
        let is = |slot: &SlotId, name: Option<&str>| Some(rows[slot].as_str()) == name;
        let token = |slot: &SlotId| if is(slot, eos) { EOS } else { 1 + seq as u32 };
        let sample = |slot: &SlotId| SampledRow { slot: *slot, token_id: token(slot), logprob: -1.0, top: None };
        let failed = rows.keys().filter(|slot| is(slot, error)).map(|slot| (*slot, "bad".to_owned()));
        let outcome = StepOutcome {
            seq,
            samples: sampling.iter().filter(|slot| !is(slot, error)).map(sample).collect(),
            row_errors: failed.collect(),
            prompt_runs: Vec::new(),
            ..Default::default()
        };
        self.scheduler.apply(outcome).unwrap();
        self.show_ends();
    }

    fn show_ends(&mut self) {
        for output in self.scheduler.take_outputs() {
            let name = &self.names[&output.request];
            match output.event {
                OutputEvent::Prompt { .. } => {}
                OutputEvent::Finished(reason) => self.shown.push(format!("{name}: {reason:?}")),
                OutputEvent::Failed(failure) => self.shown.push(format!("{name}: {failure}")),
                OutputEvent::Token { id, .. } => self.tokens.get_mut(&output.request).unwrap().push(id),
                OutputEvent::Scheduled { .. } => {}
            }
        }
    }

    fn id(&self, name: &str) -> RequestId {
        *self.names.iter().find(|(_, other)| *other == name).unwrap().0
    }
}

#[test]
fn a_prompt_is_computed_in_chunks_and_ends_by_length() {
    check(
        [8, 4, 16, 1],
        "a=20+3 step step step step plan",
        expect![[r#"a[0..16] | a[16..20]* | a | = a | a: Length | -"#]],
    );
}

#[test]
fn running_rows_go_before_chunks() {
    check(
        [8, 4, 8, 1],
        "a=4+9 step b=20+9 step step step step",
        expect![[r#"a[0..4]* | a b[0..7] | a b[7..14] | a b[14..20]* | a b"#]],
    );
}

#[test]
fn short_prompts_overtake_a_long_one() {
    check(
        [16, 4, 16, 1],
        "a=60+1 b=30+1 c=8+1 step step step step step",
        expect!["c[0..8]* a[0..8] | c: Length | a[8..24] | a[24..40] | a[40..56] | a[56..60]* b[0..12] | a: Length"],
    );
}

#[test]
fn an_end_by_length_wastes_nothing_when_running_ahead() {
    check(
        [8, 4, 16, 2],
        "a=4+2 plan plan plan result plan result plan",
        expect!["a[0..4]* | a | - | - | a: Length | -"],
    );
}

#[test]
fn an_end_by_eos_is_noticed_one_step_late() {
    check(
        [8, 4, 16, 2],
        "a=4+9 b=4+9 plan plan result!a plan result plan",
        expect!["a[0..4]* b[0..4]* | a b | a: EosToken | b | = b"],
    );
}

#[test]
fn a_prefix_being_computed_is_waited_for_one_step() {
    check([8, 4, 64, 1], "a=40+9@x b=36+9@x step step", expect!["a[0..40]* | b(cached 32) a b[32..36]*"]);
}

#[test]
fn replies_are_cached_like_prompts() {
    // 20 prompt and 13 reply tokens, of which the last was never computed: two full blocks of 16.
    check([8, 4, 64, 1], "a=20+13 skip:13 b>a+1 step", expect!["... | b(cached 32) b[32..34]* | b: Length"]);
}

#[test]
fn the_youngest_row_gives_way_and_returns_with_what_it_has_emitted() {
    // In the third step `a` takes the last block and `b` pauses; in the 19th `a` takes b's block, and `b` comes back with 15
    // prompt and 2 reply tokens when there is room for them.
    check(
        [4, 4, 64, 1],
        "a=31+30 b=15+30 step step step skip:15 step skip:10 step step",
        expect!["a[0..31]* b[0..15]* | a b | a | ... | = a | ... | = a | a: Length | b[0..17]*"],
    );
}

#[test]
fn a_cancelled_row_frees_its_slot_in_the_next_plan() {
    check(
        [8, 1, 16, 2],
        "a=4+9 b=4+9 plan plan cancel:a result plan result result",
        expect!["a[0..4]* | a | b[0..4]*"],
    );
}

#[test]
fn what_can_never_fit_is_refused() {
    check([2, 4, 16, 1], "a=30+3 b=30+4", expect!["b: the request needs 33 tokens of KV cache, which holds 32"]);
}

#[test]
fn a_crash_sends_running_rows_back_first() {
    check(
        [8, 2, 32, 1],
        "a=8+9 b=8+9 step step c=8+9 plan crash step step",
        expect!["a[0..8]* b[0..8]* | a b | = a b | a[0..10]* b[0..10]* | a b"],
    );
}

#[test]
fn a_row_whose_first_step_crashed_goes_last_and_alone_and_fails_the_second_time() {
    check(
        [8, 4, 32, 2],
        "a=8+9 step b=8+9 plan crash plan plan result plan crash plan",
        expect![
            "a[0..8]* | a b[0..8]* | a[0..9]* | - | b[0..8]* | b: the shards crashed 2 times while computing this request | a[0..10]*"
        ],
    );
}

#[test]
fn a_failed_row_leaves_nothing_in_the_cache() {
    check(
        [8, 4, 32, 2],
        "a=20+9@x plan b=24+9@x plan error:a plan",
        expect!["a[0..20]* | b(cached 16) a b[16..24]* | a: the shard failed this request: bad | b[0..24]*"],
    );
}

#[test]
fn results_must_answer_the_oldest_plan_row_by_row() {
    let config = SchedulerConfig {
        block_size: 16,
        vocab_size: 10,
        eos_token_ids: vec![],
        run_ahead: 1,
        max_draft_tokens: 0,
        prefix_key: PrefixKey::from_bytes([3; 32]),
    };
    let outcome = |seq, slots: &[u32], token_id| StepOutcome {
        seq,
        samples: slots
            .iter()
            .map(|&slot| SampledRow { slot: SlotId(slot), token_id, logprob: 0.0, top: None })
            .collect(),
        row_errors: Vec::new(),
        prompt_runs: Vec::new(),
        ..Default::default()
    };
    let apply = |outcome| {
        let mut scheduler = Scheduler::new(
            config.clone(),
            Capacity { num_blocks: 4, max_slots: 2, max_step_tokens: 8, max_logit_rows: 2 },
        );
        let parts = RequestParts {
            input_ids: [1, 2].into(),
            sampling: proto::v1::SamplingParams::default(),
            max_new_tokens: 4,
            ignore_eos: true,
            cache_prompt: false,
            salt: None,
            constraint: None,
        };
        let limits = RequestLimits { max_total_tokens: 10, vocab_size: 10, max_top_n_tokens: 0 };
        scheduler.submit(RequestId(1), GenerateRequest::new(parts, &limits).unwrap()).unwrap();
        scheduler.plan().unwrap();
        scheduler.apply(outcome)
    };
    assert_eq!(apply(outcome(1, &[0], 9)), Ok(()));
    assert_eq!(apply(outcome(2, &[0], 9)), Err(ApplyError::Seq { actual: 2, expected: Some(1) }));
    assert_eq!(apply(outcome(1, &[1], 9)), Err(ApplyError::Row { actual: Some(1), expected: Some(0) }));
    assert_eq!(apply(outcome(1, &[], 9)), Err(ApplyError::Row { actual: None, expected: Some(0) }));
    assert_eq!(apply(outcome(1, &[0, 1], 9)), Err(ApplyError::Row { actual: Some(1), expected: None }));
    assert_eq!(apply(outcome(1, &[0], 10)), Err(ApplyError::TokenId { token_id: 10, vocab_size: 10 }));
}

#[test]
fn no_plan_outgrows_its_message() {
    let config = SchedulerConfig {
        block_size: 16,
        vocab_size: 1 << 20,
        eos_token_ids: vec![],
        run_ahead: 1,
        max_draft_tokens: 0,
        prefix_key: PrefixKey::from_bytes([3; 32]),
    };
    let capacity = Capacity { num_blocks: 256, max_slots: 128, max_step_tokens: 512, max_logit_rows: 128 };
    let mut scheduler = Scheduler::new(config, capacity);
    let word = proto::v1::TokenSequence { ids: vec![1 << 19; proto::MAX_BAD_WORD_TOKENS] };
    let limits = RequestLimits { max_total_tokens: 10, vocab_size: 1 << 20, max_top_n_tokens: 0 };
    for id in 0..100 {
        let parts = RequestParts {
            input_ids: [1, 2].into(),
            sampling: proto::v1::SamplingParams {
                bad_words: vec![word.clone(); proto::MAX_BAD_WORDS],
                ..Default::default()
            },
            max_new_tokens: 4,
            ignore_eos: true,
            cache_prompt: false,
            salt: None,
            constraint: None,
        };
        scheduler.submit(RequestId(id), GenerateRequest::new(parts, &limits).unwrap()).unwrap();
    }
    let (mut entered, mut plans) = (0, 0);
    while entered < 100 {
        let step = scheduler.plan().expect("nobody waits for ever");
        let bytes = proto::Message::encoded_len(&crate::engine::wire::encode(step));
        assert!(bytes < limits::MAX_ENTRY_BYTES + (1 << 20), "{bytes} bytes in one plan");
        entered += step.new_slots.len();
        plans += 1;
        let (seq, rows) = (step.seq, step.continues.iter().copied().chain(step.chunks.iter().map(|chunk| chunk.slot)));
        let samples = rows.map(|slot| SampledRow { slot, token_id: 5, logprob: 0.0, top: None }).collect();
        scheduler.apply(StepOutcome { seq, samples, ..Default::default() }).unwrap();
    }
    assert!(plans > 2, "all at once: the test shows nothing");
}

/// A request of 2 prompt tokens and at most `max_new_tokens` new ones that may draft 3 tokens. Four have come, in three
/// steps: the first draft is of a single token, until it is known what one costs.
fn drafting(max_new_tokens: u32) -> Scheduler {
    let config = SchedulerConfig {
        block_size: 16,
        vocab_size: 100,
        eos_token_ids: vec![EOS],
        run_ahead: 1,
        max_draft_tokens: 3,
        prefix_key: PrefixKey::from_bytes([3; 32]),
    };
    let capacity = Capacity { num_blocks: 4, max_slots: 2, max_step_tokens: 8, max_logit_rows: 8 };
    let mut scheduler = Scheduler::new(config, capacity);
    let parts = RequestParts {
        input_ids: [1, 2].into(),
        sampling: proto::v1::SamplingParams::default(),
        max_new_tokens,
        ignore_eos: false,
        cache_prompt: true,
        salt: None,
        constraint: None,
    };
    let limits = RequestLimits { max_total_tokens: 100, vocab_size: 100, max_top_n_tokens: 0 };
    scheduler.submit(RequestId(1), GenerateRequest::new(parts, &limits).unwrap()).unwrap();
    for seq in 1..=2 {
        // What a step takes is measured before anything is drafted.
        assert_eq!(scheduler.plan().unwrap().num_draft_tokens(), 0);
        scheduler.apply(drafted(seq, &[1 + seq as u32], &[])).unwrap();
    }
    assert_eq!(scheduler.plan().unwrap().draft_limits, [1]);
    scheduler.apply(drafted(3, &[4, 5], &[1])).unwrap();
    scheduler.take_outputs().for_each(drop);
    scheduler
}

/// The result of a plan of one row, which took a millisecond.
fn drafted(seq: u64, tokens: &[u32], draft_tokens: &[u8]) -> StepOutcome {
    let sample = |&token_id| SampledRow { slot: SlotId(0), token_id, logprob: -1.0, top: None };
    StepOutcome {
        seq,
        samples: tokens.iter().map(sample).collect(),
        draft_tokens: draft_tokens.to_vec(),
        took: std::time::Duration::from_millis(1),
        ..Default::default()
    }
}

fn tokens(scheduler: &mut Scheduler) -> Vec<OutputEvent> {
    scheduler.take_outputs().map(|output| output.event).collect()
}

#[test]
fn a_draft_brings_as_many_tokens_as_were_right() {
    let mut scheduler = drafting(20);
    assert_eq!(scheduler.plan().unwrap().draft_limits, [3]);
    scheduler.apply(drafted(4, &[7, 8, 9], &[3])).unwrap();
    let token = |id| OutputEvent::Token { id, logprob: -1.0, top: None };
    assert_eq!(tokens(&mut scheduler), [token(7), token(8), token(9)]);
    let counters = scheduler.counters();
    assert_eq!((counters.draft_tokens, counters.accepted_draft_tokens), (1 + 3, 1 + 2));
}

#[test]
fn what_a_draft_brings_after_the_end_is_dropped() {
    let mut scheduler = drafting(20);
    scheduler.plan().unwrap();
    scheduler.apply(drafted(4, &[7, EOS, 9, 9], &[3])).unwrap();
    let events = tokens(&mut scheduler);
    assert!(matches!(
        events[..],
        [
            OutputEvent::Token { id: 7, .. },
            OutputEvent::Token { id: EOS, .. },
            OutputEvent::Finished(FinishReason::EosToken)
        ]
    ));
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.counters().wasted_rows, 2);
}

#[test]
fn a_draft_never_goes_beyond_the_longest_reply() {
    // The next step has one token in any case.
    for (max_new_tokens, expected) in [(5, vec![]), (6, vec![1]), (7, vec![2]), (8, vec![3]), (9, vec![3])] {
        let mut scheduler = drafting(max_new_tokens);
        assert_eq!(scheduler.plan().unwrap().draft_limits, expected, "{max_new_tokens} new tokens");
    }
    let mut scheduler = drafting(6);
    scheduler.plan().unwrap();
    scheduler.apply(drafted(4, &[7, 8], &[1])).unwrap();
    assert_eq!(tokens(&mut scheduler).last(), Some(&OutputEvent::Finished(FinishReason::Length)));
}

#[test]
fn a_row_that_fails_in_its_draft_keeps_the_tokens_before() {
    let mut scheduler = drafting(20);
    scheduler.plan().unwrap();
    let outcome = StepOutcome { row_errors: vec![(SlotId(0), "bad".into())], ..drafted(4, &[7], &[3]) };
    scheduler.apply(outcome).unwrap();
    let events = tokens(&mut scheduler);
    assert!(matches!(events[..], [OutputEvent::Token { id: 7, .. }, OutputEvent::Failed(_)]), "{events:?}");
}

#[test]
fn drafts_must_be_within_their_limits() {
    let apply = |tokens: &[u32], draft_tokens: &[u8]| {
        let mut scheduler = drafting(20);
        scheduler.plan().unwrap();
        scheduler.apply(drafted(4, tokens, draft_tokens))
    };
    assert_eq!(apply(&[7, 8, 9, 10], &[3]), Ok(()));
    assert_eq!(apply(&[7], &[]), Ok(()));
    assert_eq!(apply(&[7], &[4]), Err(ApplyError::Drafts { seq: 4 }));
    assert_eq!(apply(&[7], &[1, 1]), Err(ApplyError::Drafts { seq: 4 }));
    assert_eq!(apply(&[7, 8, 9], &[1]), Err(ApplyError::Row { actual: Some(0), expected: None }));
    assert_eq!(apply(&[], &[3]), Err(ApplyError::Row { actual: None, expected: Some(0) }));
}
