//! What a step costs, counted without computing it.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// The cost of one operation, summed over its calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How often it was called.
    pub calls: u64,
    /// Bytes that it must at least read and write.
    pub bytes: u64,
    /// Multiplications and additions, a fused one counting as two.
    pub flops: u64,
}

/// The books of a plan device: one [`Cost`] per operation.
#[derive(Debug, Default)]
pub struct Ledger {
    costs: Mutex<BTreeMap<&'static str, Cost>>,
}

impl Ledger {
    pub(crate) fn count(&self, op: &'static str, bytes: usize, flops: usize) {
        let mut costs = self.costs.lock().expect("no panic happens while the ledger is locked");
        let cost = costs.entry(op).or_default();
        cost.calls += 1;
        cost.bytes += bytes as u64;
        cost.flops += flops as u64;
    }

    /// The costs so far, by operation.
    pub fn costs(&self) -> BTreeMap<&'static str, Cost> {
        self.costs.lock().expect("no panic happens while the ledger is locked").clone()
    }

    /// The sum over all operations.
    pub fn total(&self) -> Cost {
        self.costs().values().fold(Cost::default(), |sum, cost| Cost {
            calls: sum.calls + cost.calls,
            bytes: sum.bytes + cost.bytes,
            flops: sum.flops + cost.flops,
        })
    }
}
