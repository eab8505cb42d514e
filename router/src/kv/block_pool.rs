//! Who owns which block: reference counts, a free list, and the unowned but indexed blocks in LRU order.

/// A KV block of the shard group, `0..num_blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// Reference counts and the two ways to be unowned. All operations are O(1) and allocate nothing.
pub struct BlockPool {
    owners: Vec<u32>,
    /// Free blocks; the lowest id is on top of a fresh pool.
    free: Vec<BlockId>,
    lru: LruList,
}

impl BlockPool {
    /// `num_blocks` free blocks.
    pub fn new(num_blocks: u32) -> Self {
        Self {
            owners: vec![0; num_blocks as usize],
            free: (0..num_blocks).rev().map(BlockId).collect(),
            lru: LruList::new(num_blocks),
        }
    }

    /// A free block, owned once.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.owners[block.0 as usize] = 1;
        Some(block)
    }

    /// The cached block that has been unowned for longest, owned once. Its contents are the caller's to forget.
    pub fn evict(&mut self) -> Option<BlockId> {
        let block = self.lru.pop_oldest()?;
        self.owners[block.0 as usize] = 1;
        Some(block)
    }

    /// One more owner of a block that is owned or cached.
    pub fn retain(&mut self, block: BlockId) {
        let owners = &mut self.owners[block.0 as usize];
        if *owners == 0 {
            self.lru.remove(block);
        }
        *owners += 1;
    }

    /// One owner less. The last one leaves the block cached if its contents are indexed, else free.
    pub fn release(&mut self, block: BlockId, is_indexed: bool) {
        let owners = &mut self.owners[block.0 as usize];
        *owners = owners.checked_sub(1).expect("a block is released once per ownership");
        match (*owners, is_indexed) {
            (0, true) => self.lru.push_newest(block),
            (0, false) => self.free.push(block),
            _ => {}
        }
    }

    /// All blocks.
    pub fn num_blocks(&self) -> u32 {
        self.owners.len() as u32
    }

    /// Blocks without owner and contents.
    pub fn num_free(&self) -> u32 {
        self.free.len() as u32
    }

    /// Blocks without owner, but with contents.
    pub fn num_cached(&self) -> u32 {
        self.lru.len
    }

    /// Owners of `block`.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.owners[block.0 as usize]
    }
}

/// No neighbour.
const NONE: u32 = u32::MAX;

/// A doubly linked list in two arrays: a block knows its neighbours, so it leaves from the middle in O(1).
struct LruList {
    /// Per block: (older, newer).
    links: Vec<(u32, u32)>,
    oldest: u32,
    newest: u32,
    len: u32,
}

impl LruList {
    fn new(num_blocks: u32) -> Self {
        Self { links: vec![(NONE, NONE); num_blocks as usize], oldest: NONE, newest: NONE, len: 0 }
    }

    fn push_newest(&mut self, block: BlockId) {
        self.links[block.0 as usize] = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = block.0,
            newest => self.links[newest as usize].1 = block.0,
        }
        self.newest = block.0;
        self.len += 1;
    }

    fn pop_oldest(&mut self) -> Option<BlockId> {
        let block = (self.oldest != NONE).then_some(BlockId(self.oldest))?;
        self.remove(block);
        Some(block)
    }

    fn remove(&mut self, block: BlockId) {
        let (older, newer) = std::mem::replace(&mut self.links[block.0 as usize], (NONE, NONE));
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].1 = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].0 = older,
        }
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cached_blocks_leave_in_the_order_they_came_or_from_the_middle() {
        let mut pool = BlockPool::new(4);
        let blocks: Vec<BlockId> = std::iter::from_fn(|| pool.allocate()).collect();
        blocks.iter().for_each(|&block| pool.release(block, true));
        pool.retain(blocks[1]);
        assert_eq!((pool.num_free(), pool.num_cached(), pool.ref_count(blocks[1])), (0, 3, 1));
        let evicted: Vec<BlockId> = std::iter::from_fn(|| pool.evict()).collect();
        assert_eq!(evicted, [blocks[0], blocks[2], blocks[3]]);
        assert_eq!(pool.num_cached(), 0);
    }

    #[test]
    #[should_panic(expected = "a block is released once per ownership")]
    fn a_second_release_is_a_bug() {
        let mut pool = BlockPool::new(1);
        let block = pool.allocate().unwrap();
        pool.release(block, false);
        pool.release(block, false);
    }
}
