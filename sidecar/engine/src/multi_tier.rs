//! The cache as a library: three tiers behind one cloneable handle.
//!
//! [`MultiTierCache`] composes the parts that the sidecar is made of: [`Worker`](crate::Worker)s (L1), [`Cache`] (L2 and
//! the coherence kernel), [`Flights`] (single flight) and a [`Remote`] (L3). It stores nothing itself and knows no second
//! way into a tier: whatever L1 and L2 hold came from L3, under a fill token taken before the read. It spawns nothing.
//! Whatever L1 and L2 cannot answer may fail, with [`CacheError`] or [`LoadError`].

mod config;
mod load;
mod read;
mod stats;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
mod threads;
mod wait;
mod writes;

pub use config::{TierConfig, TierSize};
pub use load::{LoadError, Loaded, LoadedFrom};
pub use stats::{CacheStats, CacheTier, Demotions, Evictions, Refusals, TierSizes, TierStats};

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use thiserror::Error;

use crate::cache::Cache;
use crate::clock::Moment;
use crate::flights::{Flights, FlightsConfig};
use crate::generations::Dependency;
use crate::kernel::{Kernel, SourceId};
use crate::name::Name;
use crate::remote::{Coherence, HasKernel, InProcess, Remote, RemoteError};
use crate::timer::{Timer, TokioTimer};
use crate::weigh::Weigh;

/// What a key of a [`MultiTierCache`] has to be; every type that can is one.
pub trait CacheKey: Name + Weigh + Eq + Clone + Send + Sync + 'static {}
impl<K: Name + Weigh + Eq + Clone + Send + Sync + 'static> CacheKey for K {}

/// What a value of a [`MultiTierCache`] has to be; every type that can is one. It is cloned for each reader: make that
/// cheap ([`Bytes`](bytes::Bytes), `Arc`).
pub trait CacheValue: Weigh + Clone + Send + Sync + 'static {}
impl<V: Weigh + Clone + Send + Sync + 'static> CacheValue for V {}

/// Why a cache did not do what it was asked for. Copies in L1 and L2 are as right after it as before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CacheError {
    /// L3 could not be read, and there is no copy that may be served without.
    #[error("failed to read from L3")]
    Read(#[source] RemoteError),
    /// L3 may or may not have stored the value; local copies are dead.
    #[error("failed to write to L3")]
    Write(#[source] RemoteError),
    /// L3 may or may not have removed the value; local copies are dead.
    #[error("failed to remove from L3")]
    Remove(#[source] RemoteError),
    /// L3 may or may not have made the value stale; local copies are dead.
    #[error("failed to expire in L3")]
    Expire(#[source] RemoteError),
    /// L3 may or may not be empty; local copies are dead.
    #[error("failed to clear L3")]
    Clear(#[source] RemoteError),
    /// `wait_timeout` was over.
    #[error("L3 did not answer within {0:?}; see whether it is reachable, or raise `wait_timeout`")]
    TimedOut(Duration),
}

/// What the tiers keep under a key: a value, or that L3 has none; and until when that is what a read may be answered.
#[derive(Clone, Debug)]
pub(crate) struct Record<V> {
    value: Option<V>,
    fresh_until: Moment,
}

impl<V> Record<V> {
    fn is_fresh(&self, now: Moment) -> bool {
        now < self.fresh_until
    }
}

impl<V: Weigh> Weigh for Record<V> {
    fn heap_bytes(&self) -> usize {
        self.value.heap_bytes()
    }

    #[inline]
    fn dependencies(&self) -> &[Dependency] {
        self.value.as_ref().map_or(&[], Weigh::dependencies)
    }
}

impl<K, V> HasKernel for Cache<K, V>
where
    K: Eq + Weigh + Send + Sync + 'static,
    V: Weigh + Send + Sync + 'static,
{
    fn kernel(&self) -> &Kernel {
        Self::kernel(self)
    }
}

/// A cache of three tiers. A handle: clones are cheap and share everything; use it from any number of threads.
///
/// # Shape
///
/// Every thread that reads has an **L1** of its own, made at its first read and given up at its end; a hit there takes no
/// lock and writes nothing that other threads read. All threads share **L2**, which owns the entries that L1s point to.
/// **L3** is a [`Remote`]: where values live, for this process ([`InProcess`]) or for many.
///
/// Reads are answered by the first tier that has a copy which is current. Writes go to L3; what they replace dies in every
/// thread's L1 and in L2 before the call returns, and in other processes as their L3 reports it.
///
/// There is no task in the background: idle slots and expired entries are found by whoever comes by, a bounded slice at a
/// time ([`TierConfig::maintenance_interval`]), or by [`maintain`](Self::maintain).
///
/// ```
/// use caddy_engine::{MultiTierCache, TierConfig};
///
/// # tokio_test(async {
/// let cache = MultiTierCache::<String, String>::in_process(TierConfig::default());
/// cache.insert("user:1".into(), "Ada".into()).await?;
/// assert_eq!(cache.get("user:1").await?.as_deref(), Some("Ada"));
///
/// let loaded = cache.get_or_load("user:2", async || Ok::<_, std::io::Error>("Grace".to_owned())).await?;
/// assert_eq!(loaded.value, "Grace");
///
/// assert!(cache.remove("user:1").await?);
/// assert_eq!(cache.get("user:1").await?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # });
/// # fn tokio_test<T: std::fmt::Debug, E: std::fmt::Debug>(f: impl Future<Output = Result<T, E>>) {
/// #     tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(f).unwrap();
/// # }
/// ```
pub struct MultiTierCache<K: CacheKey, V: CacheValue> {
    inner: Arc<Inner<K, V>>,
}

impl<K: CacheKey, V: CacheValue> Clone for MultiTierCache<K, V> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: CacheKey, V: CacheValue> std::fmt::Debug for MultiTierCache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MultiTierCache").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

struct Inner<K: CacheKey, V: CacheValue> {
    cache: Arc<Cache<K, Record<V>>>,
    token: threads::Token,
    remote: Arc<dyn Remote<K, V>>,
    source: SourceId,
    coherence: Coherence,
    timer: Arc<dyn Timer>,
    config: TierConfig,
    reads: Flights<K, read::Waiter<V>>,
    loads: Flights<K, load::Waiter<V>>,
    /// Reads of L3 that no flight stands for, since there were too many.
    unlisted: AtomicU64,
    counts: stats::Counts,
    next_maintenance: AtomicU64,
}

impl<K: CacheKey, V: CacheValue> MultiTierCache<K, V> {
    /// A cache whose L3 is in this process, bounded by [`TierConfig::l3`].
    ///
    /// For use within a Tokio runtime whose time is enabled: every wait has an end. See [`with_timer`](Self::with_timer) for
    /// others.
    pub fn in_process(config: TierConfig) -> Self {
        let timer: Arc<dyn Timer> = Arc::new(TokioTimer);
        let remote = Arc::new(InProcess::new(config.l3, timer.clone()));
        Self::with_timer(config, remote, timer)
    }

    /// A cache over `remote`, for use within a Tokio runtime whose time is enabled.
    pub fn new(config: TierConfig, remote: Arc<dyn Remote<K, V>>) -> Self {
        Self::with_timer(config, remote, Arc::new(TokioTimer))
    }

    /// As [`new`](Self::new), with time from `timer`: tests, and programs on another runtime than Tokio's.
    pub fn with_timer(config: TierConfig, remote: Arc<dyn Remote<K, V>>, timer: Arc<dyn Timer>) -> Self {
        let cache = Cache::new(config.cache());
        let source = cache.kernel().register_first(remote.kind());
        let of = Arc::downgrade(&cache);
        let coherence = Coherence::new(of, source, timer.clone());
        remote.attach(coherence.clone());
        let flights = FlightsConfig { max_waiters: config.max_waiters, ..FlightsConfig::default() };
        let loads = FlightsConfig { max_age: Some(config.loader_lease), ..flights.clone() };
        Self {
            inner: Arc::new(Inner {
                cache,
                token: Arc::new(()),
                remote,
                source,
                coherence,
                timer,
                reads: Flights::new(flights),
                loads: Flights::new(loads),
                unlisted: AtomicU64::new(0),
                config,
                counts: stats::Counts::default(),
                next_maintenance: AtomicU64::new(0),
            }),
        }
    }

    /// What decides about copies, the source that they come from, and the time.
    pub(crate) fn coherence(&self) -> (&Kernel, SourceId, Moment) {
        (self.inner.cache.kernel(), self.inner.source, self.inner.timer.now())
    }

    /// The time it goes by.
    pub(crate) fn timer(&self) -> &Arc<dyn Timer> {
        &self.inner.timer
    }

    /// What it was made from.
    pub fn config(&self) -> &TierConfig {
        &self.inner.config
    }
}
