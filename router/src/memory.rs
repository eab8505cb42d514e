//! Memory that loading needed and nobody needs any more.

/// Gives freed memory back to the kernel. For the moments after a tokenizer or a vocabulary was read: what its file became on
/// the way is as large as the result or larger (with 128 thousand tokens 50 MB of 99), and the allocator would keep it.
pub(crate) fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the call takes no pointer, and the allocator locks what it looks at.
        unsafe { libc::malloc_trim(0) };
    }
}
