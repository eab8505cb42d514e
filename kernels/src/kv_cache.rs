//! The paged key-value cache of a rank: blocks of 16 positions, addressed through block tables.
//!
//! Layout per layer: keys `[K][num_blocks][head_dim][16]`, values `[K][num_blocks][16][D']`, where D' is head_dim rounded up
//! to 16 and K the KV heads. Keys lie transposed so that sixteen scores are sixteen lanes and need no reduction; values
//! lie by position so that the weighted sum's lanes are dimensions. The head is outermost, so that writers of different heads
//! own different memory.

use crate::limits::BLOCK_SIZE;
use crate::memory::Memory;
use crate::simd::{Element, LANES};
use crate::{DType, Device, Result};

/// Keys and values of all layers.
pub struct KvCache {
    device: Device,
    layers: Vec<Layer>,
    pub(crate) shape: KvShape,
    dtype: DType,
}

/// What a layer of the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KvShape {
    pub(crate) num_blocks: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl KvShape {
    /// The extent of a value row in memory.
    pub(crate) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Elements of one head's keys.
    pub(crate) fn key_head_len(&self) -> usize {
        self.num_blocks * self.head_dim * BLOCK_SIZE
    }

    /// Elements of one head's values.
    pub(crate) fn value_head_len(&self) -> usize {
        self.num_blocks * self.padded_dim() * BLOCK_SIZE
    }
}

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
        dtype: DType,
    ) -> Result<KvCache> {
        let shape = KvShape { num_blocks, kv_heads, head_dim };
        let memory = |len: usize| Memory::new(device, kv_heads * len * dtype.size_bytes(), "kv cache");
        let layer = |_| Ok(Layer { keys: memory(shape.key_head_len())?, values: memory(shape.value_head_len())? });
        let layers = (0..num_layers).map(layer).collect::<Result<_>>()?;
        Ok(KvCache { device: device.clone(), layers, shape, dtype })
    }

    /// Bytes that one block takes over all layers.
    pub fn bytes_per_block(num_layers: usize, kv_heads: usize, head_dim: usize, dtype: DType) -> usize {
        let shape = KvShape { num_blocks: 1, kv_heads, head_dim };
        num_layers * kv_heads * (shape.key_head_len() + shape.value_head_len()) * dtype.size_bytes()
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
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The memory it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.keys.bytes() + layer.values.bytes()).sum()
    }

    /// Keys and values of a layer, to read.
    pub(crate) fn layer<T: Element>(&self, layer: usize) -> (&[T], &[T]) {
        debug_assert_eq!(size_of::<T>(), self.dtype.size_bytes());
        (self.layers[layer].keys.as_slice(), self.layers[layer].values.as_slice())
    }

    /// Keys and values of a layer, to write.
    pub(crate) fn layer_mut<T: Element>(&mut self, layer: usize) -> (&mut [T], &mut [T]) {
        debug_assert_eq!(size_of::<T>(), self.dtype.size_bytes());
        let layer = &mut self.layers[layer];
        (layer.keys.as_mut_slice(), layer.values.as_mut_slice())
    }
}
