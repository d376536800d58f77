//! Sizes, times and policies of a [`MultiTierCache`](crate::MultiTierCache). Nothing here fails: every value has a meaning.

use std::time::Duration;

use crate::cache::{CacheConfig, MAX_ENTRY_BYTES, TieringConfig};
use crate::kernel::KernelConfig;
use crate::l1::L1Config;
use crate::l2::L2Config;
use crate::policy::PolicyKind;

/// What one tier may hold. Both bounds count; a tier of zero holds nothing and everything goes past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierSize {
    /// Entries.
    pub max_entries: usize,
    /// Bytes: keys, values and metadata.
    pub max_bytes: usize,
}

/// Entries for which one more shard is worth its lock.
const SHARD_ENTRIES: usize = 1024;
/// An entry must fit into a shard, so shards are not made smaller than this.
const SHARD_BYTES: usize = 4 << 20;
const MAX_SHARDS: usize = 64;

impl TierSize {
    /// So many entries, so many bytes.
    pub const fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { max_entries, max_bytes }
    }

    pub(crate) const fn is_nothing(self) -> bool {
        self.max_entries == 0 || self.max_bytes == 0
    }

    /// A power of two.
    fn shards(self) -> usize {
        let shards = (self.max_entries / SHARD_ENTRIES).min(self.max_bytes / SHARD_BYTES).clamp(1, MAX_SHARDS);
        1 << shards.ilog2()
    }

    /// Bytes that one entry can have at most.
    pub(crate) fn largest_entry(self) -> usize {
        (self.max_bytes / self.shards()).min(MAX_ENTRY_BYTES)
    }

    pub(crate) fn l2(self) -> L2Config {
        let shards = self.shards();
        // A whole number per shard: L2 would round up.
        let max_entries = if self.max_entries == usize::MAX { usize::MAX } else { self.max_entries / shards * shards };
        L2Config { max_bytes: self.max_bytes, max_entries, shards, ..L2Config::default() }
    }
}

/// Everything a [`MultiTierCache`](crate::MultiTierCache) is made from.
///
/// ```
/// use caddy_engine::{TierConfig, TierSize};
/// use std::time::Duration;
///
/// let config = TierConfig {
///     l2: TierSize::new(50_000, 256 << 20),
///     stale_if_error: Duration::from_secs(600),
///     ..TierConfig::default()
/// };
/// assert_eq!(config.l1.max_entries, 1_000);
/// assert_eq!(config.promote_after_hits, 10);
/// ```
#[derive(Clone, Debug)]
pub struct TierConfig {
    /// L1, of each thread that reads. It points into L2: its bytes are those of the entries pointed to, not more memory.
    pub l1: TierSize,
    /// L2, shared by all threads. An entry can be as large as a shard, of which there are at most one per 4 MiB, up to 2 GiB.
    pub l2: TierSize,
    /// L3, where it is [in this process](crate::InProcess); any other bounds itself.
    pub l3: TierSize,
    /// Which entry leaves when L2 is full.
    pub policy: PolicyKind,
    /// So many L2 hits put an entry into the asking thread's L1; at least 1.
    pub promote_after_hits: u16,
    /// An L1 slot that was not used for so long is given up.
    pub demote_after_idle: Duration,
    /// How often idle slots and expired entries are looked for. It is done by whoever comes by, a bounded slice at a time.
    pub maintenance_interval: Duration,
    /// Counters that invalidations go by, 8 bytes each, rounded up to a power of two. Keys that share one cost each other a
    /// spare miss; a cache of few keys can do with few.
    pub stamps: u32,
    /// Copies are served only while their L3 was proven current within this time.
    pub max_staleness: Duration,
    /// How long "L3 has no such key" is remembered at most. Zero: not at all.
    pub negative_ttl: Duration,
    /// How long values that [`insert`](crate::MultiTierCache::insert) and loaders bring are fresh; `None`: until they are
    /// overwritten.
    pub ttl: Option<Duration>,
    /// How long after that they are kept for when a load fails.
    pub stale_if_error: Duration,
    /// How long one loader has a key for itself. A loader that takes longer is overtaken by the next caller's, and what it
    /// brings is not stored.
    pub loader_lease: Duration,
    /// How long a call waits for L3, for another caller's read or for a loader, its own included.
    pub wait_timeout: Duration,
    /// Callers that may wait for one key at a time; more are refused by [`get_or_load`](crate::MultiTierCache::get_or_load)
    /// and read past the cache by [`get`](crate::MultiTierCache::get).
    pub max_waiters: usize,
}

impl Default for TierConfig {
    fn default() -> Self {
        Self {
            l1: TierSize::new(1_000, 8 << 20),
            l2: TierSize::new(10_000, 64 << 20),
            l3: TierSize::new(100_000, 512 << 20),
            policy: PolicyKind::default(),
            promote_after_hits: 10,
            demote_after_idle: Duration::from_mins(5),
            maintenance_interval: Duration::from_mins(1),
            stamps: 1 << 16,
            max_staleness: Duration::from_secs(1),
            negative_ttl: Duration::from_secs(5),
            ttl: None,
            stale_if_error: Duration::ZERO,
            loader_lease: Duration::from_secs(5),
            wait_timeout: Duration::from_secs(10),
            max_waiters: 65_536,
        }
    }
}

impl TierConfig {
    pub(crate) fn cache(&self) -> CacheConfig {
        CacheConfig {
            kernel: KernelConfig {
                stripes: self.stamps,
                max_sources: 1,
                max_staleness: self.max_staleness,
                ..KernelConfig::default()
            },
            l1: L1Config { max_entries: self.l1.max_entries, max_bytes: self.l1.max_bytes },
            l2: L2Config { policy: self.policy, ..self.l2.l2() },
            tiering: TieringConfig {
                promote_after_hits: self.promote_after_hits,
                demote_after_idle: self.demote_after_idle,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_promised() {
        let config = TierConfig::default();
        assert_eq!([config.l1, config.l2, config.l3].map(|tier| tier.max_entries), [1_000, 10_000, 100_000]);
        assert_eq!((config.promote_after_hits, config.demote_after_idle), (10, Duration::from_mins(5)));
        assert_eq!(config.maintenance_interval, Duration::from_mins(1));
    }

    #[test]
    fn a_tier_is_never_divided_so_that_its_bounds_are_exceeded() {
        for entries in [0, 1, 7, 1_023, 1_024, 10_000, 99_999, usize::MAX] {
            for bytes in [0, 1, 4 << 20, 64 << 20, usize::MAX] {
                let size = TierSize::new(entries, bytes);
                let l2 = size.l2();
                assert!(l2.shards.is_power_of_two() && l2.shards <= MAX_SHARDS);
                assert!(l2.max_entries <= entries && l2.max_entries.abs_diff(entries) < l2.shards);
                assert!(size.largest_entry() <= bytes);
            }
        }
    }
}
