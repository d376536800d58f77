//! Which keys L3 does not have, known without asking: a Bloom filter that never says "absent" of a key that is there.
//!
//! An [`AbsenceFilter`] is made from a scan of the keys and from what is announced meanwhile and afterwards, both on *one*
//! connection, a source of the [`Kernel`]. What a scan may miss was written while it ran, and so is announced. A filter
//! answers under three conditions, each of which stands for one way to be wrong:
//!
//! * it was begun under the flush count that the source has now: no announcement was lost, no primary replaced, since;
//! * the source is proven current within `maxStaleness`, so an answer is as fresh as a copy has to be (C4);
//! * nobody behind this cache was shown the key, or wrote it, since the moment that the proof speaks of ([`Touches`]):
//!   announcements come on a connection of their own, behind the replies that apps have seen already (C3).
//!
//! While another filter is built the present one answers, and learns; the new one takes its place as a whole. Keys that
//! were removed stay in it until then, and cost a read of L3 each. When more keys come than it was made for it is built
//! anew, and given up if that does not help. Never asks, never waits, and never decides that a key is there.

mod bloom;

use std::sync::Arc;

use crate::clock::Moment;
use crate::hash::KeyHash;
use crate::kernel::{Kernel, SourceId};
use crate::sync::{AtomicU64, Mutex, Ordering, RwLock};
use bloom::Bloom;

/// Stripes of [`Touches`].
const STRIPES: usize = 4096;

/// When keys were last shown to somebody, or written, over another connection than the one of the filters; by stripe.
#[derive(Debug)]
pub struct Touches {
    stripes: Box<[AtomicU64]>,
    /// The same for keys that nobody can name.
    any: AtomicU64,
}

impl Default for Touches {
    fn default() -> Self {
        Self { stripes: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(), any: AtomicU64::new(0) }
    }
}

impl Touches {
    /// A reply that has to do with the key is in. To be called before it is handed on.
    #[inline]
    pub fn touch(&self, key: KeyHash, now: Moment) {
        self.stripe(key).fetch_max(now.as_nanos(), Ordering::Release);
    }

    /// The same for a reply that may have to do with any key.
    pub fn touch_all(&self, now: Moment) {
        self.any.fetch_max(now.as_nanos(), Ordering::Release);
    }

    /// Whether nothing has been seen of the key since `moment`.
    fn is_quiet_since(&self, key: KeyHash, moment: Moment) -> bool {
        let last = self.stripe(key).load(Ordering::Acquire).max(self.any.load(Ordering::Acquire));
        last < moment.as_nanos()
    }

    fn stripe(&self, key: KeyHash) -> &AtomicU64 {
        // Other bits than choose a filter's block.
        &self.stripes[key.raw() as usize % STRIPES]
    }
}

/// See the module.
#[derive(Debug)]
pub struct AbsenceFilter {
    /// How many keys it is made for.
    capacity: usize,
    active: RwLock<Option<Arc<Built>>>,
    building: Mutex<Option<Arc<Built>>>,
}

#[derive(Debug)]
struct Built {
    keys: Bloom,
    /// The connection that it was built on, and what that had been flushed when it was begun.
    source: SourceId,
    flushes: u64,
}

/// What became of a filter that was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It answers.
    Active {
        /// Keys that it knows.
        keys: usize,
    },
    /// The connection was lost, or flushed, since it was begun.
    Gap,
    /// There are more keys than it is made for.
    TooMany,
}

impl AbsenceFilter {
    /// A filter for so many keys, which knows nothing yet.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, active: RwLock::new(None), building: Mutex::new(None) }
    }

    /// Bytes of a filter for so many keys; twice as much while another one is built.
    pub const fn bytes_for(capacity: usize) -> usize {
        Bloom::bytes_for(capacity)
    }

    // === building ===

    /// Begins another one. The connection of `source` announces writes already; what it has scanned comes in
    /// [`found`](Self::found).
    pub fn begin(&self, kernel: &Kernel, source: SourceId) {
        let keys = Bloom::new(self.capacity);
        *self.building.lock() = Some(Arc::new(Built { keys, source, flushes: kernel.flushes(source) }));
    }

    /// The scan has found a key.
    pub fn found(&self, key: KeyHash) {
        if let Some(building) = &*self.building.lock() {
            building.keys.add(key);
        }
    }

    /// The scan is over: the new one takes the place of the present one, if nothing was lost.
    pub fn finish(&self, kernel: &Kernel) -> Finished {
        // Held to the end: what is announced meanwhile is in both, or behind it.
        let mut building = self.building.lock();
        let Some(built) = building.take() else { return Finished::Gap };
        if kernel.flushes(built.source) != built.flushes {
            return Finished::Gap;
        }
        let keys = built.keys.len();
        if keys > self.capacity {
            *self.active.write() = None;
            return Finished::TooMany;
        }
        *self.active.write() = Some(built);
        Finished::Active { keys }
    }

    /// The connection announces a write of the key.
    pub fn written(&self, key: KeyHash) {
        let building = self.building.lock();
        if let Some(building) = &*building {
            building.keys.add(key);
        }
        if let Some(active) = &*self.active.read() {
            active.keys.add(key);
        }
    }

    /// Forgets everything; for what the flush count does not tell.
    pub fn clear(&self) {
        *self.building.lock() = None;
        *self.active.write() = None;
    }

    // === answering ===

    /// Whether it is known that L3 has no such key. `false` says nothing.
    pub fn is_absent(&self, key: KeyHash, kernel: &Kernel, touches: &Touches, now: Moment) -> bool {
        let active = self.active.read();
        let Some(active) = &*active else { return false };
        // What is known first, as of that moment: whoever sees a proof sees every announcement before it.
        kernel
            .known_until(active.source, active.flushes, now)
            .is_some_and(|known| touches.is_quiet_since(key, known) && !active.keys.may_have(key))
    }

    /// Whether there is one that answers as soon as its source is proven.
    pub fn is_active(&self, kernel: &Kernel) -> bool {
        self.active.read().as_ref().is_some_and(|active| kernel.flushes(active.source) == active.flushes)
    }

    /// Keys that the present one knows, those that are gone included.
    pub fn len(&self) -> usize {
        self.active.read().as_ref().map_or(0, |active| active.keys.len())
    }

    /// Whether it knows no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it knows more keys than it is made for, so that its answers become worth less.
    pub fn is_overfull(&self) -> bool {
        self.len() > self.capacity
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
