//! Memory: of the device, of other processes' devices, and of the host where the device reaches it. All of it frees itself.

use std::ffi::c_char;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use cudarc::driver::sys::{self, CUresult};

use super::driver::{Context, check};
use crate::{Error, Result};

/// Bytes of the device, zeroed when they were made.
pub(crate) struct DeviceMemory {
    context: Arc<Context>,
    address: u64,
}

impl DeviceMemory {
    /// `bytes` bytes. None are address 0.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], in which `what` names it; [`Error::Cuda`].
    pub(crate) fn zeroed(context: &Arc<Context>, bytes: usize, what: &'static str) -> Result<DeviceMemory> {
        let mut memory = DeviceMemory { context: context.clone(), address: 0 };
        if bytes == 0 {
            return Ok(memory);
        }
        context.bind()?;
        // SAFETY: the context is bound; the function writes one address.
        match unsafe { sys::cuMemAlloc_v2(&raw mut memory.address, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let available_bytes = context.memory().map_or(0, |(free, _)| free);
                return Err(Error::OutOfMemory { arena: what, requested_bytes: bytes, available_bytes });
            }
            result => check("cuMemAlloc", result)?,
        }
        // SAFETY: the range was allocated above.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(memory.address, 0, bytes, context.stream()) })?;
        Ok(memory)
    }

    /// The first byte's, a multiple of 256.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// With what another process of this machine maps it.
    pub(crate) fn export(&self) -> Result<[u8; 64]> {
        self.context.bind()?;
        let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the address is of an allocation, which is still there; the function writes one handle.
        check("cuIpcGetMemHandle", unsafe { sys::cuIpcGetMemHandle(&raw mut handle, self.address) })?;
        Ok(handle.reserved.map(|byte| byte as u8))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address != 0 && self.context.bind().is_ok() {
            // SAFETY: allocated in `zeroed`, and freed only here; the driver waits for what still uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Memory of another process on this machine, of a GPU that this one reaches.
pub(crate) struct PeerMemory {
    context: Arc<Context>,
    address: u64,
}

impl PeerMemory {
    /// Maps what another process has [exported](DeviceMemory::export). Whoever touches it knows that the other has not freed it.
    pub(crate) fn open(context: &Arc<Context>, handle: &[u8; 64]) -> Result<PeerMemory> {
        context.bind()?;
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as c_char) };
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut address = 0;
        // SAFETY: the context is bound; the function checks the handle and writes one address.
        let opened = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut address, handle, flags) };
        check("cuIpcOpenMemHandle", opened)?;
        Ok(PeerMemory { context: context.clone(), address })
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for PeerMemory {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: mapped in `open`, unmapped only here, and the device is done with it.
            let _ = unsafe { sys::cuIpcCloseMemHandle(self.address) };
        }
    }
}

/// A word of the host that kernels read while it is written.
pub(crate) struct MappedWord {
    context: Arc<Context>,
    word: NonNull<AtomicU32>,
    address: u64,
}

// SAFETY: it owns its word, which is atomic and which no thread is bound to.
unsafe impl Send for MappedWord {}
// SAFETY: as above.
unsafe impl Sync for MappedWord {}

impl MappedWord {
    /// 0.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub(crate) fn zeroed(context: &Arc<Context>) -> Result<MappedWord> {
        context.bind()?;
        let (mut start, mut address) = (std::ptr::null_mut(), 0);
        // SAFETY: the context is bound; the function writes one pointer.
        let allocated =
            unsafe { sys::cuMemHostAlloc(&raw mut start, size_of::<AtomicU32>(), sys::CU_MEMHOSTALLOC_DEVICEMAP) };
        check("cuMemHostAlloc", allocated)?;
        let word = NonNull::new(start.cast::<AtomicU32>()).expect("the driver said that it allocated");
        // SAFETY: a word was allocated, which nobody else knows yet.
        unsafe { word.write(AtomicU32::new(0)) };
        // SAFETY: the memory was allocated to be mapped; the function writes one address.
        let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut address, start, 0) };
        let mapped_word = MappedWord { context: context.clone(), word, address };
        check("cuMemHostGetDevicePointer", mapped)?;
        Ok(mapped_word)
    }

    /// As the host sees it.
    pub(crate) fn word(&self) -> &AtomicU32 {
        // SAFETY: written in `zeroed`, and there as long as `self`.
        unsafe { self.word.as_ref() }
    }

    /// Where kernels find it.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for MappedWord {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: allocated in `zeroed`, freed only here, and the device is done with it.
            let _ = unsafe { sys::cuMemFreeHost(self.word.as_ptr().cast()) };
        }
    }
}

/// Words of the host that the device copies by itself.
pub(crate) struct PinnedWords {
    context: Arc<Context>,
    start: NonNull<u32>,
    len: usize,
}

// SAFETY: it owns its words, which no thread is bound to.
unsafe impl Send for PinnedWords {}

impl PinnedWords {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Cuda`].
    pub(crate) fn zeroed(context: &Arc<Context>, len: usize) -> Result<PinnedWords> {
        context.bind()?;
        let mut start = std::ptr::null_mut();
        let bytes = len.max(1) * size_of::<u32>();
        // SAFETY: the context is bound; the function writes one pointer.
        match unsafe { sys::cuMemHostAlloc(&raw mut start, bytes, 0) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(Error::OutOfMemory { arena: "pinned", requested_bytes: bytes, available_bytes: 0 });
            }
            result => check("cuMemHostAlloc", result)?,
        }
        let start = NonNull::new(start.cast::<u32>()).expect("the driver said that it allocated");
        // SAFETY: `len` words were allocated, for which zeros are values.
        unsafe { start.write_bytes(0, len) };
        Ok(PinnedWords { context: context.clone(), start, len })
    }

    /// All of them.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u32] {
        // SAFETY: `len` words that `zeroed` initialised, and `&mut self` is exclusive: who asked the device to copy them has waited for
        // it (`upload` and `download` demand that).
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// All of them.
    pub(crate) fn as_slice(&self) -> &[u32] {
        // SAFETY: as in `as_mut_slice`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Copies words of the device into the first of these, once the stream comes to it.
    ///
    /// # Safety
    /// `from` is the address of `words` words of this device; nobody reads or writes these before the stream has passed the copy.
    pub(crate) unsafe fn download(&mut self, from: u64, words: usize) -> Result<()> {
        assert!(words <= self.len, "there are as many words");
        if words == 0 {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the words are this memory's own (asserted), the rest is the caller's obligation.
        let copied = unsafe {
            let to = self.start.as_ptr().cast();
            sys::cuMemcpyDtoHAsync_v2(to, from, words * size_of::<u32>(), self.context.stream())
        };
        check("cuMemcpyDtoHAsync", copied)
    }

    /// Copies a range to the same place among words of the device, once the stream comes to it.
    ///
    /// # Safety
    /// `to` is the address of as many words of this device; nobody writes these words before the stream has passed the copy.
    pub(crate) unsafe fn upload(&self, to: u64, range: Range<usize>) -> Result<()> {
        assert!(range.start <= range.end && range.end <= self.len, "there are as many words");
        if range.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        let to = to + (range.start * size_of::<u32>()) as u64;
        // SAFETY: the words are this memory's own (asserted), the rest is the caller's obligation.
        let copied = unsafe {
            let from = self.start.as_ptr().cast_const().add(range.start).cast();
            sys::cuMemcpyHtoDAsync_v2(to, from, range.len() * size_of::<u32>(), self.context.stream())
        };
        check("cuMemcpyHtoDAsync", copied)
    }
}

impl Drop for PinnedWords {
    fn drop(&mut self) {
        if self.context.synchronize().is_ok() {
            // SAFETY: allocated in `zeroed`, freed only here, and the device is done with it.
            let _ = unsafe { sys::cuMemFreeHost(self.start.as_ptr().cast()) };
        }
    }
}
