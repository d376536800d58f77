//! Read-through and refresh-ahead: a [`MultiTierCache`] in front of a [`BackingStore`].
//!
//! Owns the way from a key that no tier has to the store, and when a value that is read is loaded anew. Which caller loads,
//! for how long, and that nothing newer is overwritten, is [`get_or_load`](MultiTierCache::get_or_load)'s. Spawns nothing:
//! refreshes are done by whoever polls [`RefreshAheadCache::run`]. Fails with [`ReadError`].

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use futures::channel::mpsc;
use hashbrown::Equivalent;
use thiserror::Error;

use crate::multi_tier::{CacheKey, CacheValue, LoadError, MultiTierCache};
use crate::name::Name;
use crate::store::{BackingStore, StoreError, load};
use crate::sync::Mutex;

/// What a cache has to do with the store behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StrategyType {
    /// Nothing: the program reads and writes both.
    #[default]
    CacheAside,
    /// What no tier has is loaded: [`ReadThroughCache`].
    ReadThrough,
    /// That, and what is read a lot is loaded anew before its end: [`RefreshAheadCache`].
    RefreshAhead,
    /// Writes go to the store first, then to the cache.
    WriteThrough,
    /// Writes go to the cache, and to the store later.
    WriteBehind,
}

/// How a strategy is carried out; how long values live, and who waits for how long, is the
/// [`TierConfig`](crate::TierConfig)'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrategyConfig {
    /// At which part of its life a value that is read is loaded anew, percent; at 100 never.
    pub refresh_at_percent: u32,
    /// Refreshes that may be asked for and not done yet; what is asked for beyond that is asked for again by the next read.
    pub max_refreshes_waiting: usize,
    /// Refreshes at a time.
    pub max_refreshes: usize,
}

impl Default for StrategyConfig {
    fn default() -> Self {
        Self { refresh_at_percent: 80, max_refreshes_waiting: 1024, max_refreshes: 16 }
    }
}

/// Why a value cannot be had.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// The store failed, or whoever asked it.
    #[error("failed to load from the store")]
    Load(#[source] LoadError),
    /// Like [`Load`](Self::Load), in the store's own words.
    #[error(transparent)]
    Store(StoreError),
}

/// The store has no such value. Travels as a loader's error, since it is no value to keep.
#[derive(Debug, Error)]
#[error("the store has no such value")]
struct Absent;

/// A cache that loads from a store what no tier has.
///
/// Of all callers of all processes with the same L3 that miss a key, one asks the store. What the store does not have is
/// `None`, and is asked for again by the next caller.
///
/// ```
/// use std::sync::Arc;
/// use caddy_engine::store::{BackingStore, InMemoryStore};
/// use caddy_engine::strategy::ReadThroughCache;
/// use caddy_engine::{MultiTierCache, TierConfig};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let users = Arc::new(InMemoryStore::<String, String>::default());
/// users.store_many(&[("user:1".into(), "Ada".into())]).await?;
///
/// let cache = ReadThroughCache::new(MultiTierCache::in_process(TierConfig::default()), users);
/// assert_eq!(cache.get("user:1").await?.as_deref(), Some("Ada"));
/// assert_eq!(cache.get("user:2").await?, None);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct ReadThroughCache<K: CacheKey, V: CacheValue> {
    cache: MultiTierCache<K, V>,
    store: Arc<dyn BackingStore<K, V>>,
}

impl<K: CacheKey, V: CacheValue> Clone for ReadThroughCache<K, V> {
    fn clone(&self) -> Self {
        Self { cache: self.cache.clone(), store: self.store.clone() }
    }
}

impl<K: CacheKey, V: CacheValue> std::fmt::Debug for ReadThroughCache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadThroughCache").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: CacheValue> ReadThroughCache<K, V> {
    /// `cache` in front of `store`.
    pub fn new(cache: MultiTierCache<K, V>, store: Arc<dyn BackingStore<K, V>>) -> Self {
        Self { cache, store }
    }

    /// The cache alone: to invalidate, and for what has no store.
    pub fn cache(&self) -> &MultiTierCache<K, V> {
        &self.cache
    }

    /// The value under `key`, from a tier or from the store. With [`stale_if_error`](crate::TierConfig) an old one, if the
    /// store gives none.
    ///
    /// # Errors
    ///
    /// The store failed or is too slow, and nothing old is at hand.
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, ReadError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let is_gone = AtomicBool::new(false);
        let load = async || {
            let found = load_one(&*self.store, key.to_owned()).await;
            is_gone.store(matches!(found, Ok(None)), Ordering::Relaxed);
            match found {
                Ok(Some(value)) => Ok(value),
                Ok(None) => Err(Box::<dyn std::error::Error + Send + Sync>::from(Absent)),
                Err(error) => Err(error.into()),
            }
        };
        match self.cache.get_or_load(key, load).await {
            Ok(loaded) if loaded.is_stale() && is_gone.load(Ordering::Relaxed) => {
                // The store is well and has no such value: what was kept for its failures is not the answer any more. Should
                // it not go now, the next caller comes here again.
                let _ = self.cache.remove(key).await;
                Ok(None)
            }
            Ok(loaded) => Ok(Some(loaded.value)),
            Err(LoadError::Load(error)) if error.is::<Absent>() => Ok(None),
            Err(LoadError::Load(error)) => Err(match error.downcast_ref::<StoreError>() {
                Some(store) => ReadError::Store(store.clone()),
                None => ReadError::Load(LoadError::Load(error)),
            }),
            Err(error) => Err(ReadError::Load(error)),
        }
    }
}

async fn load_one<K: CacheKey, V: CacheValue>(store: &dyn BackingStore<K, V>, key: K) -> Result<Option<V>, StoreError> {
    let mut loaded = load(store, std::slice::from_ref(&key)).await?;
    Ok(loaded.pop().flatten().map(|stored| stored.value))
}

/// A [`ReadThroughCache`] that loads what is read a lot anew before its end, so that nobody waits for it.
///
/// A read of a value that is through [`refresh_at_percent`](StrategyConfig) of its `ttl` is answered with it, and asks for a
/// refresh; one process of those that ask does it. Only with a [`ttl`](crate::TierConfig) does anything end.
pub struct RefreshAheadCache<K: CacheKey, V: CacheValue> {
    through: ReadThroughCache<K, V>,
    config: StrategyConfig,
    /// Without a bound of its own: what is in it is in `asked`.
    queue: mpsc::UnboundedSender<K>,
    /// Hashes of the keys whose refresh waits or is under way.
    asked: Arc<Mutex<HashSet<u64>>>,
    waiting: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<K>>>,
}

impl<K: CacheKey, V: CacheValue> Clone for RefreshAheadCache<K, V> {
    fn clone(&self) -> Self {
        Self {
            through: self.through.clone(),
            config: self.config,
            queue: self.queue.clone(),
            asked: self.asked.clone(),
            waiting: self.waiting.clone(),
        }
    }
}

impl<K: CacheKey, V: CacheValue> std::fmt::Debug for RefreshAheadCache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RefreshAheadCache").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: CacheValue> RefreshAheadCache<K, V> {
    /// `cache` in front of `store`; [`run`](Self::run) has to be polled for anything to be refreshed.
    pub fn new(cache: MultiTierCache<K, V>, store: Arc<dyn BackingStore<K, V>>, config: StrategyConfig) -> Self {
        let (queue, waiting) = mpsc::unbounded();
        Self {
            through: ReadThroughCache::new(cache, store),
            config,
            queue,
            asked: Arc::default(),
            waiting: Arc::new(tokio::sync::Mutex::new(waiting)),
        }
    }

    /// The cache alone: to invalidate, and for what has no store.
    pub fn cache(&self) -> &MultiTierCache<K, V> {
        self.through.cache()
    }

    /// As [`ReadThroughCache::get`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, ReadError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        match self.cache().get_with_life(key) {
            Some((value, is_due)) => {
                if is_due(self.config.refresh_at_percent) {
                    self.ask_for(key);
                }
                Ok(Some(value))
            }
            None => self.through.get(key).await,
        }
    }

    fn ask_for<Q>(&self, key: &Q)
    where
        Q: Name + ToOwned<Owned = K> + ?Sized,
    {
        let hash = key.key_hash().raw();
        let mut asked = self.asked.lock();
        if asked.len() < self.config.max_refreshes_waiting && asked.insert(hash) {
            // The other end is held here too.
            let _ = self.queue.unbounded_send(key.to_owned());
        }
    }

    /// Refreshes what reads ask for, while it is polled; never done. For one task: a second one takes over when the first is
    /// dropped.
    pub async fn run(&self) {
        let mut waiting = self.waiting.lock().await;
        let most = self.config.max_refreshes.max(1);
        let refresh = async |key: K| {
            let _asked = Asked { all: &self.asked, hash: key.key_hash().raw() };
            self.refresh(&key).await;
        };
        waiting.by_ref().for_each_concurrent(most, refresh).await;
    }

    async fn refresh(&self, key: &K) {
        // A failure is counted; the next read asks again.
        let store = self.through.store.clone();
        let _ = self.cache().reload(key, async || load_one(&*store, key.clone()).await).await;
    }
}

/// A refresh under way. However it ends, the next read may ask again.
struct Asked<'a> {
    all: &'a Mutex<HashSet<u64>>,
    hash: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.hash);
    }
}
