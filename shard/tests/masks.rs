//! Grammar masks over a real socket: early, late, wrong and missing ones, and everything that ends a wait for them.

#![allow(clippy::unwrap_used, reason = "the exemption for tests does not reach helpers of integration tests")]

mod support;

use proto::v1::{HealthRequest, InspectRequest, Mask, Masks, Ping, Plan, from_shard, to_shard};
use proto::{Sample, pack_u32};
use support::serving::{PATIENCE, Router, Server, continue_slot_0, prompt};
use support::{TinyModel, VOCAB_SIZE};

/// Plan 1: a prompt in slot 0 that is under a grammar.
fn masked_prompt(ids: &[u32]) -> Plan {
    let mut plan = prompt(ids);
    plan.new_slots[0].masked = true;
    plan
}

/// The masks of a plan, each allowing one token.
fn masks(seq: u64, slots_and_tokens: &[(u32, u32)]) -> to_shard::Message {
    let only =
        |token: u32| pack_u32((0..VOCAB_SIZE as u32 / 32).map(|word| u32::from(word == token / 32) << (token % 32)));
    let masks = slots_and_tokens.iter().map(|&(slot, token)| Mask { slot, allowed: only(token) }).collect();
    to_shard::Message::Masks(Masks { seq, masks })
}

/// Sends a ping and expects its pong to be the next answer: whatever was sent before has no result yet.
async fn check_waiting(router: &mut Router, nonce: u64) {
    router.send(to_shard::Message::Ping(Ping { nonce })).await;
    match router.answer().await {
        Some(from_shard::Message::Pong(pong)) => assert_eq!(pong.nonce, nonce),
        other => panic!("{other:?} instead of Pong"),
    }
}

/// Returns once the step in flight has run its forward pass and waits for masks.
async fn forward_is_over(server: &Server) {
    while !server.engine.heartbeat().is_paused() {
        tokio::task::yield_now().await;
    }
    server.client().health(HealthRequest {}).await.expect("a shard that waits for its router is well");
}

#[tokio::test]
async fn late_masks_are_waited_for_and_obeyed() {
    let server = Server::single(&TinyModel::new()).await;
    let mut router = server.welcomed(1).await;
    router.plan(masked_prompt(&[1, 2, 3])).await;
    router.plan(continue_slot_0(2)).await;
    forward_is_over(&server).await;
    for seq in 1..=2 {
        check_waiting(&mut router, seq).await;
        router.send(masks(seq, &[(0, 40 + seq as u32)])).await;
        assert_eq!(router.tokens().await, [40 + seq as u32]);
    }
}

#[tokio::test]
async fn early_masks_wait_for_their_plan() {
    let server = Server::single(&TinyModel::new()).await;
    let mut router = server.welcomed(1).await;
    for seq in 1..=3 {
        router.send(masks(seq, &[(0, 60 + seq as u32)])).await;
    }
    let plans = [masked_prompt(&[1, 2, 3]), continue_slot_0(2), Plan { seq: 3, same_rows: true, ..Plan::default() }];
    for (plan, token) in plans.into_iter().zip(61..) {
        router.plan(plan).await;
        assert_eq!(router.tokens().await, [token]);
    }
}

#[tokio::test]
async fn only_rows_under_a_grammar_wait_and_masks_may_come_one_by_one() {
    let server = Server::single(&TinyModel::new()).await;
    let mut router = server.welcomed(1).await;
    let mut plan = masked_prompt(&[1, 2]);
    for (slot, masked) in [(1, true), (2, false)] {
        let mut other = prompt(&[1, 2]);
        other.new_slots[0].slot = slot;
        other.new_slots[0].block_table = pack_u32(4 * slot..4 * slot + 4);
        other.new_slots[0].masked = masked;
        other.chunks[0].slot = slot;
        plan.new_slots.append(&mut other.new_slots);
        plan.chunks.append(&mut other.chunks);
    }
    router.plan(plan).await;
    router.send(masks(1, &[(1, 7)])).await;
    check_waiting(&mut router, 1).await;
    router.send(masks(1, &[(0, 8)])).await;
    let tokens = router.tokens().await;
    assert_eq!(tokens[..2], [8, 7]);

    // Without the masked ones nothing waits.
    router.plan(Plan { seq: 2, continues: pack_u32([2]), ..Plan::default() }).await;
    assert_eq!(router.tokens().await.len(), 1);
}

#[tokio::test]
async fn a_mask_that_allows_nothing_fails_its_row_alone() {
    let server = Server::single(&TinyModel::new()).await;
    let mut router = server.welcomed(1).await;
    let mut plan = masked_prompt(&[1, 2]);
    let other = prompt(&[1, 2]);
    plan.new_slots.push(proto::v1::NewSlot { slot: 1, block_table: pack_u32(4..8), ..other.new_slots[0].clone() });
    plan.chunks.push(proto::v1::Chunk { slot: 1, ..other.chunks[0].clone() });
    router.plan(plan).await;
    router.plan(Plan { seq: 2, continues: pack_u32([0, 1]), ..Plan::default() }).await;
    let nothing = Mask { slot: 0, allowed: bytes::Bytes::new() };
    router.send(to_shard::Message::Masks(Masks { seq: 1, masks: vec![nothing] })).await;
    // The plan that was sent ahead waits for the row that failed too: its router learns of it one step late.
    router.send(masks(2, &[(0, 1)])).await;
    for _ in 0..2 {
        let result = router.result().await;
        let [error] = &result.row_errors[..] else { panic!("{result:?}") };
        assert!(error.slot == 0 && error.reason.starts_with("no token is allowed at position 2: "), "{error:?}");
        let slots: Vec<u32> = Sample::unpack(&result.samples).unwrap().map(|sample| sample.slot).collect();
        assert_eq!(slots, [1]);
    }
}

#[tokio::test]
async fn wrong_masks_end_the_epoch() {
    let server = Server::single(&TinyModel::new()).await;
    let wrong = [
        (masks(5, &[(0, 1)]), "masks for plan 5 arrived, expected masks for a plan from 1 to 4"),
        (masks(0, &[(0, 1)]), "masks for plan 0 arrived, expected masks for a plan from 1 to 4"),
        (masks(1, &[(8, 1)]), "slot 8 does not exist: ids end below 8"),
        (masks(1, &[(0, 1), (0, 1)]), "slot 0 has two masks for plan 1"),
        (masks(1, &[(3, 1)]), "slot 3 has a mask for plan 1, which samples no row of it under a grammar"),
    ];
    for ((message, expected), epoch) in wrong.into_iter().zip(1..) {
        let mut router = server.welcomed(epoch).await;
        // The step is at its sampler, or will be.
        router.plan(masked_prompt(&[1, 2])).await;
        router.send(message).await;
        assert_eq!(router.fatal().await, format!("protocol violation: {expected}"));
    }
    let mut router = server.welcomed(9).await;
    router.plan(masked_prompt(&[1])).await;
    router.send(masks(1, &[(0, 1)])).await;
    router.tokens().await;
    router.send(masks(1, &[(0, 1)])).await;
    let expected = "masks for plan 1 arrived, expected masks for a plan from 2 to 5";
    assert_eq!(router.fatal().await, format!("protocol violation: {expected}"));

    // A mask for a row without a grammar.
    let mut router = server.welcomed(10).await;
    router.send(masks(1, &[(0, 1)])).await;
    router.plan(prompt(&[1])).await;
    let expected = "slot 0 has a mask for plan 1, which samples no row of it under a grammar";
    assert_eq!(router.fatal().await, format!("protocol violation: {expected}"));
}

/// A router whose step waits for a mask that will not come.
async fn stuck(server: &Server, epoch: u64) -> Router {
    let mut router = server.welcomed(epoch).await;
    router.plan(masked_prompt(&[1, 2])).await;
    router.plan(continue_slot_0(2)).await;
    forward_is_over(server).await;
    check_waiting(&mut router, epoch).await;
    router
}

#[tokio::test]
async fn a_wait_ends_with_its_stream() {
    let server = Server::single(&TinyModel::new()).await;
    stuck(&server, 1).await.close().await;
    let state = server.client().inspect(InspectRequest {}).await.unwrap().into_inner();
    assert_eq!((state.epoch, state.slots.len()), (0, 0));

    let mut old = stuck(&server, 2).await;
    let mut new = server.welcomed(3).await;
    assert_eq!(old.fatal().await, "superseded by a newer Run stream");
    // What was sent early on the old stream is not taken for the new one's.
    new.plan(masked_prompt(&[1, 2])).await;
    check_waiting(&mut new, 1).await;
    new.send(masks(1, &[(0, 5)])).await;
    assert_eq!(new.tokens().await, [5]);
}

#[tokio::test]
async fn a_wait_ends_with_the_process() {
    let mut server = Server::single(&TinyModel::new()).await;
    let mut router = stuck(&server, 1).await;
    assert!(server.engine.stop(PATIENCE).await);
    assert_eq!(router.fatal().await, "the shard is shutting down");
    server.stop().await;
}

#[tokio::test]
async fn people_who_ask_cannot_hold_up_the_masks() {
    let server = Server::single(&TinyModel::new()).await;
    let mut router = server.welcomed(1).await;
    router.plan(masked_prompt(&[1, 2])).await;
    forward_is_over(&server).await;
    // More than the engine's queue takes.
    let asking: Vec<_> = (0..40)
        .map(|_| {
            let engine = server.engine.clone();
            tokio::spawn(async move { engine.inspect().await })
        })
        .collect();
    // This test has one thread: all of them come as far as they can.
    tokio::task::yield_now().await;
    router.plan(continue_slot_0(2)).await;
    router.send(masks(1, &[(0, 5)])).await;
    router.send(masks(2, &[(0, 6)])).await;
    assert_eq!((router.tokens().await, router.tokens().await), (vec![5], vec![6]));
    for answer in asking {
        answer.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn every_rank_takes_the_masks_and_a_difference_is_noticed() {
    let servers = Server::pair(&TinyModel::new()).await;
    let [mut first, mut second] = [servers[0].welcomed(1).await, servers[1].welcomed(1).await];
    for router in [&first, &second] {
        router.plan(masked_prompt(&[1, 2, 3])).await;
        router.plan(continue_slot_0(2)).await;
        router.plan(continue_slot_0(3)).await;
    }
    first.send(masks(1, &[(0, 33)])).await;
    second.send(masks(1, &[(0, 33)])).await;
    assert_eq!(first.tokens().await, [33]);
    assert!(matches!(second.answer().await, Some(from_shard::Message::Ack(_))));
    // Here the ranks would sample different tokens, and nothing in their plans shows it.
    first.send(masks(2, &[(0, 34)])).await;
    second.send(masks(2, &[(0, 35)])).await;
    assert_eq!(first.tokens().await, [34]);
    assert!(matches!(second.answer().await, Some(from_shard::Message::Ack(_))));
    let (ours, theirs) = (first.fatal().await, second.fatal().await);
    assert!(ours.contains("step 3 failed: rank 1 is at epoch 1, step 3, plan "), "{ours}");
    assert_eq!(ours, theirs);
}
