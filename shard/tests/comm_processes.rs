//! Collectives between real processes, and what the others see when one dies.

#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod runner;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use runner::unique_name;
use shard::comm::{Comm, Shm, StepTag};

const RANK: &str = "SHARD_COMM_TEST_RANK";
const WORLD_SIZE: &str = "SHARD_COMM_TEST_WORLD_SIZE";
const SEGMENT: &str = "SHARD_COMM_TEST_SEGMENT";

/// Not a test by itself: a rank that does as many all-reduces as each line of its input says, and reports each round.
#[test]
fn rank_process() {
    let (Ok(rank), Ok(segment)) = (std::env::var(RANK), std::env::var(SEGMENT)) else { return };
    let (rank, world_size): (usize, usize) =
        (rank.parse().unwrap(), std::env::var(WORLD_SIZE).unwrap().parse().unwrap());
    let comm = match Shm::open(&segment, rank, world_size, 4096) {
        Ok(comm) => comm,
        Err(error) => return println!("\nopen failed: {error}"),
    };
    for (round, line) in std::io::stdin().lines().enumerate() {
        comm.begin_step(StepTag { epoch: 1, seq: round as u64, plan_hash: 0 }).unwrap();
        for _ in 0..line.unwrap().trim().parse::<usize>().unwrap() {
            // More than a buffer; values whose sum depends on the order.
            let mut values: Vec<f32> = (0..3000).map(|i| [1e8, 1.0, -1e8, 0.5][rank] + i as f32).collect();
            if let Err(error) = comm.all_reduce(&mut values) {
                return println!("\nfailed: {error}");
            }
            let in_rank_order = |i: usize| {
                let parts = [1e8_f32, 1.0, -1e8, 0.5].map(|part| part + i as f32);
                parts[1..world_size].iter().fold(parts[0], |sum, part| sum + part)
            };
            assert!(values.iter().enumerate().all(|(i, sum)| sum.to_bits() == in_rank_order(i).to_bits()));
        }
        println!("\nround {round} done");
    }
}

struct Rank {
    process: Child,
    reports: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Rank {
    fn start(segment: &str, rank: usize, world_size: usize) -> Rank {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["rank_process", "--exact", "--nocapture"])
            .envs([(RANK, rank.to_string()), (WORLD_SIZE, world_size.to_string()), (SEGMENT, segment.to_owned())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reports = BufReader::new(process.stdout.take().unwrap()).lines();
        Rank { process, reports }
    }

    fn reduce(&mut self, times: usize) {
        writeln!(self.process.stdin.as_ref().unwrap(), "{times}").unwrap();
    }

    /// The next report; lines of the test harness are passed over.
    fn report(&mut self) -> String {
        let is_report = |line: &String| ["round", "failed", "open failed"].iter().any(|word| line.starts_with(word));
        self.reports.by_ref().map(Result::unwrap).find(is_report).expect("the rank reports before it ends")
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(world_size: usize) -> (String, Vec<Rank>) {
    let segment = unique_name();
    let ranks = (0..world_size).map(|rank| Rank::start(&segment, rank, world_size)).collect();
    (segment, ranks)
}

fn left_behind(segment: &str) -> bool {
    Path::new("/dev/shm").join(segment.trim_start_matches('/')).exists()
}

#[test]
fn four_processes_sum_in_rank_order_and_leave_nothing_behind() {
    let (segment, mut ranks) = start(4);
    for round in 0..3 {
        ranks.iter_mut().for_each(|rank| rank.reduce(50));
        for rank in &mut ranks {
            assert_eq!(rank.report(), format!("round {round} done"));
        }
    }
    assert!(!left_behind(&segment));
}

#[test]
fn a_killed_rank_is_named_by_the_others() {
    let (segment, mut ranks) = start(3);
    ranks.iter_mut().for_each(|rank| rank.reduce(1));
    ranks.iter_mut().for_each(|rank| assert_eq!(rank.report(), "round 0 done"));
    let killed = ranks[1].process.id();
    // Not waited for: it stays a zombie, as a shard does until its launcher looks.
    ranks[1].process.kill().unwrap();
    for rank in [0, 2] {
        ranks[rank].reduce(1);
    }
    for rank in [0, 2] {
        let report = ranks[rank].report();
        let expected = format!("failed: rank 1 (process {killed}) is gone (epoch 1, step 1, plan 0000000000000000, ");
        assert!(report.starts_with(&expected), "{report}");
    }
    assert!(!left_behind(&segment));
}

#[test]
fn a_rank_that_dies_before_the_others_have_joined_is_named() {
    let segment = unique_name();
    let mut first = Rank::start(&segment, 0, 3);
    // It has joined once the first word of its line, behind the header's, is its process id (`comm/segment.rs`).
    let path = Path::new("/dev/shm").join(&segment[1..]);
    let joined = |bytes: Vec<u8>| bytes.get(128..132) == Some(&first.process.id().to_le_bytes()[..]);
    while !std::fs::read(&path).is_ok_and(joined) {
        std::thread::yield_now();
    }
    let mut second = Rank::start(&segment, 1, 3);
    first.process.kill().unwrap();
    let report = second.report();
    let gone = format!("open failed: rank 0 (process {}) is gone (to attach)", first.process.id());
    assert_eq!(report, gone);
    assert!(!left_behind(&segment));
}
