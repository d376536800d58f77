//! What the bytes of segments say. Pure: whatever they are, it gives what can be read, and never a record nobody wrote.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use caddy_engine::strategy::behind::Record;

use super::format::{self, Item};

/// What one segment says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) items: Vec<Item>,
    /// Places that could not be read.
    pub(super) damaged: usize,
    /// Those of them that others stand behind: no crash leaves them.
    pub(super) lost: usize,
}

/// Reads a segment. Behind a place that cannot be read it goes on with the next record that can.
pub(super) fn scan(segment: &Bytes, salt: u64) -> Scanned {
    let mut scanned = Scanned::default();
    let mut at = 0;
    let mut in_damage = false;
    while at < segment.len() {
        if let Some((item, length)) = format::read(&segment.slice(at..), salt) {
            scanned.items.push(item);
            at += length;
            scanned.lost += usize::from(in_damage);
            in_damage = false;
        } else {
            scanned.damaged += usize::from(!in_damage);
            in_damage = true;
            at += 1;
        }
    }
    scanned
}

/// What all segments together leave to be stored.
#[derive(Debug, Default)]
pub(super) struct Remains {
    newest: HashMap<Bytes, Record<Bytes, Bytes>>,
    settled: HashSet<u64>,
    pub(super) damaged: usize,
    pub(super) lost: usize,
}

impl Remains {
    /// Adds a segment's items; the numbers of its records.
    pub(super) fn add(&mut self, scanned: Scanned) -> Vec<u64> {
        self.damaged += scanned.damaged;
        self.lost += scanned.lost;
        let mut seqs = Vec::new();
        for item in scanned.items {
            match item {
                Item::Settled(settled) => self.settled.extend(settled),
                Item::Record(record) => {
                    seqs.push(record.seq);
                    let is_newer = self.newest.get(&record.key).is_none_or(|other| other.seq <= record.seq);
                    if is_newer {
                        let _ = self.newest.insert(record.key.clone(), record);
                    }
                }
            }
        }
        seqs
    }

    /// Of each key the newest record, unless the store has it; in their order. They own their bytes: a segment that is read
    /// is not kept in memory for one of its records.
    pub(super) fn records(self) -> Vec<Record<Bytes, Bytes>> {
        let Self { newest, settled, .. } = self;
        let unsettled = newest.into_values().filter(|record| !settled.contains(&record.seq));
        let mut records: Vec<_> = unsettled.map(owned).collect();
        records.sort_unstable_by_key(|record| record.seq);
        records
    }
}

fn owned(record: Record<Bytes, Bytes>) -> Record<Bytes, Bytes> {
    use caddy_engine::strategy::behind::Write;
    Record {
        seq: record.seq,
        key: Bytes::copy_from_slice(&record.key),
        write: match record.write {
            Write::Put(value) => Write::Put(Bytes::copy_from_slice(&value)),
            Write::Delete => Write::Delete,
        },
    }
}
