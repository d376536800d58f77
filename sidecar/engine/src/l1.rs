//! L1: one worker's few hottest entries, an exact LRU of pointers into L2. No lock, no allocation on a hit.
//!
//! Never shared between threads and never the owner of a value: an entry that L2 lets go of is dead here at once. Slots
//! are found by the hash that the caller computed, so a hit hashes nothing.

use std::time::Duration;

use hashbrown::{Equivalent, HashTable};

use crate::clock::Moment;
use crate::entry::Shared;
use crate::hash::TierHash;
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

pub(crate) struct L1<K, V> {
    table: HashTable<(u64, u32)>,
    slots: Slab<Resident<K, V>, 1>,
    recency: List<0>,
    bytes: usize,
    config: L1Config,
}

struct Resident<K, V> {
    entry: Shared<K, V>,
    used_at: Moment,
}

impl<K, V> L1<K, V> {
    pub(crate) fn new(config: L1Config) -> Self {
        Self { table: HashTable::new(), slots: Slab::new(), recency: List::new(), bytes: 0, config }
    }

    #[inline]
    pub(crate) fn find<Q>(&self, hash: TierHash, key: &Q) -> Option<u32>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let same = |slot: u32| self.slots.item(slot).is_some_and(|resident| key.equivalent(resident.entry.key()));
        self.table.find(hash.raw(), |&(other, slot)| other == hash.raw() && same(slot)).map(|&(_, slot)| slot)
    }

    #[inline]
    pub(crate) fn entry(&self, slot: u32) -> Option<&Shared<K, V>> {
        self.slots.item(slot).map(|resident| &resident.entry)
    }

    /// Marks a slot that [`find`](Self::find) just returned as the most recently used.
    #[inline]
    pub(crate) fn touch(&mut self, slot: u32, now: Moment) -> &Shared<K, V> {
        self.recency.move_to_front(&mut self.slots, slot);
        let resident = self.slots.item_mut(slot).expect("the table names only slots in use");
        resident.used_at = now;
        &resident.entry
    }

    /// Points to `entry`; tells how many others had to leave for it. Nothing happens if it alone is over the budget.
    pub(crate) fn insert(&mut self, entry: Shared<K, V>, now: Moment) -> usize
    where
        K: Eq,
    {
        if entry.bytes() > self.config.max_bytes || self.config.max_entries == 0 {
            return 0;
        }
        let hash = entry.hash().raw();
        let same = |slot: u32| self.slots.item(slot).is_some_and(|resident| resident.entry.key() == entry.key());
        let present = self.table.find(hash, |&(other, slot)| other == hash && same(slot)).map(|&(_, slot)| slot);
        if let Some(slot) = present {
            self.remove(slot);
        }
        let mut left = 0;
        while self.table.len() >= self.config.max_entries || self.bytes + entry.bytes() > self.config.max_bytes {
            let Some(slot) = self.recency.tail() else { break };
            self.remove(slot);
            left += 1;
        }
        self.bytes += entry.bytes();
        let slot = self.slots.insert(Resident { entry, used_at: now });
        self.recency.push_front(&mut self.slots, slot);
        self.table.insert_unique(hash, (hash, slot), |&(hash, _)| hash);
        left
    }

    pub(crate) fn remove(&mut self, slot: u32) {
        self.recency.unlink(&mut self.slots, slot);
        let Some(resident) = self.slots.remove(slot) else { return };
        self.bytes -= resident.entry.bytes();
        if let Ok(found) = self.table.find_entry(resident.entry.hash().raw(), |&(_, other)| other == slot) {
            found.remove();
        }
    }

    /// Lets go of entries not used for `idle`, and of dead ones met on the way; at most `steps` of them.
    pub(crate) fn demote_idle(&mut self, now: Moment, idle: Duration, steps: usize) -> usize {
        let mut left = 0;
        for _ in 0..steps {
            let Some(slot) = self.recency.tail() else { break };
            let Some(resident) = self.slots.item(slot) else { break };
            if now.since(resident.used_at) < idle && !resident.entry.is_dead() {
                break;
            }
            resident.entry.forget_l2_hits();
            self.remove(slot);
            left += 1;
        }
        left
    }

    /// Lets go of dead entries among `steps` slots from `cursor` on, so that their memory is freed although nobody asks
    /// for them; returns the next cursor.
    pub(crate) fn sweep_dead(&mut self, cursor: u32, steps: u32) -> u32 {
        let end = cursor.saturating_add(steps).min(self.slots.span());
        for slot in cursor..end {
            if self.entry(slot).is_some_and(|entry| entry.is_dead()) {
                self.remove(slot);
            }
        }
        if end >= self.slots.span() { 0 } else { end }
    }

    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.table.len(), self.bytes)
    }
}
