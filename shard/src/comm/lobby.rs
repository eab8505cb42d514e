//! How the ranks of a shared-memory group begin an epoch together after the last one broke off.
//!
//! An epoch can end between any two collectives, and on each rank at another one, so the round counters no longer agree.
//! Before the first collective of the next epoch every rank therefore waits until all are outside of the old one, sets
//! its counter to zero, and waits until all have. The word of a rank's line says how far it is: 0 outside, then
//! 2·epoch (arrived) and 2·epoch + 1 (ready), modulo 2³².
//!
//! Assumes that a router sends no plan before every rank has said Welcome: by then all have left the old epoch, and an
//! epoch may even bear the number of the one before.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::segment::{futex_wait, futex_wake};
use super::shm::Shm;
use crate::error::{Error, Result};
use crate::limits::PEER_CHECK_PERIOD;

impl Shm {
    /// Leaves the present epoch: until the next one this rank takes part in nothing.
    pub(super) fn leave_epoch(&self) {
        self.enter(0);
    }

    /// Meets all ranks in `epoch`. Afterwards every rank's counter of rounds is zero.
    pub(super) fn meet(&self, epoch: u64) -> Result<()> {
        let arrived = (epoch as u32).wrapping_mul(2).max(2);
        let ready = arrived | 1;
        self.enter(arrived);
        self.wait_for_lobby(|word| word == arrived || word == ready)?;
        // Nobody is inside an old collective any more, so nobody waits for these words or reads a buffer.
        let line = self.segment.line(self.rank);
        line.published.store(0, Ordering::Relaxed);
        line.gone.store(0, Ordering::Relaxed);
        self.enter(ready);
        self.wait_for_lobby(|word| word == ready)
    }

    fn enter(&self, word: u32) {
        let line = self.segment.line(self.rank);
        line.lobby.store(word, Ordering::SeqCst);
        futex_wake(&line.lobby);
    }

    fn wait_for_lobby(&self, is_there: impl Fn(u32) -> bool) -> Result<()> {
        const WAITING_FOR: &str = "to begin an epoch";
        let started = Instant::now();
        for peer in 0..self.world_size {
            let word = &self.segment.line(peer).lobby;
            loop {
                let seen = word.load(Ordering::SeqCst);
                if is_there(seen) {
                    break;
                }
                if self.aborted.load(Ordering::SeqCst) {
                    return Err(Error::EpochEnded { waiting_for: WAITING_FOR.to_owned() });
                }
                self.check_alive(peer, WAITING_FOR)?;
                let waited = started.elapsed();
                if waited >= self.options.timeout {
                    let waiting_for = WAITING_FOR.to_owned();
                    return Err(Error::PeerTimeout { peer, waited_ms: waited.as_millis(), waiting_for });
                }
                futex_wait(word, seen, PEER_CHECK_PERIOD.min(self.options.timeout - waited));
            }
        }
        Ok(())
    }
}
