//! What a person with grpcurl sees on a shard's socket: reflection, health, Info, Inspect, Generate.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::path::PathBuf;

use integration_tests::{LoneShards, Setup, TinyModel};
use proto::v1::shard_client::ShardClient;
use proto::v1::{GenerateRequest, InfoRequest, InspectRequest, SamplingParams};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

const SERVICE: &str = "text_generation.shard.v1.Shard";

#[tokio::test]
async fn every_shard_lists_and_describes_its_services() {
    let folder = tempfile::TempDir::new().unwrap();
    let prefix = folder.path().join("tgi").to_string_lossy().into_owned();
    let server = Setup::new().args(&["--num-shard", "2", "--shard-uds-path", &prefix]).start();

    for rank in 0..2 {
        let socket: PathBuf = proto::socket_path(&prefix, rank);
        let channel = proto::connect(&socket).await.unwrap();

        let answer = reflect(channel.clone(), MessageRequest::ListServices(String::new())).await;
        let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
        let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
        assert!(names.contains(&SERVICE.to_owned()), "{names:?}");
        assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");
        let answer = reflect(channel.clone(), MessageRequest::FileContainingSymbol(SERVICE.to_owned())).await;
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");

        let check = HealthCheckRequest { service: SERVICE.to_owned() };
        let health = HealthClient::new(channel.clone()).check(check).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::Serving);

        let mut shard = ShardClient::new(channel);
        let info = shard.info(InfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.rank, info.world_size, info.block_size), (rank, 2, 16));
        assert_eq!(info.model_type, "llama");
        let inspect = shard.inspect(InspectRequest {}).await.unwrap().into_inner();
        assert_eq!(inspect.num_blocks, info.num_blocks);
        assert!(inspect.slots.is_empty(), "nothing runs: {inspect:?}");
    }
    assert_eq!(server.stop().code, Some(0));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the sockets are gone");
}

#[tokio::test]
async fn generate_by_hand_needs_a_shard_without_a_router() {
    let folder = tempfile::TempDir::new().unwrap();
    let prefix = folder.path().join("tgi").to_string_lossy().into_owned();
    // Its greedy decoding never ends by itself: four tokens asked for are four tokens.
    let model = TinyModel::default().write();
    let server = Setup::new().model(model.path()).args(&["--shard-uds-path", &prefix]).start();
    let call = GenerateRequest { input_ids: vec![5, 6, 7], max_new_tokens: 4, params: Some(SamplingParams::default()) };
    let channel = proto::connect(&proto::socket_path(&prefix, 0)).await.unwrap();
    let refused = ShardClient::new(channel).generate(call.clone()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "the router's stream is open: {refused}");

    // A shard alone, as the launcher starts it, but without a router.
    let alone = LoneShards::start(&server, &folder.path().join("alone").to_string_lossy()).await;
    let mut shard = alone.connect(0).await;
    let answer = shard.generate(call).await.unwrap().into_inner();
    assert_eq!((answer.output_ids.len(), answer.logprobs.len()), (4, 4));
    assert!(answer.logprobs.iter().all(|logprob| *logprob <= 0.0), "{answer:?}");
}

async fn reflect(channel: tonic::transport::Channel, request: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut client = ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    answers.message().await.unwrap().expect("one answer per question").message_response.expect("it has contents")
}
