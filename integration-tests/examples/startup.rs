//! From the start of the built executable to its ready line: the demo model with two shards, median of five.
//!
//! `just bench-startup`. Goal: at most 1.5 s.

use std::time::Instant;

use integration_tests::{Setup, executable};

const ROUNDS: usize = 5;

fn main() {
    // Built before the clock starts.
    executable();
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let server = Setup::new().args(&["--num-shard", "2"]).start();
            let elapsed = start.elapsed().as_secs_f64();
            assert_eq!(server.stop().code, Some(0));
            elapsed
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!("time to the ready line, demo model, 2 shards, {ROUNDS} starts");
    println!(
        "  fastest {:.2} s   median {:.2} s   slowest {:.2} s",
        seconds[0],
        seconds[ROUNDS / 2],
        seconds[ROUNDS - 1]
    );
    println!("  goal: median at most 1.50 s");
}
