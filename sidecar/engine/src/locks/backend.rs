//! What a lock lies in: the operations that a client needs, each of them idempotent.
//!
//! A backend decides who holds what; it keeps the queue of each lock, ends leases by its own clock, and issues tokens. A
//! request whose answer is lost may be repeated, or taken back by [`LockBackend::cancel`]: a [`Ticket`] names it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use super::{FencingToken, LockMode, LockStatus, Owner, Ticket};

/// What a backend's operation returns.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, BackendError>> + Send + 'a>>;

/// Why there is no answer. Says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The backend cannot be asked, or its answer was lost; whether it did what was asked is unknown.
    #[error("{0}")]
    Unavailable(Arc<str>),
    /// What the backend has of this one lock was written by somebody else. Nothing was done; other locks go on.
    #[error("{0}")]
    Unreadable(Arc<str>),
}

/// One acquisition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask<K> {
    /// Which lock.
    pub name: K,
    /// Who.
    pub owner: Owner,
    /// How.
    pub mode: LockMode,
    /// Which acquisition this is: asking again with the same ticket keeps the place in the queue.
    pub ticket: Ticket,
    /// How long the lock is kept without a renewal.
    pub lease: Duration,
    /// Whether it queues if the lock is not free.
    pub waits: bool,
}

/// What became of an [`Ask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The lock is the owner's. An owner that had it already keeps its token.
    Granted(FencingToken),
    /// It is queued. It is told when its turn comes; in case that is lost, ask again after so long.
    Queued(Duration),
    /// It is not free, and the acquisition does not wait.
    NotFree,
    /// The owner has it shared and asked for exclusive.
    Upgrade(FencingToken),
    /// A bound of the backend was reached.
    Limit {
        /// Which.
        what: &'static str,
        /// Its value.
        limit: usize,
    },
}

/// A lock that somebody says is theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<K> {
    /// Which lock.
    pub name: K,
    /// Whose.
    pub owner: Owner,
    /// By which token.
    pub token: FencingToken,
    /// For a renewal: for how long from now.
    pub lease: Duration,
}

impl<K: PartialEq> Claim<K> {
    /// Whether both are of the same owner and lock.
    pub(super) fn is_of(&self, other: &Self) -> bool {
        self.owner == other.owner && self.name == other.name
    }
}

/// What a backend tells its client unasked. Must not block.
pub trait LockListener: Send + Sync {
    /// The turn of this acquisition may have come: it should ask again.
    fn wake(&self, ticket: &Ticket);
    /// The turn of this acquisition came: the lock is its owner's, for its lease from some moment behind its last answer
    /// that it was queued.
    fn handed_over(&self, ticket: &Ticket, token: FencingToken);
    /// This acquisition was taken out of its queue to break a deadlock.
    fn deadlocked(&self, ticket: &Ticket, cycle: &str);
    /// The backend's data has a new incarnation: tokens of older epochs are void.
    fn epoch(&self, epoch: u64);
}

/// What locks lie in: the operations that a [`LockClient`](super::LockClient) needs, each of them idempotent.
///
/// A backend decides who holds what; it keeps the queue of each lock, ends leases by its own clock, and issues tokens. A
/// request whose answer is lost may be repeated, or taken back by [`cancel`](Self::cancel): a [`Ticket`] names it.
pub trait LockBackend<K>: Send + Sync {
    /// Who is told of wake-ups; once, before anything else.
    fn attach(&self, listener: Weak<dyn LockListener>);
    /// Takes the lock if it is free and nobody who excludes the owner waits longer; else queues. Asked again by a ticket
    /// that was handed the lock meanwhile, it is granted under the same token.
    fn acquire<'a>(&'a self, ask: &'a Ask<K>) -> Reply<'a, Answer>;
    /// Takes an acquisition back, whether it waits or was granted meanwhile (not if the lock was granted to its owner
    /// by another ticket).
    fn cancel<'a>(&'a self, ask: &'a Ask<K>) -> Reply<'a, ()>;
    /// Extends leases; for each claim whether it (still) held.
    fn renew<'a>(&'a self, claims: &'a [Claim<K>]) -> Reply<'a, Vec<bool>>;
    /// Lets go; whether the claim held until now.
    fn release<'a>(&'a self, claim: &'a Claim<K>) -> Reply<'a, bool>;
    /// The client and its waiters live: called every [`LockClient::BEAT`](super::LockClient::BEAT) while any waits.
    /// Waiters of a client that has not called for three times as long are skipped.
    fn keep_waiting(&self) -> Reply<'_, ()>;
    /// Who holds and who waits.
    fn status<'a>(&'a self, name: &'a K) -> Reply<'a, LockStatus<K>>;
    /// All locks that somebody waits for, without those that cannot be read.
    fn contended(&self) -> Reply<'_, Vec<LockStatus<K>>>;
    /// Whether this client is the one that looks for deadlocks for the next while.
    fn take_duty(&self, lease: Duration) -> Reply<'_, bool>;
    /// This client is not the one any more, if it was.
    fn leave_duty(&self) -> Reply<'_, ()>;
    /// Takes an acquisition of any client out of its queue and tells it why; whether it still waited.
    fn break_deadlock<'a>(&'a self, name: &'a K, ticket: &'a Ticket, cycle: &'a str) -> Reply<'a, bool>;
}
