//! What a long prompt costs those who are being served: a 4,000-token prompt arrives in the middle of 16 running streams.
//!
//! `just bench-long-prompt`. Goals: the longest gap between two tokens of a running stream is at most what one full-budget
//! step takes, and at most a quarter of the gap with chunking off.
//!
//! All times are a client's. A full-budget step is measured alone: a prompt whose first 3,584 tokens are in the prefix
//! cache is exactly one step of 512 tokens at the depth where the long prompt ends, and its first token comes when that
//! step is done.

use std::time::{Duration, Instant};

use futures::future::join_all;
use integration_tests::{Server, Setup, TinyModel};
use serde_json::{Value, json};
use tempfile::TempDir;

const STREAMS: usize = 16;
const PROMPT_TOKENS: usize = 4000;
/// The default budget of a step on CPUs.
const STEP_TOKENS: usize = 512;
/// A budget that holds the whole prompt and a token of every stream: chunking is off.
const UNCHUNKED: &str = "4608";
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() {
    // Wide enough that a step's time is computation and not overhead.
    let model = TinyModel {
        hidden_size: 256,
        intermediate_size: 768,
        num_layers: 4,
        num_heads: 8,
        num_kv_heads: 4,
        ..TinyModel::default()
    };
    let model = model.write();

    let server = start(&model, &[]);
    let step = full_budget_step(&server).await;
    let (quiet, chunked, first_chunked) = gaps(&server).await;
    server.stop();
    let server = start(&model, &["--max-batch-prefill-tokens", UNCHUNKED]);
    let (_, unchunked, first_unchunked) = gaps(&server).await;
    server.stop();

    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    println!(
        "a {PROMPT_TOKENS}-token prompt among {STREAMS} running streams; medians of {ROUNDS} rounds, milliseconds"
    );
    println!("  one full-budget step ({STEP_TOKENS} tokens at the prompt's end)  {:>8.1}", ms(step));
    println!("  longest gap of a stream, no long prompt                {:>8.1}", ms(quiet));
    println!(
        "  longest gap of a stream, budget {STEP_TOKENS}                    {:>8.1}   = {:.2} steps (goal: at most 1)",
        ms(chunked),
        ms(chunked) / ms(step)
    );
    println!(
        "  longest gap of a stream, chunking off                  {:>8.1}   ratio {:.2} (goal: at most 0.25)",
        ms(unchunked),
        ms(chunked) / ms(unchunked)
    );
    println!("  first token of the long prompt, budget {STEP_TOKENS}             {:>8.1}", ms(first_chunked));
    println!("  first token of the long prompt, chunking off           {:>8.1}", ms(first_unchunked));
}

fn start(model: &TempDir, args: &[&str]) -> Server {
    Setup::new().model(model.path()).args(args).start()
}

/// Median time to the first token of prompts that are one full step behind a cached prefix.
async fn full_budget_step(server: &Server) -> Duration {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let prompt = prompt(&format!("step {round}"), 8 * STEP_TOKENS);
        // The last token of a prompt is always computed, so one more than the prefix fills the cache with all of it.
        first_token(server, &prompt[..7 * STEP_TOKENS + 1]).await;
        times.push(first_token(server, &prompt).await);
    }
    median(times)
}

/// Medians over the rounds: longest gap before the long prompt, longest gap while it is computed, time to its first token.
async fn gaps(server: &Server) -> (Duration, Duration, Duration) {
    let (mut quiet, mut disturbed, mut first) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut arrivals = Vec::new();
        let (finished, finish) = tokio::sync::watch::channel(false);
        for number in 0..STREAMS {
            arrivals.push(tokio::spawn(arrival_times(open(server, number).await, finish.clone())));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sent = Instant::now();
        let answered = first_token(server, &prompt(&format!("round {round}"), PROMPT_TOKENS)).await;
        let end = sent + answered;
        tokio::time::sleep(Duration::from_millis(100)).await;
        finished.send_replace(true);
        let arrivals: Vec<Vec<Instant>> =
            join_all(arrivals).await.into_iter().map(|times| times.expect("it ran")).collect();
        let longest = |from: Instant, to: Instant| {
            let gaps = arrivals.iter().flat_map(|times| times.windows(2).map(|pair| (pair[0], pair[1])));
            gaps.filter(|&(start, end)| end > from && start < to)
                .map(|(start, end)| end - start)
                .max()
                .unwrap_or_default()
        };
        quiet.push(longest(sent - Duration::from_millis(200), sent - Duration::from_millis(1)));
        disturbed.push(longest(sent, end));
        first.push(answered);
        // The streams are cancelled by now; the next round begins with an idle server.
        server.metrics_until("the streams to end", |metrics| metrics.get("tgi_batch_current_size") == Some(0.0)).await;
    }
    (median(quiet), median(disturbed), median(first))
}

/// Opens a stream that outlasts the round, and returns it after its first token.
async fn open(server: &Server, number: usize) -> reqwest::Response {
    let body = json!({ "inputs": format!("stream {number}"), "parameters": { "max_new_tokens": 8000 } });
    let mut response = post(server, &body).await;
    response.chunk().await.expect("the stream is not cut");
    response
}

/// When each piece of the stream arrived, until `finish`.
async fn arrival_times(
    mut response: reqwest::Response,
    mut finish: tokio::sync::watch::Receiver<bool>,
) -> Vec<Instant> {
    let mut times = Vec::new();
    loop {
        tokio::select! {
            chunk = response.chunk() => match chunk.expect("the stream is not cut") {
                Some(_) => times.push(Instant::now()),
                None => return times,
            },
            _ = finish.wait_for(|finished| *finished) => return times,
        }
    }
}

async fn first_token(server: &Server, prompt: &str) -> Duration {
    let start = Instant::now();
    let mut response = post(server, &json!({ "inputs": prompt, "parameters": { "max_new_tokens": 1 } })).await;
    response.chunk().await.expect("the stream is not cut").expect("there is a token");
    start.elapsed()
}

async fn post(server: &Server, body: &Value) -> reqwest::Response {
    let response = server.client().post(server.url("/generate_stream")).json(body).send().await;
    response.expect("the server answers").error_for_status().expect("the request is valid")
}

/// A text of `tokens` bytes, which are as many tokens, that begins with `start` and so shares no block with others.
fn prompt(start: &str, tokens: usize) -> String {
    let mut text = format!("{start}: ");
    while text.len() < tokens {
        text.push_str("a long prompt, ");
    }
    text.truncate(tokens);
    text
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}
