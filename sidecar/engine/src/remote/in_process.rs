//! An L3 in this process: bounded, with expiry and load leases, shared by any number of caches.
//!
//! For programs that need no other, for tests and for examples. Kept in the engine's own L2; nothing is persistent. What
//! it evicts stays valid where it was copied. It fails only on values larger than its budget.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use super::{Claim, Coherence, Fetched, Lifetime, LoadLease, Remote, RemoteError, RemoteFuture};
use crate::cache::{Cache, CacheConfig, FillRefused};
use crate::clock::Moment;
use crate::invalidation::KeyPattern;
use crate::kernel::{FlushCause, KernelConfig, SourceId, SourceKind};
use crate::multi_tier::{CacheKey, CacheValue, TierSize};
use crate::sync::Mutex;
use crate::timer::Timer;
use crate::weigh::Weigh;

/// An L3 in this process: bounded, with expiry and load leases, shared by any number of caches.
///
/// For programs that need no other, for tests and for examples. Nothing in it is persistent; what it evicts stays valid
/// where it was copied. It fails only on values larger than its budget.
pub struct InProcess<K: CacheKey, V: CacheValue> {
    kept: Arc<Cache<K, Kept<V>>>,
    source: SourceId,
    timer: Arc<dyn Timer>,
    size: TierSize,
    /// Held during every change, so that a change and the end of its key's lease are one step.
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    leases: HashMap<Box<[u8]>, Lease>,
    readers: Vec<Coherence>,
    /// Tells one stored value from the next.
    version: u128,
    random: RandomState,
}

#[derive(Debug)]
struct Lease {
    id: u128,
    until: Moment,
}

/// A stored value.
#[derive(Clone, Debug)]
struct Kept<V> {
    value: V,
    fresh_until: Moment,
    stale: Duration,
    version: u128,
}

impl<V: Weigh> Weigh for Kept<V> {
    fn heap_bytes(&self) -> usize {
        self.value.heap_bytes()
    }
}

impl<K: CacheKey, V: CacheValue> std::fmt::Debug for InProcess<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcess").field("size", &self.size).finish_non_exhaustive()
    }
}

impl<K: CacheKey, V: CacheValue> InProcess<K, V> {
    /// An empty one of at most `size`.
    pub fn new(size: TierSize, timer: Arc<dyn Timer>) -> Self {
        // Its entries are the data itself: nothing ever invalidates them, so one stamp and one source do.
        let kernel = KernelConfig { stripes: 1, max_sources: 1, ..KernelConfig::default() };
        let kept = Cache::new(CacheConfig { kernel, l2: size.l2(), ..CacheConfig::default() });
        let source = kept.kernel().register_first(SourceKind::Local);
        let book = Book { leases: HashMap::new(), readers: Vec::new(), version: 0, random: RandomState::new() };
        Self { kept, source, timer, size, book: Mutex::new(book) }
    }

    fn find(&self, key: &K, now: Moment) -> Option<Kept<V>> {
        let entry = self.kept.find(key.key_hash().tier(0), key, now)?;
        Some(entry.value().clone())
    }

    /// What every change ends with, under the book's lock: the lease is void and nobody's copy is valid. After the change,
    /// so that nobody can begin to read the old value and find nothing moved.
    fn changed(book: &mut Book, key: &K) {
        key.with_name(|name| {
            book.leases.remove(name);
            book.tell(|reader| reader.bump(name));
        });
    }

    fn put(&self, book: &mut Book, key: &K, value: &V, lifetime: Lifetime) -> Result<(), RemoteError> {
        let now = self.timer.now();
        book.version += 1;
        let stored = if lifetime.ttl == Some(Duration::ZERO) {
            self.kept.remove(key.key_hash().tier(0), key);
            Ok(())
        } else {
            let fresh_until = lifetime.ttl.map_or(Moment::NEVER, |ttl| now + ttl);
            let kept = Kept { value: value.clone(), fresh_until, stale: lifetime.stale, version: book.version };
            self.install(key, kept, now)
        };
        Self::changed(book, key);
        stored
    }

    fn install(&self, key: &K, kept: Kept<V>, now: Moment) -> Result<(), RemoteError> {
        let key_hash = key.key_hash();
        let hash = key_hash.tier(0);
        let bytes = key.heap_bytes().saturating_add(kept.heap_bytes());
        let deadline = kept.fresh_until + kept.stale;
        let token = self.kept.kernel().begin_fill(self.source, key_hash, now);
        match self.kept.fill(&token, hash, key.clone(), kept, deadline, now) {
            Ok(_) => Ok(()),
            Err(FillRefused::TooLarge) => {
                // The write is refused, but the old value must not outlive it.
                self.kept.remove(hash, key);
                if self.size.is_nothing() {
                    return Ok(());
                }
                Err(RemoteError::TooLarge { bytes, max: self.size.largest_entry() })
            }
            // Nothing flushes or invalidates here, and what has no time left is gone.
            Err(FillRefused::Invalidated | FillRefused::Flushed | FillRefused::Expired) => {
                self.kept.remove(hash, key);
                Ok(())
            }
        }
    }
}

impl Book {
    fn tell(&mut self, what: impl Fn(&Coherence)) {
        self.readers.retain(|reader| !reader.is_gone());
        self.readers.iter().for_each(what);
    }

    /// Unpredictable enough that no two leases are ever the same.
    fn lease_id(&mut self) -> u128 {
        self.version += 1;
        u128::from(self.random.hash_one(self.version)) << 64 | self.version & u128::from(u64::MAX)
    }
}

impl<K: CacheKey, V: CacheValue> Remote<K, V> for InProcess<K, V> {
    fn kind(&self) -> SourceKind {
        SourceKind::Local
    }

    fn attach(&self, coherence: Coherence) {
        self.book.lock().readers.push(coherence);
    }

    fn read<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, Option<Fetched<V>>> {
        Box::pin(async move {
            let now = self.timer.now();
            Ok(self.find(key, now).map(|kept| Fetched {
                fresh_for: (kept.fresh_until != Moment::NEVER).then(|| kept.fresh_until.since(now)),
                stale_for: kept.stale.min((kept.fresh_until + kept.stale).since(now)),
                value: kept.value,
            }))
        })
    }

    fn write<'a>(&'a self, key: &'a K, value: &'a V, lifetime: Lifetime) -> RemoteFuture<'a, ()> {
        Box::pin(async move { self.put(&mut self.book.lock(), key, value, lifetime) })
    }

    fn remove<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, bool> {
        Box::pin(async move {
            let mut book = self.book.lock();
            let was_there = self.find(key, self.timer.now()).is_some();
            self.kept.remove(key.key_hash().tier(0), key);
            Self::changed(&mut book, key);
            Ok(was_there)
        })
    }

    fn expire<'a>(&'a self, key: &'a K) -> RemoteFuture<'a, bool> {
        Box::pin(async move {
            let mut book = self.book.lock();
            let now = self.timer.now();
            let Some(kept) = self.find(key, now) else { return Ok(false) };
            let fresh_until = kept.fresh_until.min(now);
            let expired = self.install(key, Kept { fresh_until, ..kept }, now);
            Self::changed(&mut book, key);
            expired.map(|()| true)
        })
    }

    fn clear(&self) -> RemoteFuture<'_, ()> {
        Box::pin(async move {
            let mut book = self.book.lock();
            self.kept.clear();
            book.leases.clear();
            book.tell(|reader| reader.flush(FlushCause::Overwritten));
            Ok(())
        })
    }

    fn remove_matching<'a>(&'a self, pattern: &'a KeyPattern) -> RemoteFuture<'a, u64> {
        Box::pin(async move {
            let mut book = self.book.lock();
            let now = self.timer.now();
            let mut matching = Vec::new();
            self.kept.for_each_key(|key| {
                if key.with_name(|name| pattern.matches(name)) {
                    matching.push(key.clone());
                }
            });
            let mut removed = 0;
            for key in &matching {
                removed += u64::from(self.find(key, now).is_some());
                self.kept.remove(key.key_hash().tier(0), key);
                Self::changed(&mut book, key);
            }
            // Whoever loads what is not there yet loads what is invalid.
            book.leases.retain(|name, _| !pattern.matches(name));
            Ok(removed)
        })
    }

    fn claim<'a>(&'a self, key: &'a K, span: Duration) -> RemoteFuture<'a, Claim> {
        Box::pin(async move {
            let now = self.timer.now();
            let mut book = self.book.lock();
            book.leases.retain(|_, lease| lease.until > now);
            let id = book.lease_id();
            let name: Box<[u8]> = key.with_name(|name| name.into());
            if book.leases.contains_key(&name) {
                return Ok(Claim::Held);
            }
            book.leases.insert(name, Lease { id, until: now + span });
            let present = self.find(key, now).map(|kept| kept.version.to_le_bytes().to_vec().into());
            Ok(Claim::Granted(LoadLease { id, present }))
        })
    }

    fn store<'a>(
        &'a self,
        key: &'a K,
        value: &'a V,
        lifetime: Lifetime,
        lease: &'a LoadLease,
    ) -> RemoteFuture<'a, bool> {
        Box::pin(async move {
            let now = self.timer.now();
            let mut book = self.book.lock();
            let held =
                key.with_name(|name| book.leases.get(name).is_some_and(|own| own.id == lease.id && own.until > now));
            let present = self.find(key, now).map(|kept| kept.version.to_le_bytes().to_vec());
            if !held || present.as_deref() != lease.present.as_deref() {
                return Ok(false);
            }
            self.put(&mut book, key, value, lifetime).map(|()| true)
        })
    }

    fn release(&self, key: &K, lease: &LoadLease) {
        let mut book = self.book.lock();
        key.with_name(|name| {
            if book.leases.get(name).is_some_and(|own| own.id == lease.id) {
                book.leases.remove(name);
            }
        });
    }

    fn sizes(&self) -> Option<(usize, usize)> {
        let stats = self.kept.stats();
        Some((stats.l2_entries, stats.l2_bytes))
    }
}
