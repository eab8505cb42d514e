//! Rotary position embedding of queries and keys, fused with the write of keys and values into the paged cache.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::contract::{expect_activations, expect_below, expect_entries, expect_on};
use crate::cuda::{Argument, Cuda, KernelName};
use crate::kv_cache::{KvShape, with_kv_element};
use crate::limits::{BLOCK_SIZE, NO_SLOT};
use crate::pool::SendPtr;
use crate::simd::{Element, Kernel, LANES, Simd, load_partial, store_partial};
use crate::{Cpu, Device, Error, Indices, KvCache, Result, Tensor};

/// Cosines and sines per position, `[max_positions, rotary_dim / 2]` each, in f32.
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// Both on a GPU, where the vectors are empty.
    cuda: Option<[Tensor; 2]>,
    half: usize,
    max_positions: usize,
}

impl RopeTable {
    /// The table of `inv_freq` (one frequency per rotated pair, after whatever scaling the model asks for): the angle is the
    /// f32 product `position * inv_freq[i]`, as transformers computes it, and `attention_factor` (yarn; otherwise 1)
    /// multiplies both cosine and sine.
    ///
    /// # Errors
    /// [`Error::Shape`] if `inv_freq` does not hold `rotary_dim / 2` frequencies.
    ///
    /// Source: arXiv:2104.09864; transformers `LlamaRotaryEmbedding`.
    pub fn new(
        device: &Device,
        rotary_dim: usize,
        max_positions: usize,
        inv_freq: &[f32],
        attention_factor: f32,
    ) -> Result<RopeTable> {
        RopeTable::per_position(device, rotary_dim, max_positions, |_| inv_freq, attention_factor)
    }

    /// The table of frequencies that may differ between positions (dynamic scaling); otherwise as [`new`](RopeTable::new).
    ///
    /// # Errors
    /// [`Error::Shape`] if a position has not `rotary_dim / 2` frequencies.
    pub fn per_position<F: AsRef<[f32]>>(
        device: &Device,
        rotary_dim: usize,
        max_positions: usize,
        inv_freq: impl Fn(usize) -> F + Sync,
        attention_factor: f32,
    ) -> Result<RopeTable> {
        let half = rotary_dim / 2;
        let wrong = AtomicUsize::new(half);
        let (mut cos, mut sin) = (vec![0.0; max_positions * half], vec![0.0; max_positions * half]);
        let fill = |first: usize, cos: &mut [f32], sin: &mut [f32]| {
            let rows = cos.chunks_exact_mut(half.max(1)).zip(sin.chunks_exact_mut(half.max(1)));
            for (at, (cos, sin)) in rows.enumerate() {
                let position = first + at;
                let inv_freq = inv_freq(position);
                let inv_freq = inv_freq.as_ref();
                if rotary_dim != 2 * inv_freq.len() {
                    wrong.store(inv_freq.len(), Ordering::Relaxed);
                    return;
                }
                for ((frequency, cos), sin) in inv_freq.iter().zip(cos).zip(sin) {
                    let (sine, cosine) = (position as f32 * frequency).sin_cos();
                    (*cos, *sin) = (cosine * attention_factor, sine * attention_factor);
                }
            }
        };
        match device.host() {
            // A sine is some twenty visits.
            Device::Cpu(cpu) => cpu.for_rows_of_two(&mut cos, &mut sin, half, 20 * half, fill),
            Device::Cuda(_) | Device::Plan(_) => fill(0, &mut cos, &mut sin),
        }
        match wrong.into_inner() {
            right if rotary_dim == 2 * right && matches!(device, Device::Cuda(_)) => {
                let table = |values: &[f32]| Tensor::from_slice(device, &[max_positions, half], values);
                let cuda = Some([table(&cos)?, table(&sin)?]);
                Ok(RopeTable { cos: Vec::new(), sin: Vec::new(), cuda, half, max_positions })
            }
            right if rotary_dim == 2 * right => Ok(RopeTable { cos, sin, cuda: None, half, max_positions }),
            wrong => {
                let (expected, actual) = (vec![half], vec![wrong]);
                Err(Error::Shape { op: "RopeTable", arg: "inv_freq", expected, actual })
            }
        }
    }

    /// Elements of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        2 * self.half
    }

    /// Positions `0..max_positions` are in the table.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// The memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        8 * self.max_positions * self.half
    }
}

/// Rotates the queries and keys of `qkv` in place (rotate-half layout: element i pairs with i + rotary_dim / 2; elements
/// beyond rotary_dim stay) and writes keys and values into the cache.
///
/// # Shapes
/// `qkv`: `[T, (H + 2·K)·D]`, the queries of H heads first, then keys, then values, as the packed projection gives it; K and D
/// are those of `kv`. `positions`: T, below the table's. `slot_mapping`: T, where a row's key and value go,
/// `block_id * 16 + position % 16`; slots of one call differ. [`NO_SLOT`](crate::NO_SLOT) stores nothing, and leaves its row with
/// whatever values.
/// # Errors
/// [`Error::Shape`], [`Error::DType`], [`Error::Index`] for a position, slot or layer out of range.
///
/// Source: transformers `apply_rotary_pos_emb`.
pub fn rope_and_store_kv<'a>(
    qkv: &mut Tensor,
    num_heads: usize,
    rope: &RopeTable,
    positions: impl Into<Indices<'a>>,
    slot_mapping: impl Into<Indices<'a>>,
    kv: &mut KvCache,
    layer: usize,
) -> Result<()> {
    let (position_indices, slot_indices) = (positions.into(), slot_mapping.into());
    let (positions, slot_mapping) = (position_indices.host(), slot_indices.host());
    const OP: &str = "rope_and_store_kv";
    let (kv_heads, dim) = (kv.kv_heads(), kv.head_dim());
    expect_activations(OP, &[("qkv", qkv)])?;
    if qkv.cols() != (num_heads + 2 * kv_heads) * dim || rope.rotary_dim() > dim {
        let expected = vec![qkv.rows(), (num_heads + 2 * kv_heads) * dim];
        return Err(Error::Shape { op: OP, arg: "qkv", expected, actual: qkv.shape().to_vec() });
    }
    expect_entries(OP, "positions", positions.len(), qkv.rows())?;
    expect_entries(OP, "slot_mapping", slot_mapping.len(), qkv.rows())?;
    expect_below(OP, "positions", positions, rope.max_positions)?;
    let limit = kv.num_blocks() * BLOCK_SIZE;
    if let Some(slot) = slot_mapping.iter().find(|slot| **slot != NO_SLOT && **slot as usize >= limit) {
        return Err(Error::Index { op: OP, arg: "slot_mapping", index: *slot as usize, limit });
    }
    expect_below(OP, "layer", &[layer as u32], kv.num_layers())?;
    match qkv.device().clone() {
        Device::Cpu(cpu) => {
            expect_on(OP, qkv.device(), "kv", kv.device())?;
            let heads = num_heads + kv_heads;
            let cols = qkv.cols();
            cpu.for_rows(&mut qkv.as_f32_mut(), cols, heads * dim, |first, rows| {
                cpu.isa.run(Rotate { rows, cols, heads, dim, rope, positions: &positions[first..] });
            });
            with_kv_element!(kv.dtype(), T => store::<T>(&cpu, &qkv.as_f32(), cols, slot_mapping, kv, layer));
        }
        Device::Cuda(cuda) => {
            expect_on(OP, qkv.device(), "kv", kv.device())?;
            let lists = [position_indices.address(OP, "positions")?, slot_indices.address(OP, "slot_mapping")?];
            cuda_arm(&cuda, qkv, num_heads, rope, lists, kv, layer)?;
        }
        Device::Plan(ledger) => {
            let rotated = qkv.rows() * (num_heads + kv_heads) * dim;
            let stored = qkv.rows() * 2 * kv_heads * dim;
            let size = qkv.dtype().size_bytes();
            ledger.count(OP, 2 * size * rotated + stored * (size + kv.dtype().size_bytes()), 3 * rotated);
        }
    }
    Ok(())
}

/// Threads of a row and head, as `rope.cu` has them.
const CUDA_THREADS: usize = 64;

fn cuda_arm(
    cuda: &Cuda,
    qkv: &mut Tensor,
    num_heads: usize,
    rope: &RopeTable,
    [positions, slot_mapping]: [u64; 2],
    kv: &mut KvCache,
    layer: usize,
) -> Result<()> {
    const OP: &str = "rope_and_store_kv";
    let Some([cos, sin]) = &rope.cuda else {
        return Err(Error::UnsupportedDevice { op: OP, arg: "rope", device: "cpu".to_owned() });
    };
    expect_on(OP, qkv.device(), "rope", cos.device())?;
    kv.expect_activations_of(OP, qkv.dtype())?;
    let (keys, values) = kv.addresses(layer);
    let addresses = [qkv.address(), cos.address(), sin.address(), positions, slot_mapping, keys, values];
    let numbers = [num_heads, kv.kv_heads(), kv.head_dim(), rope.half].map(Argument::count);
    let format = kv.dtype().fp8().map(|format| [format.mantissa_bits, format.largest].map(Argument::U32));
    let arguments = [&addresses.map(Argument::Pointer)[..], &numbers, format.as_ref().map_or(&[], |of| of)].concat();
    let name = KernelName::of(OP, qkv.dtype()).over(kv.dtype());
    let grid = [qkv.rows(), num_heads + 2 * kv.kv_heads(), 1];
    // SAFETY: rope.cu: a block per row and head of `qkv` with heads of the cache's width and type; positions lie in the table and slots
    // in the cache (all checked by the operation); what it touches lives as long as its stream's work.
    unsafe { cuda.launch(name, grid, CUDA_THREADS, &arguments) }
}

struct Rotate<'a> {
    rows: &'a mut [f32],
    cols: usize,
    heads: usize,
    dim: usize,
    rope: &'a RopeTable,
    positions: &'a [u32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let half = self.rope.half;
        for (row, position) in self.rows.chunks_exact_mut(self.cols).zip(self.positions) {
            let cos = &self.rope.cos[*position as usize * half..][..half];
            let sin = &self.rope.sin[*position as usize * half..][..half];
            for head in row.chunks_exact_mut(self.dim).take(self.heads) {
                let (low, high) = head[..2 * half].split_at_mut(half);
                let angles = cos.chunks(LANES).zip(sin.chunks(LANES));
                for ((low, high), (cos, sin)) in low.chunks_mut(LANES).zip(high.chunks_mut(LANES)).zip(angles) {
                    let (cos, sin) = (load_partial(simd, cos, 0.0), load_partial(simd, sin, 0.0));
                    let (a, b) = (load_partial(simd, low, 0.0), load_partial(simd, high, 0.0));
                    let minus_b = simd.sub(simd.splat(0.0), b);
                    store_partial(simd, simd.fma(minus_b, sin, simd.mul(a, cos)), low);
                    store_partial(simd, simd.fma(a, sin, simd.mul(b, cos)), high);
                }
            }
        }
    }
}

/// Threads share the work by head: each has memory of its own in every block.
fn store<T: Element>(cpu: &Cpu, qkv: &[f32], cols: usize, slot_mapping: &[u32], kv: &mut KvCache, layer: usize) {
    let (shape, num_tokens) = (kv.shape, slot_mapping.len());
    let dim = shape.head_dim;
    let (key_len, value_len) = (shape.key_block_len(), shape.value_block_len());
    let first_key = cols - 2 * shape.kv_heads * dim;
    let first_value = cols - shape.kv_heads * dim;
    let (keys, values) = kv.layer_mut::<T>(layer);
    let (keys, values) = (SendPtr(keys.as_mut_ptr()), SendPtr(values.as_mut_ptr()));
    // Every step of a stored key is a cache line of its own, which costs about four visits.
    cpu.split(shape.kv_heads, 5 * num_tokens * dim, |heads| {
        for head in heads {
            for (row, slot) in qkv.chunks_exact(cols).zip(slot_mapping).filter(|(_, slot)| **slot != NO_SLOT) {
                let (block, offset) = (*slot as usize / BLOCK_SIZE, *slot as usize % BLOCK_SIZE);
                let piece = shape.piece(head, block);
                // SAFETY: `rope_and_store_kv` checked the slots, so the piece lies inside the layer, which is borrowed mutably until
                // every worker has returned. Each head belongs to one part of `split`, and pieces of different heads differ.
                let key_block = unsafe { std::slice::from_raw_parts_mut(keys.get().add(piece * key_len), key_len) };
                store_key(&shape, key_block, offset, &row[first_key + head * dim..][..dim]);
                // SAFETY: as above.
                let value_block =
                    unsafe { std::slice::from_raw_parts_mut(values.get().add(piece * value_len), value_len) };
                store_value(&shape, value_block, offset, &row[first_value + head * dim..][..dim]);
            }
        }
    });
}

fn store_key<T: Element>(shape: &KvShape, block: &mut [T], offset: usize, key: &[f32]) {
    if shape.step == 1 {
        for (positions, x) in block.chunks_exact_mut(BLOCK_SIZE).zip(key) {
            positions[offset] = T::from_f32(*x);
        }
    } else {
        for (positions, x) in block.as_chunks_mut::<{ 2 * BLOCK_SIZE }>().0.iter_mut().zip(key.chunks(2)) {
            // The dimension that rounds an odd number up is zero, so that no product with it is NaN.
            let second = x.get(1).copied().unwrap_or(0.0);
            positions[2 * offset..][..2].copy_from_slice(&[T::from_f32(x[0]), T::from_f32(second)]);
        }
    }
}

fn store_value<T: Element>(shape: &KvShape, block: &mut [T], offset: usize, value: &[f32]) {
    let row_len = shape.step * shape.padded_dim();
    let row = &mut block[offset / shape.step * row_len..][..row_len];
    if shape.step == 1 {
        row.iter_mut().zip(value).for_each(|(out, x)| *out = T::from_f32(*x));
    } else {
        let part = offset % 2;
        row.as_chunks_mut::<2>().0.iter_mut().zip(value).for_each(|(out, x)| out[part] = T::from_f32(*x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KvDType;
    use crate::ops::testing::{assert_close, bits, cpus, random, random_tensor};

    const HEADS: usize = 3;
    const KV_HEADS: usize = 2;

    fn inv_freq(rotary_dim: usize) -> Vec<f32> {
        (0..rotary_dim / 2).map(|i| 1.0 / 10_000f32.powf(2.0 * i as f32 / rotary_dim as f32)).collect()
    }

    /// One head, in f64 from the f32 angle.
    fn definition(head: &[f32], position: u32, inv_freq: &[f32]) -> Vec<f32> {
        let half = inv_freq.len();
        let mut out = head.to_vec();
        for i in 0..half {
            let (sin, cos) = ((position as f32 * inv_freq[i]) as f64).sin_cos();
            out[i] = (head[i] as f64 * cos - head[half + i] as f64 * sin) as f32;
            out[half + i] = (head[half + i] as f64 * cos + head[i] as f64 * sin) as f32;
        }
        out
    }

    #[test]
    fn queries_and_keys_turn_and_the_cache_receives_them() {
        for (dim, rotary_dim) in [(1, 0), (2, 2), (24, 24), (64, 64), (80, 32)] {
            for dtype in KvDType::ALL {
                let tokens = 19;
                let positions: Vec<u32> = (0..tokens).map(|t| (t * 37) % 500).collect();
                // Slots of three blocks in a scattered order, all different.
                let slots: Vec<u32> = (0..tokens).map(|t| (t * 5 + 3) % 48).collect();
                let cols = (HEADS + 2 * KV_HEADS) * dim;
                let source = random(1, tokens as usize * cols);
                let mut first: Option<Vec<u32>> = None;
                for device in cpus() {
                    let context = format!("{} {dim}/{rotary_dim} {dtype}", device.describe());
                    let rope = RopeTable::new(&device, rotary_dim, 500, &inv_freq(rotary_dim), 1.0).unwrap();
                    let mut kv = KvCache::new(&device, 2, 3, KV_HEADS, dim, dtype).unwrap();
                    let mut qkv = random_tensor(&device, 1, &[tokens as usize, cols]);
                    rope_and_store_kv(&mut qkv, HEADS, &rope, &positions, &slots, &mut kv, 1).unwrap();

                    let qkv = qkv.as_f32();
                    for t in 0..tokens as usize {
                        for head in 0..HEADS + 2 * KV_HEADS {
                            let at = t * cols + head * dim;
                            let expected = match head {
                                0..5 => definition(&source[at..][..dim], positions[t], &inv_freq(rotary_dim)),
                                _ => source[at..][..dim].to_vec(),
                            };
                            // Two products and a sum of values below one: three roundings of 6e-8.
                            assert_close(&qkv[at..][..dim], &expected, 3e-7, &context);
                        }
                        for head in 0..KV_HEADS {
                            for d in 0..dim {
                                let written = |at: usize| dtype_round(dtype, qkv[t * cols + (at + head) * dim + d]);
                                let (key, value) = read(&kv, 1, head, slots[t] as usize, d);
                                assert_eq!((key, value), (written(HEADS), written(HEADS + KV_HEADS)), "{context}");
                                assert_eq!(read(&kv, 0, head, slots[t] as usize, d), (0.0, 0.0), "the other layer");
                            }
                        }
                    }
                    assert_eq!(*first.get_or_insert_with(|| bits(&qkv)), bits(&qkv), "{context}");
                }
            }
        }
    }

    fn dtype_round(dtype: KvDType, x: f32) -> f32 {
        with_kv_element!(dtype, T => T::from_f32(x).to_f32())
    }

    fn read(kv: &KvCache, layer: usize, head: usize, slot: usize, d: usize) -> (f32, f32) {
        let (block, offset, shape) = (slot / BLOCK_SIZE, slot % BLOCK_SIZE, kv.shape);
        let piece = shape.piece(head, block);
        let key = piece * shape.key_block_len() + shape.key_at(offset, d);
        let value = piece * shape.value_block_len() + shape.value_at(offset, d);
        with_kv_element!(kv.dtype(), T => {
            let (keys, values) = kv.layer::<T>(layer);
            (keys[key].to_f32(), values[value].to_f32())
        })
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let device = &cpus()[0];
        let rope = RopeTable::new(device, 4, 8, &inv_freq(4), 1.0).unwrap();
        let mut kv = KvCache::new(device, 1, 1, 1, 4, KvDType::F32).unwrap();
        let mut qkv = random_tensor(device, 1, &[1, 12]);
        let mut call = |position, slot, layer| {
            rope_and_store_kv(&mut qkv, 1, &rope, &[position], &[slot], &mut kv, layer)
                .map_err(|error| error.to_string())
        };
        assert_eq!(call(7, 15, 0), Ok(()));
        assert_eq!(call(0, NO_SLOT, 0), Ok(()), "it is stored nowhere");
        assert_eq!(call(8, 0, 0).unwrap_err(), "rope_and_store_kv: `positions` holds 8, the limit is 8");
        assert_eq!(call(0, 16, 0).unwrap_err(), "rope_and_store_kv: `slot_mapping` holds 16, the limit is 16");
        assert_eq!(call(0, 0, 1).unwrap_err(), "rope_and_store_kv: `layer` holds 1, the limit is 1");
        assert!(RopeTable::new(device, 6, 8, &inv_freq(4), 1.0).is_err());
    }
}
