//! Packed weights on disk: what is read from them is what packing would make, and what is stale or damaged is not used.

#![allow(clippy::unwrap_used, reason = "these are tests, but Clippy only knows the functions marked so")]

mod runner;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use kernels::DType;
use runner::{Runner, ScratchModel, bits, unique_name, with_ranks};
use shard::comm::{Comm, Single};
use shard::limits::PACKED_CACHE_MIN_AGE;
use shard::models::ModelOptions;

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];
const PATIENCE: Duration = Duration::from_secs(60);

type Kept = (PathBuf, u64, SystemTime);

/// A model that has been left alone long enough, and a folder for its packed weights.
struct Cached {
    model: ScratchModel,
    folder: PathBuf,
}

impl Cached {
    fn of(golden: &str) -> Cached {
        let folder = std::env::temp_dir().join(unique_name().trim_start_matches('/')).join("made/on/demand");
        let cached = Cached { model: ScratchModel::of(golden), folder };
        cached.grow_old();
        cached
    }

    /// Waits for the file system's clock, which cannot be paused.
    fn grow_old(&self) {
        std::thread::sleep(PACKED_CACHE_MIN_AGE + Duration::from_millis(100));
    }

    fn logits(
        &self,
        packed_weights_cache: Option<PathBuf>,
        dtype: Option<DType>,
        comm: Arc<dyn Comm>,
    ) -> Vec<Vec<u32>> {
        let options = ModelOptions { packed_weights_cache, dtype, ..ModelOptions::default() };
        bits(&Runner::load_with(&self.model.0, 2, comm, &options).greedy(&PROMPT, 3).steps)
    }

    /// Loads with and without packed weights on disk and expects the same bits.
    #[track_caller]
    fn check(&self, dtype: Option<DType>) {
        let expected = self.logits(None, dtype, Arc::new(Single));
        assert!(self.logits(Some(self.folder.clone()), dtype, Arc::new(Single)) == expected);
    }

    /// Each file with its inode and time: one that was written anew differs.
    fn files(&self) -> Vec<Kept> {
        let entries = fs::read_dir(&self.folder).unwrap().flatten();
        let mut files: Vec<_> = entries
            .filter_map(|entry| {
                let status = entry.metadata().ok()?;
                Some((entry.path(), status.ino(), status.modified().ok()?))
            })
            .collect();
        files.sort();
        files
    }

    /// Waits until `count` files are complete, none of them one of `before`.
    #[track_caller]
    fn wait_for_new_files(&self, count: usize, before: &[Kept]) -> Vec<Kept> {
        let start = Instant::now();
        loop {
            let files = self.files();
            let is_complete = |(path, ..): &Kept| path.extension().is_some_and(|it| it == "packed");
            if files.len() == count && files.iter().all(is_complete) && files.iter().all(|it| !before.contains(it)) {
                return files;
            }
            assert!(start.elapsed() < PATIENCE, "{files:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Damages the one kept file, then expects that loading notices.
    #[track_caller]
    fn check_damage(&self, damage: impl FnOnce(&File, u64)) {
        self.check(None);
        // Complete: a file that is still being written is not the one that the next start reads.
        let files = self.wait_for_new_files(1, &[]);
        let file = File::options().read(true).write(true).open(&files[0].0).unwrap();
        damage(&file, file.metadata().unwrap().len());
        let files = self.files();
        self.check(None);
        // Removed at once, or replaced: what is damaged does not stay.
        let start = Instant::now();
        while self.files().contains(&files[0]) {
            assert!(start.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
        self.check(None);
        self.wait_for_new_files(1, &files);
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.folder.ancestors().nth(3).unwrap());
    }
}

#[test]
fn a_second_start_reads_what_the_first_kept() {
    for golden in ["qwen2-bias-bf16", "qwen3-moe-mixed-f32"] {
        let cached = Cached::of(golden);
        cached.check(None);
        let files = cached.wait_for_new_files(1, &[]);
        assert_eq!(fs::metadata(&files[0].0).unwrap().mode() & 0o777, 0o600);
        cached.check(None);
        assert_eq!(cached.files(), files, "nothing was written, because nothing was packed");
    }
}

#[test]
fn each_rank_keeps_its_own() {
    let cached = Cached::of("llama-llama3-bf16");
    let run = |folder: Option<PathBuf>| with_ranks(2, |comm| cached.logits(folder.clone(), None, comm));
    let expected = run(None);
    assert!(run(Some(cached.folder.clone())) == expected);
    let files = cached.wait_for_new_files(2, &[]);
    assert!(run(Some(cached.folder.clone())) == expected);
    assert_eq!(cached.files(), files);
}

#[test]
fn another_type_replaces_the_file() {
    let cached = Cached::of("llama-llama3-f32");
    cached.check(None);
    let files = cached.wait_for_new_files(1, &[]);
    cached.check(Some(DType::Bf16));
    cached.wait_for_new_files(1, &files);
}

#[test]
fn changed_weights_are_packed_anew_even_if_length_and_times_are_as_before() {
    let cached = Cached::of("llama-llama3-bf16");
    cached.check(None);
    let files = cached.wait_for_new_files(1, &[]);
    let before = cached.logits(None, None, Arc::new(Single));
    let weights = File::options().read(true).write(true).open(cached.model.path("model.safetensors")).unwrap();
    let status = weights.metadata().unwrap();
    let mut header_bytes = [0; 8];
    weights.read_exact_at(&mut header_bytes, 0).unwrap();
    let header = 8 + u64::from_le_bytes(header_bytes);
    // Every sign of a stretch of weights.
    let mut stretch = vec![0; 1 << 14];
    weights.read_exact_at(&mut stretch, header).unwrap();
    stretch.iter_mut().skip(1).step_by(2).for_each(|byte| *byte ^= 0x80);
    weights.write_all_at(&stretch, header).unwrap();
    weights.set_modified(status.modified().unwrap()).unwrap();
    assert_eq!(weights.metadata().unwrap().len(), status.len());
    cached.check(None);
    assert!(cached.logits(None, None, Arc::new(Single)) != before, "the change shows");
    // Too young to be kept; the old file is not used, and replaced when the time has come.
    cached.grow_old();
    cached.check(None);
    cached.wait_for_new_files(1, &files);
}

#[test]
fn a_checkpoint_that_changed_just_now_is_not_kept() {
    let folder = std::env::temp_dir().join(unique_name().trim_start_matches('/')).join("made/on/demand");
    let cached = Cached { model: ScratchModel::of("llama-llama3-bf16"), folder };
    let start = Instant::now();
    cached.check(None);
    if start.elapsed() < PACKED_CACHE_MIN_AGE {
        assert_eq!(cached.files(), []);
    }
}

#[test]
fn damaged_files_are_not_used() {
    let cached = Cached::of("llama-llama3-bf16");
    // A bit of a weight, of the table, of the trailer; too short by one, by half, by all.
    let flip = |file: &File, at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    };
    cached.check_damage(|file, _| flip(file, 100));
    cached.check_damage(|file, len| flip(file, len - 100));
    cached.check_damage(|file, len| flip(file, len - 60));
    cached.check_damage(|file, len| flip(file, len - 1));
    cached.check_damage(|file, len| file.set_len(len - 1).unwrap());
    cached.check_damage(|file, len| file.set_len(len / 2).unwrap());
    cached.check_damage(|file, _| file.set_len(0).unwrap());
}

#[test]
fn a_folder_that_cannot_be_used_costs_a_warning_only() {
    let cached = Cached::of("llama-llama3-bf16");
    fs::create_dir_all(cached.folder.parent().unwrap()).unwrap();
    fs::write(&cached.folder, "a file").unwrap();
    cached.check(None);
}
