//! The bounds and block sizes of this crate, each with its reason.

use std::time::Duration;

/// Tokens of one KV block. 16 is one SIMD group of positions, and small enough that half a block lost per sequence does
/// not matter.
pub const BLOCK_SIZE: usize = 16;

/// A slot of the KV cache that is none: what a row stands for nobody reads, and nothing of it is stored. Rows that fill up a step have it.
pub const NO_SLOT: u32 = u32::MAX;

/// Positions of one attention split. Splits lie at absolute positions, so the order of a row's additions does not depend
/// on how its prompt was chunked. 256 scores of a head are 1 KiB: they stay in the first-level cache.
pub const KV_SPLIT: usize = 256;

/// Splits whose sums one launch of attention on a GPU keeps at least: of 4,096 every multiprocessor has thirty, and with 32 heads of 128
/// elements they take 68 MB. Steps with more take several launches.
pub(crate) const MIN_CUDA_SPLITS: usize = 4096;

/// Experts of a layer. 1024: the largest published models have 512; `experts.cu` counts the rows of each in 4 KiB of shared memory.
pub const MAX_EXPERTS: usize = 1024;

/// Experts that a row goes to. 32: published models have up to 22, and a warp keeps one a lane.
pub const MAX_EXPERTS_PER_ROW: usize = 32;

/// Blocks of a grid along its second extent, which CUDA limits. More rows than that take several launches.
pub(crate) const MAX_CUDA_GRID_Y: usize = 65_535;

/// The highest rank of a tensor: [blocks, block, heads, head_dim] is the largest shape in use.
pub const MAX_RANK: usize = 4;

/// Alignment of tensors in an arena in bytes: one cache line, one AVX-512 register.
pub const ALIGNMENT: usize = 64;

/// The most threads of a device: more than any machine's cores in one socket pair; a larger number is a typing error
/// and is reduced to this.
pub const MAX_THREADS: usize = 512;

/// How long a thread looks for the next job, or for the end of this one, without offering its core to others. The gap
/// between two operations of a step is a few microseconds.
pub const SPIN: Duration = Duration::from_micros(30);

/// How long it goes on looking, yielding between two looks, before it sleeps. Waking a sleeper costs 50 µs and more on a
/// virtual machine. Patience below that locks two threads into a bad rhythm: each falls asleep while the other is being
/// woken, and two threads were measured to be only 1.3 times as fast as one. An idle server sleeps a millisecond later.
pub const PATIENCE: Duration = Duration::from_millis(1);

/// Work below this many element visits per thread is not split: 8192 visits take about two microseconds, the price of
/// handing half of it to another core.
pub const MIN_WORK_PER_THREAD: usize = 8192;

/// Pieces of an operation per thread, at most. 4: a thread that lost its core for a while leaves at most a quarter of its share
/// unfinished, and the others take the rest.
pub const PIECES_PER_THREAD: usize = 4;

/// Bytes of a huge page on x86-64 and (with 4 KiB base pages) aarch64. Allocations from this size on are mapped as huge
/// pages; below it, rounding up would waste more than misses cost.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Allocations from this size on, up to a huge page, share huge pages: the weights of a small model are read as fast as those of
/// a large one. Below, a linear's few small pages stay in the translation buffer.
pub(crate) const SHARED_HUGE_PAGE_BYTES: usize = 64 << 10;

/// Bytes of huge pages that such allocations share: eight of the largest of them. They are given back when the last is dropped.
pub(crate) const SLAB_BYTES: usize = 8 * HUGE_PAGE_BYTES;
