//! Paged KV-cache accounting: which blocks are free, which are shared, what they hold.
//!
//! Pure bookkeeping; the tensors live in the shards. [`BlockPool`] counts owners, [`PrefixIndex`] knows contents, and
//! [`KvCache`] keeps the two in step: a block is in exactly one of the states *used* (someone refers to it), *cached*
//! (nobody does, but its contents are indexed; taken back in LRU order) and *free*.

mod block_pool;
mod prefix_index;

pub use block_pool::{BlockId, BlockPool};
pub use prefix_index::{BlockHash, PrefixIndex, PrefixKey};

/// The blocks of a shard group and what is known of their contents.
pub struct KvCache {
    pool: BlockPool,
    index: PrefixIndex,
    block_size: usize,
}

/// What a prompt finds in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Found blocks that nobody owns: taking them lowers [`KvCache::available`] by as many.
    pub unowned: u32,
    /// The next block of the prompt is being computed by the very step that is being planned, so it can be taken one
    /// step later instead of computed twice.
    pub next_is_coming: bool,
}

/// How many blocks are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// In some row's table.
    pub used: u32,
    /// Indexed, but in no row's table.
    pub cached: u32,
    /// Neither.
    pub free: u32,
}

impl KvCache {
    /// A cache of `num_blocks` blocks of `block_size` tokens, all free. `key` seeds the prefix hashes.
    pub fn new(num_blocks: u32, block_size: u32, key: PrefixKey) -> Self {
        Self {
            pool: BlockPool::new(num_blocks),
            index: PrefixIndex::new(num_blocks, block_size, key),
            block_size: block_size as usize,
        }
    }

    /// Forgets every owner and every content: the shards have lost them. The group may have come back with another size.
    pub fn reset(&mut self, num_blocks: u32) {
        self.pool = BlockPool::new(num_blocks);
        self.index.reset(num_blocks);
    }

    /// A block for new contents: a free one, else the longest unused cached one, whose contents are then forgotten.
    /// `None` if every block is in use.
    pub fn allocate(&mut self) -> Option<BlockId> {
        if let Some(block) = self.pool.allocate() {
            return Some(block);
        }
        let block = self.pool.evict()?;
        self.index.remove(block);
        Some(block)
    }

    /// The start of every chain with this salt.
    pub fn root(&self, salt: Option<&str>) -> BlockHash {
        self.index.root(salt)
    }

    /// Extends `chain` (a root, then one hash per full block) to all full blocks of `ids`.
    pub fn extend_chain(&self, chain: &mut Vec<BlockHash>, ids: &[u32]) {
        let hashed = chain.len() - 1;
        for ids in ids.chunks_exact(self.block_size).skip(hashed) {
            let parent = *chain.last().expect("a chain starts with its root");
            chain.push(self.index.hash(parent, ids));
        }
    }

    /// Replaces the contents of `found` with the longest run of cached blocks that `ids` starts with, without owning
    /// them.
    ///
    /// `ids` must not contain the last token of the prompt: that one is always computed, its logits are needed. Blocks
    /// whose computation is part of step `seq`, the one being planned, cannot be read yet.
    pub fn find_prefix(&self, ids: &[u32], chain: &[BlockHash], seq: u64, found: &mut Vec<BlockId>) -> PrefixMatch {
        found.clear();
        let mut matched = PrefixMatch::default();
        for (ids, link) in ids.chunks_exact(self.block_size).zip(chain.windows(2)) {
            let Some((block, computed_in)) = self.index.get(link[1], link[0], ids) else { break };
            if computed_in >= seq {
                matched.next_is_coming = true;
                break;
            }
            matched.unowned += u32::from(self.pool.ref_count(block) == 0);
            found.push(block);
        }
        matched
    }

    /// Owns each block once more.
    pub fn retain(&mut self, table: &[BlockId]) {
        table.iter().for_each(|&block| self.pool.retain(block));
    }

    /// Enters a full block into the index; `link` is its parent's hash and its own.
    ///
    /// Call it only when the step that completes the block has been planned, and `computed_in` is that step or a later
    /// one: a plan that was issued is executed in order or the epoch ends, which clears the index.
    pub fn commit(&mut self, block: BlockId, link: [BlockHash; 2], ids: &[u32], computed_in: u64) {
        self.index.insert(link[1], link[0], ids, block, computed_in);
    }

    /// Gives up one ownership of each block, last first, so that a chain is evicted from its tail.
    pub fn release(&mut self, table: &[BlockId]) {
        for &block in table.iter().rev() {
            self.pool.release(block, self.index.contains(block));
        }
    }

    /// Removes contents that cannot be trusted (their row failed on the shard). The caller still owns the blocks.
    pub fn distrust(&mut self, table: &[BlockId]) {
        table.iter().for_each(|&block| self.index.remove(block));
    }

    /// Blocks that an allocation can have.
    pub fn available(&self) -> u32 {
        self.pool.num_free() + self.pool.num_cached()
    }

    /// How many blocks are in which state.
    pub fn counts(&self) -> BlockCounts {
        let (free, cached) = (self.pool.num_free(), self.pool.num_cached());
        BlockCounts { used: self.pool.num_blocks() - free - cached, cached, free }
    }

    /// Owners of `block`.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.pool.ref_count(block)
    }

    /// Whether the contents of `block` are indexed.
    pub fn is_indexed(&self, block: BlockId) -> bool {
        self.index.contains(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use std::collections::BTreeMap;
    use std::fmt::Write;

    /// Runs a script against a cache of `num_blocks` blocks of 16 tokens and shows every live table and the counts.
    /// `a=0..32` gives row `a` the prompt 0, 1, .. 31 plus one last token and computes it, `a=0..32@x` under salt x,
    /// `drop:a` releases it, `distrust:a` does so after a failure. A row that finds no block shows `full`.
    #[track_caller]
    fn check(num_blocks: u32, script: &str, expect: Expect) {
        let mut cache = KvCache::new(num_blocks, 16, PrefixKey::from_bytes([7; 32]));
        let mut rows: BTreeMap<&str, Vec<BlockId>> = BTreeMap::new();
        let mut full = String::new();
        for (step, command) in script.split_whitespace().enumerate() {
            if let Some(row) = command.strip_prefix("drop:") {
                cache.release(&rows.remove(row).unwrap());
            } else if let Some(row) = command.strip_prefix("distrust:") {
                let table = rows.remove(row).unwrap();
                cache.distrust(&table);
                cache.release(&table);
            } else {
                let (row, prompt) = command.split_once('=').unwrap();
                let (range, salt) = prompt.split_once('@').map_or((prompt, None), |(range, salt)| (range, Some(salt)));
                let (from, to) = range.split_once("..").unwrap();
                let ids: Vec<u32> = (from.parse().unwrap()..to.parse().unwrap()).collect();
                let mut table = Vec::new();
                let mut chain = vec![cache.root(salt)];
                cache.extend_chain(&mut chain, &ids);
                cache.find_prefix(&ids, &chain, step as u64 + 1, &mut table);
                cache.retain(&table);
                while table.len() * 16 < ids.len() + 1 {
                    let Some(block) = cache.allocate() else {
                        full = format!(" {row}:full");
                        break;
                    };
                    let idx = table.len();
                    if let Some(ids) = ids.get(idx * 16..idx * 16 + 16) {
                        cache.commit(block, [chain[idx], chain[idx + 1]], ids, step as u64 + 1);
                    }
                    table.push(block);
                }
                rows.insert(row, table);
            }
        }
        let mut shown = String::new();
        for (row, table) in &rows {
            let ids: Vec<u32> = table.iter().map(|block| block.0).collect();
            write!(shown, "{row}:{ids:?} ").unwrap();
        }
        let counts = cache.counts();
        assert_eq!(counts.used + counts.cached + counts.free, num_blocks);
        expect.assert_eq(&format!("{shown}cached:{} free:{}{full}", counts.cached, counts.free));
    }

    #[test]
    fn a_prefix_is_shared() {
        check(8, "a=0..32 b=0..48", expect!["a:[0, 1, 2] b:[0, 1, 3, 4] cached:0 free:3"]);
    }

    #[test]
    fn a_partial_block_is_never_shared() {
        check(8, "a=0..20 b=0..20", expect!["a:[0, 1] b:[0, 2] cached:0 free:5"]);
    }

    #[test]
    fn full_blocks_outlive_their_row_and_partial_ones_do_not() {
        check(4, "a=0..32 drop:a", expect!["cached:2 free:2"]);
        check(4, "a=0..32 drop:a b=0..16", expect!["b:[0, 2] cached:1 free:1"]);
    }

    #[test]
    fn the_least_recently_released_tail_goes_first() {
        // Of a = [0 1 2] the partial block 2 is free at once; then block 1 (tail) goes before block 0 (head).
        check(4, "a=0..32 drop:a b=100..132", expect!["b:[2, 3, 1] cached:1 free:0"]);
        check(4, "a=0..32 drop:a b=100..132 drop:b c=0..16", expect!["c:[0, 1] cached:2 free:0"]);
    }

    #[test]
    fn used_blocks_are_never_evicted() {
        check(3, "a=0..32 b=100..132", expect!["a:[0, 1, 2] b:[] cached:0 free:0 b:full"]);
    }

    #[test]
    fn salts_separate() {
        check(
            8,
            "a=0..16@x b=0..16@y c=0..16 d=0..16@x",
            expect!["a:[0, 1] b:[2, 3] c:[4, 5] d:[0, 6] cached:0 free:1"],
        );
    }

    #[test]
    fn a_block_belongs_to_its_whole_prefix() {
        check(8, "a=0..32 b=16..32", expect!["a:[0, 1, 2] b:[3, 4] cached:0 free:3"]);
    }

    #[test]
    fn distrusted_contents_are_not_found_again() {
        check(4, "a=0..32 distrust:a", expect!["cached:0 free:4"]);
    }

    /// A cache of 4 blocks, the ids of one block and their chain.
    fn one_block() -> (KvCache, Vec<u32>, [BlockHash; 2]) {
        let cache = KvCache::new(4, 16, PrefixKey::from_bytes([7; 32]));
        let ids: Vec<u32> = (0..16).collect();
        let mut chain = vec![cache.root(None)];
        cache.extend_chain(&mut chain, &ids);
        (cache, ids, [chain[0], chain[1]])
    }

    #[test]
    fn a_block_of_the_step_being_planned_is_announced_but_not_given() {
        let (mut cache, ids, link) = one_block();
        let block = cache.allocate().unwrap();
        cache.commit(block, link, &ids, 5);
        let mut table = Vec::new();
        assert!(cache.find_prefix(&ids, &link, 5, &mut table).next_is_coming);
        assert_eq!(table, []);
        assert!(!cache.find_prefix(&ids, &link, 6, &mut table).next_is_coming);
        assert_eq!(table, [block]);
    }

    #[test]
    fn the_second_block_with_the_same_contents_stays_unindexed() {
        let (mut cache, ids, link) = one_block();
        let (first, second) = (cache.allocate().unwrap(), cache.allocate().unwrap());
        cache.commit(first, link, &ids, 1);
        cache.commit(second, link, &ids, 1);
        assert!(cache.is_indexed(first) && !cache.is_indexed(second));
        cache.release(&[second]);
        assert_eq!(cache.counts(), BlockCounts { used: 1, cached: 0, free: 3 });
    }
}
