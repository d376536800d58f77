//! The shared half of the cache: kernel, L2 and their counters. Fills, removals, maintenance, explanations.
//!
//! One [`Cache`] per process, in an `Arc`; each worker reads through its own [`Worker`](crate::Worker). It stores what it
//! is given under a fill token and judges nothing but that token: what to cache, and for how long, is the caller's.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::Equivalent;
use thiserror::Error;

use crate::clock::Moment;
use crate::entry::{Entry, Parts, Shared};
use crate::hash::TierHash;
use crate::hold::{Hold, Packed};
use crate::in_flight::Held;
use crate::kernel::{Evidence, FillToken, Kernel, KernelConfig, Verdict};
use crate::l1::L1Config;
use crate::l2::{GroupSize, L2, L2Config, Refusal, Times};
use crate::stats::{Counter, SharedStats, Stats};
use crate::worker::Worker;

/// What key and value of an entry own at most, whatever the budgets: 2 GiB.
pub(crate) const MAX_ENTRY_BYTES: usize = 2 << 30;

/// When entries move between L1 and L2.
#[derive(Clone, Debug)]
pub struct TieringConfig {
    /// So many L2 hits put an entry into the asking worker's L1; at least 1. Hits are counted up to 255: what is above
    /// is taken for 255, and `u16::MAX` for never.
    pub promote_after_hits: u16,
    /// An L1 slot not used for this long is given up.
    pub demote_after_idle: Duration,
}

impl Default for TieringConfig {
    fn default() -> Self {
        Self { promote_after_hits: 10, demote_after_idle: Duration::from_mins(5) }
    }
}

/// Everything a [`Cache`] is made from.
#[derive(Clone, Debug, Default)]
pub struct CacheConfig {
    /// Stamps, sources, the bound on staleness.
    pub kernel: KernelConfig,
    /// Bounds of each worker's L1.
    pub l1: L1Config,
    /// Bounds of L2.
    pub l2: L2Config,
    /// Movement between them.
    pub tiering: TieringConfig,
}

/// Why a fill was not installed. It still answers those who asked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FillRefused {
    /// The key was written or invalidated since the token was taken.
    #[error("the key was invalidated while it was read")]
    Invalidated,
    /// The source was flushed since the token was taken.
    #[error("the source was flushed while the key was read")]
    Flushed,
    /// The deadline is not in the future.
    #[error("already expired")]
    Expired,
    /// It does not fit into a shard of L2, with what is in flight at the moment, or is larger than 2 GiB.
    #[error("larger than a shard of L2; raise `l2.maxBytes`")]
    TooLarge,
}

/// Why a copy is, or is not, served: the material of `CACHE.WHY`.
#[derive(Clone, Debug)]
pub struct Why {
    /// The verdict on it; `Valid` is what a read would get.
    pub verdict: Verdict,
    /// Whether this worker's L1 points to it, too.
    pub in_l1: bool,
    /// Time since its read was sent, to about a tenth of a second; after twelve days it is counted anew.
    pub age: Duration,
    /// Time to its deadline; `None`: it does not expire.
    pub remaining: Option<Duration>,
    /// Stamps, flush counts and currency behind the verdict.
    pub evidence: Evidence,
    /// Hits the eviction policy has credited and not yet used up (capped).
    pub frequency: u8,
    /// What it counts against the budget.
    pub bytes: usize,
}

/// Kernel, L2 and counters, shared by all workers.
pub struct Cache<K: Hold, V: Hold> {
    pub(crate) kernel: Kernel,
    pub(crate) l2: L2<K, V>,
    pub(crate) stats: SharedStats,
    pub(crate) l1: L1Config,
    pub(crate) tiering: TieringConfig,
}

impl<K: Hold, V: Hold> std::fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("kernel", &self.kernel).finish_non_exhaustive()
    }
}

impl<K, V> Cache<K, V>
where
    K: Hold,
    K::Held: Eq,
    V: Hold,
{
    /// An empty cache.
    pub fn new(config: CacheConfig) -> Arc<Self> {
        Arc::new(Self {
            kernel: Kernel::new(&config.kernel),
            l2: L2::new(&config.l2),
            stats: SharedStats::new(),
            l1: config.l1,
            tiering: config.tiering,
        })
    }

    /// The coherence kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// A new worker's view, with an empty L1 of its own.
    pub fn worker(self: &Arc<Self>) -> Worker<K, V> {
        Worker::new(self.clone())
    }

    /// Installs what was read under `token`, in place of any older copy; dropped if the token is no longer current.
    ///
    /// `deadline` is the time before sending plus what L3 says the key has left to live, or [`Moment::NEVER`].
    pub fn fill(
        &self,
        token: &FillToken,
        hash: TierHash,
        key: K,
        value: V,
        deadline: Moment,
        now: Moment,
    ) -> Result<Shared<K, V>, FillRefused> {
        let ((key, key_tail), (value, value_tail)) = (key.split(), value.split());
        let key = Parts { field: key, tail: key_tail.as_ref() };
        let value = Parts { field: value, tail: value_tail.as_ref() };
        self.fill_parts(token, hash, key, value, deadline, now)
    }

    fn fill_parts(
        &self,
        token: &FillToken,
        hash: TierHash,
        key: Parts<'_, K>,
        value: Parts<'_, V>,
        deadline: Moment,
        now: Moment,
    ) -> Result<Shared<K, V>, FillRefused> {
        let filled = self.try_fill(token, hash, key, value, deadline, now);
        if let Err(refused) = &filled {
            self.stats.add(match refused {
                FillRefused::Invalidated => Counter::RefusedInvalidated,
                FillRefused::Flushed => Counter::RefusedFlushed,
                FillRefused::Expired => Counter::RefusedExpired,
                FillRefused::TooLarge => Counter::RefusedTooLarge,
            });
        }
        filled
    }

    fn try_fill(
        &self,
        token: &FillToken,
        hash: TierHash,
        key: Parts<'_, K>,
        value: Parts<'_, V>,
        deadline: Moment,
        now: Moment,
    ) -> Result<Shared<K, V>, FillRefused> {
        let (basis, deadline) = self.kernel.settle(token, deadline).map_err(|moved| match moved {
            Verdict::Flushed => FillRefused::Flushed,
            _ => FillRefused::Invalidated,
        })?;
        let times = Times::new(deadline, token.sent().at());
        if times.deadline() <= now {
            return Err(FillRefused::Expired);
        }
        let (entry, own) = Entry::pair(basis, key, value);
        if entry.bytes() > MAX_ENTRY_BYTES {
            return Err(FillRefused::TooLarge);
        }
        match self.l2.insert(hash, own, times, &self.kernel) {
            Ok(()) => Ok(entry),
            Err(Refusal::TooLarge) => Err(FillRefused::TooLarge),
            Err(Refusal::Outdated | Refusal::NotYet) => Err(FillRefused::Invalidated),
        }
    }

    /// The copy in L2, judged as of `now`: a read by a caller without a worker. Counts as a hit or a miss of L2.
    pub fn find<Q>(&self, hash: TierHash, key: &Q, now: Moment) -> Option<Shared<K, V>>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        let Some((entry, times)) = self.l2.find(hash, key) else {
            self.stats.add(Counter::MissAbsent);
            return None;
        };
        let counter = match entry.verdict(&self.kernel, times.deadline(), now) {
            Verdict::Valid(_) => {
                self.l2.credit(&entry);
                self.stats.add(Counter::HitL2);
                return Some(entry);
            }
            Verdict::Lapsed => Counter::UncertainLapsed,
            Verdict::Flushed => Counter::UncertainFlushed,
            Verdict::Invalidated => Counter::MissInvalidated,
            Verdict::Expired => Counter::MissExpired,
        };
        self.stats.add(counter);
        None
    }

    /// The entry in L2, whatever its state, leaving no trace: for changing its form.
    pub fn peek<Q>(&self, hash: TierHash, key: &Q) -> Option<Shared<K, V>>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        self.l2.peek(hash, key).map(|(entry, _)| entry)
    }

    /// Puts another form of `old`'s value in its place, with all that `old` may be served under, if `old` is still there.
    /// `None`: it is not, or the new form does not fit, and then `old` may be gone too.
    pub fn renew(&self, hash: TierHash, old: &Shared<K, V>, key: K, value: V) -> Option<Shared<K, V>> {
        let ((key, key_tail), (value, value_tail)) = (key.split(), value.split());
        let key = Parts { field: key, tail: key_tail.as_ref() };
        let value = Parts { field: value, tail: value_tail.as_ref() };
        let entry = Entry::new(old.basis(), key, value);
        entry.inherit(old);
        self.l2.renew(hash, old, &entry, &self.kernel).then_some(entry)
    }

    /// Removes the copy of one tier key from L2, and so from every L1. `true`: there was one.
    pub fn remove<Q>(&self, hash: TierHash, key: &Q) -> bool
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        self.l2.remove(hash, key, &self.kernel)
    }

    /// Calls `visit` for the key of every entry in L2, whatever its state, in slices between which others use L2: what is
    /// there all the while is visited.
    pub fn for_each_key(&self, visit: impl FnMut(&K::Held)) {
        self.l2.for_each_key(visit);
    }

    /// Removes everything.
    pub fn clear(&self) {
        self.l2.clear(&self.kernel);
    }

    /// One slice of maintenance of L2: frees what has expired, in at most `steps` steps. `true`: there may be
    /// more; come back soon.
    pub fn maintain(&self, now: Moment, steps: usize) -> bool {
        self.l2.expire(now, steps, &self.kernel)
    }

    /// Explains the copy in L2, without counting as a read; `None`: there is none.
    pub fn why<Q>(&self, hash: TierHash, key: &Q, now: Moment) -> Option<Why>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        let (entry, times) = self.l2.peek(hash, key)?;
        let deadline = times.deadline();
        Some(Why {
            verdict: entry.verdict(&self.kernel, deadline, now),
            in_l1: false,
            age: now.since(times.read_at(now)),
            remaining: (deadline != Moment::NEVER).then(|| deadline.since(now)),
            evidence: self.kernel.evidence(&entry.basis(), now),
            frequency: entry.chances(),
            bytes: entry.bytes(),
        })
    }

    /// Counts what happens to flights, which the cache does not see.
    pub fn count(&self, counter: Counter) {
        self.stats.add(counter);
    }

    /// Counts so many bytes against the budget of L2 until what is returned is dropped, and lets entries go for them: what
    /// was read and is no entry yet, or is no entry any more and still has to be written to somebody.
    ///
    /// ```
    /// # use caddy_engine::{Cache, CacheConfig, Packed};
    /// # use bytes::Bytes;
    /// let cache = Cache::<Packed, Packed>::new(CacheConfig::default());
    /// let reply = Bytes::from_static(b"$3\r\nAda\r\n");
    /// let reply = cache.hold(reply.len()).with(reply);
    /// assert_eq!(cache.stats().in_flight_bytes, 9);
    /// drop(reply);
    /// assert_eq!(cache.stats().in_flight_bytes, 0);
    /// ```
    pub fn hold(&self, bytes: usize) -> Held {
        self.l2.hold(bytes, &self.kernel)
    }

    /// The budget of L2 at the moment.
    pub fn l2_max_bytes(&self) -> usize {
        self.l2.max_bytes()
    }

    /// Changes the budget of L2. Nothing is put in above it from now on; what is there above it goes with
    /// [`shrink`](Self::shrink).
    pub fn set_l2_max_bytes(&self, max_bytes: usize) {
        self.l2.set_max_bytes(max_bytes);
    }

    /// One slice of getting L2 down to its budget. `true`: there may be more; come back soon.
    pub fn shrink(&self) -> bool {
        self.l2.shrink(&self.kernel)
    }

    /// Entries and their bytes by the [group](crate::Weigh::group) of their keys, as long as the greatest group there has
    /// been.
    pub fn groups(&self) -> Vec<GroupSize> {
        self.l2.groups()
    }

    /// All counters and sizes now.
    pub fn stats(&self) -> Stats {
        let mut counts = self.stats.counts();
        self.l2.add_counts(&mut counts);
        let (l2_entries, l2_bytes) = self.l2.sizes();
        let (l1_entries, l1_bytes) = self.stats.l1_sizes();
        let in_flight_bytes = self.l2.in_flight();
        Stats { counts, l1_entries, l1_bytes, l2_entries, l2_bytes, in_flight_bytes }
    }
}

impl Cache<Packed, Packed> {
    /// As [`fill`](Self::fill), copying the bytes straight into the entry: nothing else is allocated.
    pub fn fill_bytes(
        &self,
        token: &FillToken,
        hash: TierHash,
        key: &[u8],
        value: &[u8],
        deadline: Moment,
        now: Moment,
    ) -> Result<Shared<Packed, Packed>, FillRefused> {
        let (key, value) = (Parts { field: (), tail: key }, Parts { field: (), tail: value });
        self.fill_parts(token, hash, key, value, deadline, now)
    }
}
