//! The words of write-behind: a write, its record, the batch that it goes with, and what becomes of it. Data alone: what is
//! done with it, the queue decides.

use std::sync::Arc;

use crate::clock::Moment;
use crate::weigh::Weigh;

/// What a key and its place in the queue cost beside the bytes of key and value.
const OVERHEAD: usize = 160;

/// What is to become of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write<V> {
    /// It has this value.
    Put(V),
    /// It is gone.
    Delete,
}

impl<V> Write<V> {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&V> {
        match self {
            Self::Put(value) => Some(value),
            Self::Delete => None,
        }
    }
}

/// A write with its number: of two writes of a key the one with the higher number is newer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<K, V> {
    /// The number.
    pub seq: u64,
    /// The key.
    pub key: K,
    /// What becomes of it.
    pub write: Write<V>,
}

impl<K: Weigh, V: Weigh> Record<K, V> {
    /// What it counts for in [`max_bytes`](super::BehindConfig::max_bytes).
    pub fn weight(key: &K, write: &Write<V>) -> usize {
        key.heap_bytes().saturating_add(write.value().map_or(0, Weigh::heap_bytes)).saturating_add(OVERHEAD)
    }
}

/// Writes of different keys for one call to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<K, V> {
    pub(super) id: u64,
    /// To be stored.
    pub puts: Vec<(K, V)>,
    /// To be deleted.
    pub deletes: Vec<K>,
    /// The numbers of `puts`.
    pub(super) put_seqs: Vec<u64>,
    /// The numbers of `deletes`.
    pub(super) delete_seqs: Vec<u64>,
}

/// What the store did with one part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has it.
    Stored,
    /// It did not answer, or said "later".
    Later,
    /// It refused, in these words.
    Refused(Arc<str>),
}

/// What became of the writes of a batch, by their numbers; the others are tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Landed {
    /// The store has them.
    pub stored: Vec<u64>,
    /// It does not, and need not: a newer write of the key, by the second number, waits.
    pub replaced: Vec<(u64, u64)>,
    /// They are dead letters now.
    pub died: Vec<u64>,
}

/// A write that the store refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter<K, V> {
    /// The write.
    pub record: Record<K, V>,
    /// When it was made.
    pub since: Moment,
    /// The store's words.
    pub reason: Arc<str>,
}

/// What a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Writes that the store does not have yet, dead letters included.
    pub records: usize,
    /// Their bytes, by [`Record::weight`].
    pub bytes: usize,
    /// Those of them that the store refuses.
    pub dead_letters: usize,
    /// When the oldest of the others was made.
    pub oldest: Option<Moment>,
    /// Failures in a row of the whole store.
    pub failures: u32,
}
