//! What `--speculate` is worth: a server with drafts against one without, in alternating rounds of one run.
//!
//! `just bench-speculation [demo|135m] [text] [streams] [tokens]`: the demo model, or random weights of the shape of SmolLM2-135M in bf16; `repeats`
//! (greedy, which falls into a loop) or `varies` (sampled); how many
//! streams at a time; and the longest draft (8; with 0 the two servers are the same, which shows what the machine's noise is). Without arguments: the demo
//! model, a text that repeats itself at 1 stream, one that does not at 1, 8 and 32. Goals: faster where the text repeats
//! itself, never more than 3 % slower.

use std::time::Instant;

use futures::future::join_all;
use integration_tests::{Server, Setup, TinyModel, endless_demo_model};
use serde_json::{Value, json};

const TOKENS: usize = 128;
const ROUNDS: usize = 7;

/// What the model is made to say.
#[derive(Clone, Copy, PartialEq)]
enum Text {
    Repeats,
    Varies,
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let draft_tokens = args.get(3).map_or("8", String::as_str);
    let is_large = args.first().is_some_and(|model| model == "135m");
    let model = if is_large { smollm2_shape().write() } else { endless_demo_model() };
    let start = |more: &[&str]| {
        let same = ["--max-concurrent-requests", "64", "--dtype", "bfloat16"];
        Setup::new().model(model.path()).args(&same).args(more).start()
    };
    let (plain, drafting) = (start(&[]), start(&["--speculate", draft_tokens]));

    let cases = match &args[..] {
        [_, text, streams, ..] => {
            let text = if text == "repeats" { Text::Repeats } else { Text::Varies };
            vec![(text, streams.parse().expect("the third argument is a number of streams"))]
        }
        _ => vec![(Text::Repeats, 1), (Text::Varies, 1), (Text::Varies, 8), (Text::Varies, 32)],
    };
    println!(
        "{}, --speculate {draft_tokens}, {TOKENS} tokens per stream, tokens per second: medians (and ranges) of {ROUNDS} \
         alternating rounds",
        if is_large { "random weights of the shape of SmolLM2-135M" } else { "demo model" },
    );
    for (text, streams) in cases {
        compare(&plain, &drafting, text, streams).await;
    }
}

async fn compare(plain: &Server, drafting: &Server, text: Text, streams: usize) {
    throughput(plain, text, streams, 1_000).await; // Warms up.
    throughput(drafting, text, streams, 1_000).await;
    let before = drafts(drafting).await;
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Whoever goes first would have the warmer caches, or the colder ones.
        let pair = if round % 2 == 0 {
            let without = throughput(plain, text, streams, round).await;
            (without, throughput(drafting, text, streams, round).await)
        } else {
            let with = throughput(drafting, text, streams, round).await;
            (throughput(plain, text, streams, round).await, with)
        };
        without.push(pair.0);
        with.push(pair.1);
        ratios.push(pair.1 / pair.0);
    }
    let after = drafts(drafting).await;
    let (drafted, accepted) = (after.0 - before.0, after.1 - before.1);
    println!(
        "{} {streams:>3} streams   without {}   with {}   ratio {}   {:.0} % of {drafted:.0} draft tokens right",
        if text == Text::Repeats { "repeats" } else { "varies " },
        summary(&mut without, 0),
        summary(&mut with, 0),
        summary(&mut ratios, 3),
        100.0 * accepted / drafted.max(1.0),
    );
}

/// Draft tokens so far, and how many of them were right.
async fn drafts(server: &Server) -> (f64, f64) {
    let metrics = server.metrics().await;
    let get = |name| metrics.get(name).expect("the router counts drafts");
    (get("tgi_speculation_draft_tokens"), get("tgi_speculation_accepted_tokens"))
}

/// Tokens per second of `streams` concurrent streams, from the first request sent to the last stream ended. A round has the
/// same requests on both servers, and others than every other round.
async fn throughput(server: &Server, text: Text, streams: usize, round: usize) -> f64 {
    let start = Instant::now();
    let tokens: usize = join_all((0..streams).map(|stream| async move {
        let number = round * 100 + stream;
        let inputs = match text {
            Text::Repeats => format!("{number}. {}", "The opposite of short is long. ".repeat(6)),
            Text::Varies => format!("<|user|>Tell me story number {number}.<|end|><|assistant|>"),
        };
        let body = json!({ "inputs": inputs, "parameters": parameters(text, number) });
        let stream = server.stream("/generate_stream", &body).await;
        assert_eq!(stream.status(), 200);
        // Counting events instead of parsing them leaves the machine to the server.
        stream.text().await.matches("data: {\"index\"").count()
    }))
    .await
    .into_iter()
    .sum();
    let seconds = start.elapsed().as_secs_f64();
    // A sampled reply may end before; on both servers at the same token.
    assert!(tokens > 0 && tokens <= streams * TOKENS, "{tokens} tokens");
    tokens as f64 / seconds
}

fn parameters(text: Text, number: usize) -> Value {
    match text {
        Text::Repeats => json!({ "max_new_tokens": TOKENS }),
        // Four tokens to choose from: pairs come again, and what follows them is another token most of the time.
        Text::Varies => {
            json!({ "max_new_tokens": TOKENS, "do_sample": true, "top_k": 4, "seed": number })
        }
    }
}

fn smollm2_shape() -> TinyModel {
    TinyModel {
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        ..TinyModel::default()
    }
}

/// "median (least to most)".
fn summary(values: &mut [f64], digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (median, least, most) = (values[values.len() / 2], values[0], values[values.len() - 1]);
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}
