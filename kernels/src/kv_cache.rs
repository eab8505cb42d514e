//! The paged key-value cache of a rank: blocks of 16 positions, addressed through block tables.
//!
//! A head's keys of a block are `[head_dim][16]`, its values `[16][D']`, where D' is head_dim rounded up to 16. Keys lie transposed
//! so that sixteen scores are sixteen lanes and need no reduction; values lie by position so that the weighted sum's lanes are
//! dimensions.
//!
//! Where the machine has dot products of bf16 pairs and the type widens to bf16, two steps of either sum lie beside each
//! other: keys `[head_dim / 2][16][2]`, values `[8][D'][2]`. An odd head_dim is rounded up in both layouts, and the additional
//! dimension of a stored key is zero.
//!
//! On a GPU a block's keys and values are squares of 16 x 16, as `kernels/cuda/kv_cache.cuh` says, and take the same memory; blocks lie in
//! order, the heads of each beside each other.
//!
//! A layer's keys, and likewise its values, are `[stretches][K][blocks of the stretch]` of these, with K KV heads and stretches of
//! [`STRETCH`] blocks, the last as long as it comes. Within one, a head's neighbouring blocks are neighbours in memory, which
//! streams and spreads over all sets of a cache. All heads of a stretch lie together, so that a cache of many gigabytes takes
//! memory, and entries of the translation buffer, as its blocks come into use: with the head outermost, the first token of a
//! Llama-3.2-1B touched a huge page for every head of every layer, half a gigabyte.

use std::fmt;

use bytemuck::Pod;

use crate::limits::{BLOCK_SIZE, KV_SPLIT};
use crate::memory::Memory;
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx512Bf16;
use crate::simd::{LANES, float8};
use crate::{DType, Device, Error, Result};

/// Keys and values of all layers.
pub struct KvCache {
    device: Device,
    layers: Vec<Layer>,
    pub(crate) shape: KvShape,
    dtype: KvDType,
    /// Steps lie in pairs, for these dot products.
    #[cfg(target_arch = "x86_64")]
    pairs: Option<Avx512Bf16>,
}

/// The element type of keys and values. `Display` gives the names that configurations use: those of [`DType`],
/// `fp8_e4m3fn`, `fp8_e5m2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// OCP FP8 with four bits of exponent, without infinities: up to 448. What is larger is stored as that.
    F8E4m3,
    /// OCP FP8 with five bits of exponent: up to 57344. What is larger is stored as that.
    F8E5m2,
}

impl KvDType {
    /// All of them.
    pub const ALL: [KvDType; 5] = [KvDType::F32, KvDType::F16, KvDType::Bf16, KvDType::F8E4m3, KvDType::F8E5m2];

    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            KvDType::F32 => 4,
            KvDType::F16 | KvDType::Bf16 => 2,
            KvDType::F8E4m3 | KvDType::F8E5m2 => 1,
        }
    }

    /// The format of eight bits that it is, if it is one.
    pub(crate) fn fp8(self) -> Option<float8::Format> {
        match self {
            KvDType::F8E4m3 => Some(float8::E4M3),
            KvDType::F8E5m2 => Some(float8::E5M2),
            KvDType::F32 | KvDType::F16 | KvDType::Bf16 => None,
        }
    }

    /// Whether bf16 holds every one of its numbers.
    fn widens_to_bf16(self) -> bool {
        matches!(self, KvDType::Bf16 | KvDType::F8E4m3 | KvDType::F8E5m2)
    }
}

impl From<DType> for KvDType {
    fn from(dtype: DType) -> KvDType {
        match dtype {
            DType::F32 => KvDType::F32,
            DType::F16 => KvDType::F16,
            DType::Bf16 => KvDType::Bf16,
        }
    }
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvDType::F32 => DType::F32.fmt(f),
            KvDType::F16 => DType::F16.fmt(f),
            KvDType::Bf16 => DType::Bf16.fmt(f),
            KvDType::F8E4m3 => f.write_str("fp8_e4m3fn"),
            KvDType::F8E5m2 => f.write_str("fp8_e5m2"),
        }
    }
}

/// Evaluates an expression with `$T` as the element type of a [`KvDType`].
macro_rules! with_kv_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::KvDType::F32 => {
                type $T = f32;
                $body
            }
            $crate::KvDType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::KvDType::Bf16 => {
                type $T = half::bf16;
                $body
            }
            $crate::KvDType::F8E4m3 => {
                type $T = $crate::simd::E4m3;
                $body
            }
            $crate::KvDType::F8E5m2 => {
                type $T = $crate::simd::E5m2;
                $body
            }
        }
    };
}
pub(crate) use with_kv_element;

/// What a layer of the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) num_blocks: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Neighbours in memory: dimensions of a key, positions of values. 1 or 2.
    pub(crate) step: usize,
}

impl KvShape {
    /// The extent of a value row in memory.
    pub(crate) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// The extent of a key in memory: the same in both layouts, so that a block takes the same memory on every machine.
    fn padded_key_dim(&self) -> usize {
        self.head_dim.next_multiple_of(2)
    }

    /// Elements of one head's keys in a block.
    pub(crate) fn key_block_len(&self) -> usize {
        self.padded_key_dim() * BLOCK_SIZE
    }

    /// Elements of one head's values in a block.
    pub(crate) fn value_block_len(&self) -> usize {
        self.padded_dim() * BLOCK_SIZE
    }

    /// Which of a layer's `num_blocks * kv_heads` pieces of keys, or of values, are this head's of this block: different ones
    /// for different heads or blocks.
    #[inline(always)]
    pub(crate) fn piece(&self, kv_head: usize, block: usize) -> usize {
        let first = block - block % STRETCH;
        let blocks = STRETCH.min(self.num_blocks - first);
        first * self.kv_heads + kv_head * blocks + block % STRETCH
    }

    /// Where dimension `d` of a key lies among the block's.
    #[cfg(test)]
    pub(crate) fn key_at(&self, offset: usize, d: usize) -> usize {
        (d / self.step * BLOCK_SIZE + offset) * self.step + d % self.step
    }

    /// Where dimension `d` of a value lies among the block's.
    #[cfg(test)]
    pub(crate) fn value_at(&self, offset: usize, d: usize) -> usize {
        (offset / self.step * self.padded_dim() + d) * self.step + offset % self.step
    }
}

/// Blocks of a stretch: the positions of one split of attention, 32 KiB of keys with 64 dimensions in bf16.
const STRETCH: usize = KV_SPLIT / BLOCK_SIZE;

struct Layer {
    keys: Memory,
    values: Memory,
}

impl KvCache {
    /// An empty cache of `num_blocks` blocks of [`BLOCK_SIZE`] positions per layer.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn new(
        device: &Device,
        num_layers: usize,
        num_blocks: usize,
        kv_heads: usize,
        head_dim: usize,
        dtype: KvDType,
    ) -> Result<KvCache> {
        #[cfg(target_arch = "x86_64")]
        let pairs = match device {
            Device::Cpu(cpu) if dtype.widens_to_bf16() => cpu.isa.bf16_dots(),
            _ => None,
        };
        #[cfg(target_arch = "x86_64")]
        let step = if pairs.is_some() { 2 } else { 1 };
        if matches!(device, Device::Cuda(_)) {
            expect_cuda_shape(head_dim, dtype)?;
        }
        #[cfg(not(target_arch = "x86_64"))]
        let step = 1;
        let shape = KvShape { num_blocks, kv_heads, head_dim, step };
        let memory =
            |block_len| Memory::new(device, num_blocks * kv_heads * block_len * dtype.size_bytes(), "kv cache");
        let layer = |_| Ok(Layer { keys: memory(shape.key_block_len())?, values: memory(shape.value_block_len())? });
        let layers = (0..num_layers).map(layer).collect::<Result<_>>()?;
        Ok(KvCache {
            device: device.clone(),
            layers,
            shape,
            dtype,
            #[cfg(target_arch = "x86_64")]
            pairs,
        })
    }

    /// Bytes that one block takes over all layers.
    pub fn bytes_per_block(num_layers: usize, kv_heads: usize, head_dim: usize, dtype: KvDType) -> usize {
        let shape = KvShape { num_blocks: 1, kv_heads, head_dim, step: 1 };
        num_layers * kv_heads * (shape.key_block_len() + shape.value_block_len()) * dtype.size_bytes()
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Blocks per layer.
    pub fn num_blocks(&self) -> usize {
        self.shape.num_blocks
    }

    /// KV heads of this rank.
    pub fn kv_heads(&self) -> usize {
        self.shape.kv_heads
    }

    /// Elements of a key or value.
    pub fn head_dim(&self) -> usize {
        self.shape.head_dim
    }

    /// The element type.
    pub fn dtype(&self) -> KvDType {
        self.dtype
    }

    /// The memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.keys.bytes() + layer.values.bytes()).sum()
    }

    /// Where a layer's keys and values lie on a GPU.
    pub(crate) fn addresses(&self, layer: usize) -> (u64, u64) {
        let Layer { keys, values } = &self.layers[layer];
        (keys.address(0, keys.bytes()), values.address(0, values.bytes()))
    }

    /// The kernels of a GPU read and write caches of the type of the activations, or of eight-bit floats.
    pub(crate) fn expect_activations_of(&self, op: &'static str, dtype: DType) -> Result<()> {
        if self.dtype == dtype.into() || (self.dtype.fp8().is_some() && dtype != DType::F32) {
            return Ok(());
        }
        let reason = format!(
            "{op} on a GPU takes a cache of {dtype}, the activations' type, or of eight-bit floats, not {}",
            self.dtype
        );
        Err(Error::Unsupported { reason })
    }

    /// The dot products for which the steps lie in pairs, if they do.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn pairs(&self) -> Option<Avx512Bf16> {
        self.pairs
    }

    /// Keys and values of a layer, to read: as elements, or as vectors of them.
    pub(crate) fn layer<T: Pod>(&self, layer: usize) -> (&[T], &[T]) {
        debug_assert!(size_of::<T>().is_multiple_of(self.dtype.size_bytes()));
        (self.layers[layer].keys.as_slice(), self.layers[layer].values.as_slice())
    }

    /// Keys and values of a layer, to write.
    pub(crate) fn layer_mut<T: Pod>(&mut self, layer: usize) -> (&mut [T], &mut [T]) {
        debug_assert_eq!(size_of::<T>(), self.dtype.size_bytes());
        let layer = &mut self.layers[layer];
        (layer.keys.as_mut_slice(), layer.values.as_mut_slice())
    }
}

/// Widths of a head that the kernels of attention are instantiated for (`attention_decode.cu`, `attention_prefill.cu`).
pub(crate) const CUDA_HEAD_DIMS: [usize; 6] = [32, 64, 80, 96, 128, 256];

/// The same over a cache of eight-bit floats: the usual ones, as every other takes the compiler as long.
const CUDA_FP8_HEAD_DIMS: [usize; 3] = [32, 64, 128];

fn expect_cuda_shape(head_dim: usize, dtype: KvDType) -> Result<()> {
    if !CUDA_HEAD_DIMS.contains(&head_dim) {
        let reason = format!("attention on a GPU takes heads of {CUDA_HEAD_DIMS:?} elements, not of {head_dim}");
        return Err(Error::Unsupported { reason });
    }
    let reason = match dtype {
        KvDType::F8E4m3 | KvDType::F8E5m2 if !CUDA_FP8_HEAD_DIMS.contains(&head_dim) => {
            format!("a KV cache of {dtype} on a GPU takes heads of {CUDA_FP8_HEAD_DIMS:?} elements, not of {head_dim}")
        }
        KvDType::Bf16 | KvDType::F16 | KvDType::F8E4m3 | KvDType::F8E5m2 => return Ok(()),
        KvDType::F32 => format!("a KV cache on a GPU is bfloat16, float16, fp8_e4m3fn or fp8_e5m2, not {dtype}"),
    };
    Err(Error::Unsupported { reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_of_every_block_has_a_piece_of_its_own() {
        for (num_blocks, kv_heads) in [(1, 1), (3, 2), (STRETCH, 3), (STRETCH + 1, 3), (3 * STRETCH - 1, 8)] {
            let shape = KvShape { num_blocks, kv_heads, head_dim: 1, step: 1 };
            let pieces = (0..kv_heads).flat_map(|head| (0..num_blocks).map(move |block| shape.piece(head, block)));
            let mut pieces: Vec<usize> = pieces.collect();
            pieces.sort_unstable();
            assert!(pieces.into_iter().eq(0..num_blocks * kv_heads), "{num_blocks} blocks, {kv_heads} heads");
        }
    }

    #[test]
    fn a_head_s_neighbouring_blocks_are_neighbours_and_a_stretch_s_heads_lie_together() {
        let shape = KvShape { num_blocks: 2 * STRETCH, kv_heads: 3, head_dim: 1, step: 1 };
        assert_eq!((shape.piece(1, 0), shape.piece(1, STRETCH - 1)), (STRETCH, 2 * STRETCH - 1));
        assert_eq!(shape.piece(0, STRETCH), 3 * STRETCH);
    }
}
