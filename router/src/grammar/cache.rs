//! Compiled grammars, least recently used first out, within a number of bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::compiled::CompiledGrammar;
use super::engine::Key;

/// A cache bounded by the bytes of what it holds.
pub(super) struct Cache {
    limit: usize,
    bytes: usize,
    /// With the tick of the last use.
    entries: HashMap<Key, (Arc<CompiledGrammar>, u64)>,
    by_use: BTreeMap<u64, Key>,
    tick: u64,
}

impl Cache {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, entries: HashMap::new(), by_use: BTreeMap::new(), tick: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&mut self, key: &Key) -> Option<Arc<CompiledGrammar>> {
        let (compiled, used) = self.entries.get_mut(key)?;
        self.tick += 1;
        self.by_use.remove(used);
        *used = self.tick;
        self.by_use.insert(self.tick, *key);
        Some(compiled.clone())
    }

    /// Keeps `compiled`, in the place of those not used for longest. One larger than the whole cache is not kept.
    pub(super) fn insert(&mut self, key: Key, compiled: Arc<CompiledGrammar>) {
        self.remove(&key);
        if compiled.bytes() > self.limit {
            return;
        }
        while self.bytes + compiled.bytes() > self.limit {
            let Some((_, oldest)) = self.by_use.first_key_value() else { break };
            let oldest = *oldest;
            self.remove(&oldest);
        }
        self.tick += 1;
        self.bytes += compiled.bytes();
        self.by_use.insert(self.tick, key);
        self.entries.insert(key, (compiled, self.tick));
    }

    fn remove(&mut self, key: &Key) {
        if let Some((compiled, used)) = self.entries.remove(key) {
            self.by_use.remove(&used);
            self.bytes -= compiled.bytes();
        }
    }
}
