//! The memory of a device, and the run-time borrow check of the tensors that live in it.
//!
//! Tensors are handles: a view and its base, or two tensors of one arena before and after a release, may name the same
//! bytes, which the compiler cannot see. Each allocation therefore counts its borrows as a `RefCell` does, and carries a
//! generation that ends when an arena takes the bytes back. A conflict is our own mistake and panics; it never becomes
//! undefined behaviour. The price is two uncontended atomic operations per argument of an operation.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::Pod;

use crate::allocation::Allocation;
use crate::cuda::DeviceMemory;
use crate::{Device, Error, Result};

/// One allocation of a device. On the `plan` device it has a size but no bytes.
pub(crate) struct Memory {
    device: Device,
    bytes: usize,
    backing: Backing,
}

/// What is behind it.
enum Backing {
    /// Nothing: the plan device's.
    Nothing,
    Host(Allocation),
    Cuda(DeviceMemory),
}

impl Memory {
    /// Zeroed memory of `bytes` bytes; `what` names it in the error.
    pub(crate) fn new(device: &Device, bytes: usize, what: &'static str) -> Result<Memory> {
        let exhausted = || Error::OutOfMemory { arena: what, requested_bytes: bytes, available_bytes: 0 };
        let backing = match device {
            Device::Plan(_) => Backing::Nothing,
            Device::Cpu(_) => Backing::Host(Allocation::zeroed(bytes).ok_or_else(exhausted)?),
            Device::Cuda(cuda) => Backing::Cuda(DeviceMemory::zeroed(&cuda.context, bytes, what)?),
        };
        Ok(Memory { device: device.clone(), bytes, backing })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it as elements.
    pub(crate) fn as_slice<T: Pod>(&self) -> &[T] {
        // SAFETY: callers that own the `Memory` outright (weights, caches) borrow it through `&self`, and `Storage` only
        // calls `range`, never this, on memory that it shares. The range is the whole allocation.
        unsafe { std::slice::from_raw_parts(self.range(0, self.bytes).cast(), self.bytes / size_of::<T>()) }
    }

    /// All of it as elements, writable.
    pub(crate) fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        // SAFETY: `&mut self` is exclusive, and the range is the whole allocation.
        unsafe { std::slice::from_raw_parts_mut(self.range(0, self.bytes).cast(), self.bytes / size_of::<T>()) }
    }

    /// The address on a GPU of a range that is checked to lie inside.
    pub(crate) fn address(&self, offset: usize, bytes: usize) -> u64 {
        let Backing::Cuda(memory) = &self.backing else { panic!("only memory of a GPU has an address there") };
        assert!(offset <= self.bytes && bytes <= self.bytes - offset, "a tensor lies inside its memory");
        memory.address() + offset as u64
    }

    /// The start of a range that is checked to lie inside.
    fn range(&self, offset: usize, bytes: usize) -> *mut u8 {
        let Backing::Host(allocation) = &self.backing else {
            panic!("tensors of other devices have no memory of the host: only their ops may see them")
        };
        assert!(offset <= self.bytes && bytes <= self.bytes - offset, "a tensor lies inside its memory");
        // SAFETY: `offset` is within the allocation (asserted above).
        unsafe { allocation.start().as_ptr().add(offset) }
    }
}

/// A borrow-checked part of a memory: what one or more tensors name.
pub(crate) struct Storage {
    memory: Arc<Memory>,
    /// Generation in the upper half; in the lower half the number of readers, or [`WRITER`].
    state: AtomicU64,
}

const WRITER: u64 = u32::MAX as u64;

impl Storage {
    pub(crate) fn new(memory: Arc<Memory>) -> Storage {
        Storage { memory, state: AtomicU64::new(0) }
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn generation(&self) -> u32 {
        (self.state.load(Ordering::Relaxed) >> 32) as u32
    }

    /// Makes every handle of the present generation stale.
    pub(crate) fn retire(&self) {
        let state = self.state.load(Ordering::Relaxed);
        let next = (state >> 32).wrapping_add(1) << 32;
        let idle = state & WRITER == 0
            && self.state.compare_exchange(state, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        assert!(idle, "an arena was released while the values of one of its tensors were borrowed");
    }

    /// Where `bytes` bytes at `offset` lie on their GPU, whose stream keeps readers and writers apart.
    pub(crate) fn address(&self, generation: u32, offset: usize, bytes: usize) -> u64 {
        assert_eq!(self.generation(), generation, "a tensor was used after its arena took the memory back");
        self.memory.address(offset, bytes)
    }

    /// Borrows `bytes` bytes at `offset` for reading.
    pub(crate) fn read<T: Pod>(&self, generation: u32, offset: usize, bytes: usize) -> Values<'_, T> {
        let pointer = self.memory.range(offset, bytes);
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            assert_eq!((state >> 32) as u32, generation, "a tensor was used after its arena took the memory back");
            assert!(
                state & WRITER < WRITER - 1,
                "a tensor is read while it is being written: do two arguments overlap?"
            );
            match self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(seen) => state = seen,
            }
        }
        // SAFETY: the range lies inside the memory (checked by `range`), is aligned (offsets are multiples of the element
        // size and the base of 64), initialised (zeroed at allocation), and nobody writes while the count is held.
        let values = unsafe { std::slice::from_raw_parts(pointer.cast(), bytes / size_of::<T>()) };
        Values { values, state: &self.state }
    }

    /// Borrows `bytes` bytes at `offset` for writing.
    pub(crate) fn write<T: Pod>(&self, generation: u32, offset: usize, bytes: usize) -> ValuesMut<'_, T> {
        let pointer = self.memory.range(offset, bytes);
        let free = (generation as u64) << 32;
        if let Err(state) = self.state.compare_exchange(free, free | WRITER, Ordering::Acquire, Ordering::Relaxed) {
            assert_eq!((state >> 32) as u32, generation, "a tensor was used after its arena took the memory back");
            panic!("a tensor is written while it is borrowed elsewhere: do two arguments overlap?");
        }
        // SAFETY: as in `read`; the WRITER mark excludes every other borrow until the guard is dropped.
        let values = unsafe { std::slice::from_raw_parts_mut(pointer.cast(), bytes / size_of::<T>()) };
        ValuesMut { values, state: &self.state }
    }
}

/// The elements of a tensor, borrowed for reading. Dereferences to a slice.
pub struct Values<'a, T> {
    values: &'a [T],
    state: &'a AtomicU64,
}

impl<T> Deref for Values<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.values
    }
}

impl<T> Drop for Values<'_, T> {
    fn drop(&mut self) {
        self.state.fetch_sub(1, Ordering::Release);
    }
}

/// The elements of a tensor, borrowed for writing. Dereferences to a slice.
pub struct ValuesMut<'a, T> {
    values: &'a mut [T],
    state: &'a AtomicU64,
}

impl<T> Deref for ValuesMut<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.values
    }
}

impl<T> DerefMut for ValuesMut<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.values
    }
}

impl<T> Drop for ValuesMut<'_, T> {
    fn drop(&mut self) {
        self.state.fetch_and(!WRITER, Ordering::Release);
    }
}
