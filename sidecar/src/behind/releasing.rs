//! A store whose deletions end, when it has them, the leases that kept others from loading what was to be deleted.
//!
//! A key that was deleted in L3 and not yet in the store would be loaded again, old, by whoever reads it. So its fill lease
//! is taken by the deletion itself, until the store has it or the lease runs out.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use caddy_engine::{
    crash,
    store::{BackingStore, StoreFuture, Stored},
};

type Release = Box<dyn Fn(&[Bytes]) + Send + Sync>;

/// How leases are ended; known when there are connections.
#[derive(Clone, Default)]
pub(crate) struct Releases(Arc<ArcSwapOption<Release>>);

impl Releases {
    pub(crate) fn set(&self, release: impl Fn(&[Bytes]) + Send + Sync + 'static) {
        self.0.store(Some(Arc::new(Box::new(release))));
    }

    fn of(&self, keys: &[Bytes]) {
        if let Some(release) = &*self.0.load() {
            release(keys);
        }
    }
}

/// See the module.
pub(super) struct Releasing {
    inner: Arc<dyn BackingStore<Bytes, Bytes>>,
    releases: Releases,
}

impl Releasing {
    pub(super) fn new(inner: Arc<dyn BackingStore<Bytes, Bytes>>, releases: Releases) -> Self {
        Self { inner, releases }
    }
}

impl BackingStore<Bytes, Bytes> for Releasing {
    fn load_many<'a>(&'a self, keys: &'a [Bytes]) -> StoreFuture<'a, Vec<Option<Stored<Bytes>>>> {
        self.inner.load_many(keys)
    }

    fn store_many<'a>(&'a self, entries: &'a [(Bytes, Bytes)]) -> StoreFuture<'a, ()> {
        crash::point("before-store");
        Box::pin(async move {
            self.inner.store_many(entries).await?;
            crash::point("stored");
            Ok(())
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [Bytes]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.inner.delete_many(keys).await?;
            self.releases.of(keys);
            Ok(())
        })
    }

    fn takes_names(&self) -> bool {
        self.inner.takes_names()
    }

    fn store_named<'a>(&'a self, entries: &'a [(Bytes, Bytes)], names: &'a [String]) -> StoreFuture<'a, ()> {
        self.inner.store_named(entries, names)
    }

    fn delete_named<'a>(&'a self, keys: &'a [Bytes], names: &'a [String]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.inner.delete_named(keys, names).await?;
            self.releases.of(keys);
            Ok(())
        })
    }
}
