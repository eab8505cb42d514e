//! Every route against a scripted model: shapes byte for byte, headers, errors, streams, cancellation.

mod auth;
mod cancellation;
mod chat;
mod completions;
mod deadlines;
mod errors;
mod messages;
mod native;
mod plain;
mod platforms;
mod responses;

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use futures::StreamExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::scripted_model::{CONTEXT, EOS, ScriptedModel};
use super::*;
use crate::args::tests::args;
use crate::engine::{EngineConfig, EngineHandle};
use crate::text::test_tokenizers::byte_level;

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}";

/// A server whose model always says `reply`, then ends.
struct Fixture {
    model: ScriptedModel,
    router: Router,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Fixture {
    async fn new(reply: &str) -> Self {
        Self::with_flags(reply, &[]).await
    }

    async fn with_flags(reply: &str, flags: &[&str]) -> Self {
        Self::with(reply, flags, TEMPLATE, CONTEXT).await
    }

    async fn with(reply: &str, flags: &[&str], template: &str, context: u32) -> Self {
        let tokenizer = byte_level();
        let model = ScriptedModel::with_context(tokenizer.encode(reply, false).unwrap(), context);
        let mut args = args(flags);
        args.model_id = "demo".to_owned();
        let engine = EngineHandle::start(EngineConfig {
            shard_uds_prefix: model.ranks.prefix.clone(),
            world_size: 1,
            connect_timeout: Duration::from_secs(30),
            max_concurrent_requests: args.max_concurrent_requests,
            max_step_tokens: None,
            max_batch_size: None,
            max_draft_tokens: 0,
            max_batch_total_tokens: None,
        })
        .await
        .unwrap();
        let limits = args.param_limits(engine.facts()).unwrap();
        let template = crate::template::tests::template(template).unwrap();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let server = Server::new(args, engine, tokenizer, Some(template), limits, metrics).unwrap();
        Self { model, router: router(Arc::new(server)) }
    }

    async fn request(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string()).await
    }

    async fn post_text(&self, path: &str, body: &str) -> Answer {
        let request = Request::post(path).header("content-type", "application/json").body(Body::from(body.to_owned()));
        Answer::of(self.request(request.unwrap()).await).await
    }

    async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Request::get(path).body(Body::empty()).unwrap()).await).await
    }

    /// The replies have 50 tokens and the model may take far fewer steps: a slot is freed only because its client is gone.
    /// The shard hears of it with the next plan, so there must be another request.
    async fn assert_freed(&self, slots: usize) {
        self.model.script.steps.add_permits(20);
        let answer = self.post("/generate", &json!({"inputs": "b", "parameters": {"max_new_tokens": 1}})).await;
        assert_eq!(answer.status, 200);
        assert_eq!(*self.model.script.freed.lock().unwrap(), slots, "what was given up computes no more");
    }
}

impl Answer {
    async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Self { status: parts.status, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The JSON of each event; "[DONE]" as a string.
    fn events(&self) -> Vec<Value> {
        let event = |event: &str| {
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("not an event: {event:?}"));
            serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))
        };
        self.body.strip_suffix("\n\n").unwrap().split("\n\n").map(event).collect()
    }
}

/// `text` of each event of a native stream, joined.
fn joined(events: &[Value], pointer: &str) -> String {
    events.iter().filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}
