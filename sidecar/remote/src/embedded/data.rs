//! One database: entries in hash order (a SCAN's cursor is a hash), and their deadlines in time order.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::RandomState},
    hash::BuildHasher,
};

/// A key and what it has.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Box<[u8]>,
    pub(super) value: Vec<u8>,
    /// Milliseconds since 1970; it is gone when this has passed.
    pub(super) deadline: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Database {
    hasher: RandomState,
    /// By hash; keys of equal hash share a bucket, which is never empty.
    buckets: BTreeMap<u64, Vec<Entry>>,
    /// (deadline, hash) of every entry that has a deadline.
    deadlines: BTreeSet<(i64, u64)>,
    len: usize,
}

impl Database {
    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.buckets.get(&self.hash(key))?.iter().find(|entry| *entry.key == *key)
    }

    pub(super) fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.entry(key).map(|entry| entry.value.as_slice())
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.entry(key).is_some()
    }

    /// Replaces what `key` had, its deadline included.
    pub(super) fn set(&mut self, key: &[u8], value: Vec<u8>, deadline: Option<i64>) {
        self.remove(key);
        let hash = self.hash(key);
        self.buckets.entry(hash).or_default().push(Entry { key: key.into(), value, deadline });
        self.deadlines.extend(deadline.map(|deadline| (deadline, hash)));
        self.len += 1;
    }

    /// Replaces the value and keeps the deadline.
    pub(super) fn update(&mut self, key: &[u8], value: Vec<u8>) {
        let deadline = self.entry(key).and_then(|entry| entry.deadline);
        self.set(key, value, deadline);
    }

    /// The value, to be changed in place; an empty one is made if there is none.
    pub(super) fn value_mut(&mut self, key: &[u8]) -> &mut Vec<u8> {
        let hash = self.hash(key);
        let bucket = self.buckets.entry(hash).or_default();
        let at = bucket.iter().position(|entry| *entry.key == *key).unwrap_or_else(|| {
            bucket.push(Entry { key: key.into(), value: Vec::new(), deadline: None });
            self.len += 1;
            bucket.len() - 1
        });
        &mut bucket[at].value
    }

    /// Changes the deadline of `key`, if that exists.
    pub(super) fn set_deadline(&mut self, key: &[u8], deadline: Option<i64>) {
        if let Some(Entry { value, .. }) = self.remove(key) {
            self.set(key, value, deadline);
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Option<Entry> {
        let hash = self.hash(key);
        let bucket = self.buckets.get_mut(&hash)?;
        let at = bucket.iter().position(|entry| *entry.key == *key)?;
        let entry = bucket.swap_remove(at);
        let shared = bucket.iter().any(|other| other.deadline == entry.deadline);
        if bucket.is_empty() {
            self.buckets.remove(&hash);
        }
        if let Some(deadline) = entry.deadline.filter(|_| !shared) {
            self.deadlines.remove(&(deadline, hash));
        }
        self.len -= 1;
        Some(entry)
    }

    /// Drops what has expired at `now`.
    pub(super) fn expire(&mut self, now: i64) {
        while let Some(&(deadline, hash)) = self.deadlines.first()
            && deadline < now
        {
            self.deadlines.pop_first();
            let Some(bucket) = self.buckets.get_mut(&hash) else { continue };
            let before = bucket.len();
            bucket.retain(|entry| entry.deadline != Some(deadline));
            self.len -= before - bucket.len();
            if bucket.is_empty() {
                self.buckets.remove(&hash);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.buckets.clear();
        self.deadlines.clear();
        self.len = 0;
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.buckets.values().flatten().map(|entry| &*entry.key)
    }

    /// At least `count` keys from `cursor` on, if there are so many, and the cursor of what follows; 0 is
    /// the beginning, and the end.
    pub(super) fn scan(&self, cursor: u64, count: usize) -> (u64, Vec<&[u8]>) {
        let mut keys = Vec::new();
        for (hash, bucket) in self.buckets.range(cursor..) {
            if keys.len() >= count {
                return (*hash, keys);
            }
            keys.extend(bucket.iter().map(|entry| &*entry.key));
        }
        (0, keys)
    }

    /// Any key.
    pub(super) fn random_key(&self) -> Option<&[u8]> {
        let from = fold(RandomState::new().hash_one(self.len));
        let (_, bucket) = self.buckets.range(from..).next().or_else(|| self.buckets.first_key_value())?;
        bucket.first().map(|entry| &*entry.key)
    }

    fn hash(&self, key: &[u8]) -> u64 {
        fold(self.hasher.hash_one(key))
    }
}

/// To what a client that keeps cursors as floating-point numbers still holds exactly; never 0, which
/// is no cursor.
fn fold(hash: u64) -> u64 {
    (hash >> 12).max(1)
}
