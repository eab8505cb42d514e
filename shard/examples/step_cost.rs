//! What a decode step costs without router and protocol: one row against many, on this machine's cores.
//!
//! `cargo run --release -p shard --example step_cost [model folder] [threads] [mode]` (default: the demo model, all cores; a mode as
//! `--quantize` takes it).
//! The difference to `tgi_batch_forward_duration` of a running server is what its other threads take from the cores.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kernels::machine::median_duration;
use kernels::{Arena, BLOCK_SIZE, Device};
use shard::comm::Single;
use shard::models::{Model, ModelOptions, Quantization, SequenceRows, StepInput, StepRows};

/// Tokens of each row so far: the middle of a 128-token reply to a short question.
const CONTEXT: usize = 80;

fn main() -> Result<(), shard::Error> {
    let mut args = std::env::args().skip(1);
    let demo = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model");
    let dir = args.next().map_or_else(demo, PathBuf::from);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.next().and_then(|threads| threads.parse().ok()).unwrap_or(cores);

    let mode = args.next();
    let quantization = Quantization::ALL.into_iter().find(|known| Some(known.name()) == mode.as_deref());

    let device = Device::cpu(threads);
    let options = ModelOptions { quantization, ..ModelOptions::default() };
    let began = Instant::now();
    let model = Model::load(&dir, &device, Arc::new(Single), &options)?;
    let (weights, loading) = (model.weights_bytes() as f64 / 1e6, began.elapsed());
    println!("{}, {weights:.1} MB of weights, loaded in {loading:.1?}, context {CONTEXT}", device.describe());
    let mut one_row = None;
    for rows in [1, 4, 16, 64] {
        let step = median_step(&model, &device, rows)?;
        let one_row = *one_row.get_or_insert(step);
        let gain = rows as f64 * one_row / step;
        println!("{rows:>4} rows  {:>8.3} ms  {:>8.0} tokens/s  {gain:>5.1} x", step * 1e3, rows as f64 / step);
    }
    Ok(())
}

/// Seconds of a step in which `rows` sequences decode one token each.
fn median_step(model: &Model, device: &Device, rows: usize) -> Result<f64, shard::Error> {
    let blocks_per_row = CONTEXT.div_ceil(BLOCK_SIZE);
    let mut kv = model.new_kv_cache(rows * blocks_per_row)?;
    let mut arena = Arena::new(device, model.arena_bytes(rows, rows, rows))?;
    // As a server hands them out: rows that grow side by side take blocks in turn.
    let table = |row: usize| (0..blocks_per_row).map(move |block| (block * rows + row) as u32).collect::<Vec<_>>();
    let tables: Vec<Vec<u32>> = (0..rows).map(table).collect();
    let last = CONTEXT - 1;
    let slot = |table: &Vec<u32>| table[last / BLOCK_SIZE] * BLOCK_SIZE as u32 + (last % BLOCK_SIZE) as u32;
    let sequence =
        |(first_row, block_table)| SequenceRows { first_row, num_rows: 1, start_position: last, block_table };
    let step = StepRows {
        input_ids: &vec![1; rows],
        continued: &[],
        positions: &vec![last as u32; rows],
        slot_mapping: &tables.iter().map(slot).collect::<Vec<_>>(),
        sequences: &tables.iter().map(Vec::as_slice).enumerate().map(sequence).collect::<Vec<_>>(),
        sample_rows: &(0..rows as u32).collect::<Vec<_>>(),
    };
    let median = median_duration(|| {
        let mark = arena.mark();
        model.forward(&mut arena, &mut kv, &StepInput::of_host(&step)).expect("the step is well-formed");
        arena.release(mark);
    });
    Ok(median.as_secs_f64())
}
