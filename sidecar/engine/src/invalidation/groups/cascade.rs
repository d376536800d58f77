//! Values that were made from other values, and die with them: who was made from what, transitively.
//!
//! Remembers the parents of each key, up to a bound: of keys beyond it the children are invalidated. Circles end.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use hashbrown::Equivalent;

use super::Groups;
use crate::multi_tier::{CacheError, CacheKey, CacheValue, TierConfig};
use crate::name::Name;
use crate::sync::Mutex;

/// Keys whose parents are remembered, at most: of others the children are invalidated.
const MAX_CHILDREN: usize = 100_000;

/// A cache whose values depend on keys: invalidating one takes along whatever depends on it, or on what does.
///
/// ```
/// use caddy_engine::TierConfig;
/// use caddy_engine::invalidation::CascadeInvalidator;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let cache = CascadeInvalidator::<String, u32>::in_process(TierConfig::default());
/// cache.insert("item".into(), 1, &[]).await?;
/// cache.insert("list".into(), 2, &["item".into()]).await?;
/// cache.insert("page".into(), 3, &["list".into()]).await?;
/// cache.invalidate("item").await?;
/// assert_eq!((cache.get("item").await?, cache.get("page").await?), (None, None));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CascadeInvalidator<K: CacheKey, V: CacheValue> {
    groups: Arc<Groups<K, V>>,
    parents: Arc<Mutex<ParentsOf>>,
}

/// The names of the keys that each key was made from.
type ParentsOf = HashMap<Vec<u8>, BTreeSet<Vec<u8>>>;

impl<K: CacheKey, V: CacheValue> Clone for CascadeInvalidator<K, V> {
    fn clone(&self) -> Self {
        Self { groups: self.groups.clone(), parents: self.parents.clone() }
    }
}

impl<K: CacheKey, V: CacheValue> std::fmt::Debug for CascadeInvalidator<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CascadeInvalidator")
            .field("generations", &self.groups.generations.len())
            .finish_non_exhaustive()
    }
}

fn key_name<Q: Name + ?Sized>(key: &Q) -> Vec<u8> {
    key.with_name(|name| [b"k:", name].concat())
}

impl<K: CacheKey, V: CacheValue> CascadeInvalidator<K, V> {
    /// An empty cache in this process.
    pub fn in_process(config: TierConfig) -> Self {
        Self { groups: Arc::new(Groups::in_process(config)), parents: Arc::default() }
    }

    /// Writes a value that was made from `parents`. `true`: that closes a circle, which is legal: all of it dies together.
    ///
    /// A key that gets other parents than before is invalidated for its own children by that.
    ///
    /// # Errors
    ///
    /// As [`MultiTierCache::insert`](crate::MultiTierCache::insert).
    pub async fn insert(&self, key: K, value: V, parents: &[K]) -> Result<bool, CacheError> {
        let own = key_name(&key);
        let direct: BTreeSet<Vec<u8>> = parents.iter().map(key_name).collect();
        let (all, closes_circle) = self.link(&own, direct);
        let token = self.groups.token(all.iter().map(Vec::as_slice));
        self.groups.insert(key, value, token).await?;
        Ok(closes_circle)
    }

    /// Notes the parents of a key; all it then depends on, itself left out, and whether it was among them.
    fn link(&self, own: &[u8], direct: BTreeSet<Vec<u8>>) -> (BTreeSet<Vec<u8>>, bool) {
        let mut parents = self.parents.lock();
        if parents.get(own).is_none_or(|known| *known != direct) {
            self.groups.renew(own);
            if parents.len() >= MAX_CHILDREN
                && let Some(other) = parents.keys().next().cloned()
            {
                parents.remove(&other);
                self.groups.renew(&other);
            }
            if direct.is_empty() {
                parents.remove(own);
            } else {
                parents.insert(own.to_vec(), direct.clone());
            }
        }
        let mut all = BTreeSet::new();
        let mut open: Vec<Vec<u8>> = direct.into_iter().collect();
        while let Some(name) = open.pop() {
            if all.insert(name.clone()) {
                open.extend(parents.get(&name).into_iter().flatten().cloned());
            }
        }
        let closes_circle = all.remove(own);
        (all, closes_circle)
    }

    /// The value under `key`, if everything that it depends on is in force.
    ///
    /// # Errors
    ///
    /// As [`MultiTierCache::get`](crate::MultiTierCache::get).
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        self.groups.get(key).await
    }

    /// Removes the value under `key`; whatever depends on it, however deep, is not served any more. `true`: there was one.
    ///
    /// # Errors
    ///
    /// As [`MultiTierCache::remove`](crate::MultiTierCache::remove); what depends on it is dead all the same.
    pub async fn invalidate<Q>(&self, key: &Q) -> Result<bool, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        self.groups.renew(&key_name(key));
        self.groups.cache.remove(key).await
    }
}
