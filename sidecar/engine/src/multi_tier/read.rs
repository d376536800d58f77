//! Reads: this thread's L1, L2, then one read of L3 for all who ask.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::channel::oneshot;
use hashbrown::Equivalent;

use super::stats::Counts;
use super::threads::with_local;
use super::wait::{Lead, within};
use super::{CacheError, CacheKey, CacheTier, CacheValue, Inner, MultiTierCache, Record};
use crate::clock::Moment;
use crate::flights::{Joined, Wanted};
use crate::hash::KeyHash;
use crate::in_flight::Held;
use crate::kernel::{Currency, FillToken};
use crate::name::Name;
use crate::remote::Fetched;
use crate::worker::{Lookup, Tier};

/// What L3 said, as far as this cache goes: the fresh value, or one for when a load fails.
#[derive(Clone, Debug)]
pub(super) struct Answer<V> {
    pub(super) fresh: Option<V>,
    pub(super) stale: Option<V>,
}

pub(super) type Waiter<V> = oneshot::Sender<Result<Answer<V>, CacheError>>;

/// What L1 and L2 have.
pub(super) enum Local<V> {
    /// The answer, as good as L3's, and until when it is.
    Fresh(Option<V>, CacheTier, Moment),
    /// None. The value, if any, is for when a load fails.
    Nothing(Option<V>),
}

/// Slots that one visitor's slice of L2 maintenance looks at, per shard.
const SLICE: usize = 64;

impl<K: CacheKey, V: CacheValue> MultiTierCache<K, V> {
    /// The value under `key`: from L1, L2 or L3, never stale. `None`: L3 has none.
    ///
    /// # Errors
    ///
    /// L1 and L2 have no current copy, and L3 failed or did not answer within [`wait_timeout`](crate::TierConfig).
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let inner = &*self.inner;
        let now = inner.timer.now();
        match inner.look(key.key_hash(), key, now) {
            Local::Fresh(value, ..) => Ok(value),
            Local::Nothing(_) => {
                let deadline = now + inner.config.wait_timeout;
                let answer = Box::pin(inner.read_l3(key.to_owned(), deadline)).await?;
                Ok(answer.fresh)
            }
        }
    }

    /// The value under `key` if L1 or L2 has a current copy; asks nobody. `Some(None)`: L3 is known to have none.
    pub fn get_local<Q>(&self, key: &Q) -> Option<Option<V>>
    where
        Q: Name + Equivalent<K> + ?Sized,
    {
        match self.inner.look(key.key_hash(), key, self.inner.timer.now()) {
            Local::Fresh(value, ..) => Some(value),
            Local::Nothing(_) => None,
        }
    }

    /// As [`get_local`](Self::get_local), for values only, and whether the given part of the value's life is over, percent.
    pub(crate) fn get_with_life<Q>(&self, key: &Q) -> Option<(V, impl Fn(u32) -> bool + use<K, V, Q>)>
    where
        Q: Name + Equivalent<K> + ?Sized,
    {
        let inner = &*self.inner;
        let now = inner.timer.now();
        let Local::Fresh(Some(value), _, until) = inner.look(key.key_hash(), key, now) else { return None };
        let ttl = inner.config.ttl.filter(|_| until != Moment::NEVER);
        let is_due =
            move |percent: u32| ttl.is_some_and(|ttl| until.since(now) <= ttl / 100 * 100_u32.saturating_sub(percent));
        Some((value, is_due))
    }

    /// Frees what has expired in L2 and what is idle in this thread's L1, all of it. For programs that idle and want the
    /// memory back; nobody has to call it.
    pub fn maintain(&self) {
        let inner = &*self.inner;
        let now = inner.timer.now();
        // What L1 lets go of, L2 can free.
        with_local(&inner.token, &inner.cache, |local| local.worker.maintain(now, u32::MAX));
        while inner.cache.maintain(now, SLICE) {}
    }
}

impl<K: CacheKey, V: CacheValue> Inner<K, V> {
    /// L1, then L2.
    pub(super) fn look<Q>(&self, key_hash: KeyHash, key: &Q, now: Moment) -> Local<V>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let (found, probe_due) = with_local(&self.token, &self.cache, |local| {
            local.sweep_if_due(now, self.config.maintenance_interval);
            match local.worker.lookup(key_hash.tier(0), key, now) {
                Lookup::Hit(hit) => {
                    let record = hit.entry.value();
                    let value = record.value.clone();
                    let tier = if hit.tier == Tier::L1 { CacheTier::L1 } else { CacheTier::L2 };
                    let found = if record.is_fresh(now) {
                        Local::Fresh(value, tier, record.fresh_until)
                    } else {
                        Local::Nothing(value)
                    };
                    (found, hit.probe_due)
                }
                Lookup::Uncertain(uncertain) => {
                    let value = uncertain.entry.value().value.clone();
                    // Only who asked for stale answers gets them.
                    let value = value.filter(|_| !self.config.stale_if_error.is_zero());
                    (Local::Nothing(value), false)
                }
                Lookup::Miss(_) => (Local::Nothing(None), false),
            }
        });
        if probe_due {
            self.probe(now);
        }
        found
    }

    /// Asks L3 for a proof of currency, unless somebody just did.
    fn probe(&self, now: Moment) {
        if let Some(sent) = self.cache.kernel().claim_probe(self.source, now) {
            self.remote.probe(self.coherence.sending(sent));
        }
    }

    /// One read of L3 for all who ask for `key` now; it fills L2.
    pub(super) async fn read_l3(&self, key: K, deadline: Moment) -> Result<Answer<V>, CacheError> {
        let timed_out = || CacheError::TimedOut(self.config.wait_timeout);
        let key_hash = key.key_hash();
        loop {
            let now = self.timer.now();
            self.maintain_if_due(now);
            let wanted = Wanted { source: self.source, key_hash, hash: key_hash.tier(0), key: &key };
            let (sender, receiver) = oneshot::channel();
            let kernel = self.cache.kernel();
            match self.reads.join(kernel, &wanted, K::clone, sender, now, Moment::NEVER) {
                Joined::Lead(id, token) => {
                    let lead = Lead::new(&self.reads, id);
                    let read = within(&*self.timer, deadline, self.read_and_fill(&key, &token));
                    let (answer, _held) = read.await.ok_or_else(timed_out)?;
                    for waiter in lead.land().into_iter().flat_map(|landed| landed.waiters) {
                        // Who does not wait any more is not told.
                        let _ = waiter.send(answer.clone());
                    }
                    return answer;
                }
                Joined::Waiting(_) => match within(&*self.timer, deadline, receiver).await {
                    Some(Ok(answer)) => return answer,
                    // Whoever led it went away: somebody else has to.
                    Some(Err(oneshot::Canceled)) => {}
                    None => return Err(timed_out()),
                },
                Joined::Refused(_) => {
                    // Past the flights; what it reads is filled all the same.
                    let _unlisted = Unlisted::new(&self.unlisted);
                    let token = kernel.begin_fill(self.source, key_hash, now);
                    let read = within(&*self.timer, deadline, self.read_and_fill(&key, &token));
                    return read.await.ok_or_else(timed_out)?.0;
                }
            }
        }
    }

    /// What was read counts as in flight until whoever waits for it has been told.
    async fn read_and_fill(&self, key: &K, token: &FillToken) -> (Result<Answer<V>, CacheError>, Option<Held>) {
        // What is about to be filled is only served once its source is proven current: on the same stream, just before.
        if self.cache.kernel().currency(self.source, token.sent().at()) != Currency::Proven {
            self.probe(token.sent().at());
        }
        let fetched = match self.remote.read(key).await {
            Ok(fetched) => fetched,
            Err(error) => {
                Counts::add(&self.counts.l3_errors);
                return (Err(CacheError::Read(error)), None);
            }
        };
        let now = self.timer.now();
        let held = fetched.as_ref().map(|fetched| self.cache.hold(fetched.value.heap_bytes()));
        let (record, deadline) = record(fetched, token.sent().at(), self.config.negative_ttl);
        let fresh = record.is_fresh(now);
        let value = record.value.clone();
        let hit = fresh && value.is_some();
        Counts::add(if hit { &self.counts.l3_hits } else { &self.counts.l3_misses });
        // Refused where something was written meanwhile: counted, and the answer still is one for who asked before.
        let _ = self.cache.fill(token, key.key_hash().tier(0), key.clone(), record, deadline, now);
        let answer = if fresh { Answer { fresh: value, stale: None } } else { Answer { fresh: None, stale: value } };
        (Ok(answer), held)
    }

    /// A slice of L2's maintenance, when one is due.
    fn maintain_if_due(&self, now: Moment) {
        let due = self.next_maintenance.load(Ordering::Relaxed);
        if now.as_nanos() < due {
            return;
        }
        let next = (now + self.config.maintenance_interval).as_nanos();
        if self.next_maintenance.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && self.cache.maintain(now, SLICE)
        {
            // There is more: the next one who comes by goes on.
            self.next_maintenance.store(0, Ordering::Relaxed);
        }
    }
}

/// Counts a read that no flight stands for while it is under way.
struct Unlisted<'a>(&'a AtomicU64);

impl<'a> Unlisted<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Unlisted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What to keep of an answer to a read that was sent at `sent`, and until when.
fn record<V>(fetched: Option<Fetched<V>>, sent: Moment, negative_ttl: std::time::Duration) -> (Record<V>, Moment) {
    match fetched {
        None => {
            let until = sent + negative_ttl;
            (Record { value: None, fresh_until: until }, until)
        }
        Some(Fetched { value, fresh_for, stale_for }) => {
            let fresh_until = fresh_for.map_or(Moment::NEVER, |span| sent + span);
            (Record { value: Some(value), fresh_until }, fresh_until + stale_for)
        }
    }
}
