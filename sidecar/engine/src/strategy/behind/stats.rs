//! What became of writes, counted.

use std::sync::Arc;

use super::Backlog;
use crate::sync::{AtomicU64, Ordering};

/// What became of writes so far, and what waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BehindStats {
    /// What waits.
    pub backlog: Backlog,
    /// Writes taken.
    pub taken: u64,
    /// Records that the store has got.
    pub stored: u64,
    /// Writes that a newer one of their key replaced before they were sent.
    pub coalesced: u64,
    /// Calls of the store that succeeded.
    pub flushes: u64,
    /// Calls of the store that failed.
    pub failures: u64,
    /// Writes that had to wait for room.
    pub waited: u64,
    /// Writes that found none.
    pub refused: u64,
    /// Writes that the journal could not keep, so that they were acknowledged by the store only.
    pub unkept: u64,
    /// The store's last complaint, while it fails or has dead letters.
    pub last_error: Option<Arc<str>>,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) taken: AtomicU64,
    pub(super) stored: AtomicU64,
    pub(super) coalesced: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) waited: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) unkept: AtomicU64,
}

impl Counts {
    /// Both together.
    pub(super) fn told(&self, backlog: Backlog, last_error: Option<Arc<str>>) -> BehindStats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        BehindStats {
            backlog,
            last_error,
            taken: load(&self.taken),
            stored: load(&self.stored),
            coalesced: load(&self.coalesced),
            flushes: load(&self.flushes),
            failures: load(&self.failures),
            waited: load(&self.waited),
            refused: load(&self.refused),
            unkept: load(&self.unkept),
        }
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
