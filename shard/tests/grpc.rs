//! The service over a real socket: discovery, health, the step protocol and everything that ends an epoch.

#![allow(clippy::unwrap_used, reason = "the exemption for tests does not reach helpers of integration tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::v1::{
    GenerateRequest, HealthRequest, Hello, InfoRequest, InspectRequest, Masks, Ping, Plan, SamplingParams, from_shard,
    to_shard,
};
use support::serving::{Gate, PATIENCE, Server, continue_slot_0, prompt};
use support::{NAN_TOKEN, TinyModel, VOCAB_SIZE};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

#[tokio::test]
async fn reflection_lists_the_services_and_describes_run() {
    let server = Server::single(&TinyModel::new()).await;
    let ask = |request| {
        let channel = server.channel.clone();
        async move {
            let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
            let mut client = ServerReflectionClient::new(channel);
            let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
            let ServerReflectionResponse { message_response, .. } = answers.next().await.unwrap().unwrap();
            message_response.unwrap()
        }
    };
    let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await else {
        panic!("no list of services")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"text_generation.shard.v1.Shard".to_owned()), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");

    let symbol = MessageRequest::FileContainingSymbol("text_generation.shard.v1.Shard.Run".to_owned());
    let MessageResponse::FileDescriptorResponse(files) = ask(symbol).await else { panic!("Run is not described") };
    let described = files.file_descriptor_proto.concat();
    let contains = |text: &str| described.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(contains("ToShard") && contains("FromShard") && contains("appended_blocks"));
}

#[tokio::test]
async fn health_follows_the_engine() {
    let server = Server::single(&TinyModel::new()).await;
    let mut standard = HealthClient::new(server.channel.clone());
    for service in ["", "text_generation.shard.v1.Shard"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut updates = standard.watch(request).await.unwrap().into_inner();
        while updates.next().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    }
    let steps = server.client().health(HealthRequest {}).await.unwrap().into_inner().steps;
    assert_eq!(steps, 0);
    server.client().generate(generate(&[1, 2], 3)).await.unwrap();
    let steps = server.client().health(HealthRequest {}).await.unwrap().into_inner().steps;
    assert_eq!(steps, 3);

    let request = HealthCheckRequest { service: String::new() };
    let mut updates = standard.watch(request).await.unwrap().into_inner();
    assert!(server.engine.stop(PATIENCE).await);
    let gone = loop {
        // The engine's queue closes a moment before its thread has said why.
        match server.client().health(HealthRequest {}).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(status) => break status,
        }
    };
    assert_eq!(gone.code(), Code::Unavailable);
    assert_eq!(gone.message(), "the engine thread has ended: it was stopped");
    while updates.next().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
}

#[tokio::test]
async fn info_says_what_the_rank_holds() {
    let server = Server::single(&TinyModel::new()).await;
    let info = server.client().info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.rank, info.world_size, info.protocol_version), (0, 1, proto::PROTOCOL_VERSION));
    assert_eq!((info.model_type.as_str(), info.dtype.as_str()), ("llama", "float32"));
    assert_eq!((info.vocab_size, info.max_position_embeddings), (VOCAB_SIZE as u32, 512));
    assert_eq!((info.block_size, info.num_blocks, info.max_slots, info.max_step_tokens), (16, 128, 8, 64));
    assert_eq!(info.eos_token_ids, [support::EOS]);
    // Two layers, two KV heads of 8 dimensions (values padded to 16), 2048 positions, 4 bytes.
    assert_eq!(info.kv_cache_bytes, 2 * 2 * (8 + 16) * 2048 * 4);
    // All weights: the embeddings, the head, and whatever packing adds.
    assert!(info.weights_bytes >= 4 * (2 * 96 * 32 + 2 * (32 * 32 * 2 + 2 * 16 * 32 + 3 * 48 * 32)), "{info:?}");
    assert!(info.arena_bytes >= 4 * 64 * 32, "{info:?}");
    // Eight slots, and room for the rows of a prompt that is scored.
    assert_eq!(info.max_logit_rows, 64);
    assert!(info.device.starts_with("cpu ("), "{}", info.device);
}

fn generate(input_ids: &[u32], max_new_tokens: u32) -> GenerateRequest {
    GenerateRequest { input_ids: input_ids.to_vec(), max_new_tokens, params: None }
}

#[tokio::test]
async fn a_stream_computes_what_generate_computes() {
    let server = Server::single(&TinyModel::new()).await;
    let by_hand = server.client().generate(generate(&[1, 2, 3], 6)).await.unwrap().into_inner();
    assert_eq!((by_hand.output_ids.len(), by_hand.logprobs.len()), (6, 6));

    let mut router = server.welcomed(1).await;
    router.plan(prompt(&[1, 2, 3])).await;
    // One plan ahead, as a router runs; same_rows from the third on.
    router.plan(continue_slot_0(2)).await;
    let mut tokens = router.tokens().await;
    for seq in 3..=6 {
        router.plan(Plan { seq, same_rows: true, ..Plan::default() }).await;
        tokens.extend(router.tokens().await);
    }
    tokens.extend(router.tokens().await);
    assert_eq!(tokens, by_hand.output_ids);

    let state = server.client().inspect(InspectRequest {}).await.unwrap().into_inner();
    assert_eq!((state.epoch, state.last_seq, state.num_blocks), (1, 6, 128));
    let [slot] = &state.slots[..] else { panic!("{state:?}") };
    assert_eq!((slot.slot, slot.request_id, slot.length), (0, 77, 8));
    assert_eq!((slot.block_table.as_slice(), slot.last_token), (&[0, 1, 2, 3][..], tokens[5]));
    assert!(state.last_timings.unwrap().forward_ns > 0);
}

#[tokio::test]
async fn generate_goes_beyond_a_step_and_stops_at_its_limits() {
    let server = Server::single(&TinyModel::new()).await;
    let mut client = server.client();
    // 150 prompt tokens take three steps of 64.
    let long: Vec<u32> = (0..150).map(|id| id % 90).collect();
    assert_eq!(client.generate(generate(&long, 2)).await.unwrap().into_inner().output_ids.len(), 2);
    assert!(client.generate(generate(&[1], 0)).await.unwrap().into_inner().output_ids.is_empty());

    let refused = async |request| {
        let status = server.client().generate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        status.message().to_owned()
    };
    assert_eq!(refused(generate(&[], 1)).await, "`input_ids` is empty");
    assert_eq!(refused(generate(&[96], 1)).await, "slot 0: token 96 does not exist: ids end below 96");
    let expected = "`input_ids` and `max_new_tokens` add up to 513 tokens; the limit is 512";
    assert_eq!(refused(generate(&[1], 512)).await, expected);
    let params = Some(SamplingParams { top_p: Some(7.0), ..SamplingParams::default() });
    let expected = "slot 0: `top_p` is 7, must be within (0, 1]";
    assert_eq!(refused(GenerateRequest { params, ..generate(&[1], 1) }).await, expected);
}

#[tokio::test]
async fn generate_is_refused_while_a_router_is_served() {
    let server = Server::single(&TinyModel::new()).await;
    let router = server.welcomed(1).await;
    let status = server.client().generate(generate(&[1], 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "a Run stream is open; Generate is for a shard that no router uses");
    router.close().await;
    server.client().generate(generate(&[1], 1)).await.unwrap();
}

#[tokio::test]
async fn a_violation_ends_the_epoch_and_the_next_one_works() {
    let server = Server::single(&TinyModel::new()).await;
    let mut router = server.welcomed(1).await;
    router.plan(continue_slot_0(1)).await;
    assert_eq!(router.fatal().await, "protocol violation: slot 0 is not live");

    let mut router = server.welcomed(2).await;
    router.plan(prompt(&[1])).await;
    router.tokens().await;
    router.plan(continue_slot_0(3)).await;
    assert_eq!(router.fatal().await, "protocol violation: plan 3 arrived, expected plan 2");

    let mut router = server.welcomed(3).await;
    router.plan(prompt(&[1])).await;
    assert_eq!(router.tokens().await.len(), 1);
}

#[tokio::test]
async fn the_handshake_comes_first_and_once() {
    let server = Server::single(&TinyModel::new()).await;
    let mut router = server.open().await;
    router.plan(prompt(&[1])).await;
    assert_eq!(router.fatal().await, "protocol violation: the first message is Plan, expected Hello");

    let mut router = server.open().await;
    router.send(to_shard::Message::Hello(Hello { epoch: 1, protocol_version: 999 })).await;
    let version = proto::PROTOCOL_VERSION;
    let refused = format!("protocol version 999 of the router does not match {version} of this shard");
    assert_eq!(router.fatal().await, refused);

    let mut router = server.welcomed(1).await;
    router.hello(1).await;
    assert_eq!(router.fatal().await, "protocol violation: a second Hello");

    let mut router = server.open().await;
    router.send(to_shard::Message::Masks(Masks { seq: 1, masks: vec![] })).await;
    assert_eq!(router.fatal().await, "protocol violation: the first message is Masks, expected Hello");
}

#[tokio::test]
async fn the_newest_router_wins() {
    let server = Server::single(&TinyModel::new()).await;
    let mut old = server.welcomed(1).await;
    old.plan(prompt(&[1])).await;
    old.tokens().await;
    let mut new = server.welcomed(2).await;
    assert_eq!(old.fatal().await, "superseded by a newer Run stream");
    let state = server.client().inspect(InspectRequest {}).await.unwrap().into_inner();
    assert_eq!((state.epoch, state.last_seq, state.slots.len()), (2, 0, 0));
    new.plan(prompt(&[1])).await;
    assert_eq!(new.tokens().await.len(), 1);
}

#[tokio::test]
async fn a_router_that_leaves_takes_its_slots_along() {
    let server = Server::single(&TinyModel::new()).await;
    let mut router = server.welcomed(1).await;
    router.plan(prompt(&[1])).await;
    router.tokens().await;
    router.close().await;
    let state = server.client().inspect(InspectRequest {}).await.unwrap().into_inner();
    assert_eq!((state.epoch, state.slots.len()), (0, 0));
    // The same epoch again: a new router cannot know what an older one counted to.
    let mut router = server.welcomed(1).await;
    router.plan(prompt(&[1])).await;
    assert_eq!(router.tokens().await.len(), 1);
}

#[tokio::test]
async fn a_ping_is_answered_during_a_step() {
    let gate = Arc::new(Gate::default());
    let server = Server::start(&TinyModel::new(), gate.clone()).await;
    let mut router = server.welcomed(1).await;
    gate.close();
    router.plan(prompt(&[1])).await;
    router.send(to_shard::Message::Ping(Ping { nonce: 42 })).await;
    let Some(from_shard::Message::Pong(pong)) = router.answer().await else { panic!("the step is still running") };
    assert_eq!(pong.nonce, 42);
    gate.open();
    assert_eq!(router.tokens().await.len(), 1);
}

#[tokio::test]
async fn plans_in_flight_are_bounded() {
    let gate = Arc::new(Gate::default());
    let server = Server::start(&TinyModel::new(), gate.clone()).await;
    let mut router = server.welcomed(1).await;
    gate.close();
    router.plan(prompt(&[1])).await;
    for seq in 2..=5 {
        router.plan(continue_slot_0(seq)).await;
    }
    assert_eq!(router.fatal().await, "protocol violation: more than 4 plans in flight");
    gate.open();
    server.welcomed(2).await;
}

#[tokio::test]
async fn a_panic_in_a_step_ends_the_epoch_only() {
    let gate = Arc::new(Gate::default());
    let server = Server::start(&TinyModel::new(), gate.clone()).await;
    let mut router = server.welcomed(1).await;
    gate.panics.store(true, Ordering::SeqCst);
    router.plan(prompt(&[1])).await;
    assert_eq!(router.fatal().await, "step 1 panicked: on purpose");
    gate.panics.store(false, Ordering::SeqCst);
    let mut router = server.welcomed(2).await;
    router.plan(prompt(&[1])).await;
    assert_eq!(router.tokens().await.len(), 1);
}

#[tokio::test]
async fn a_row_that_fails_fails_alone() {
    let server = Server::single(&TinyModel::with_nan()).await;
    let mut router = server.welcomed(1).await;
    let mut plan = prompt(&[1, NAN_TOKEN]);
    let other = prompt(&[1, 2]);
    plan.new_slots.push(proto::v1::NewSlot {
        slot: 1,
        block_table: proto::pack_u32(4..8),
        ..other.new_slots[0].clone()
    });
    plan.chunks.push(proto::v1::Chunk { slot: 1, ..other.chunks[0].clone() });
    router.plan(plan).await;
    // The plan that was sent ahead continues a row of which the router does not know yet that it failed.
    router.plan(Plan { seq: 2, continues: proto::pack_u32([0, 1]), ..Plan::default() }).await;
    for _ in 0..2 {
        let result = router.result().await;
        let [error] = &result.row_errors[..] else { panic!("{result:?}") };
        assert_eq!((error.slot, error.reason.as_str()), (0, "the logit of token 0 at position 2 is NaN"));
        let slots: Vec<u32> = proto::Sample::unpack(&result.samples).unwrap().map(|sample| sample.slot).collect();
        assert_eq!(slots, [1]);
    }
}

#[tokio::test]
async fn shutting_down_ends_the_streams() {
    let mut server = Server::single(&TinyModel::new()).await;
    let mut router = server.welcomed(1).await;
    assert!(server.engine.stop(PATIENCE).await);
    assert_eq!(router.fatal().await, "the shard is shutting down");
    server.stop().await;
}

#[tokio::test]
async fn rank_0_answers_and_the_others_acknowledge() {
    let servers = Server::pair(&TinyModel::new()).await;
    let [mut first, mut second] = [servers[0].welcomed(1).await, servers[1].welcomed(1).await];
    let plans = [prompt(&[1, 2, 3]), continue_slot_0(2), Plan { seq: 3, same_rows: true, ..Plan::default() }];
    for plan in plans {
        let seq = plan.seq;
        tokio::join!(first.plan(plan.clone()), second.plan(plan));
        assert_eq!(first.tokens().await.len(), 1);
        let Some(from_shard::Message::Ack(ack)) = second.answer().await else { panic!("rank 1 acknowledges") };
        assert_eq!(ack.seq, seq);
    }
    let states = [0, 1].map(|rank| {
        let mut client: proto::v1::shard_client::ShardClient<_> = servers[rank].client();
        async move { client.inspect(InspectRequest {}).await.unwrap().into_inner().slots }
    });
    let [ours, theirs] = states;
    assert_eq!(ours.await, theirs.await, "both ranks hold the same slots and sampled the same token");
    let status = servers[0].client().generate(generate(&[1], 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn ranks_that_got_different_plans_name_the_difference() {
    let servers = Server::pair(&TinyModel::new()).await;
    let [mut first, mut second] = [servers[0].welcomed(1).await, servers[1].welcomed(1).await];
    tokio::join!(first.plan(prompt(&[1, 2, 3])), second.plan(prompt(&[1, 2, 4])));
    let (ours, theirs) = (first.fatal().await, second.fatal().await);
    assert!(ours.contains("step 1 failed: rank 1 is at epoch 1, step 1, plan "), "{ours}");
    assert_eq!(ours, theirs);
}

#[tokio::test]
async fn a_rank_that_waits_for_a_lost_plan_is_released() {
    let servers = Server::pair(&TinyModel::new()).await;
    // Both numbers of the next epoch are legal: a router that restarts counts from one again.
    for next in [2, 2, 1] {
        let [mut first, second] = [servers[0].welcomed(next).await, servers[1].welcomed(next).await];
        first.plan(prompt(&[1])).await;
        // Rank 0 is in a collective, or will be, for a plan that rank 1 never gets; in one epoch out of two rank 1 is
        // a step behind as well.
        first.send(to_shard::Message::Ping(Ping { nonce: 1 })).await;
        assert!(matches!(first.answer().await, Some(from_shard::Message::Pong(_))));
        tokio::join!(first.close(), second.close());

        let [mut first, mut second] = [servers[0].welcomed(next + 1).await, servers[1].welcomed(next + 1).await];
        tokio::join!(first.plan(prompt(&[1, 2])), second.plan(prompt(&[1, 2])));
        assert_eq!(first.tokens().await.len(), 1);
        assert!(matches!(second.answer().await, Some(from_shard::Message::Ack(_))));
        // This time the second rank is the one that waits, and it is superseded rather than closed.
        second.plan(continue_slot_0(2)).await;
        let [mut newer_first, mut newer_second] =
            [servers[0].welcomed(next + 2).await, servers[1].welcomed(next + 2).await];
        assert_eq!(first.fatal().await, "superseded by a newer Run stream");
        let reason = second.fatal().await;
        assert!(reason.contains("superseded") || reason.contains("the epoch ended during a collective"), "{reason}");
        tokio::join!(newer_first.plan(prompt(&[3])), newer_second.plan(prompt(&[3])));
        assert_eq!(newer_first.tokens().await.len(), 1);
        assert!(matches!(newer_second.answer().await, Some(from_shard::Message::Ack(_))));
        tokio::join!(newer_first.close(), newer_second.close());
    }
}
