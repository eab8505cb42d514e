//! Runs a model without an engine: sequences of tokens in, logits out. Shared by the tests of models.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "every test binary uses another part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::{Arena, BLOCK_SIZE, Device, KvCache, StepLists};
use shard::comm::{Comm, Shm, ShmOptions, Single, StepTag};
use shard::models::{DecodeGraphs, Model, ModelOptions, SequenceRows, StepInput, StepRows};

/// Sequences that a runner keeps apart.
const MAX_SEQUENCES: usize = 8;
/// Token rows of a step.
const MAX_TOKENS: usize = 512;

/// A loaded rank with cache and arena.
pub struct Runner {
    pub model: Model,
    comm: Arc<dyn Comm>,
    kv: KvCache,
    arena: Arena,
    lists: StepLists,
    graphs: DecodeGraphs,
    /// Steps that a graph computed.
    pub graph_steps: usize,
    steps: u64,
}

/// Consecutive tokens of one sequence in a step.
pub struct Piece<'a> {
    pub sequence: usize,
    pub start: usize,
    pub ids: &'a [u32],
    /// Whether the logits of all rows are wanted, or of the last one only.
    pub logits: Wanted,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Wanted {
    All,
    Last,
}

impl Runner {
    pub fn load(dir: &Path, threads: usize, comm: Arc<dyn Comm>) -> Runner {
        Runner::load_with(dir, threads, comm, &ModelOptions::default())
    }

    pub fn load_with(dir: &Path, threads: usize, comm: Arc<dyn Comm>, options: &ModelOptions) -> Runner {
        Runner::load_on(dir, &Device::cpu(threads), comm, options)
    }

    pub fn load_on(dir: &Path, device: &Device, comm: Arc<dyn Comm>, options: &ModelOptions) -> Runner {
        let model = Model::load(dir, device, comm.clone(), options).unwrap_or_else(|error| panic!("{error}"));
        let blocks = model.spec().max_position_embeddings.min(MAX_TOKENS).div_ceil(BLOCK_SIZE) * MAX_SEQUENCES;
        let kv = model.new_kv_cache(blocks).unwrap();
        // Exactly what the plan says, so that a plan that is too small fails.
        let arena = Arena::new(device, model.arena_bytes(MAX_TOKENS, MAX_SEQUENCES, MAX_TOKENS)).unwrap();
        let limits = model.step_limits(MAX_TOKENS, MAX_SEQUENCES, MAX_TOKENS, model.spec().max_position_embeddings);
        let lists = StepLists::new(device, limits).unwrap();
        Runner { model, comm, kv, arena, lists, graphs: DecodeGraphs::default(), graph_steps: 0, steps: 0 }
    }

    /// The same with decode steps of so many rows as graphs.
    pub fn with_graphs(mut self, rows: &[usize]) -> Runner {
        let Runner { model, arena, kv, lists, .. } = &mut self;
        let device = kv.device().clone();
        self.graphs = DecodeGraphs::capture(rows, model, &device, arena, kv, lists).unwrap();
        self
    }

    /// One step. The logits of the wanted rows, in row order.
    pub fn step(&mut self, pieces: &[Piece<'_>]) -> Vec<Vec<f32>> {
        // Blocks of different sequences alternate and run backwards, so that a wrong table shows.
        let blocks = self.kv.num_blocks();
        let tables: Vec<Vec<u32>> = (0..MAX_SEQUENCES)
            .map(|sequence| {
                (0..blocks / MAX_SEQUENCES).map(|i| (blocks - 1 - i * MAX_SEQUENCES - sequence) as u32).collect()
            })
            .collect();
        let (mut input_ids, mut positions, mut slots, mut sequences, mut sample_rows) =
            (vec![], vec![], vec![], vec![], vec![]);
        for Piece { sequence, start, ids, logits } in pieces {
            let (first_row, rows, table) = (input_ids.len(), ids.len(), &tables[*sequence]);
            input_ids.extend_from_slice(ids);
            for position in *start..start + rows {
                positions.push(position as u32);
                slots.push(table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32);
            }
            sequences.push(SequenceRows { first_row, num_rows: rows, start_position: *start, block_table: table });
            let first_wanted = if *logits == Wanted::All { first_row } else { first_row + rows - 1 };
            sample_rows.extend((first_wanted..first_row + rows).map(|row| row as u32));
        }
        let step = StepRows {
            input_ids: &input_ids,
            continued: &[],
            positions: &positions,
            slot_mapping: &slots,
            sequences: &sequences,
            sample_rows: &sample_rows,
        };
        self.steps += 1;
        self.comm.begin_step(StepTag { epoch: 1, seq: self.steps, plan_hash: 7 }).unwrap();
        let mark = self.arena.mark();
        let logits = match self.graphs.begin(&step, &mut self.lists).unwrap() {
            Some(step) => {
                self.graph_steps += 1;
                self.lists.send().unwrap();
                step.forward(&self.model, &mut self.arena).unwrap()
            }
            None => {
                self.lists.begin().unwrap();
                let step = StepInput::new(&step, &mut self.lists).unwrap();
                self.lists.send().unwrap();
                self.model.forward(&mut self.arena, &mut self.kv, &step).unwrap()
            }
        };
        let rows = logits.to_vec().unwrap().chunks_exact(logits.cols()).map(<[f32]>::to_vec).collect();
        self.comm.finish_step().unwrap();
        self.arena.release(mark);
        rows
    }

    /// The logits of every position of `prompt`, then of each of `new_tokens` greedy steps, and their tokens.
    pub fn greedy(&mut self, prompt: &[u32], new_tokens: usize) -> Greedy {
        let prefill = self.step(&[Piece { sequence: 0, start: 0, ids: prompt, logits: Wanted::All }]);
        let mut steps = vec![prefill.last().unwrap().clone()];
        let mut ids = vec![arg_max(&steps[0])];
        while ids.len() < new_tokens {
            let (start, last) = (prompt.len() + ids.len() - 1, *ids.last().unwrap());
            steps.extend(self.step(&[Piece { sequence: 0, start, ids: &[last], logits: Wanted::Last }]));
            ids.push(arg_max(steps.last().unwrap()));
        }
        Greedy { prefill, steps, ids }
    }
}

/// A greedy continuation.
#[derive(PartialEq)]
pub struct Greedy {
    pub prefill: Vec<Vec<f32>>,
    pub steps: Vec<Vec<f32>>,
    pub ids: Vec<u32>,
}

/// The first of the greatest.
pub fn arg_max(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().rev().max_by(|a, b| a.1.total_cmp(b.1));
    best.expect("a vocabulary has tokens").0 as u32
}

/// Logits as bits: two runs are equal, or they are not.
pub fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|logit| logit.to_bits()).collect()).collect()
}

/// Runs `f` as every rank of a group at once, each on its own thread. What each returned, in rank order.
pub fn with_ranks<T: Send>(world_size: usize, f: impl Fn(Arc<dyn Comm>) -> T + Sync) -> Vec<T> {
    if world_size == 1 {
        return vec![f(Arc::new(Single))];
    }
    let name = unique_name();
    // Small buffers, so that collectives go in pieces.
    let options = ShmOptions { capacity_bytes: 4096, ..ShmOptions::default() };
    std::thread::scope(|scope| {
        let rank = |rank| {
            let (name, f) = (&name, &f);
            scope.spawn(move || f(Arc::new(Shm::open_with(name, rank, world_size, options).unwrap())))
        };
        let ranks: Vec<_> = (0..world_size).map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A name for shared memory or a directory that no other test and no other process has.
pub fn unique_name() -> String {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    format!("/tgi-test-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// The directory of the golden models.
pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// A copy of a golden model that a test may damage. Removed when dropped.
pub struct ScratchModel(pub PathBuf);

impl ScratchModel {
    pub fn of(golden: &str) -> ScratchModel {
        let dir = std::env::temp_dir().join(unique_name().trim_start_matches('/'));
        std::fs::create_dir_all(&dir).unwrap();
        for entry in std::fs::read_dir(goldens().join(golden)).unwrap().flatten() {
            std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
        ScratchModel(dir)
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// Changes fields of config.json; `null` removes one.
    pub fn configure(&self, changes: serde_json::Value) {
        let path = self.path("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (field, value) in changes.as_object().unwrap() {
            match value.is_null() {
                true => drop(config.as_object_mut().unwrap().remove(field)),
                false => config[field] = value.clone(),
            }
        }
        std::fs::write(path, config.to_string()).unwrap();
    }
}

impl Drop for ScratchModel {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
