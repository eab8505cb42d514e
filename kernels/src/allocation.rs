//! Aligned, zeroed bytes of the host: small ones from the heap, large ones as huge pages from the kernel, those in between side
//! by side in huge pages that they share.
//!
//! A KV cache is read in pieces of a block and head, about a kilobyte each and far apart: with pages of 4 KiB every piece
//! is a miss of the translation buffer, which costs a decode step of many rows more than its arithmetic. Mapped memory is
//! also zero without being written, so a large cache costs no time at start-up.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::Pod;

use crate::limits::{ALIGNMENT, HUGE_PAGE_BYTES, SHARED_HUGE_PAGE_BYTES, SLAB_BYTES};

/// Owned bytes, zeroed when they were made.
pub(crate) struct Allocation {
    start: NonNull<u8>,
    owner: Owner,
}

/// Who takes the bytes back.
enum Owner {
    /// Nobody: there are none.
    Nobody,
    Heap(Layout),
    /// Whoever is the last to let go of the huge pages around them.
    Slab(#[allow(dead_code, reason = "held to be dropped")] Arc<Allocation>),
    /// The kernel: `len` bytes at `base`, in which the aligned `start` lies.
    Kernel {
        base: NonNull<libc::c_void>,
        len: usize,
    },
}

/// The slab that allocations share at present, and how many of its bytes are taken.
static SLAB: Mutex<Option<(Arc<Allocation>, usize)>> = Mutex::new(None);

// SAFETY: an `Allocation` owns its bytes and gives out only a raw pointer; who dereferences it answers for aliasing.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// `bytes` zeroed bytes, aligned to [`ALIGNMENT`]; `None` if there is no memory left.
    pub(crate) fn zeroed(bytes: usize) -> Option<Allocation> {
        match bytes {
            0 => Some(Allocation { start: NonNull::<Line>::dangling().cast(), owner: Owner::Nobody }),
            HUGE_PAGE_BYTES.. => Allocation::map(bytes),
            SHARED_HUGE_PAGE_BYTES.. => Allocation::share(bytes),
            _ => {
                let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
                // SAFETY: the size is not zero (matched above) and the layout is valid.
                let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
                Some(Allocation { start, owner: Owner::Heap(layout) })
            }
        }
    }

    /// The first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The next bytes of the current slab, or the first of a new one. Bytes are handed out once, so they are still zeros.
    fn share(bytes: usize) -> Option<Allocation> {
        let mut current = SLAB.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, used) = match current.take() {
            Some((slab, used)) if used + bytes <= SLAB_BYTES => (slab, used),
            _ => (Arc::new(Allocation::map(SLAB_BYTES)?), 0),
        };
        // SAFETY: used + bytes <= SLAB_BYTES, the size of the slab; a new one is larger than any allocation that shares it.
        let start = unsafe { slab.start.add(used) };
        *current = Some((slab.clone(), (used + bytes).next_multiple_of(ALIGNMENT)));
        Some(Allocation { start, owner: Owner::Slab(slab) })
    }

    fn map(bytes: usize) -> Option<Allocation> {
        // One page more than asked for, so that the start can be moved to a page boundary.
        let len = bytes.checked_add(HUGE_PAGE_BYTES)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory that is in use.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let base = NonNull::new(base)?;
        let skipped = base.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: `skipped` is below HUGE_PAGE_BYTES, by which the mapping is longer than `bytes`.
        let start = unsafe { base.cast::<u8>().add(skipped) };
        // A hint: where the kernel has no huge pages to give, small ones are as correct.
        // SAFETY: the range lies inside the mapping made above, and the advice does not change its contents.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Some(Allocation { start, owner: Owner::Kernel { base, len } })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Nobody | Owner::Slab(_) => {}
            // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
            Owner::Heap(layout) => unsafe { dealloc(self.start.as_ptr(), *layout) },
            // SAFETY: mapped in `map` with this very length, and unmapped only here.
            Owner::Kernel { base, len } => unsafe {
                libc::munmap(base.as_ptr(), *len);
            },
        }
    }
}

/// Elements that an operation writes and reads within one call, kept for the next: as many as the largest call needed.
pub(crate) struct Scratch<T> {
    allocation: Allocation,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Scratch<T> {
    /// The first `len` elements, with whatever the call before left in them.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [T] {
        if len > self.len {
            let layout = Layout::array::<T>(len).expect("a tensor of as many elements was allocated");
            self.allocation = Allocation::zeroed(layout.size()).unwrap_or_else(|| handle_alloc_error(layout));
            self.len = len;
        }
        // SAFETY: the allocation holds self.len >= len elements, zeroed or written as T, for which all bits are values, and
        // `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.allocation.start().as_ptr().cast(), len) }
    }
}

impl<T> Default for Scratch<T> {
    fn default() -> Scratch<T> {
        let allocation = Allocation { start: NonNull::<Line>::dangling().cast(), owner: Owner::Nobody };
        Scratch { allocation, len: 0, element: PhantomData }
    }
}

/// A stand-in with the alignment of every allocation, for dangling pointers of size zero.
#[repr(align(64))]
struct Line(#[allow(dead_code, reason = "only its alignment matters")] [u8; ALIGNMENT]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_aligned_zeroed_and_writable_to_its_end() {
        for bytes in [
            0,
            1,
            64,
            4097,
            SHARED_HUGE_PAGE_BYTES,
            SHARED_HUGE_PAGE_BYTES + 1,
            HUGE_PAGE_BYTES - 1,
            HUGE_PAGE_BYTES,
            3 * HUGE_PAGE_BYTES + 5,
        ] {
            let allocation = Allocation::zeroed(bytes).unwrap();
            let alignment = if bytes < HUGE_PAGE_BYTES { ALIGNMENT } else { HUGE_PAGE_BYTES };
            assert_eq!(allocation.start().as_ptr() as usize % alignment, 0, "{bytes} bytes");
            // SAFETY: the allocation holds `bytes` initialised bytes, and nothing else refers to them.
            let all = unsafe { std::slice::from_raw_parts_mut(allocation.start().as_ptr(), bytes) };
            assert!(all.iter().all(|byte| *byte == 0), "{bytes} bytes");
            all.fill(0xff);
        }
    }

    #[test]
    fn those_that_share_a_slab_do_not_overlap() {
        let bytes = SHARED_HUGE_PAGE_BYTES + 7;
        let all: Vec<Allocation> = (0..3 * SLAB_BYTES / bytes).map(|_| Allocation::zeroed(bytes).unwrap()).collect();
        for (at, allocation) in all.iter().enumerate() {
            // SAFETY: the allocation holds `bytes` initialised bytes, and nothing else refers to them.
            let all = unsafe { std::slice::from_raw_parts_mut(allocation.start().as_ptr(), bytes) };
            assert!(all.iter().all(|byte| *byte == 0), "allocation {at}");
            all.fill(0xff);
        }
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        assert!(Allocation::zeroed(usize::MAX / 2).is_none());
        assert!(Allocation::zeroed(usize::MAX).is_none());
    }
}
