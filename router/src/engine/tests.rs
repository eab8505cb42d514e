//! The engine against a scripted shard group over real sockets: what a client sees, whatever happens behind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::scripted_shard::{Accident, ScriptedGroup};
use super::*;
use crate::constraint::{Constraint, Matcher, SharedConstraint};
use crate::request::RequestParts;
use crate::scheduler::tiny_shard::{POISON, TinyGrammar, UNCOMPUTABLE, reference_prompt, reference_reply};
use crate::scheduler::{Failure, Misfit};

async fn start(group: &ScriptedGroup, max_concurrent_requests: usize) -> EngineHandle {
    let config = EngineConfig {
        shard_uds_prefix: group.ranks.prefix.clone(),
        world_size: group.servers(),
        connect_timeout: Duration::from_secs(30),
        max_concurrent_requests,
        max_step_tokens: None,
        max_batch_size: None,
        max_draft_tokens: 0,
        max_batch_total_tokens: None,
    };
    EngineHandle::start(config).await.unwrap()
}

/// A prompt of `input_tokens` tokens that depends on `seed`, with a reply of exactly `max_new_tokens`.
fn parts(seed: u64, input_tokens: u32, max_new_tokens: u32) -> RequestParts {
    RequestParts {
        input_ids: (0..input_tokens).map(|idx| 1 + (idx * 5 + seed as u32) % 50).collect(),
        sampling: proto::v1::SamplingParams { seed: Some(seed), ..Default::default() },
        max_new_tokens,
        ignore_eos: true,
        cache_prompt: true,
        salt: None,
        constraint: None,
    }
}

fn submit(engine: &EngineHandle, parts: &RequestParts) -> Result<ResponseStream, SubmitError> {
    let limits = engine.facts().request_limits(u32::MAX);
    engine.submit(GenerateRequest::new(parts.clone(), &limits).unwrap())
}

/// Everything a stream still has: the tokens and the last event.
async fn finish(stream: &mut ResponseStream) -> (Vec<u32>, Event) {
    let mut tokens = Vec::new();
    loop {
        match stream.next().await.expect("a stream ends with a last event") {
            Event::Token { id, .. } => tokens.push(id),
            Event::Scheduled { .. } => assert!(tokens.is_empty(), "scheduled once, before the first token"),
            Event::Prompt { .. } => assert!(tokens.is_empty(), "the prompt comes before the first token"),
            last => {
                assert_eq!(stream.next().await, None, "nothing follows the last event");
                return (tokens, last);
            }
        }
    }
}

const BY_LENGTH: Event = Event::Finished { reason: FinishReason::Length };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_get_their_own_tokens_from_two_ranks() {
    let group = ScriptedGroup::start(2, 64, 4);
    let engine = start(&group, 32).await;
    let all: Vec<RequestParts> = (0..12).map(|seed| parts(seed, 3 + 4 * seed as u32, 20)).collect();
    let mut streams: Vec<ResponseStream> = all.iter().map(|parts| submit(&engine, parts).unwrap()).collect();
    for (parts, stream) in all.iter().zip(&mut streams) {
        assert_eq!(finish(stream).await, (reference_reply(parts), BY_LENGTH));
    }
    assert_eq!(engine.health(), Health { live: true, ready: true, reason: None });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_makes_room() {
    let group = ScriptedGroup::start(1, 64, 1);
    let engine = start(&group, 8).await;
    let mut first = submit(&engine, &parts(1, 8, 200)).unwrap();
    assert!(matches!(first.next().await, Some(Event::Scheduled { cached_tokens: 0, .. })));
    let waiting = parts(2, 8, 5);
    let mut second = submit(&engine, &waiting).unwrap();
    group.hold();
    drop(first);
    // The only slot is taken for 200 steps unless the drop is heard; a handful is enough for what is left.
    group.allow(30);
    assert_eq!(finish(&mut second).await, (reference_reply(&waiting), BY_LENGTH));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_bound_a_request_is_refused_until_one_has_ended() {
    let group = ScriptedGroup::start(1, 64, 1);
    let engine = start(&group, 2).await;
    group.hold();
    let mut streams: Vec<ResponseStream> = (0..2).map(|seed| submit(&engine, &parts(seed, 8, 4)).unwrap()).collect();
    match submit(&engine, &parts(3, 8, 4)).err() {
        Some(SubmitError::Overloaded { requests: 2, retry_after, .. }) => {
            assert!(retry_after >= Duration::from_secs(1))
        }
        other => panic!("{other:?}"),
    }
    group.allow(100);
    finish(&mut streams[0]).await;
    submit(&engine, &parts(3, 8, 4)).expect("one has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_a_rank_the_tokens_are_the_same() {
    for (rank, accident) in [
        (0, Accident::StreamDies),
        (1, Accident::StreamDies),
        (0, Accident::Fatal),
        (1, Accident::WrongAck),
        (0, Accident::Garbage),
    ] {
        let group = ScriptedGroup::start(2, 64, 4);
        group.plan_accident(1, rank, 9, accident);
        group.plan_accident(2, rank, 11, accident);
        let engine = start(&group, 32).await;
        let all: Vec<RequestParts> = (0..6).map(|seed| parts(seed, 5 + seed as u32, 30)).collect();
        let mut streams: Vec<ResponseStream> = all.iter().map(|parts| submit(&engine, parts).unwrap()).collect();
        for (parts, stream) in all.iter().zip(&mut streams) {
            assert_eq!(finish(stream).await, (reference_reply(parts), BY_LENGTH), "{accident:?} of rank {rank}");
        }
        assert_eq!(group.script.epoch.load(Ordering::SeqCst), 3, "{accident:?} of rank {rank}");
        assert_eq!(engine.health(), Health { live: true, ready: true, reason: None });
    }
}

/// The parts of a request whose every token waits for its mask.
fn masked(seed: u64, input_tokens: u32, max_new_tokens: u32, fails_after: Option<u32>) -> RequestParts {
    let constraint = SharedConstraint(Arc::new(TinyGrammar { seed, fails_after }));
    RequestParts { constraint: Some(constraint), ..parts(seed, input_tokens, max_new_tokens) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masked_and_plain_replies_share_a_batch_that_is_too_small_for_them() {
    let group = ScriptedGroup::start(2, 40, 6);
    let engine = start(&group, 32).await;
    let request = |seed: u64| match seed % 2 {
        0 => masked(seed, 5 + seed as u32, 30, None),
        _ => parts(seed, 5 + seed as u32, 30),
    };
    let all: Vec<RequestParts> = (0..12).map(request).collect();
    let mut streams: Vec<ResponseStream> = all.iter().map(|parts| submit(&engine, parts).unwrap()).collect();
    for (parts, stream) in all.iter().zip(&mut streams) {
        assert_eq!(finish(stream).await, (reference_reply(parts), BY_LENGTH));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masked_replies_survive_the_death_of_a_rank() {
    for (rank, accident) in [(0, Accident::StreamDies), (1, Accident::Fatal)] {
        let group = ScriptedGroup::start(2, 64, 4);
        group.plan_accident(1, rank, 9, accident);
        group.plan_accident(2, rank, 11, accident);
        let engine = start(&group, 32).await;
        let all: Vec<RequestParts> = (0..6).map(|seed| masked(seed, 5 + seed as u32, 30, None)).collect();
        let mut streams: Vec<ResponseStream> = all.iter().map(|parts| submit(&engine, parts).unwrap()).collect();
        for (parts, stream) in all.iter().zip(&mut streams) {
            assert_eq!(finish(stream).await, (reference_reply(parts), BY_LENGTH), "{accident:?} of rank {rank}");
        }
        assert_eq!(group.script.epoch.load(Ordering::SeqCst), 3, "{accident:?} of rank {rank}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grammar_that_fails_or_allows_nothing_fails_its_request_only() {
    let group = ScriptedGroup::start(1, 64, 8);
    let engine = start(&group, 32).await;
    let good = masked(1, 6, 20, None);
    let mut good_stream = submit(&engine, &good).unwrap();
    for (fails_after, reason) in [(4, "tiny"), (5, "it allows no token here"), (0, "tiny")] {
        let bad = masked(2, 6, 20, Some(fails_after));
        let mut bad_stream = submit(&engine, &bad).unwrap();
        let expected = Event::Failed(RequestError::Failure(Failure::Grammar { reason: reason.into() }));
        let (tokens, end) = finish(&mut bad_stream).await;
        assert_eq!((tokens.len() as u32, end), (fails_after, expected));
        assert_eq!(tokens, reference_reply(&bad));
    }
    assert_eq!(finish(&mut good_stream).await, (reference_reply(&good), BY_LENGTH));
}

/// A matcher that panics, or does not come back before the test lets it.
struct Trap {
    gate: Option<Arc<std::sync::Barrier>>,
}

impl Constraint for Trap {
    fn matcher(&self) -> Box<dyn Matcher> {
        match &self.gate {
            None => panic!("by the test"),
            Some(gate) => {
                gate.wait();
                TinyGrammar { seed: 1, fails_after: None }.matcher()
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_matcher_that_panics_fails_its_request_only() {
    let group = ScriptedGroup::start(1, 64, 8);
    let engine = start(&group, 32).await;
    for seed in 0..6 {
        let constraint = Some(SharedConstraint(Arc::new(Trap { gate: None })));
        let mut stream = submit(&engine, &RequestParts { constraint, ..parts(seed, 6, 20) }).unwrap();
        let expected = Event::Failed(RequestError::Failure(Failure::Grammar { reason: "it panicked".into() }));
        assert_eq!(finish(&mut stream).await, (vec![], expected));
    }
    let good = masked(1, 6, 20, None);
    let mut stream = submit(&engine, &good).unwrap();
    assert_eq!(finish(&mut stream).await, (reference_reply(&good), BY_LENGTH), "the workers go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_cancels_while_the_shards_wait_for_the_mask_releases_them() {
    let group = ScriptedGroup::start(2, 64, 8);
    let engine = start(&group, 32).await;
    let gate = Arc::new(std::sync::Barrier::new(2));
    let constraint = Some(SharedConstraint(Arc::new(Trap { gate: Some(gate.clone()) })));
    let mut stuck = submit(&engine, &RequestParts { constraint, ..parts(3, 6, 20) }).unwrap();
    assert!(matches!(stuck.next().await, Some(Event::Scheduled { .. })), "its prompt is with the shards");
    let plain = parts(4, 6, 20);
    let mut stream = submit(&engine, &plain).unwrap();
    drop(stuck);
    assert_eq!(finish(&mut stream).await, (reference_reply(&plain), BY_LENGTH));
    tokio::task::spawn_blocking(move || gate.wait()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompt_logprobs_come_once_before_the_first_token() {
    let group = ScriptedGroup::start(1, 64, 4);
    group.plan_accident(1, 0, 3, Accident::StreamDies);
    let engine = start(&group, 8).await;
    let mut request = parts(1, 50, 6);
    request.sampling.prompt_logprobs = true;
    // The second run finds its prefix in the cache, and must not use it.
    for _ in 0..2 {
        let mut stream = submit(&engine, &request).unwrap();
        assert!(matches!(stream.next().await, Some(Event::Scheduled { cached_tokens: 0, .. })));
        assert_eq!(stream.next().await, Some(Event::Prompt { logprobs: reference_prompt(&request) }));
        assert_eq!(finish(&mut stream).await, (reference_reply(&request), BY_LENGTH));
    }
    assert_eq!(group.script.epoch.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_request_fails_alone() {
    let group = ScriptedGroup::start(1, 64, 8);
    let engine = start(&group, 32).await;
    let good: Vec<RequestParts> = (0..4).map(|seed| parts(seed, 6, 40)).collect();
    let mut streams: Vec<ResponseStream> = good.iter().map(|parts| submit(&engine, parts).unwrap()).collect();
    let mut poisoned = parts(9, 6, 40);
    poisoned.input_ids = [1, POISON, 3].into();
    let mut stream = submit(&engine, &poisoned).unwrap();
    let expected = Event::Failed(RequestError::Failure(Failure::Poison { crashes: 2 }));
    assert_eq!(finish(&mut stream).await, (vec![], expected));
    for (parts, stream) in good.iter().zip(&mut streams) {
        assert_eq!(finish(stream).await, (reference_reply(parts), BY_LENGTH));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_error_fails_its_request_only() {
    let group = ScriptedGroup::start(1, 64, 8);
    let engine = start(&group, 32).await;
    let good = parts(1, 6, 10);
    let mut bad = parts(2, 6, 10);
    bad.input_ids = [1, UNCOMPUTABLE, 3].into();
    let (mut good_stream, mut bad_stream) = (submit(&engine, &good).unwrap(), submit(&engine, &bad).unwrap());
    let expected = Event::Failed(RequestError::Failure(Failure::Row { reason: "uncomputable".into() }));
    assert_eq!(finish(&mut bad_stream).await, (vec![], expected));
    assert_eq!(finish(&mut good_stream).await, (reference_reply(&good), BY_LENGTH));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_comes_back_smaller_fails_what_no_longer_fits() {
    let group = ScriptedGroup::start(1, 16, 4);
    group.plan_accident(1, 0, 3, Accident::StreamDies);
    let engine = start(&group, 8).await;
    group.hold();
    let (small, large) = (parts(1, 8, 10), parts(2, 8, 50));
    let (mut fits, mut does_not) = (submit(&engine, &small).unwrap(), submit(&engine, &large).unwrap());
    group.script.num_blocks.store(8, Ordering::SeqCst);
    group.allow(1_000);
    let misfit = Misfit { needed_tokens: 57, capacity_tokens: 32 };
    assert_eq!(finish(&mut does_not).await.1, Event::Failed(RequestError::Failure(Failure::Misfit(misfit))));
    assert_eq!(finish(&mut fits).await, (reference_reply(&small), BY_LENGTH));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_runs_and_takes_nothing_new() {
    let group = ScriptedGroup::start(2, 64, 4);
    let engine = start(&group, 8).await;
    group.hold();
    let all: Vec<RequestParts> = (0..3).map(|seed| parts(seed, 8, 10)).collect();
    let mut streams: Vec<ResponseStream> = all.iter().map(|parts| submit(&engine, parts).unwrap()).collect();
    let draining = tokio::spawn({
        let engine = engine.clone();
        async move { engine.drain().await }
    });
    while !matches!(submit(&engine, &parts(9, 8, 1)), Err(SubmitError::Stopped)) {
        tokio::task::yield_now().await;
    }
    assert!(!draining.is_finished(), "the shards have not computed anything yet");
    group.allow(1_000);
    draining.await.unwrap();
    for (parts, stream) in all.iter().zip(&mut streams) {
        assert_eq!(finish(stream).await, (reference_reply(parts), BY_LENGTH));
    }
    // The shards see the end of their streams soon after.
    while group.script.open_streams.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    assert!(!engine.health().ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_the_whole_cache_is_refused_at_once() {
    let group = ScriptedGroup::start(1, 4, 4);
    let engine = start(&group, 8).await;
    let request = |total: u32| {
        let limits = crate::request::RequestLimits { max_total_tokens: 1_000, vocab_size: 64, max_top_n_tokens: 0 };
        GenerateRequest::new(parts(1, 4, total - 4), &limits).unwrap()
    };
    assert!(engine.submit(request(17)).is_ok(), "the last token's KV is never needed");
    let misfit = Misfit { needed_tokens: 17, capacity_tokens: 16 };
    assert_eq!(engine.submit(request(18)).err(), Some(SubmitError::Misfit(misfit)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_not_there_or_does_not_fit_is_a_typed_error() {
    let config = |prefix: &str, world_size| EngineConfig {
        shard_uds_prefix: prefix.to_owned(),
        world_size,
        connect_timeout: Duration::ZERO,
        max_concurrent_requests: 8,
        max_step_tokens: None,
        max_batch_size: None,
        max_draft_tokens: 0,
        max_batch_total_tokens: None,
    };
    let missing = EngineHandle::start(config("/nonexistent/shard", 1)).await.err();
    assert!(matches!(missing, Some(EngineError::Unreachable { rank: 0, .. })), "{missing:?}");
    let group = ScriptedGroup::start(2, 16, 4);
    let smaller = EngineHandle::start(config(&group.ranks.prefix, 1)).await.err();
    assert_eq!(smaller, Some(EngineError::Group { rank: 0, field: "world_size", value: 2, expected: 1 }));
}
