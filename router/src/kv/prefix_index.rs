//! What full blocks contain: a hash chain, so that a block stands for its whole prefix.
//!
//! `hash = blake3_keyed(parent hash, ids)`, and the parent of a first block is the hash of its tenant's salt (an adapter
//! will be part of that root too). The key is random per process, so nobody outside can look for collisions; the ids
//! and the parent are still compared on every hit, because a wrong hit would show one client another's conversation.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::BlockId;

/// Identity of a block's contents and of everything before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockHash(u128);

/// The secret of the hash chain.
#[derive(Clone)]
pub struct PrefixKey([u8; 32]);

impl PrefixKey {
    /// A fresh key for this process.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// A known key, for tests that must repeat.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Finds blocks by contents. Bounded by the number of blocks: one entry per block at most.
pub struct PrefixIndex {
    key: PrefixKey,
    block_size: usize,
    by_hash: HashMap<BlockHash, BlockId, BuildHasherDefault<TakeBits>>,
    /// Per block: what it is indexed under.
    entries: Vec<Option<Entry>>,
    /// Per block: its `block_size` ids, for the comparison.
    ids: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Entry {
    hash: BlockHash,
    parent: BlockHash,
    computed_in: u64,
}

impl PrefixIndex {
    /// An empty index over `num_blocks` blocks of `block_size` tokens.
    pub fn new(num_blocks: u32, block_size: u32, key: PrefixKey) -> Self {
        let mut index = Self {
            key,
            block_size: block_size as usize,
            by_hash: HashMap::default(),
            entries: Vec::new(),
            ids: Vec::new(),
        };
        index.reset(num_blocks);
        index
    }

    /// Forgets everything.
    pub fn reset(&mut self, num_blocks: u32) {
        self.by_hash.clear();
        self.by_hash.reserve(num_blocks as usize);
        self.entries = vec![None; num_blocks as usize];
        self.ids = vec![0; num_blocks as usize * self.block_size];
    }

    /// The parent of first blocks under `salt`.
    pub fn root(&self, salt: Option<&str>) -> BlockHash {
        // The marker keeps "no salt" and the empty salt apart. 33 bytes are no block's input (16 + 4 per id), so no salt
        // can pose as a block.
        let mut hasher = blake3::Hasher::new_keyed(&self.key.0);
        hasher.update(&[u8::from(salt.is_some())]);
        hasher.update(blake3::hash(salt.unwrap_or_default().as_bytes()).as_bytes());
        truncate(hasher.finalize())
    }

    /// The chain hash of a full block.
    pub fn hash(&self, parent: BlockHash, ids: &[u32]) -> BlockHash {
        debug_assert_eq!(ids.len(), self.block_size);
        let mut hasher = blake3::Hasher::new_keyed(&self.key.0);
        hasher.update(&parent.0.to_le_bytes());
        ids.iter().for_each(|id| {
            hasher.update(&id.to_le_bytes());
        });
        truncate(hasher.finalize())
    }

    /// The block with these contents and the step that computes it, if the ids really are the same.
    pub fn get(&self, hash: BlockHash, parent: BlockHash, ids: &[u32]) -> Option<(BlockId, u64)> {
        let block = *self.by_hash.get(&hash)?;
        let entry = self.entries[block.0 as usize].expect("by_hash and entries name the same blocks");
        (entry.parent == parent && self.ids_of(block) == ids).then_some((block, entry.computed_in))
    }

    /// Indexes `block`, unless another block holds the same contents already.
    pub fn insert(&mut self, hash: BlockHash, parent: BlockHash, ids: &[u32], block: BlockId, computed_in: u64) {
        debug_assert!(self.entries[block.0 as usize].is_none(), "a full block is immutable");
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.by_hash.entry(hash) {
            vacant.insert(block);
            self.entries[block.0 as usize] = Some(Entry { hash, parent, computed_in });
            let start = block.0 as usize * self.block_size;
            self.ids[start..start + self.block_size].copy_from_slice(ids);
        }
    }

    /// Forgets the contents of `block`, if they are indexed.
    pub fn remove(&mut self, block: BlockId) {
        if let Some(entry) = self.entries[block.0 as usize].take() {
            self.by_hash.remove(&entry.hash);
        }
    }

    /// Whether the contents of `block` are indexed.
    pub fn contains(&self, block: BlockId) -> bool {
        self.entries[block.0 as usize].is_some()
    }

    fn ids_of(&self, block: BlockId) -> &[u32] {
        let start = block.0 as usize * self.block_size;
        &self.ids[start..start + self.block_size]
    }
}

fn truncate(hash: blake3::Hash) -> BlockHash {
    let (first, _) = hash.as_bytes().split_first_chunk::<16>().expect("a blake3 hash has 32 bytes");
    BlockHash(u128::from_le_bytes(*first))
}

/// The map's hasher: a [`BlockHash`] is already as random as a hash can be, so its low half is taken as it is.
#[derive(Default)]
struct TakeBits(u64);

impl Hasher for TakeBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (low, _) = bytes.split_first_chunk::<8>().expect("keys are 16 bytes");
        self.0 = u64::from_le_bytes(*low);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_collision_is_not_a_hit() {
        let mut index = PrefixIndex::new(2, 2, PrefixKey::from_bytes([1; 32]));
        let root = index.root(None);
        let hash = index.hash(root, &[1, 2]);
        index.insert(hash, root, &[1, 2], BlockId(0), 1);
        assert_eq!(index.get(hash, root, &[1, 2]), Some((BlockId(0), 1)));
        assert_eq!(index.get(hash, root, &[1, 3]), None, "same hash, other ids");
        assert_eq!(index.get(hash, index.root(Some("")), &[1, 2]), None, "same hash, other parent");
    }

    #[test]
    fn the_key_decides_the_hashes() {
        let hash = |key| PrefixIndex::new(1, 2, PrefixKey::from_bytes([key; 32])).root(Some("tenant"));
        assert_eq!(hash(1), hash(1));
        assert_ne!(hash(1), hash(2));
    }
}
