//! What grammars cost those who use none: 16 plain streams beside 16 streams under a JSON schema, against 16 plain streams
//! beside 16 plain ones, on the demo model, in alternating rounds.
//!
//! `just bench-grammar-load`. Goal: the plain streams keep at least 90 % of their speed. Also what a mask costs, from
//! `tgi_grammar_mask_duration`.

use std::time::Instant;

use futures::future::join_all;
use integration_tests::{Server, Setup, endless_demo_model};
use serde_json::{Value, json};

const STREAMS: usize = 16;
const TOKENS: usize = 256;
const ROUNDS: usize = 7;

/// What runs beside the measured streams.
#[derive(Clone, Copy)]
enum Beside {
    Plain,
    Grammar,
}

#[tokio::main]
async fn main() {
    let model = endless_demo_model();
    let server = Setup::new().model(model.path()).start();
    // Warms up, and compiles the grammar: compiling is not what is measured here.
    round(&server, Beside::Grammar).await;
    round(&server, Beside::Plain).await;

    let (mut plain, mut grammar) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(round(&server, Beside::Plain).await);
        grammar.push(round(&server, Beside::Grammar).await);
    }
    let (plain, grammar) = (median(&mut plain), median(&mut grammar));
    let metrics = server.metrics().await;
    let mask = |q| metrics.quantile("tgi_grammar_mask_duration", q).expect("masks were computed") * 1e6;
    let masks = metrics.get("tgi_grammar_mask_duration_count").expect("masks were computed");
    println!(
        "{STREAMS} plain streams of {TOKENS} tokens, demo model, 1 shard, medians of {ROUNDS} alternating rounds, tokens per second"
    );
    println!("  beside {STREAMS} plain streams     {plain:>8.0}");
    println!(
        "  beside {STREAMS} grammar streams   {grammar:>8.0}   = {:.1} % of that (goal: at least 90 %)",
        grammar / plain * 100.0
    );
    let mean = metrics.get("tgi_grammar_mask_duration_sum").expect("masks were computed") / masks * 1e6;
    println!("  {masks} masks: mean {mean:.0} µs, p50 at most {:.0} µs, p99 at most {:.0} µs", mask(0.5), mask(0.99));
}

/// Tokens per second of the measured streams. Those beside them begin anew whenever they end, until these are through.
async fn round(server: &Server, beside: Beside) -> f64 {
    let measured = async {
        let start = Instant::now();
        let tokens: usize = join_all((0..STREAMS).map(|number| stream(server, number, None))).await.into_iter().sum();
        assert_eq!(tokens, STREAMS * TOKENS, "every stream is complete");
        tokens as f64 / start.elapsed().as_secs_f64()
    };
    let others = join_all((STREAMS..2 * STREAMS).map(|number| async move {
        loop {
            let grammar = match beside {
                Beside::Plain => None,
                Beside::Grammar => Some(schema()),
            };
            stream(server, number, grammar).await;
        }
    }));
    tokio::select! {
        speed = measured => speed,
        _ = others => unreachable!("they go on for ever"),
    }
}

/// Runs a stream to its end and counts its tokens.
async fn stream(server: &Server, number: usize, grammar: Option<Value>) -> usize {
    let inputs = format!("<|user|>Tell me story number {number}.<|end|><|assistant|>");
    let mut parameters = json!({ "max_new_tokens": TOKENS });
    if number >= STREAMS {
        // What runs beside is sampled, with a grammar or without: every stream takes another path. The measured streams
        // are not, so that no dice end them.
        parameters["do_sample"] = json!(true);
        parameters["seed"] = json!(number);
    }
    if let Some(schema) = grammar {
        parameters["grammar"] = json!({ "type": "json", "value": schema });
    }
    let stream = server.stream("/generate_stream", &json!({ "inputs": inputs, "parameters": parameters })).await;
    assert_eq!(stream.status(), 200);
    let text = stream.text().await;
    assert!(!text.contains("\"error\""), "{text}");
    // Counting events instead of parsing them leaves the machine to the server.
    text.matches("data: {\"index\"").count()
}

/// What people ask for: a list of records with strings, numbers, choices and options.
fn schema() -> Value {
    json!({
        "type": "array",
        "minItems": 3,
        "items": {
            "type": "object",
            "properties": {
                "name": { "type": "string", "minLength": 1, "maxLength": 40 },
                "age": { "type": "integer", "minimum": 0, "maximum": 120 },
                "role": { "enum": ["cook", "driver", "teacher", "writer"] },
                "score": { "type": "number" },
                "note": { "type": ["string", "null"] },
            },
            "required": ["name", "age", "role"],
            "additionalProperties": false,
        },
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
