//! What happens to the reads of each keyspace, counted.
//!
//! A worker counts in rows of its own, which only it writes, so that a hit costs no atomic addition; what happens on the
//! tracked connection is counted in rows that all threads share. A snapshot is their sum. Never resets: a keyspace whose
//! rule is gone keeps its counts.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use caddy_engine::Tier;
use parking_lot::RwLock;

use crate::keyspaces::Id;

/// What is counted of a keyspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// Reads answered from L1.
    HitL1,
    /// Reads answered from L2.
    HitL2,
    /// Reads that found nothing to serve.
    Miss,
    /// Reads under `Observe` that a copy would have answered.
    WouldHit,
    /// Reads under `Observe` that no copy would have answered.
    WouldMiss,
    /// Reads under `cache: Off`.
    Off,
    /// Reads answered by the negative filter.
    Filtered,
    /// Copies kept.
    Fill,
    /// Copies that were packed.
    Packed,
    /// Copies that packing was tried on, and which stay as they are.
    NotPacked,
    /// Bytes of the packed copies, before.
    PackedFrom,
    /// The same, after.
    PackedTo,
    /// Time spent packing.
    PackNanos,
    /// Copies unpacked to answer a read.
    Unpacked,
    /// Time spent on that.
    UnpackNanos,
    /// Copies that could not be unpacked.
    Damaged,
    /// Values asked of the store, because a read found none.
    Load,
    /// Reads that waited for a load that was under way in this sidecar.
    LoadJoined,
    /// Reads answered with what another sidecar loaded meanwhile.
    LoadShared,
    /// Loads that the store did not answer, or that it was not asked for.
    LoadFailed,
    /// Loads given up at `hardTimeout`.
    LoadTimedOut,
    /// Loaded values that were not stored, since the key was written or removed meanwhile, or L3 did not say.
    LoadOvertaken,
    /// Values asked of the store before the end of the one that there is.
    Refresh,
    /// Reads answered with a value that was no longer fresh.
    ServedStale,
}

impl Count {
    pub(crate) const ALL: [Self; 24] = [
        Self::HitL1,
        Self::HitL2,
        Self::Miss,
        Self::WouldHit,
        Self::WouldMiss,
        Self::Off,
        Self::Filtered,
        Self::Fill,
        Self::Packed,
        Self::NotPacked,
        Self::PackedFrom,
        Self::PackedTo,
        Self::PackNanos,
        Self::Unpacked,
        Self::UnpackNanos,
        Self::Damaged,
        Self::Load,
        Self::LoadJoined,
        Self::LoadShared,
        Self::LoadFailed,
        Self::LoadTimedOut,
        Self::LoadOvertaken,
        Self::Refresh,
        Self::ServedStale,
    ];

    /// What reads came to: each is counted as one of these.
    pub(crate) const READS: [Self; 7] =
        [Self::HitL1, Self::HitL2, Self::Miss, Self::WouldHit, Self::WouldMiss, Self::Off, Self::Filtered];

    /// Its name in `CACHE.STATS` and in the label `outcome`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::HitL1 => "hits_l1",
            Self::HitL2 => "hits_l2",
            Self::Miss => "misses",
            Self::WouldHit => "would_hit",
            Self::WouldMiss => "would_miss",
            Self::Off => "off",
            Self::Filtered => "filtered",
            Self::Fill => "fills",
            Self::Packed => "compressed",
            Self::NotPacked => "not_compressed",
            Self::PackedFrom => "compressed_from_bytes",
            Self::PackedTo => "compressed_to_bytes",
            Self::PackNanos => "compression_ns",
            Self::Unpacked => "decompressed",
            Self::UnpackNanos => "decompression_ns",
            Self::Damaged => "undecodable",
            Self::Load => "loads",
            Self::LoadJoined => "loads_joined",
            Self::LoadShared => "loads_shared",
            Self::LoadFailed => "loads_failed",
            Self::LoadTimedOut => "loads_timed_out",
            Self::LoadOvertaken => "loads_overtaken",
            Self::Refresh => "refreshes",
            Self::ServedStale => "served_stale",
        }
    }

    /// What came of loads, by the label `outcome`.
    pub(crate) const LOADS: [Self; 8] = [
        Self::Load,
        Self::LoadJoined,
        Self::LoadShared,
        Self::LoadFailed,
        Self::LoadTimedOut,
        Self::LoadOvertaken,
        Self::Refresh,
        Self::ServedStale,
    ];

    pub(crate) fn hit(tier: Tier) -> Self {
        match tier {
            Tier::L1 => Self::HitL1,
            Tier::L2 => Self::HitL2,
        }
    }
}

/// The counts of one keyspace.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts([u64; Count::ALL.len()]);

impl Counts {
    pub(crate) fn get(&self, count: Count) -> u64 {
        self.0[count as usize]
    }

    /// How many times smaller packed copies are; 1 before the first.
    pub(crate) fn compression_ratio(&self) -> f64 {
        match self.get(Count::PackedTo) {
            0 => 1.0,
            after => self.get(Count::PackedFrom) as f64 / after as f64,
        }
    }
}

#[derive(Debug, Default)]
struct Row([AtomicU64; Count::ALL.len()]);

/// Rows by keyspace; they only become more.
#[derive(Debug, Default)]
struct Rows(RwLock<Vec<Arc<Row>>>);

impl Rows {
    fn row(&self, keyspace: usize) -> Arc<Row> {
        if let Some(row) = self.0.read().get(keyspace) {
            return row.clone();
        }
        let mut rows = self.0.write();
        while rows.len() <= keyspace {
            rows.push(Arc::default());
        }
        rows[keyspace].clone()
    }
}

/// The counts of all workers.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    shared: Rows,
    workers: RwLock<Vec<Arc<Rows>>>,
}

impl Tally {
    /// Counts from any thread.
    pub(crate) fn add(&self, keyspace: Id, count: Count) {
        self.add_many(keyspace, count, 1);
    }

    /// The same, so many at once.
    pub(crate) fn add_many(&self, keyspace: Id, count: Count, by: u64) {
        self.shared.row(keyspace.index()).0[count as usize].fetch_add(by, Ordering::Relaxed);
    }

    /// A further worker's counts.
    pub(crate) fn worker(&self) -> WorkerTally {
        let rows = Arc::<Rows>::default();
        self.workers.write().push(rows.clone());
        WorkerTally { rows, near: RefCell::default() }
    }

    /// One keyspace's counts of this moment.
    pub(crate) fn of(&self, keyspace: usize) -> Counts {
        let mut sum = Counts::default();
        let mut add = |rows: &Rows| {
            if let Some(row) = rows.0.read().get(keyspace) {
                sum.0.iter_mut().zip(&row.0).for_each(|(sum, count)| *sum += count.load(Ordering::Relaxed));
            }
        };
        add(&self.shared);
        self.workers.read().iter().for_each(|rows| add(rows));
        sum
    }
}

/// The counts that one worker adds to.
#[derive(Debug)]
pub(crate) struct WorkerTally {
    rows: Arc<Rows>,
    /// The same rows, to be had without a lock.
    near: RefCell<Vec<Arc<Row>>>,
}

impl WorkerTally {
    /// No atomic addition: only this worker writes.
    pub(crate) fn add(&self, keyspace: Id, count: Count) {
        let mut near = self.near.borrow_mut();
        while near.len() <= keyspace.index() {
            let next = self.rows.row(near.len());
            near.push(next);
        }
        let cell = &near[keyspace.index()].0[count as usize];
        cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspaces::Names;

    #[test]
    fn workers_and_other_threads_add_up() {
        let tally = Tally::default();
        let (one, two) = (tally.worker(), tally.worker());
        let names = Names::default();
        let keyspace = ["a", "b", "c"].map(|name| names.id(name))[2];
        one.add(keyspace, Count::HitL1);
        two.add(keyspace, Count::HitL1);
        two.add(Id::default(), Count::Miss);
        tally.add(keyspace, Count::Fill);
        let counts = tally.of(3);
        assert_eq!([Count::HitL1, Count::Miss, Count::Fill].map(|count| counts.get(count)), [2, 0, 1]);
        assert_eq!(tally.of(0).get(Count::Miss), 1);
        assert_eq!(tally.of(9).get(Count::Miss), 0);
    }
}
