//! What the tiers did and hold, tier by tier; made from the engine's counters and the few that only this layer can see.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{CacheKey, CacheValue, MultiTierCache};
use crate::stats::Counter;

/// One of the three tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheTier {
    /// A thread's own.
    L1,
    /// This process's.
    L2,
    /// Everybody's.
    L3,
}

/// Entries and bytes of one tier; see [`MultiTierCache::tier_sizes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierSizes {
    /// Entries in all threads' L1s. An entry that two threads read counts twice; a dead one, until its thread comes by.
    pub l1_entries: u64,
    /// Bytes of those entries; they are L2's, not further ones.
    pub l1_bytes: u64,
    /// Entries in L2.
    pub l2_entries: usize,
    /// Bytes of L2: keys, values and metadata, with those of dead entries that an L1 still points to.
    pub l2_bytes: usize,
    /// Entries in L3, if it can tell.
    pub l3_entries: Option<usize>,
    /// Bytes of L3, if it can tell.
    pub l3_bytes: Option<usize>,
}

/// Entries that went down a tier, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demotions {
    /// To make room for others.
    pub for_room: u64,
    /// Nobody asked for them.
    pub idle: u64,
}

/// Entries that left a tier and are in none above, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// To make room for others.
    pub for_room: u64,
    /// To make room, and they were invalid anyway.
    pub invalid: u64,
    /// Past their deadline.
    pub expired: u64,
    /// A newer copy came.
    pub replaced: u64,
    /// On request.
    pub removed: u64,
}

/// Copies that were read but not kept, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Their key was written while they were read.
    pub invalidated: u64,
    /// Their L3 was flushed or lost while they were read.
    pub flushed: u64,
    /// They had no time left.
    pub expired: u64,
    /// They are larger than the tier takes.
    pub too_large: u64,
}

/// What one tier did since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Reads it answered.
    pub hits: u64,
    /// Reads that went on to the next tier, or from L3 to nobody.
    pub misses: u64,
    /// Entries that came up into it from the tier below: into L2 by fills.
    pub promotions: u64,
    /// Entries that went down from it to the tier below.
    pub demotions: Demotions,
    /// Entries that left it altogether.
    pub evictions: Evictions,
    /// Copies that it did not take.
    pub refused: Refusals,
    /// Reads that it failed to answer: L3 only.
    pub errors: u64,
}

impl TierStats {
    /// The share of the reads that came to this tier which it answered, between 0 and 1; 0 before the first.
    pub fn hit_rate(&self) -> f64 {
        rate(self.hits, self.misses + self.errors)
    }
}

fn rate(hits: u64, others: u64) -> f64 {
    if hits == 0 { 0.0 } else { hits as f64 / (hits + others) as f64 }
}

/// What a cache did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// All threads' L1s.
    pub l1: TierStats,
    /// L2.
    pub l2: TierStats,
    /// L3, as far as this cache used it.
    pub l3: TierStats,
    /// Loaders that were run.
    pub loads: u64,
    /// Of these, those that failed or panicked.
    pub load_failures: u64,
    /// Of these, those whose value was not stored: it came too late, or L3 did not take it.
    pub loads_not_stored: u64,
    /// Calls that were answered with a stale value.
    pub stale_served: u64,
}

impl CacheStats {
    /// One tier's.
    pub fn tier(&self, tier: CacheTier) -> &TierStats {
        match tier {
            CacheTier::L1 => &self.l1,
            CacheTier::L2 => &self.l2,
            CacheTier::L3 => &self.l3,
        }
    }
}

/// What the engine's counters do not see.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) l3_hits: AtomicU64,
    pub(super) l3_misses: AtomicU64,
    pub(super) l3_errors: AtomicU64,
    pub(super) loads: AtomicU64,
    pub(super) load_failures: AtomicU64,
    pub(super) loads_not_stored: AtomicU64,
    pub(super) stale_served: AtomicU64,
}

impl Counts {
    pub(super) fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl<K: CacheKey, V: CacheValue> MultiTierCache<K, V> {
    /// The share of reads that L1 or L2 answered, between 0 and 1; 0 before the first. That L3 is known to have none is an
    /// answer too, also where a loader is then asked.
    pub fn hit_rate(&self) -> f64 {
        self.inner.cache.stats().hit_rate()
    }

    /// What each tier holds now.
    pub fn tier_sizes(&self) -> TierSizes {
        let stats = self.inner.cache.stats();
        let l3 = self.inner.remote.sizes();
        TierSizes {
            l1_entries: stats.l1_entries,
            l1_bytes: stats.l1_bytes,
            l2_entries: stats.l2_entries,
            l2_bytes: stats.l2_bytes,
            l3_entries: l3.map(|(entries, _)| entries),
            l3_bytes: l3.map(|(_, bytes)| bytes),
        }
    }

    /// What each tier did.
    pub fn stats(&self) -> CacheStats {
        let stats = self.inner.cache.stats();
        let counts = &self.inner.counts;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let sum = |counters: &[Counter]| counters.iter().map(|&counter| stats.get(counter)).sum::<u64>();
        let l2_misses = sum(&[
            Counter::MissAbsent,
            Counter::MissInvalidated,
            Counter::MissExpired,
            Counter::MissUnusable,
            Counter::UncertainFlushed,
            Counter::UncertainLapsed,
        ]);
        let l1 = TierStats {
            hits: stats.get(Counter::HitL1),
            misses: stats.get(Counter::HitL2) + l2_misses,
            promotions: stats.get(Counter::Promoted),
            demotions: Demotions {
                for_room: stats.get(Counter::DemotedForRoom),
                idle: stats.get(Counter::DemotedIdle),
            },
            ..TierStats::default()
        };
        let l2 = TierStats {
            hits: stats.get(Counter::HitL2),
            misses: l2_misses,
            promotions: stats.get(Counter::Filled),
            evictions: Evictions {
                for_room: stats.get(Counter::EvictedForRoom),
                invalid: stats.get(Counter::EvictedVoid),
                expired: stats.get(Counter::Expired),
                replaced: stats.get(Counter::Replaced),
                removed: stats.get(Counter::Removed),
            },
            refused: Refusals {
                invalidated: stats.get(Counter::RefusedInvalidated),
                flushed: stats.get(Counter::RefusedFlushed),
                expired: stats.get(Counter::RefusedExpired),
                too_large: stats.get(Counter::RefusedTooLarge),
            },
            ..TierStats::default()
        };
        let l3 = TierStats {
            hits: of(&counts.l3_hits),
            misses: of(&counts.l3_misses),
            errors: of(&counts.l3_errors),
            ..TierStats::default()
        };
        CacheStats {
            l1,
            l2,
            l3,
            loads: of(&counts.loads),
            load_failures: of(&counts.load_failures),
            loads_not_stored: of(&counts.loads_not_stored),
            stale_served: of(&counts.stale_served),
        }
    }
}
