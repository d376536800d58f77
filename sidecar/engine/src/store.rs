//! The seam to the app's own database: what a cache in front of it asks of a [`BackingStore`].
//!
//! A store answers what it has and keeps what it is given. It knows nothing of caches, and never retries a write by
//! itself. It fails with [`StoreError`], which tells apart what may pass by itself and what will not.

mod in_memory;

pub use in_memory::InMemoryStore;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

/// What a [`BackingStore`]'s methods return. Dropping it gives up waiting, not the request: a write may still happen.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why a store did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// There was no answer, or one that says "later": asking again may help. A write may have happened.
    #[error("the store failed: {reason}; see whether it is reachable and up")]
    Unavailable {
        /// What went wrong.
        reason: Arc<str>,
    },
    /// It refused, and will again: the request, the rights or the configuration are wrong. Of a write: it refused what was
    /// written, or one value of it; what would be wrong with all that is written fails as [`Unavailable`](Self::Unavailable).
    #[error("the store refused: {reason}")]
    Refused {
        /// Its words.
        reason: Arc<str>,
    },
    /// It answered something that is no value.
    #[error("the store's answer is not understood: {reason}")]
    Malformed {
        /// What was expected.
        reason: Arc<str>,
    },
}

impl StoreError {
    /// Whether asking again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// The same, as something that may pass: whatever was asked for would have failed.
    #[must_use]
    pub fn as_passing(self) -> Self {
        match self {
            Self::Refused { reason } | Self::Malformed { reason } | Self::Unavailable { reason } => {
                Self::Unavailable { reason }
            }
        }
    }
}

/// A value from a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<V> {
    /// The value.
    pub value: V,
    /// How long the store says that it may be kept, zero: not at all; `None`: it says nothing.
    pub fresh_for: Option<Duration>,
    /// What the store calls this state of the value (HTTP: the `ETag`), to ask later whether it is still that.
    pub version: Option<Bytes>,
}

impl<V> Stored<V> {
    /// A value of which the store says nothing more.
    pub const fn new(value: V) -> Self {
        Self { value, fresh_for: None, version: None }
    }
}

/// Bytes that are together in memory for one call to a store, one value more at most: so many a batch of writes has, and so
/// many a call that loads many values may bring.
pub const BATCH_BYTES: usize = 8 << 20;

/// What a store says of one of the keys that it was asked for at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded<V> {
    /// It has this.
    Found(Stored<V>),
    /// It has none.
    Absent,
    /// The others had as many bytes as one call may bring: it is to be asked for again.
    Left,
}

impl<V> From<Option<Stored<V>>> for Loaded<V> {
    fn from(found: Option<Stored<V>>) -> Self {
        found.map_or(Self::Absent, Self::Found)
    }
}

/// What a store says of a value that the caller has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revalidated<V> {
    /// It is still that, and may be kept for as long again.
    Unchanged {
        /// As [`Stored::fresh_for`].
        fresh_for: Option<Duration>,
    },
    /// It is another, or gone.
    Changed(Option<Stored<V>>),
}

/// The app's database, seen as a table of values under keys. Safe to use from many tasks at once.
///
/// ```
/// use caddy_engine::store::{BackingStore, InMemoryStore, Stored};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let users = InMemoryStore::default();
/// users.store_many(&[("ada", 36), ("alan", 41)]).await?;
/// let found = users.load_many(&["alan", "grace"]).await?;
/// assert_eq!(found, [Some(Stored::new(41)), None]);
/// # Ok::<(), caddy_engine::store::StoreError>(()) }).unwrap();
/// ```
pub trait BackingStore<K: Sync, V: Send>: Send + Sync {
    /// Loads the values of `keys`, in their order; `None`: there is none.
    fn load_many<'a>(&'a self, keys: &'a [K]) -> StoreFuture<'a, Vec<Option<Stored<V>>>>;

    /// The same of as many keys as have [`BATCH_BYTES`] together, where the store can tell; of one at least.
    fn load_some<'a>(&'a self, keys: &'a [K]) -> StoreFuture<'a, Vec<Loaded<V>>>
    where
        V: 'a,
    {
        Box::pin(async move { Ok(load(self, keys).await?.into_iter().map(Loaded::from).collect()) })
    }

    /// Stores values in place of what is there, in this order. After an error any of them may have been stored.
    fn store_many<'a>(&'a self, entries: &'a [(K, V)]) -> StoreFuture<'a, ()>;

    /// Removes what is there. After an error any of it may have been removed.
    fn delete_many<'a>(&'a self, keys: &'a [K]) -> StoreFuture<'a, ()>;

    /// Whether [`store_named`](Self::store_named) and [`delete_named`](Self::delete_named) do more than the others.
    fn takes_names(&self) -> bool {
        false
    }

    /// As [`store_many`](Self::store_many), with a name for each write: one that is repeated has the same again, and no other
    /// has it, so that a store which notes them can tell.
    fn store_named<'a>(&'a self, entries: &'a [(K, V)], names: &'a [String]) -> StoreFuture<'a, ()> {
        let _ = names;
        self.store_many(entries)
    }

    /// As [`delete_many`](Self::delete_many), with names as in [`store_named`](Self::store_named).
    fn delete_named<'a>(&'a self, keys: &'a [K], names: &'a [String]) -> StoreFuture<'a, ()> {
        let _ = names;
        self.delete_many(keys)
    }

    /// Asks whether the value of `key` is still the one of `version`; a store without versions loads it anew.
    fn revalidate<'a>(&'a self, key: &'a K, version: &'a Bytes) -> StoreFuture<'a, Revalidated<V>>
    where
        V: 'a,
    {
        let _ = version;
        Box::pin(async move {
            let mut loaded = load(self, std::slice::from_ref(key)).await?;
            Ok(Revalidated::Changed(loaded.pop().flatten()))
        })
    }
}

/// As [`BackingStore::load_many`]. A store that answers more or fewer values than it was asked for is not believed: which
/// value is whose, and which there is none of, cannot be known.
pub(crate) async fn load<K: Sync, V: Send>(
    store: &(impl BackingStore<K, V> + ?Sized),
    keys: &[K],
) -> Result<Vec<Option<Stored<V>>>, StoreError> {
    let loaded = store.load_many(keys).await?;
    if loaded.len() == keys.len() {
        return Ok(loaded);
    }
    let reason =
        format!("{} values for {} keys; `load_many` answers one for each, in their order", loaded.len(), keys.len());
    Err(StoreError::Malformed { reason: reason.into() })
}
