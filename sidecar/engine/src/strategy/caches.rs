//! Caches that write to a store: [`WriteThroughCache`] before, [`WriteBehindCache`] after the cache has the value.
//!
//! Both are a [`MultiTierCache`] and a store; reads are the cache's own. Of one process the writes of a key reach L3 and
//! the store in the same order. They fail with [`StoreWriteError`], which says who has the value. A write whose future is
//! dropped may have been done in part, as after an error: repeat it.

use std::hash::Hash;
use std::sync::Arc;

use hashbrown::Equivalent;
use thiserror::Error;
use tokio::sync::{Mutex, MutexGuard};

use super::behind::{BehindConfig, BehindError, Journal, Record, Write, WriteBehind};
use crate::multi_tier::{CacheError, CacheKey, CacheValue, MultiTierCache};
use crate::name::Name;
use crate::store::{BackingStore, StoreError};

/// Writes of so many different keys may be under way at a time.
const TURNS: usize = 256;

/// Why a write was not done, and what has come of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreWriteError {
    /// The store failed, or did not say (see [`StoreError`]); the cache is as it was.
    #[error("failed to write to the store; the cache is unchanged")]
    Store(#[source] StoreError),
    /// The store has it, the cache failed: copies are dead, L3 may still have what was before. Write it again.
    #[error("the store has it, but the cache failed; write it again")]
    Cache(#[source] CacheError),
    /// L3 failed before anything was to be stored.
    #[error("failed to write to the cache; the store is unchanged")]
    CacheFirst(#[source] CacheError),
    /// There was no room for it; nothing was written.
    #[error("failed to take the write; nothing was written")]
    Room(#[source] BehindError),
    /// L3 has it; nobody can promise that the store will.
    #[error("the cache has it, but it could not be kept for the store")]
    Keep(#[source] BehindError),
}

/// One writer of a key at a time, by stripes.
#[derive(Debug)]
struct Turns(Box<[Mutex<()>]>);

impl Default for Turns {
    fn default() -> Self {
        Self((0..TURNS).map(|_| Mutex::default()).collect())
    }
}

impl Turns {
    async fn of(&self, key: &(impl Name + ?Sized)) -> MutexGuard<'_, ()> {
        use std::hash::BuildHasher as _;
        let hash = foldhash::fast::FixedState::default().hash_one(key.key_hash());
        self.0[hash as usize % TURNS].lock().await
    }
}

/// Writes go to the store first: what the cache has, the store has.
///
/// What no tier has is not asked of the store: a [`ReadThroughCache`](super::ReadThroughCache) over clones of the same cache
/// and store does that beside it.
///
/// ```
/// use caddy_engine::store::{BackingStore, InMemoryStore};
/// use caddy_engine::strategy::WriteThroughCache;
/// use caddy_engine::{MultiTierCache, TierConfig};
/// use std::sync::Arc;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let users = Arc::new(InMemoryStore::<String, String>::default());
/// let cache = WriteThroughCache::new(MultiTierCache::in_process(TierConfig::default()), users.clone());
/// cache.insert("user:1".into(), "Ada".into()).await?;
/// assert_eq!(cache.get("user:1").await?.as_deref(), Some("Ada"));
/// assert_eq!(users.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub struct WriteThroughCache<K: CacheKey, V: CacheValue> {
    cache: MultiTierCache<K, V>,
    store: Arc<dyn BackingStore<K, V>>,
    turns: Turns,
}

impl<K: CacheKey, V: CacheValue> std::fmt::Debug for WriteThroughCache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteThroughCache").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: CacheValue> WriteThroughCache<K, V> {
    /// A cache in front of `store`.
    pub fn new(cache: MultiTierCache<K, V>, store: Arc<dyn BackingStore<K, V>>) -> Self {
        Self { cache, store, turns: Turns::default() }
    }

    /// The cache alone: to invalidate, and for what has no store.
    pub fn cache(&self) -> &MultiTierCache<K, V> {
        &self.cache
    }

    /// As [`MultiTierCache::get`].
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        self.cache.get(key).await
    }

    /// Stores `value`, then caches it.
    pub async fn insert(&self, key: K, value: V) -> Result<(), StoreWriteError> {
        let _turn = self.turns.of(&key).await;
        let entry = [(key, value)];
        self.store.store_many(&entry).await.map_err(StoreWriteError::Store)?;
        let [(key, value)] = entry;
        self.cache.insert(key, value).await.map_err(StoreWriteError::Cache)
    }

    /// Deletes `key` in the store, then everywhere.
    pub async fn remove<Q>(&self, key: &Q) -> Result<(), StoreWriteError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let _turn = self.turns.of(key).await;
        self.store.delete_many(&[key.to_owned()]).await.map_err(StoreWriteError::Store)?;
        self.cache.remove(key).await.map(drop).map_err(StoreWriteError::Cache)
    }
}

/// Writes go to the cache first, where all see them at once, and to the store in batches.
///
/// What no tier has is not asked of the store: a [`ReadThroughCache`](super::ReadThroughCache) over a clone of the same cache
/// does that beside it, with [`behind`](Self::behind) as its store, which knows what is still on its way.
///
/// ```
/// use caddy_engine::store::{BackingStore, InMemoryStore};
/// use caddy_engine::strategy::WriteBehindCache;
/// use caddy_engine::strategy::behind::BehindConfig;
/// use caddy_engine::{MultiTierCache, TierConfig};
/// use std::{sync::Arc, time::Duration};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let users = Arc::new(InMemoryStore::<String, String>::default());
/// let tiers = MultiTierCache::in_process(TierConfig::default());
/// let cache = WriteBehindCache::new(tiers, users.clone(), BehindConfig::default(), None);
///
/// let work = async {
///     cache.insert("user:1".into(), "Ada".into()).await?;
///     assert_eq!(cache.get("user:1").await?.as_deref(), Some("Ada"));
///     let left = cache.behind().drain(Duration::from_secs(5)).await;
///     assert_eq!((left.records, users.len()), (0, 1));
///     Ok::<(), Box<dyn std::error::Error>>(())
/// };
/// tokio::select! {
///     done = work => done?,
///     () = cache.behind().run() => unreachable!("it is never done"), // a task of its own in real life
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub struct WriteBehindCache<K: CacheKey + Hash, V: CacheValue> {
    cache: MultiTierCache<K, V>,
    behind: WriteBehind<K, V>,
    turns: Turns,
}

impl<K: CacheKey + Hash, V: CacheValue> std::fmt::Debug for WriteBehindCache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteBehindCache").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<K: CacheKey + Hash, V: CacheValue> WriteBehindCache<K, V> {
    /// A cache in front of `store`; what is acknowledged survives what `journal` survives, without one nothing.
    pub fn new(
        cache: MultiTierCache<K, V>,
        store: Arc<dyn BackingStore<K, V>>,
        config: BehindConfig,
        journal: Option<Arc<dyn Journal<K, V>>>,
    ) -> Self {
        let behind = WriteBehind::new(config, store, journal, cache.timer().clone());
        Self { cache, behind, turns: Turns::default() }
    }

    /// The cache alone: to invalidate, and for what has no store.
    pub fn cache(&self) -> &MultiTierCache<K, V> {
        &self.cache
    }

    /// What is on its way to the store. Its [`run`](WriteBehind::run) is to be polled as long as this is used; as a
    /// [`BackingStore`] it is what loaders read.
    pub fn behind(&self) -> &WriteBehind<K, V> {
        &self.behind
    }

    /// As [`MultiTierCache::get`].
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        self.cache.get(key).await
    }

    /// Caches `value`, and takes it for the store.
    pub async fn insert(&self, key: K, value: V) -> Result<(), StoreWriteError> {
        self.write(key, Write::Put(value)).await
    }

    /// Removes `key` everywhere, and takes that for the store.
    pub async fn remove<Q>(&self, key: &Q) -> Result<(), StoreWriteError>
    where
        Q: ToOwned<Owned = K> + ?Sized,
    {
        self.write(key.to_owned(), Write::Delete).await
    }

    async fn write(&self, key: K, write: Write<V>) -> Result<(), StoreWriteError> {
        // Room first: who finds none has written nothing.
        let room = self.behind.room(1, Record::weight(&key, &write)).await.map_err(StoreWriteError::Room)?;
        let kept = {
            let _turn = self.turns.of(&key).await;
            let cached = match &write {
                Write::Put(value) => self.cache.insert(key.clone(), value.clone()).await,
                Write::Delete => self.cache.remove(&key).await.map(drop),
            };
            cached.map_err(StoreWriteError::CacheFirst)?;
            self.behind.keep_in(room, vec![(key, write)])
        };
        kept.await.map_err(StoreWriteError::Keep)
    }
}
