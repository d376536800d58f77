//! Values that carry tags. What an invalidation costs does not depend on how many there are.

use std::sync::Arc;

use hashbrown::Equivalent;

use super::{GroupToken, Groups};
use crate::invalidation::{InvalidationEvent, InvalidationSubject};
use crate::multi_tier::{CacheError, CacheKey, CacheValue, TierConfig};
use crate::name::Name;

/// A cache whose values carry tags; invalidating one takes the same time however many values carry it.
///
/// ```
/// use caddy_engine::TierConfig;
/// use caddy_engine::invalidation::TagInvalidator;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let pages = TagInvalidator::<String, String>::in_process(TierConfig::default());
/// pages.insert("home".into(), "…".into(), &["news", "sport"]).await?;
/// assert!(pages.get("home").await?.is_some());
/// pages.invalidate("sport");
/// assert_eq!(pages.get("home").await?, None);
///
/// // An invalidation between reading the database and writing the cache is noticed.
/// let token = pages.token(&["news"]);
/// let computed = String::from("from the database");
/// pages.invalidate("news");
/// assert!(!pages.insert_under("home".into(), computed, token).await?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TagInvalidator<K: CacheKey, V: CacheValue>(Arc<Groups<K, V>>);

impl<K: CacheKey, V: CacheValue> Clone for TagInvalidator<K, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: CacheKey, V: CacheValue> std::fmt::Debug for TagInvalidator<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TagInvalidator").field("generations", &self.0.generations.len()).finish_non_exhaustive()
    }
}

/// The generation that every value of a cache carries.
const ALL: &[u8] = b"a";

fn tag_name(tag: &str) -> Vec<u8> {
    [b"t:", tag.as_bytes()].concat()
}

impl<K: CacheKey, V: CacheValue> TagInvalidator<K, V> {
    /// An empty cache in this process.
    pub fn in_process(config: TierConfig) -> Self {
        Self(Arc::new(Groups::in_process(config)))
    }

    /// What is in force of these tags. Take it *before* the value is computed. `None`: there are too many tags in use; the
    /// value can be used, and not be kept.
    pub fn token(&self, tags: &[&str]) -> Option<GroupToken> {
        let names: Vec<Vec<u8>> = tags.iter().map(|tag| tag_name(tag)).chain([ALL.to_vec()]).collect();
        self.0.token(names.iter().map(Vec::as_slice))
    }

    /// Writes a value that carries these tags from now on: an invalidation since it was computed is not noticed.
    ///
    /// # Errors
    ///
    /// As [`MultiTierCache::insert`](crate::MultiTierCache::insert).
    pub async fn insert(&self, key: K, value: V, tags: &[&str]) -> Result<(), CacheError> {
        let token = self.token(tags);
        self.0.insert(key, value, token).await.map(drop)
    }

    /// Writes a value that was computed under `token`. `false`: one of its tags was invalidated since; nothing was written.
    ///
    /// # Errors
    ///
    /// As [`MultiTierCache::insert`](crate::MultiTierCache::insert).
    pub async fn insert_under(&self, key: K, value: V, token: Option<GroupToken>) -> Result<bool, CacheError> {
        self.0.insert(key, value, token).await
    }

    /// The value under `key`, if all its tags are in force.
    ///
    /// # Errors
    ///
    /// As [`MultiTierCache::get`](crate::MultiTierCache::get).
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<V>, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        self.0.get(key).await
    }

    /// Whoever reads from now on, on any thread, is served nothing that was written before under `tag`.
    pub fn invalidate(&self, tag: &str) {
        self.0.renew(&tag_name(tag));
    }

    /// The same of everything.
    pub fn invalidate_all(&self) {
        self.0.renew(ALL);
    }

    /// Applies what another process invalidated, as far as it is about tags or everything.
    pub fn apply(&self, event: &InvalidationEvent<K>) {
        match &event.subject {
            InvalidationSubject::Tags(tags) => tags.iter().for_each(|tag| self.invalidate(tag)),
            InvalidationSubject::All => self.invalidate_all(),
            _ => {}
        }
    }
}
