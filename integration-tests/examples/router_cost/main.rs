//! What the router itself costs: its time, its memory and the delay it adds, in front of a shard that computes nothing.
//!
//! `just bench-router` measures everything; `just bench-router generate_stream chat` only these (names are the first column's). The
//! fake shard is a process of its own and the load comes from this one, so the router's time (/proc/PID/task/*/schedstat) is all
//! the router's: system calls, wake-ups of the readers and the network stack on its side included. Options: `--rounds N` (5),
//! `--vocab-size N` (the demo model's tokenizer if absent), `--json FILE`.

mod load;
mod measure;
mod report;
mod setup;

use std::time::Duration;

use integration_tests::Logprobs;
use report::Report;
use setup::Tokenizer;

/// What can be measured.
const GROUPS: [&str; 8] =
    ["memory", "generate_stream", "chat", "generate", "steps_1", "steps_64", "steps_512", "idle_server"];

struct Options {
    groups: Vec<String>,
    rounds: usize,
    vocab_size: Option<usize>,
    json: Option<String>,
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == setup::FAKE_SHARD) {
        return setup::serve_fake_shard(&words[1..]);
    }
    // `cargo bench` and `cargo run` may add it.
    words.retain(|word| word != "--bench");
    let options = Options::parse(words).unwrap_or_else(|error| {
        eprintln!("{error}");
        std::process::exit(2);
    });
    // One thread: what the load costs beside the router is small, and the machine's other cores are the router's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let report = runtime.block_on(measure(&options));
    print!("{}", report.table());
    if let Some(path) = options.json {
        std::fs::write(&path, report.json().to_string()).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
    }
}

async fn measure(options: &Options) -> Report {
    let tokenizer = options.vocab_size.map_or_else(Tokenizer::demo, Tokenizer::large);
    let mut report = Report::new(tokenizer.name.clone(), options.rounds);
    let rounds = options.rounds;
    for group in &options.groups {
        match group.as_str() {
            "memory" => measure::memory(&mut report, &tokenizer).await,
            "generate_stream" => measure::streams(&mut report, &tokenizer, rounds, load::Route::GenerateStream).await,
            "chat" => measure::streams(&mut report, &tokenizer, rounds, load::Route::Chat).await,
            "generate" => measure::requests(&mut report, &tokenizer, rounds).await,
            "steps_1" => measure::steps(&mut report, &tokenizer, rounds, 1).await,
            "steps_64" => measure::steps(&mut report, &tokenizer, rounds, 64).await,
            "steps_512" => measure::steps(&mut report, &tokenizer, rounds, 512).await,
            _ => measure::idle_server(&mut report),
        }
    }
    report
}

impl Options {
    fn parse(words: Vec<String>) -> Result<Options, String> {
        let mut options = Options { groups: Vec::new(), rounds: 5, vocab_size: None, json: None };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number = |text: String| text.parse::<usize>().map_err(|error| format!("{text}: {error}"));
            match word.as_str() {
                "--rounds" => options.rounds = number(value()?)?.max(1),
                "--vocab-size" => options.vocab_size = Some(number(value()?)?.max(1024)),
                "--json" => options.json = Some(value()?),
                group if GROUPS.contains(&group) => options.groups.push(word),
                _ => return Err(format!("{word} is none of {GROUPS:?}, --rounds, --vocab-size, --json")),
            }
        }
        if options.groups.is_empty() {
            options.groups = GROUPS.map(str::to_owned).to_vec();
        }
        Ok(options)
    }
}

/// A shard whose steps are instantaneous, or take `step` and stamp their results.
fn pace(step: Duration) -> (Duration, Logprobs) {
    (step, if step.is_zero() { Logprobs::Plausible } else { Logprobs::Stamps })
}
