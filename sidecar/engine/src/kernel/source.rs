//! What one tracked connection knows: how often its copies were flushed, and up to when it is proven current.
//!
//! Readers use the atomics without a lock; the few writers (connect, loss, flush, proof) take the lock, so that a proof
//! of a dead connection cannot slip past the loss that ended it.

use crate::clock::Moment;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering};

/// How copies of a source are kept current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A tracked connection: the server pushes invalidations, replies prove currency.
    Tracked,
    /// No invalidations come: copies live at most `max_staleness`, counted from the sending of their read.
    Timed,
    /// The data is in this process and every write goes through [`bump`](super::Kernel::bump): always current.
    Local,
}

/// One incarnation of a source's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Incarnation(pub(super) u64);

/// One row of the kernel's table. Aligned so that two sources never share a cache line.
#[repr(align(128))]
#[derive(Debug)]
pub(super) struct Source {
    /// A copy is valid only under the count it was filled under.
    pub(super) flushes: AtomicU64,
    /// The last moment, in nanoseconds, at which copies may be served on the present proof: `proven_at` and the bound.
    /// Zero: nothing is proven. `u64::MAX`: needs no proof.
    pub(super) served_until: AtomicU64,
    /// The last moment at which no probe is due.
    pub(super) fresh_until: AtomicU64,
    /// The flush count at the last flush after which copies are known to be wrong, rather than merely unproven.
    pub(super) wiped: AtomicU64,
    /// When the last probe was claimed; zero: never.
    pub(super) probed_at: AtomicU64,
    pub(super) incarnation: AtomicU64,
    /// What the two bounds above are made of; written by the owner alone.
    pub(super) proven_at: AtomicU64,
    /// The owner is [`SourceKind::Timed`]: for fills, which take no lock. Set before the flush with which a row is taken, so
    /// that it fits every fill that began under that flush count.
    is_timed: AtomicBool,
    pub(super) owner: Mutex<Option<SourceKind>>,
}

impl Source {
    pub(super) fn vacant() -> Self {
        Self {
            flushes: AtomicU64::new(1),
            served_until: AtomicU64::new(0),
            fresh_until: AtomicU64::new(0),
            wiped: AtomicU64::new(0),
            probed_at: AtomicU64::new(0),
            incarnation: AtomicU64::new(1),
            proven_at: AtomicU64::new(0),
            is_timed: AtomicBool::new(false),
            owner: Mutex::new(None),
        }
    }

    /// Only under the owner's lock, and before the flush that lets the owner in.
    pub(super) fn set_kind(&self, kind: SourceKind) {
        self.is_timed.store(kind == SourceKind::Timed, Ordering::Release);
    }

    /// Whether copies live for so long and no longer, since nobody announces writes.
    pub(super) fn is_timed(&self) -> bool {
        self.is_timed.load(Ordering::Acquire)
    }

    /// When it was last proven current; [`Moment::ZERO`]: never, [`Moment::NEVER`]: it needs no proof.
    pub(super) fn proven_at(&self) -> Moment {
        Moment::from_nanos(self.proven_at.load(Ordering::Acquire))
    }

    /// Only under the owner's lock. Comes after whatever the proof stands for has been applied: the stores release it.
    pub(super) fn set_proven_at(&self, at: u64, bound: u64) {
        let until = |span: u64| if at == 0 { 0 } else { at.saturating_add(span) };
        self.proven_at.store(at, Ordering::Release);
        self.fresh_until.store(until(bound / 4), Ordering::Release);
        self.served_until.store(until(bound), Ordering::Release);
    }

    /// What "nothing is proven yet" means for this kind.
    pub(super) fn unproven(kind: SourceKind) -> u64 {
        match kind {
            SourceKind::Tracked => 0,
            SourceKind::Timed | SourceKind::Local => u64::MAX,
        }
    }
}
