//! Who waits for whom where the shards compute on the cores that the router needs too.

/// Lets the calling thread run without interrupting others (`SCHED_BATCH`, which needs no privilege). For threads that serve
/// clients: every token sent would otherwise stop a shard's thread in the middle of an operation, and all that compute with it
/// (with the whole router running so, two cores were measured to serve about a tenth more). A thread that finds a free core loses nothing.
///
/// The threads between shards and scheduler keep their priority: the shards wait for them.
pub(crate) fn give_way() {
    #[cfg(target_os = "linux")]
    {
        let no_priority = libc::sched_param { sched_priority: 0 };
        // SAFETY: 0 is the calling thread, and the parameter is read during the call only. Where a container forbids the call,
        // nothing changes.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const no_priority) };
    }
}
