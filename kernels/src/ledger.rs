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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, DType, Device, LinearWeight, MatrixView, Tensor, ops};

    #[test]
    fn a_dry_run_counts_with_real_weights_and_still_checks_shapes() {
        let device = Device::cpu(1);
        let bytes = [0u8; 32 * 8 * 2];
        let weight = LinearWeight::pack(&device, &[MatrixView::dense(&bytes, DType::Bf16, 32, 8)]).unwrap();
        let norm = Tensor::zeros(&device, &[8], DType::F32).unwrap();
        let mut arena = Arena::plan();
        let mut x = arena.tensor(&[3, 8], DType::F32).unwrap();
        let mut out = arena.tensor(&[3, 32], DType::F32).unwrap();
        ops::rms_norm_in_place(&mut x, ops::RmsScale { weight: &norm, eps: 1e-5, rounds_first: true }).unwrap();
        ops::linear(&mut out, &x, &weight, None).unwrap();
        assert!(ops::linear(&mut out, &norm, &weight, None).is_err(), "one row in, three out");
        let ledger = arena.device().ledger().unwrap();
        let linear = Cost { calls: 1, bytes: 4 * (3 * 8 + 3 * 32) + 2 * 32 * 8, flops: 2 * 3 * 32 * 8 };
        assert_eq!(ledger.costs()["linear"], linear);
        let norm = Cost { calls: 1, bytes: 4 * (2 * 3 * 8 + 8), flops: 4 * 3 * 8 };
        assert_eq!(ledger.costs()["rms_norm_in_place"], norm);
        assert_eq!(ledger.total().calls, 2);
    }
}
