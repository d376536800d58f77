//! Locks as values: taken by a call, let go by the end of a scope.
//!
//! Dropping a guard lets go in the background; [`LockGuard::unlock`] waits until others can have it, and says whether it
//! was held until then.

use std::sync::Arc;

use super::{Acquire, FencingToken, LockClient, LockError, LockKey, LockMode, LostReason, Owner, holdings::Lost};
use crate::Moment;

/// A lock that one owner has at a time.
pub struct DistributedMutex<K: LockKey> {
    client: Arc<LockClient<K>>,
    name: K,
}

impl<K: LockKey> DistributedMutex<K> {
    /// The lock of this name.
    pub fn new(client: Arc<LockClient<K>>, name: K) -> Self {
        Self { client, name }
    }

    /// Takes it for `owner`, or waits for its turn; again by the same owner at once.
    pub async fn lock(&self, owner: &Owner) -> Result<LockGuard<K>, LockError> {
        self.lock_with(owner, Acquire::default()).await
    }

    /// As [`lock`](Self::lock), with a timeout or lease of its own.
    pub async fn lock_with(&self, owner: &Owner, how: Acquire) -> Result<LockGuard<K>, LockError> {
        guard(&self.client, &self.name, owner, Acquire { mode: LockMode::Exclusive, ..how }).await
    }
}

/// A lock that many readers or one writer have at a time. A waiting writer stops new readers.
pub struct DistributedRwLock<K: LockKey> {
    client: Arc<LockClient<K>>,
    name: K,
}

impl<K: LockKey> DistributedRwLock<K> {
    /// The lock of this name.
    pub fn new(client: Arc<LockClient<K>>, name: K) -> Self {
        Self { client, name }
    }

    /// Takes it together with other readers.
    pub async fn read(&self, owner: &Owner) -> Result<LockGuard<K>, LockError> {
        self.lock_with(owner, Acquire { mode: LockMode::Shared, ..Acquire::default() }).await
    }

    /// Takes it alone. An owner that reads gets [`LockError::Upgrade`].
    pub async fn write(&self, owner: &Owner) -> Result<LockGuard<K>, LockError> {
        self.lock_with(owner, Acquire::default()).await
    }

    /// Takes it as said.
    pub async fn lock_with(&self, owner: &Owner, how: Acquire) -> Result<LockGuard<K>, LockError> {
        guard(&self.client, &self.name, owner, how).await
    }
}

async fn guard<K: LockKey>(
    client: &Arc<LockClient<K>>,
    name: &K,
    owner: &Owner,
    how: Acquire,
) -> Result<LockGuard<K>, LockError> {
    let (grant, lost) = client.acquire_watched(name, owner, how).await?;
    let (client, name, owner) = (client.clone(), name.clone(), owner.clone());
    Ok(LockGuard { client, name, owner, token: grant.token, lost, over: false })
}

/// A lock that is held, as far as is known here: see [`LockGuard::is_held`].
#[must_use = "the lock is let go when the guard is dropped"]
pub struct LockGuard<K: LockKey> {
    client: Arc<LockClient<K>>,
    name: K,
    owner: Owner,
    token: FencingToken,
    lost: Lost,
    over: bool,
}

impl<K: LockKey> LockGuard<K> {
    /// To be handed to whatever the lock guards.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Whether it is held at this moment. It may be lost in the next.
    pub fn is_held(&self) -> bool {
        let held = self.client.held(&self.owner, &self.name);
        held.is_some_and(|(token, _, remaining)| token == self.token && !remaining.is_zero())
    }

    /// Done when the lock was lost; otherwise never. One guard of an owner is told.
    pub async fn lost(&self) -> LostReason {
        loop {
            if let Some(reason) = self.lost.until(&*self.client.timer, Moment::NEVER).await {
                return reason;
            }
        }
    }

    /// Lets go: whether it was held until now.
    pub async fn unlock(mut self) -> Result<(), LockError> {
        self.over = true;
        self.client.release(&self.name, &self.owner, self.token).await.map(|_| ())
    }
}

impl<K: LockKey> Drop for LockGuard<K> {
    fn drop(&mut self) {
        if !self.over {
            self.client.drop_guard(&self.name, &self.owner, self.token);
        }
    }
}
