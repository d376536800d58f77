//! One worker's view of the cache: its L1 in front of the shared L2. The hit path of the whole product.
//!
//! Owned by one thread. A hit allocates nothing and takes no lock (L1) or one shard's (L2); it never changes threads.
//! It serves a copy only on the kernel's verdict, and never fails: the worst answer is a miss.

use std::sync::Arc;

use hashbrown::Equivalent;

use crate::cache::{Cache, Why};
use crate::clock::Moment;
use crate::entry::Shared;
use crate::hash::TierHash;
use crate::hold::Hold;
use crate::kernel::{Currency, SourceId, Verdict};
use crate::l1::{Found, L1};
use crate::stats::{Counter, WorkerStats};

/// Where a copy was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The worker's own.
    L1,
    /// Shared by the workers.
    L2,
}

impl Tier {
    /// What a hit in it is counted as.
    pub const fn counter(self) -> Counter {
        match self {
            Self::L1 => Counter::HitL1,
            Self::L2 => Counter::HitL2,
        }
    }
}

/// The answer to a read.
#[derive(Debug)]
pub enum Lookup<'a, K: Hold, V: Hold> {
    /// Serve it.
    Hit(Hit<'a, K, V>),
    /// There is a copy that cannot be vouched for.
    Uncertain(Uncertain<'a, K, V>),
    /// Read L3.
    Miss(Miss),
}

/// A copy that may be served at the moment of the lookup.
#[derive(Debug)]
pub struct Hit<'a, K: Hold, V: Hold> {
    /// The copy; clone it to keep it beyond the next lookup.
    pub entry: &'a Shared<K, V>,
    /// When it expires; [`Moment::NEVER`] if it does not.
    pub deadline: Moment,
    /// Where it was.
    pub tier: Tier,
    /// Its source was last proven current a while ago: ask [`claim_probe`](crate::kernel::Kernel::claim_probe) whether
    /// to send a probe. The hit stands.
    pub probe_due: bool,
    /// How many seconds ago, more or less, this L1 served the copy before; `None`: it did not lately. What a
    /// [sample of reads](crate::reuse) need not look at is told by it.
    pub idle: Option<u32>,
}

/// A copy whose stamp is current but whose source is not known to be.
#[derive(Debug)]
pub struct Uncertain<'a, K: Hold, V: Hold> {
    /// The copy, for stale serving.
    pub entry: &'a Shared<K, V>,
    /// What is missing.
    pub doubt: Doubt,
}

/// Why a copy cannot be vouched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// Its source is lapsed: wait for a probe (with a deadline) and look again.
    Lapsed,
    /// Its source was flushed after a loss: read L3; this copy is only for when that fails.
    Flushed,
}

/// Why there is nothing to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Miss {
    /// No copy.
    Absent,
    /// Overwritten since.
    Invalidated,
    /// At or past its deadline.
    Expired,
}

impl Doubt {
    /// What it is counted as.
    pub const fn counter(self) -> Counter {
        match self {
            Self::Lapsed => Counter::UncertainLapsed,
            Self::Flushed => Counter::UncertainFlushed,
        }
    }
}

impl Miss {
    /// What it is counted as.
    pub const fn counter(self) -> Counter {
        match self {
            Self::Absent => Counter::MissAbsent,
            Self::Invalidated => Counter::MissInvalidated,
            Self::Expired => Counter::MissExpired,
        }
    }
}

/// A worker's L1 with its way into L2. Not for sharing: one per thread.
pub struct Worker<K, V>
where
    K: Hold,
    K::Held: Eq,
    V: Hold,
{
    cache: Arc<Cache<K, V>>,
    l1: L1<K, V>,
    /// The last copy found in L2, kept so that every answer can be a reference.
    held: Option<Shared<K, V>>,
    stats: Arc<WorkerStats>,
    promote_after_hits: u16,
    sweep: u32,
}

impl<K, V> std::fmt::Debug for Worker<K, V>
where
    K: Hold,
    K::Held: Eq,
    V: Hold,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("l1", &self.l1.sizes()).finish_non_exhaustive()
    }
}

impl<K, V> Worker<K, V>
where
    K: Hold,
    K::Held: Eq,
    V: Hold,
{
    pub(crate) fn new(cache: Arc<Cache<K, V>>) -> Self {
        let stats = cache.stats.enrol();
        let promote_after_hits = match cache.tiering.promote_after_hits {
            _ if cache.l1.max_entries == 0 => u16::MAX,
            u16::MAX => u16::MAX,
            // No more are counted.
            after => after.min(u16::from(u8::MAX)),
        };
        let mut l1 = cache.l1.clone();
        if promote_after_hits == u16::MAX {
            l1.max_entries = 0;
        }
        Self { l1: L1::new(l1), held: None, stats, cache, promote_after_hits, sweep: 0 }
    }

    /// The shared half.
    pub fn cache(&self) -> &Arc<Cache<K, V>> {
        &self.cache
    }

    /// Reads `key` as of `now`, which was read from the clock before this call and after the request came.
    ///
    /// L1 first, then L2, each judged by the kernel: currency, stamp, deadline, flush.
    #[inline]
    pub fn lookup<Q>(&mut self, hash: TierHash, key: &Q, now: Moment) -> Lookup<'_, K, V>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        let Some(found) = self.l1.find(hash, |entry| key.equivalent(entry.key())) else {
            return self.lookup_l2(hash, key, now);
        };
        let is_fresh = self
            .l1
            .entry(found)
            .is_some_and(|(entry, deadline)| !entry.is_dead() && entry.is_fresh(&self.cache.kernel, deadline, now));
        if is_fresh { self.hit_l1(found, Currency::Proven, now) } else { self.lookup_doubtful(found, hash, key, now) }
    }

    #[inline]
    fn hit_l1(&mut self, found: Found, currency: Currency, now: Moment) -> Lookup<'_, K, V> {
        let (entry, deadline, idle) = self.l1.touch(found, now);
        entry.credit();
        self.stats.add(Counter::HitL1, 1);
        let probe_due = currency == Currency::DueForProbe;
        Lookup::Hit(Hit { entry, deadline, tier: Tier::L1, probe_due, idle })
    }

    /// L1 has a copy that is not plainly fresh.
    #[inline(never)]
    fn lookup_doubtful<Q>(&mut self, found: Found, hash: TierHash, key: &Q, now: Moment) -> Lookup<'_, K, V>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        let copy = self.l1.entry(found).filter(|(entry, _)| !entry.is_dead());
        match copy.map(|(entry, deadline)| self.judge(entry, deadline, now)) {
            Some(Verdict::Valid(currency)) => return self.hit_l1(found, currency, now),
            // The slot is good again as soon as the source is proven; L2 holds the same copy for the answer.
            Some(Verdict::Lapsed) => {}
            _ => {
                self.l1.remove(found);
                self.stats.set_l1_sizes(self.l1.sizes());
            }
        }
        self.lookup_l2(hash, key, now)
    }

    #[inline]
    fn judge(&self, entry: &Shared<K, V>, deadline: Moment, now: Moment) -> Verdict {
        entry.verdict(&self.cache.kernel, deadline, now)
    }

    /// Apart, so that the path of an L1 hit stays small.
    #[inline(never)]
    fn lookup_l2<Q>(&mut self, hash: TierHash, key: &Q, now: Moment) -> Lookup<'_, K, V>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        let Some((entry, times)) = self.cache.l2.find(hash, key) else {
            self.held = None;
            self.stats.add(Counter::MissAbsent, 1);
            return Lookup::Miss(Miss::Absent);
        };
        let deadline = times.deadline();
        let fresh = entry.is_fresh(&self.cache.kernel, deadline, now);
        let verdict = if fresh { Verdict::Valid(Currency::Proven) } else { self.judge(&entry, deadline, now) };
        let entry = &*self.held.insert(entry);
        match verdict {
            Verdict::Valid(currency) => {
                self.stats.add(Counter::HitL2, 1);
                self.cache.l2.credit(entry);
                if u16::from(entry.count_l2_hit()) >= self.promote_after_hits && !entry.is_dead() {
                    put_into_l1(&mut self.l1, &self.stats, (hash, entry, deadline), now);
                }
                let probe_due = currency == Currency::DueForProbe;
                Lookup::Hit(Hit { entry, deadline, tier: Tier::L2, probe_due, idle: None })
            }
            Verdict::Lapsed => {
                self.stats.add(Counter::UncertainLapsed, 1);
                Lookup::Uncertain(Uncertain { entry, doubt: Doubt::Lapsed })
            }
            Verdict::Flushed => {
                self.stats.add(Counter::UncertainFlushed, 1);
                Lookup::Uncertain(Uncertain { entry, doubt: Doubt::Flushed })
            }
            Verdict::Invalidated => {
                self.stats.add(Counter::MissInvalidated, 1);
                Lookup::Miss(Miss::Invalidated)
            }
            Verdict::Expired => {
                self.stats.add(Counter::MissExpired, 1);
                Lookup::Miss(Miss::Expired)
            }
        }
    }

    /// Counts the last lookup as something else than it was: for a copy that was looked at, and then not served.
    pub fn recount(&mut self, from: Counter, to: Counter) {
        self.stats.take_back(from);
        self.stats.add(to, 1);
    }

    /// Puts the copy of `key` into this worker's L1 at once, if L2 has one that may be served: for what is known to be hot.
    pub fn promote<Q>(&mut self, hash: TierHash, key: &Q, now: Moment)
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        if let Some((entry, times)) = self.cache.l2.peek(hash, key)
            && let deadline = times.deadline()
            && matches!(self.judge(&entry, deadline, now), Verdict::Valid(_))
        {
            put_into_l1(&mut self.l1, &self.stats, (hash, &entry, deadline), now);
        }
    }

    /// Whether copies of `source` may be served now.
    pub fn currency(&self, source: SourceId, now: Moment) -> Currency {
        self.cache.kernel.currency(source, now)
    }

    /// One slice of L1's maintenance, at most `steps` slots: gives up idle and dead ones. Call it now and then from the
    /// worker's own loop; every `maintenance_interval` is enough.
    pub fn maintain(&mut self, now: Moment, steps: u32) {
        self.held = None;
        let (next, idle) = self.l1.sweep(self.sweep, steps, now, self.cache.tiering.demote_after_idle);
        self.sweep = next;
        self.stats.add(Counter::DemotedIdle, idle as u64);
        self.stats.set_l1_sizes(self.l1.sizes());
    }

    /// Explains the copy of `key`, without counting as a read; `None`: there is none.
    pub fn why<Q>(&self, hash: TierHash, key: &Q, now: Moment) -> Option<Why>
    where
        Q: Equivalent<K::Held> + ?Sized,
    {
        let mut why = self.cache.why(hash, key, now)?;
        why.in_l1 = self
            .l1
            .find(hash, |entry| key.equivalent(entry.key()))
            .and_then(|found| self.l1.entry(found))
            .is_some_and(|(entry, _)| !entry.is_dead());
        Some(why)
    }

    /// Entries in this worker's L1 and their bytes.
    pub fn l1_sizes(&self) -> (usize, usize) {
        self.l1.sizes()
    }
}

fn put_into_l1<K, V>(
    l1: &mut L1<K, V>,
    stats: &WorkerStats,
    (hash, entry, deadline): (TierHash, &Shared<K, V>, Moment),
    now: Moment,
) where
    K: Hold,
    K::Held: Eq,
    V: Hold,
{
    let Some(demoted) = l1.insert(hash, entry, deadline, now) else { return };
    stats.add(Counter::Promoted, 1);
    stats.add(Counter::DemotedForRoom, demoted as u64);
    stats.set_l1_sizes(l1.sizes());
}

impl<K, V> Drop for Worker<K, V>
where
    K: Hold,
    K::Held: Eq,
    V: Hold,
{
    fn drop(&mut self) {
        self.cache.stats.retire(&self.stats);
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
