//! Room in the queue: reserved before anything is written, waited for when there is none, given back when dropped.

use std::hash::Hash;

use futures::future::{Either, select};

use super::{
    stats::count,
    writer::{BehindError, WriteBehind},
};
use crate::weigh::Weigh;

/// Room that was reserved; given back when dropped.
pub struct Room<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> {
    of: WriteBehind<K, V>,
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> std::fmt::Debug for Room<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room").field("records", &self.records).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> Room<K, V> {
    /// Makes it larger, if there is room for that now.
    pub fn grow(&mut self, records: usize, bytes: usize) -> bool {
        let mut state = self.of.inner.state.lock();
        let fits = !state.is_sealed && state.queue.reserve(records, bytes);
        if fits {
            (self.records, self.bytes) = (self.records + records, self.bytes + bytes);
        }
        fits
    }

    /// So much of it, for writes that go by themselves.
    #[must_use]
    pub fn split(&mut self, records: usize, bytes: usize) -> Self {
        let (records, bytes) = (records.min(self.records), bytes.min(self.bytes));
        (self.records, self.bytes) = (self.records - records, self.bytes - bytes);
        Self { of: self.of.clone(), records, bytes }
    }
}

impl<K: Eq + Hash + Clone + Weigh, V: Clone + Weigh> Drop for Room<K, V> {
    fn drop(&mut self) {
        if self.records > 0 {
            self.of.inner.state.lock().queue.release(self.records, self.bytes);
            self.of.inner.relief.notify_waiters();
        }
    }
}

impl<K, V> WriteBehind<K, V>
where
    K: Eq + Hash + Clone + Weigh + Send + Sync + 'static,
    V: Clone + Weigh + Send + Sync + 'static,
{
    /// Room for writes of these weights ([`Record::weight`](super::Record::weight)) together, if there is some now.
    pub fn reserve(&self, records: usize, bytes: usize) -> Option<Room<K, V>> {
        let mut state = self.inner.state.lock();
        (!state.is_sealed && state.queue.reserve(records, bytes)).then(|| Room { of: self.clone(), records, bytes })
    }

    /// Waits for room, for [`max_wait`](super::BehindConfig::max_wait) at most.
    pub async fn room(&self, records: usize, bytes: usize) -> Result<Room<K, V>, BehindError> {
        if let Some(room) = self.reserve(records, bytes) {
            return Ok(room);
        }
        count(&self.inner.counts.waited);
        let max_wait = self.inner.state.lock().max_wait;
        let mut late = self.inner.timer.sleep(max_wait);
        loop {
            // Enrolled before the look: what happens in between wakes.
            let relief = self.inner.relief.notified();
            let mut relief = std::pin::pin!(relief);
            relief.as_mut().enable();
            if let Some(room) = self.reserve(records, bytes) {
                return Ok(room);
            }
            if self.inner.state.lock().is_sealed {
                return Err(BehindError::Sealed);
            }
            self.inner.work.notify_one();
            if let Either::Right(_) = select(relief, &mut late).await {
                count(&self.inner.counts.refused);
                return Err(self.full());
            }
        }
    }

    fn full(&self) -> BehindError {
        let state = self.inner.state.lock();
        let backlog = state.queue.backlog();
        let mut trouble = state.trouble();
        if backlog.dead_letters > 0 {
            trouble = format!("{trouble}; {} of them are dead letters", backlog.dead_letters);
        }
        BehindError::Full { records: backlog.records, bytes: backlog.bytes, trouble }
    }
}
