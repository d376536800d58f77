//! L1: one worker's few hottest entries, pointers into L2. No lock, no allocation on a hit.
//!
//! Never shared between threads and never the owner of a value: an entry that L2 lets go of is dead here at once. Slots
//! are found by the hash that the caller computed, so a hit hashes nothing and writes one word.
//!
//! The order of eviction is FIFO with second chances: an entry used since it was last at the end of the queue goes back to
//! its front. That loses nothing against exact LRU (Yang et al., "FIFO can be better than LRU", HotOS 2023), which would
//! write five words in four slots on every hit.

use std::time::Duration;

use hashbrown::HashTable;

use crate::clock::{Moment, span_nanos};
use crate::entry::Shared;
use crate::hash::TierHash;
use crate::hold::Hold;
use crate::slab::{List, Slab};

/// Bounds of one worker's L1.
#[derive(Clone, Debug)]
pub struct L1Config {
    /// Entries per worker.
    pub max_entries: usize,
    /// Bytes of the entries pointed to, per worker: the budget of the tier divided by the number of workers.
    pub max_bytes: usize,
}

impl Default for L1Config {
    fn default() -> Self {
        Self { max_entries: 1000, max_bytes: 8 << 20 }
    }
}

pub(crate) struct L1<K: Hold, V: Hold> {
    table: HashTable<Resident<K, V>>,
    /// The queue's places, by the slot that a resident carries; each knows the hash to find its resident by.
    places: Slab<TierHash, 1>,
    queue: List<0>,
    bytes: usize,
    config: L1Config,
}

/// The marks of use are here and not in the queue's slab, so that a hit touches no line that it has not read already.
struct Resident<K: Hold, V: Hold> {
    entry: Shared<K, V>,
    deadline: Moment,
    slot: u32,
    used: Use,
}

/// A resident's place in the table, valid until the next insertion or removal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found(usize);

/// When a resident was last used, in steps of 2^30 ns (about a second), and whether since it was last at the end of the
/// queue: the lowest bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use(u32);

impl Use {
    const fn none(now: Moment) -> Self {
        Self(((now.as_nanos() >> 30) as u32) << 1)
    }

    const fn at(now: Moment) -> Self {
        Self(Self::none(now).0 | 1)
    }

    const fn lately(self) -> bool {
        self.0 & 1 == 1
    }

    const fn forgotten(self) -> Self {
        Self(self.0 & !1)
    }

    const fn steps_until(self, now: Moment) -> u32 {
        (Self::none(now).0 >> 1).saturating_sub(self.0 >> 1)
    }

    fn idle_for(self, now: Moment, span: Duration) -> bool {
        u64::from(self.steps_until(now)) >= span_nanos(span) >> 30
    }
}

impl<K: Hold, V: Hold> L1<K, V> {
    pub(crate) fn new(config: L1Config) -> Self {
        Self { table: HashTable::new(), places: Slab::new(), queue: List::new(), bytes: 0, config }
    }

    /// The entry under `hash` that `is_it` accepts; shown are those whose hash may be the same.
    #[inline]
    pub(crate) fn find(&self, hash: TierHash, mut is_it: impl FnMut(&Shared<K, V>) -> bool) -> Option<Found> {
        self.table.find_bucket_index(hash.raw(), |resident| is_it(&resident.entry)).map(Found)
    }

    #[inline]
    pub(crate) fn entry(&self, found: Found) -> Option<(&Shared<K, V>, Moment)> {
        self.table.get_bucket(found.0).map(|resident| (&resident.entry, resident.deadline))
    }

    /// Marks a resident that [`find`](Self::find) just returned as used, and tells how long ago it was used before, in
    /// steps of about a second.
    #[inline]
    pub(crate) fn touch(&mut self, found: Found, now: Moment) -> (&Shared<K, V>, Moment, Option<u32>) {
        let resident = self.table.get_bucket_mut(found.0).expect("nothing was inserted or removed since the find");
        let (before, present) = (resident.used, Use::at(now));
        if before != present {
            resident.used = present;
        }
        (&resident.entry, resident.deadline, before.lately().then(|| before.steps_until(now)))
    }

    /// Points to `entry`; tells how many others had to leave for it. `None`: it alone is over the budget.
    pub(crate) fn insert(
        &mut self,
        hash: TierHash,
        entry: &Shared<K, V>,
        deadline: Moment,
        now: Moment,
    ) -> Option<usize>
    where
        K::Held: Eq,
    {
        if self.config.max_entries == 0 || entry.bytes() > self.config.max_bytes {
            return None;
        }
        let same = |resident: &Resident<K, V>| resident.entry.key() == entry.key();
        if let Some(present) = self.table.find_bucket_index(hash.raw(), same) {
            self.remove(Found(present));
        }
        let mut left = 0;
        while self.table.len() >= self.config.max_entries
            || self.bytes.saturating_add(entry.bytes()) > self.config.max_bytes
        {
            let Some(victim) = self.victim() else { break };
            self.remove(victim);
            left += 1;
        }
        self.bytes = self.bytes.saturating_add(entry.bytes());
        let slot = self.places.insert(hash);
        self.queue.push_front(&mut self.places, slot);
        let resident = Resident { entry: entry.clone(), deadline, slot, used: Use::none(now) };
        let places = &self.places;
        let rehash = |resident: &Resident<K, V>| places.item(resident.slot).map_or(0, |hash| hash.raw());
        self.table.insert_unique(hash.raw(), resident, rehash);
        Some(left)
    }

    /// The entry at the end of the queue that has used up its chance. Ends after one round: every step clears a mark.
    fn victim(&mut self) -> Option<Found> {
        loop {
            let slot = self.queue.tail()?;
            let found = self.at(slot)?;
            let resident = self.table.get_bucket_mut(found.0)?;
            if !resident.used.lately() || resident.entry.is_dead() {
                return Some(found);
            }
            resident.used = resident.used.forgotten();
            self.queue.move_to_front(&mut self.places, slot);
        }
    }

    fn at(&self, slot: u32) -> Option<Found> {
        let hash = self.places.item(slot)?;
        self.table.find_bucket_index(hash.raw(), |resident| resident.slot == slot).map(Found)
    }

    pub(crate) fn remove(&mut self, found: Found) {
        let Ok(occupied) = self.table.get_bucket_entry(found.0) else { return };
        let (resident, _) = occupied.remove();
        self.queue.unlink(&mut self.places, resident.slot);
        self.places.remove(resident.slot);
        self.bytes = self.bytes.saturating_sub(resident.entry.bytes());
    }

    /// Looks at `steps` slots from `cursor` on and lets go of the dead ones and of those not used for `idle`. Returns the
    /// next cursor and how many were idle.
    pub(crate) fn sweep(&mut self, cursor: u32, steps: u32, now: Moment, idle: Duration) -> (u32, usize) {
        let end = cursor.saturating_add(steps).min(self.places.span());
        let mut left = 0;
        for slot in cursor..end {
            let Some(found) = self.at(slot) else { continue };
            let Some(resident) = self.table.get_bucket(found.0) else { continue };
            let (dead, unused) = (resident.entry.is_dead(), resident.used.idle_for(now, idle));
            if dead || unused {
                resident.entry.forget_l2_hits();
                self.remove(found);
                left += usize::from(!dead);
            }
        }
        (if end >= self.places.span() { 0 } else { end }, left)
    }

    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.table.len(), self.bytes)
    }
}
