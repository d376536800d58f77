//! The keys that a queue holds writes of, each in a slot whose number says where it is: a key is hashed once, when a write of
//! it comes, and from then on found without.
//!
//! Owns no write's fate, and knows nothing of their order. Fails never; a number of a slot that was removed finds nothing, or
//! what took its place.

use std::hash::{BuildHasher, Hash};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::slab::Slab;

/// Slots of an empty table that are kept for what comes: more than these are what an outage has left.
const KEPT: u32 = 4096;

/// The number of a slot.
pub(super) type At = u32;

/// See the module.
#[derive(Debug)]
pub(super) struct Slots<K, T> {
    table: HashTable<At>,
    all: Slab<Slot<K, T>, 1>,
    /// Seeded at random: keys are what apps choose.
    hasher: RandomState,
}

/// A key, and what is held of it.
#[derive(Debug)]
pub(super) struct Slot<K, T> {
    pub(super) key: K,
    hash: u64,
    pub(super) held: T,
}

impl<K: Eq + Hash, T> Slots<K, T> {
    pub(super) fn new() -> Self {
        Self { table: HashTable::new(), all: Slab::new(), hasher: RandomState::default() }
    }

    /// Where a key is.
    pub(super) fn find(&self, key: &K) -> Option<At> {
        self.find_hashed(key, self.hasher.hash_one(key))
    }

    fn find_hashed(&self, key: &K, hash: u64) -> Option<At> {
        let is_its = |at: &At| self.all.item(*at).is_some_and(|slot| slot.hash == hash && slot.key == *key);
        self.table.find(hash, is_its).copied()
    }

    /// Where a key is, or else is put, with what `held` gives. The key given is the one that is kept: it may share its memory
    /// with a value that came along, and the old one with one that goes.
    pub(super) fn find_or_insert(&mut self, key: K, held: impl FnOnce() -> T) -> At {
        let hash = self.hasher.hash_one(&key);
        if let Some(at) = self.find_hashed(&key, hash) {
            if let Some(slot) = self.all.item_mut(at) {
                slot.key = key;
            }
            return at;
        }
        let at = self.all.insert(Slot { key, hash, held: held() });
        let all = &self.all;
        self.table.insert_unique(hash, at, |at| all.item(*at).map_or(0, |slot| slot.hash));
        at
    }

    pub(super) fn get(&self, at: At) -> Option<&Slot<K, T>> {
        self.all.item(at)
    }

    pub(super) fn get_mut(&mut self, at: At) -> Option<&mut T> {
        self.all.item_mut(at).map(|slot| &mut slot.held)
    }

    pub(super) fn remove(&mut self, at: At) -> Option<Slot<K, T>> {
        self.all.item(at)?;
        let removed = self.all.remove(at)?;
        if let Ok(entry) = self.table.find_entry(removed.hash, |other| *other == at) {
            entry.remove();
        }
        if self.table.is_empty() && self.all.span() > KEPT {
            (self.table, self.all) = (HashTable::new(), Slab::new());
        }
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_until_they_are_removed_and_what_many_took_is_given_back() {
        let mut slots = Slots::new();
        let most = KEPT * 2;
        let places: Vec<At> = (0..most).map(|key| slots.find_or_insert(key, || key * 10)).collect();
        assert!((0..most).all(|key| slots.find(&key) == Some(places[key as usize])));
        assert_eq!(slots.find_or_insert(7, || 0), places[7]);
        for key in 0..most {
            assert_eq!(slots.get_mut(places[key as usize]).map(|held| *held), Some(key * 10));
            assert_eq!(slots.remove(places[key as usize]).map(|slot| (slot.key, slot.held)), Some((key, key * 10)));
            assert_eq!(slots.find(&key), None);
        }
        assert_eq!(slots.all.span(), 0);
        assert!(slots.remove(places[0]).is_none());
    }

    /// Keys that all have one hash.
    #[derive(Debug, PartialEq, Eq)]
    struct Alike(u32);

    impl Hash for Alike {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            0.hash(state);
        }
    }

    #[test]
    fn keys_of_one_hash_are_told_apart() {
        let mut slots = Slots::new();
        let places: Vec<At> = (0..20).map(|key| slots.find_or_insert(Alike(key), || key)).collect();
        assert_eq!(slots.remove(places[7]).map(|slot| slot.held), Some(7));
        for key in (0..20).filter(|key| *key != 7) {
            assert_eq!(slots.find(&Alike(key)).and_then(|at| slots.get_mut(at).copied()), Some(key));
        }
        assert_eq!(slots.find(&Alike(7)), None);
    }

    #[test]
    fn the_key_that_came_last_is_kept_and_an_older_one_lets_its_memory_go() {
        let mut slots = Slots::new();
        let (old, new) = (bytes::Bytes::from(vec![b'k']), bytes::Bytes::from(vec![b'k']));
        let at = slots.find_or_insert(old.clone(), || ());
        assert_eq!(slots.find_or_insert(new.clone(), || ()), at);
        assert!(old.is_unique() && !new.is_unique());
    }
}
