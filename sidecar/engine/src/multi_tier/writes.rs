//! Writes: to L3, and the death of every local copy before the call returns, whatever L3 answered.

use std::sync::atomic::Ordering;

use hashbrown::Equivalent;

use super::threads::with_local;
use super::wait::within;
use super::{CacheError, CacheKey, CacheValue, Inner, MultiTierCache};
use crate::hash::KeyHash;
use crate::invalidation::KeyPattern;
use crate::kernel::FlushCause;
use crate::name::Name;
use crate::remote::{Lifetime, RemoteError, RemoteFuture};

impl<K: CacheKey, V: CacheValue> MultiTierCache<K, V> {
    /// Stores `value` in L3 for the configured [`ttl`](crate::TierConfig). The next read brings it into L2.
    ///
    /// # Errors
    ///
    /// L3 refused, failed, or did not answer in time: it may or may not have stored the value. Local copies are dead.
    pub async fn insert(&self, key: K, value: V) -> Result<(), CacheError> {
        self.insert_for(key, value, self.inner.lifetime()).await
    }

    /// As [`insert`](Self::insert), for another time than the configured one. A `ttl` of zero removes the key.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    pub async fn insert_for(&self, key: K, value: V, lifetime: Lifetime) -> Result<(), CacheError> {
        self.inner.write(&key, &value, lifetime).await
    }

    /// As [`insert`](Self::insert), and reads the value back into L2 and this thread's L1: for what is about to be read a
    /// lot. It comes from L3 under a token, as every copy does, so a write that overtakes it wins.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert), or [`CacheError::Read`]: stored, but not read back.
    pub async fn insert_hot(&self, key: K, value: V) -> Result<(), CacheError> {
        let inner = &*self.inner;
        inner.write(&key, &value, inner.lifetime()).await?;
        let now = inner.timer.now();
        inner.read_l3(key.clone(), now + inner.config.wait_timeout).await?;
        let now = inner.timer.now();
        with_local(&inner.token, &inner.cache, |local| local.worker.promote(key.key_hash().tier(0), &key, now));
        Ok(())
    }

    /// Removes `key` everywhere, also what was kept of it for when a load fails. `true`: L3 had it.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    pub async fn remove<Q>(&self, key: &Q) -> Result<bool, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let key = key.to_owned();
        self.inner.change(key.key_hash(), self.inner.remote.remove(&key), CacheError::Remove).await
    }

    /// Makes `key` stale everywhere: reads do not find it any more, a load that fails may still answer with it, for as long
    /// as its lifetime said. `true`: L3 had it.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    pub async fn expire<Q>(&self, key: &Q) -> Result<bool, CacheError>
    where
        Q: Name + Equivalent<K> + ToOwned<Owned = K> + ?Sized,
    {
        let inner = &*self.inner;
        let key = key.to_owned();
        let was_there = inner.change(key.key_hash(), inner.remote.expire(&key), CacheError::Expire).await?;
        if was_there && !inner.config.stale_if_error.is_zero() {
            // The stale value has to be here when L3 is not. Without it nothing is wrong: that is not this call's error.
            let deadline = inner.timer.now() + inner.config.wait_timeout;
            let _ = inner.read_l3(key, deadline).await;
        }
        Ok(was_there)
    }

    /// Removes everything that `pattern` has from every tier; see [`PatternInvalidator`](crate::invalidation).
    pub(crate) async fn remove_matching(&self, pattern: &KeyPattern) -> Result<u64, CacheError> {
        let inner = &*self.inner;
        let kill = OnDrop(|| inner.kill_matching(pattern));
        let removed = inner.settle(inner.remote.remove_matching(pattern), CacheError::Remove).await;
        drop(kill);
        removed
    }

    /// Removes everything from every tier.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    pub async fn clear(&self) -> Result<(), CacheError> {
        let inner = &*self.inner;
        let flush = OnDrop(|| inner.cache.kernel().flush(inner.source, FlushCause::Overwritten));
        let cleared = inner.settle(inner.remote.clear(), CacheError::Clear).await;
        drop(flush);
        inner.cache.clear();
        cleared
    }
}

impl<K: CacheKey, V: CacheValue> Inner<K, V> {
    pub(super) fn lifetime(&self) -> Lifetime {
        Lifetime { ttl: self.config.ttl, stale: self.config.stale_if_error }
    }

    /// Kills local copies and the reads under way. Those first: what lands meanwhile is in L2 before it leaves the flights.
    fn kill_matching(&self, pattern: &KeyPattern) {
        let kernel = self.cache.kernel();
        let kill = |key: &K| {
            if key.with_name(|name| pattern.matches(name)) {
                kernel.bump(key.key_hash());
            }
        };
        if self.unlisted.load(Ordering::SeqCst) > 0 {
            // Whose key nobody here can name.
            kernel.flush(self.source, FlushCause::Overwritten);
        }
        self.reads.for_each_key(kill);
        self.loads.for_each_key(kill);
        self.cache.for_each_key(kill);
    }

    async fn write(&self, key: &K, value: &V, lifetime: Lifetime) -> Result<(), CacheError> {
        self.change(key.key_hash(), self.remote.write(key, value, lifetime), CacheError::Write).await
    }

    /// Waits for a write to one key. Whatever comes of it, also that the caller goes away meanwhile, its copies are dead
    /// when this ends.
    pub(super) async fn change<T>(
        &self,
        key: KeyHash,
        write: RemoteFuture<'_, T>,
        failed: fn(RemoteError) -> CacheError,
    ) -> Result<T, CacheError> {
        let _bump = OnDrop(|| self.cache.kernel().bump(key));
        self.settle(write, failed).await
    }

    async fn settle<T>(
        &self,
        write: RemoteFuture<'_, T>,
        failed: fn(RemoteError) -> CacheError,
    ) -> Result<T, CacheError> {
        let span = self.config.wait_timeout;
        let answer = within(&*self.timer, self.timer.now() + span, write).await;
        answer
            .unwrap_or_else(|| Err(RemoteError::Unreachable { reason: format!("no answer within {span:?}").into() }))
            .map_err(failed)
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
