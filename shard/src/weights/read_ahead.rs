//! Reads the checkpoint from the disk ahead of those who pack it, and lets go of what is packed.
//!
//! Packing reads a mapped file, a piece per thread: a disk that only hears of a page when a thread already waits for it is idle
//! most of the time. A thread of its own waits for the bytes in the order of loading, a bounded distance ahead, and leaves out what
//! a packing thread has come to by itself: each of those has its own share of a matrix.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kernels::SourcePages;

use super::Checkpoint;
use super::safetensors_file::Usage;
use crate::limits::{READ_AHEAD_BYTES, READ_AHEAD_STEP};

/// The parts of a checkpoint that will be packed, in this order.
pub struct ReadAhead<'a> {
    checkpoint: &'a Checkpoint,
    sources: Vec<&'a [u8]>,
    progress: Mutex<Progress>,
    packed_more: Condvar,
}

#[derive(Default)]
struct Progress {
    /// What packing threads have come to: ends by starts, as addresses. One for every two megabytes or so of a checkpoint.
    begun: BTreeMap<usize, usize>,
    packed_bytes: usize,
    is_over: bool,
}

impl Progress {
    /// Whether packing threads have come to the first of these bytes.
    fn is_begun(&self, bytes: &[u8]) -> bool {
        let at = bytes.as_ptr().addr();
        self.begun.range(..=at).next_back().is_some_and(|(_, end)| at < *end)
    }
}

impl<'a> ReadAhead<'a> {
    /// Knows what will be read, and does nothing yet.
    pub fn new(checkpoint: &'a Checkpoint, sources: Vec<&'a [u8]>) -> ReadAhead<'a> {
        ReadAhead { checkpoint, sources, progress: Mutex::default(), packed_more: Condvar::new() }
    }

    /// Calls `load` while the disk reads ahead of it.
    pub fn during<T>(&self, load: impl FnOnce() -> T) -> T {
        /// Ends the reading, also when `load` panics.
        struct Over<'r, 'a>(&'r ReadAhead<'a>);
        impl Drop for Over<'_, '_> {
            fn drop(&mut self) {
                self.0.progress().is_over = true;
                self.0.packed_more.notify_one();
            }
        }

        std::thread::scope(|scope| {
            let over = Over(self);
            // Without the thread, loading is slower and nothing else.
            let _ = std::thread::Builder::new().name("read-ahead".to_owned()).spawn_scoped(scope, || self.read());
            let loaded = load();
            drop(over);
            loaded
        })
    }

    fn read(&self) {
        let mut read_bytes = 0;
        for part in self.sources.iter().flat_map(|source| source.chunks(READ_AHEAD_STEP)) {
            let is_far_ahead = |progress: &mut Progress| {
                !progress.is_over && read_bytes + part.len() > progress.packed_bytes + READ_AHEAD_BYTES
            };
            let progress = self.packed_more.wait_while(self.progress(), is_far_ahead);
            let progress = progress.unwrap_or_else(PoisonError::into_inner);
            if progress.is_over {
                return;
            }
            let is_begun = progress.is_begun(part);
            drop(progress);
            if !is_begun {
                self.checkpoint.advise(part, Usage::Now);
            }
            read_bytes += part.len();
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SourcePages for ReadAhead<'_> {
    fn begin(&self, bytes: &[u8]) {
        let Range { start, end } = bytes.as_ptr_range();
        self.progress().begun.insert(start.addr(), end.addr());
        self.checkpoint.advise(bytes, Usage::Now);
    }

    fn end(&self, bytes: &[u8]) {
        self.checkpoint.advise(bytes, Usage::Done);
        self.progress().packed_bytes += bytes.len();
        self.packed_more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_packing_thread_has_come_to_is_left_out() {
        let bytes = [0; 40];
        let mut progress = Progress::default();
        for part in [&bytes[10..20], &bytes[20..30]] {
            progress.begun.insert(part.as_ptr().addr(), part.as_ptr_range().end.addr());
        }
        let begun: Vec<usize> = (0..40).filter(|at| progress.is_begun(&bytes[*at..])).collect();
        assert!(begun.into_iter().eq(10..30));
    }
}
