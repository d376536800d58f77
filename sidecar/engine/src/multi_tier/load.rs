//! `get_or_load`: one loader per key, a leased slot for it, and an end to everybody's waiting.
//!
//! The slot is a [`Flights`](crate::Flights) flight that can be joined for [`loader_lease`](crate::TierConfig); what is
//! loaded is stored under L3's own lease ([`Remote::claim`](crate::Remote::claim)), so that neither a loader that lost its
//! slot nor one in another process overwrites what is newer. Fails with [`LoadError`].

use std::error::Error;
use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;
use hashbrown::Equivalent;

use super::read::{Answer, Local};
use super::stats::Counts;
use super::wait::{Lead, within};
use super::{CacheError, CacheKey, CacheTier, CacheValue, Inner, MultiTierCache};
use crate::clock::Moment;
use crate::flights::{Joined, Wanted};
use crate::name::Name;
use crate::remote::{Claim, LoadLease};

/// Why there is no value, and no stale one either.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// The loader's own error; all who waited for it share it.
    #[error("the loader failed")]
    Load(#[source] Arc<dyn Error + Send + Sync>),
    /// The loader that this call waited for panicked, in the call that brought it.
    #[error("the loader panicked in another caller's hands; its message is where that caller's panics go")]
    LoaderPanicked,
    /// Neither L3 nor a loader had an answer in time.
    #[error("no value within {0:?}: the loader is slow or hangs; give it a timeout of its own or raise `wait_timeout`")]
    TimedOut(Duration),
    /// As many callers as allowed wait for this key, or for any.
    #[error("too many callers are waiting for loaders; raise `max_waiters` or shed load")]
    TooManyWaiters,
}

/// Where a loaded value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoadedFrom {
    /// A tier had it.
    Tier(CacheTier),
    /// A loader brought it, in this call or in one that this call waited for.
    Loader,
    /// No loader did; this is what was there before it expired.
    Stale,
}

/// What [`get_or_load`](MultiTierCache::get_or_load) found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<V> {
    /// The value.
    pub value: V,
    /// Where it came from.
    pub from: LoadedFrom,
}

impl<V> Loaded<V> {
    /// Whether the value is past its time, served because nobody could load another.
    pub fn is_stale(&self) -> bool {
        self.from == LoadedFrom::Stale
    }
}

type Outcome<V> = Result<Loaded<V>, LoadError>;
pub(super) type Waiter<V> = oneshot::Sender<Outcome<V>>;

/// How often a key that another process loads is looked at, at first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(100);

impl<K: CacheKey, V: CacheValue> MultiTierCache<K, V> {
    /// The value under `key`, or what `load` brings when no tier has it; that is stored in L3 and read back into L2.
    ///
    /// However many callers ask, in this process or in others with the same L3, one of them runs its loader and the rest
    /// wait for it. It has the key for [`loader_lease`](crate::TierConfig); one that takes longer is overtaken by the next
    /// caller's, and what it brings then is answered to those who still wait for it, but not stored. Who waits longer than
    /// [`wait_timeout`](crate::TierConfig), the loader's caller included, gives up. A caller that goes away takes its
    /// loader with it, and another one's runs. A loader that panics does so in its own caller.
    ///
    /// With [`stale_if_error`](crate::TierConfig) the last value may stand in for one that cannot be loaded; it says so
    /// ([`Loaded::is_stale`]).
    ///
    /// An L3 that cannot be reached is no reason to fail: the loader is asked, and what it brings is not stored.
    ///
    /// # Errors
    ///
    /// The loader failed, panicked or hangs, or too many wait for it; and nothing stale is at hand.
    pub async fn get_or_load<Q, L, F, E>(&self, key: &Q, load: L) -> Result<Loaded<V>, LoadError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
        L: FnOnce() -> F,
        F: Future<Output = Result<V, E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let inner = &*self.inner;
        let now = inner.timer.now();
        let (read, stale) = match inner.look(key.key_hash(), key, now) {
            Local::Fresh(Some(value), tier, _) => return Ok(Loaded { value, from: LoadedFrom::Tier(tier) }),
            Local::Fresh(None, ..) => (false, None),
            Local::Nothing(stale) => (true, stale),
        };
        let wish = Wish { key: key.to_owned(), deadline: now + inner.config.wait_timeout, read };
        Box::pin(inner.load(wish, stale, load)).await
    }
}

impl<K: CacheKey, V: CacheValue> MultiTierCache<K, V> {
    /// Loads `key` anew although there may be a fresh value, and stores what comes, unless somebody is at it already; `None`
    /// from the loader leaves everything as it is. Whether there is a new value now.
    ///
    /// # Errors
    ///
    /// The loader failed, or was too slow.
    pub(crate) async fn reload<E>(
        &self,
        key: &K,
        load: impl AsyncFnOnce() -> Result<Option<V>, E>,
    ) -> Result<bool, LoadError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let inner = &*self.inner;
        let now = inner.timer.now();
        let key_hash = key.key_hash();
        let wanted = Wanted { source: inner.source, key_hash, hash: key_hash.tier(0), key };
        // Nobody waits: a sender whose receiver has gone.
        let (sender, _) = oneshot::channel();
        let Joined::Lead(id, token) =
            inner.loads.join(inner.cache.kernel(), &wanted, K::clone, sender, now, Moment::NEVER)
        else {
            return Ok(false);
        };
        let lead = Lead::new(&inner.loads, id);
        let slot_until = token.sent().at() + inner.config.loader_lease;
        let work = async {
            let span = slot_until.since(inner.timer.now()).max(Duration::from_millis(1));
            let Ok(Claim::Granted(lease)) = inner.remote.claim(key, span).await else { return Ok(None) };
            let leased = Leased { inner, key, lease: Some(lease) };
            Counts::add(&inner.counts.loads);
            match load().await {
                Ok(Some(value)) => {
                    leased.store(&value, lead.is_newest()).await;
                    Ok(Some(value))
                }
                Ok(None) => Ok(None),
                Err(error) => {
                    Counts::add(&inner.counts.load_failures);
                    Err(LoadError::Load(Arc::from(error.into())))
                }
            }
        };
        let done = within(&*inner.timer, now + inner.config.wait_timeout, work).await;
        let loaded = done.unwrap_or(Err(LoadError::TimedOut(inner.config.wait_timeout)))?;
        let Some(value) = loaded else { return Ok(false) };
        // Who found the old value gone meanwhile.
        for waiter in lead.land().into_iter().flat_map(|landed| landed.waiters) {
            let _ = waiter.send(Ok(Loaded { value: value.clone(), from: LoadedFrom::Loader }));
        }
        Ok(true)
    }
}

/// What one call wants.
struct Wish<K> {
    key: K,
    deadline: Moment,
    /// Whether L3 may have it.
    read: bool,
}

impl<K: CacheKey, V: CacheValue> Inner<K, V> {
    async fn load<L, F, E>(&self, wish: Wish<K>, mut stale: Option<V>, load: L) -> Outcome<V>
    where
        L: FnOnce() -> F,
        F: Future<Output = Result<V, E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let timer = &*self.timer;
        let key_hash = wish.key.key_hash();
        loop {
            let now = timer.now();
            if now >= wish.deadline {
                return self.stale_or(stale, LoadError::TimedOut(self.config.wait_timeout));
            }
            let wanted = Wanted { source: self.source, key_hash, hash: key_hash.tier(0), key: &wish.key };
            let (sender, receiver) = oneshot::channel();
            match self.loads.join(self.cache.kernel(), &wanted, K::clone, sender, now, Moment::NEVER) {
                Joined::Lead(id, token) => {
                    let lead = Lead::new(&self.loads, id);
                    let slot_until = token.sent().at() + self.config.loader_lease;
                    let led = self.load_as_leader(&wish, &lead, slot_until, load, &mut stale);
                    let Some(led) = within(timer, wish.deadline, led).await else {
                        // Who waits for this flight has its own deadline, and its own loader.
                        drop(lead);
                        return self.stale_or(stale, LoadError::TimedOut(self.config.wait_timeout));
                    };
                    let (outcome, panic) = match led {
                        Ok(loaded) => (Ok(loaded), None),
                        Err(Failure::Error(error)) => (self.stale_or(stale, error), None),
                        Err(Failure::Panic(panic)) => (self.stale_or(stale, LoadError::LoaderPanicked), Some(panic)),
                    };
                    for waiter in lead.land().into_iter().flat_map(|landed| landed.waiters) {
                        // Who does not wait any more is not told.
                        let _ = waiter.send(outcome.clone());
                    }
                    match panic {
                        Some(panic) => resume_unwind(panic),
                        None => return outcome,
                    }
                }
                Joined::Waiting(id) => {
                    let slot_until =
                        self.loads.token(id).map_or(now, |token| token.sent().at() + self.config.loader_lease);
                    // At the end of the slot's lease, and when the leader went away: one of those who wait takes it.
                    if let Some(Ok(outcome)) = within_or_ready(timer, wish.deadline.min(slot_until), receiver).await {
                        return outcome.or_else(|error| self.stale_or(stale, error));
                    }
                }
                Joined::Refused(_) => return self.stale_or(stale, LoadError::TooManyWaiters),
            }
        }
    }

    fn stale_or(&self, stale: Option<V>, error: LoadError) -> Outcome<V> {
        let Some(value) = stale else { return Err(error) };
        Counts::add(&self.counts.stale_served);
        Ok(Loaded { value, from: LoadedFrom::Stale })
    }

    async fn load_as_leader<L, F, E>(
        &self,
        wish: &Wish<K>,
        lead: &Lead<'_, K, Waiter<V>>,
        slot_until: Moment,
        load: L,
        stale: &mut Option<V>,
    ) -> Result<Loaded<V>, Failure>
    where
        L: FnOnce() -> F,
        F: Future<Output = Result<V, E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let key = &wish.key;
        let from_l3 = |value| Loaded { value, from: LoadedFrom::Tier(CacheTier::L3) };
        let mut reachable = true;
        if wish.read {
            match self.read_l3(key.clone(), wish.deadline).await {
                Ok(Answer { fresh: Some(value), .. }) => return Ok(from_l3(value)),
                Ok(Answer { stale: kept, .. }) => *stale = kept,
                Err(_) => reachable = false,
            }
        }
        let mut leased = Leased { inner: self, key, lease: None };
        if reachable {
            match self.claim(wish, slot_until, stale).await {
                Claimed::Mine(granted) => leased = granted,
                Claimed::Found(value) => return Ok(from_l3(value)),
                Claimed::Unknown => {}
            }
        }
        Counts::add(&self.counts.loads);
        let loaded = AssertUnwindSafe(async { load().await }).catch_unwind().await;
        let failure = match loaded {
            Ok(Ok(value)) => {
                leased.store(&value, lead.is_newest()).await;
                return Ok(Loaded { value, from: LoadedFrom::Loader });
            }
            Ok(Err(error)) => Failure::Error(LoadError::Load(Arc::from(error.into()))),
            Err(panic) => Failure::Panic(panic),
        };
        Counts::add(&self.counts.load_failures);
        Err(failure)
    }

    /// Waits until L3 gives this process the right to load, or somebody else has loaded.
    async fn claim<'a>(&'a self, wish: &'a Wish<K>, slot_until: Moment, stale: &mut Option<V>) -> Claimed<'a, K, V> {
        let key = &wish.key;
        let mut pause = FIRST_LOOK;
        loop {
            // Never longer than the slot here: whoever takes it over must not find the predecessor's lease.
            let span = slot_until.since(self.timer.now()).max(Duration::from_millis(1));
            let leased = match self.remote.claim(key, span).await {
                Ok(Claim::Granted(lease)) => Some(Leased { inner: self, key, lease: Some(lease) }),
                Ok(Claim::Held) => {
                    self.timer.sleep(pause).await;
                    pause = (pause * 2).min(LAST_LOOK);
                    None
                }
                Err(_) => return Claimed::Unknown,
            };
            // Somebody else may have stored it since this call looked: when another had the lease, or just gave it back.
            let lease = leased.as_ref().and_then(|leased| leased.lease.as_ref());
            if lease.is_none_or(|lease| lease.present.is_some() && stale.is_none()) {
                match self.read_l3(key.clone(), wish.deadline).await {
                    Ok(Answer { fresh: Some(value), .. }) => return Claimed::Found(value),
                    Ok(Answer { stale: kept, .. }) => *stale = kept,
                    Err(_) => return Claimed::Unknown,
                }
            }
            if let Some(leased) = leased {
                return Claimed::Mine(leased);
            }
        }
    }
}

/// As [`within`], but what is ready is taken also when the deadline is over.
async fn within_or_ready<T>(
    timer: &dyn crate::timer::Timer,
    deadline: Moment,
    mut receiver: oneshot::Receiver<T>,
) -> Option<Result<T, oneshot::Canceled>> {
    match within(timer, deadline, &mut receiver).await {
        None => receiver.try_recv().ok().flatten().map(Ok),
        answer => answer,
    }
}

enum Failure {
    Error(LoadError),
    Panic(Box<dyn std::any::Any + Send>),
}

enum Claimed<'a, K: CacheKey, V: CacheValue> {
    Mine(Leased<'a, K, V>),
    Found(V),
    /// L3 did not say: load, and store nothing.
    Unknown,
}

/// The right to store, if L3 gave it. Given back when it was not used, also when the caller went away.
struct Leased<'a, K: CacheKey, V: CacheValue> {
    inner: &'a Inner<K, V>,
    key: &'a K,
    lease: Option<LoadLease>,
}

impl<K: CacheKey, V: CacheValue> Leased<'_, K, V> {
    /// Stores `value` if its loader still has the slot, and reads it back into L2.
    async fn store(mut self, value: &V, newest: bool) {
        let (inner, key) = (self.inner, self.key);
        let lifetime = inner.lifetime();
        let lease = self.lease.as_ref().filter(|_| newest && lifetime.ttl != Some(Duration::ZERO));
        let stored = match lease {
            Some(lease) => {
                let store = inner.remote.store(key, value, lifetime, lease);
                let stored = inner.change(key.key_hash(), store, CacheError::Write).await;
                self.lease = None;
                stored.unwrap_or(false)
            }
            None => false,
        };
        if stored {
            let deadline = inner.timer.now() + inner.config.wait_timeout;
            // If it cannot be read back, the next reader does it.
            let _ = inner.read_l3(key.clone(), deadline).await;
        } else {
            Counts::add(&inner.counts.loads_not_stored);
        }
    }
}

impl<K: CacheKey, V: CacheValue> Drop for Leased<'_, K, V> {
    fn drop(&mut self) {
        if let Some(lease) = &self.lease {
            self.inner.remote.release(self.key, lease);
        }
    }
}
