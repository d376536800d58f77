//! Counters of everything the tiers do. Workers count their reads, and shards of L2 what comes and goes, in arrays of their
//! own and without atomic additions; what is rare is counted in one shared array. A snapshot is their sum.

use std::sync::Arc;

use crate::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $variant:ident => $name:literal,)*) => {
        /// What is counted. The names are stable: metrics are made of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($(#[doc = $doc])* $variant,)*
        }

        impl Counter {
            /// Every counter, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The counter's name in snake case, without prefix or unit.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

counters! {
    /// Reads served from L1.
    HitL1 => "hits_l1",
    /// Reads served from L2.
    HitL2 => "hits_l2",
    /// Reads that found nothing.
    MissAbsent => "misses_absent",
    /// Reads that found a copy whose key or database was overwritten since.
    MissInvalidated => "misses_invalidated",
    /// Reads that found a copy at or past its deadline.
    MissExpired => "misses_expired",
    /// Reads that found a copy that could not answer them.
    MissUnusable => "misses_unusable",
    /// Reads of keys that L3 is known not to have ([`absence`](crate::absence)), answered without asking it.
    Filtered => "filtered",
    /// Reads whose copy, or lack of one, was only counted, and which were answered from below in any case.
    Observed => "observed",
    /// Reads that found a copy whose source was flushed because invalidations may have been missed.
    UncertainFlushed => "uncertain_flushed",
    /// Reads that found a copy whose source is not proven current.
    UncertainLapsed => "uncertain_lapsed",
    /// Entries put into L1.
    Promoted => "promotions",
    /// Entries that left L1 for room.
    DemotedForRoom => "demotions_room",
    /// Entries that left L1 because nobody asked for them.
    DemotedIdle => "demotions_idle",
    /// Fills installed in L2.
    Filled => "fills",
    /// Fills dropped: the key was written or invalidated while they were read.
    RefusedInvalidated => "fills_refused_invalidated",
    /// Fills dropped: their source was flushed while they were read.
    RefusedFlushed => "fills_refused_flushed",
    /// Fills dropped: already expired.
    RefusedExpired => "fills_refused_expired",
    /// Fills dropped: larger than a shard of the tier.
    RefusedTooLarge => "fills_refused_too_large",
    /// Entries that left L2 for room although they were valid or could have become so.
    EvictedForRoom => "evictions_room",
    /// Entries that left L2 for room and were invalid anyway.
    EvictedVoid => "evictions_void",
    /// Entries replaced by a newer copy.
    Replaced => "replacements",
    /// Entries removed on request.
    Removed => "removals",
    /// Entries freed by the timer wheel after their deadline.
    Expired => "expirations",
    /// Reads that led a flight.
    FlightLed => "flights_led",
    /// Reads that joined one.
    FlightJoined => "flights_joined",
    /// Reads refused because too many flights or waiters were there.
    FlightRefused => "flights_refused",
    /// Flights that ended without a reply.
    FlightFailed => "flights_failed",
}

const COUNT: usize = Counter::ALL.len();

/// Counters of one owner, who adds to them under a lock that it has anyway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts([u64; COUNT]);

impl Counts {
    pub(crate) const fn new() -> Self {
        Self([0; COUNT])
    }

    pub(crate) fn add(&mut self, counter: Counter) {
        self.0[counter as usize] += 1;
    }

    /// Adds all that `others` counted.
    pub(crate) fn sum(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(sum, count)| *sum += count);
    }
}

/// Counters that any thread may add to.
#[derive(Debug)]
pub(crate) struct SharedStats {
    counts: [AtomicU64; COUNT],
    workers: Mutex<Vec<Arc<WorkerStats>>>,
}

/// Counters that one thread adds to and all may read.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct WorkerStats {
    counts: [AtomicU64; COUNT],
    l1_entries: AtomicU64,
    l1_bytes: AtomicU64,
}

fn zeros() -> [AtomicU64; COUNT] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

impl SharedStats {
    pub(crate) fn new() -> Self {
        Self { counts: zeros(), workers: Mutex::new(Vec::new()) }
    }

    pub(crate) fn add(&self, counter: Counter) {
        self.counts[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn enrol(&self) -> Arc<WorkerStats> {
        let worker =
            Arc::new(WorkerStats { counts: zeros(), l1_entries: AtomicU64::new(0), l1_bytes: AtomicU64::new(0) });
        self.workers.lock().push(worker.clone());
        worker
    }

    /// A worker is gone: its counts stay.
    pub(crate) fn retire(&self, worker: &Arc<WorkerStats>) {
        let mut workers = self.workers.lock();
        if let Some(index) = workers.iter().position(|other| Arc::ptr_eq(other, worker)) {
            workers.swap_remove(index);
            for (total, count) in self.counts.iter().zip(&worker.counts) {
                total.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let workers = self.workers.lock();
        Counts(std::array::from_fn(|index| {
            let own = self.counts[index].load(Ordering::Relaxed);
            workers.iter().fold(own, |sum, worker| sum + worker.counts[index].load(Ordering::Relaxed))
        }))
    }

    /// Entries and bytes of all workers' L1s.
    pub(crate) fn l1_sizes(&self) -> (u64, u64) {
        self.workers.lock().iter().fold((0, 0), |(entries, bytes), worker| {
            (entries + worker.l1_entries.load(Ordering::Relaxed), bytes + worker.l1_bytes.load(Ordering::Relaxed))
        })
    }
}

impl WorkerStats {
    /// No atomic addition: only the owning worker writes.
    #[inline]
    pub(crate) fn add(&self, counter: Counter, count: u64) {
        let cell = &self.counts[counter as usize];
        cell.store(cell.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    /// Undoes one [`add`](Self::add).
    pub(crate) fn take_back(&self, counter: Counter) {
        let cell = &self.counts[counter as usize];
        cell.store(cell.load(Ordering::Relaxed).saturating_sub(1), Ordering::Relaxed);
    }

    /// What the worker's L1 holds now.
    pub(crate) fn set_l1_sizes(&self, (entries, bytes): (usize, usize)) {
        self.l1_entries.store(entries as u64, Ordering::Relaxed);
        self.l1_bytes.store(bytes as u64, Ordering::Relaxed);
    }
}

/// A snapshot of all counters and sizes.
#[derive(Clone, Debug)]
pub struct Stats {
    pub(crate) counts: Counts,
    /// Entries in all workers' L1s; one that two workers have counts twice.
    pub l1_entries: u64,
    /// Bytes of these entries. They are L2's, not further ones.
    pub l1_bytes: u64,
    /// Entries in L2.
    pub l2_entries: usize,
    /// Bytes of L2: keys, values and metadata, of what was let go of while somebody still points to it too.
    pub l2_bytes: usize,
    /// Bytes read but not in L2, or on the way to somebody, that count against L2's budget.
    pub in_flight_bytes: usize,
}

impl Stats {
    /// One counter's value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counts.0[counter as usize]
    }

    /// Every counter with its value.
    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter, self.get(counter)))
    }

    /// The share of reads that were served locally, between 0 and 1; 0 before the first read.
    pub fn hit_rate(&self) -> f64 {
        let sum = |counters: &[Counter]| counters.iter().map(|&counter| self.get(counter)).sum::<u64>();
        let hits = sum(&[Counter::HitL1, Counter::HitL2]);
        let misses = sum(&[
            Counter::MissAbsent,
            Counter::MissInvalidated,
            Counter::MissExpired,
            Counter::MissUnusable,
            Counter::UncertainFlushed,
            Counter::UncertainLapsed,
        ]);
        if hits == 0 { 0.0 } else { hits as f64 / (hits + misses) as f64 }
    }
}
