//! Which entry leaves when L2 is full: one trait, a file per policy.
//!
//! A policy orders the slots of one shard. It learns of hits through the entry's frequency, which L1 and L2 credit
//! without a lock; one that needs every hit in order says so and costs its readers the shard's exclusive lock.

mod adaptive;
mod duel;
mod ghost;
mod lru;
mod s3fifo;
mod segments;

pub(crate) use duel::Duel;

use std::sync::Arc;

use crate::hold::Hold;
use crate::l2::Slots;
use crate::slab::List;

/// An eviction queue: a list through the places of a shard.
type Queue = List<0>;

/// The eviction policy of L2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyKind {
    /// The one of these that a small simulation on a sample of the keys finds best for the present load: LIRS with a long or a
    /// short memory of hits, S3-FIFO, or recency.
    #[default]
    Adaptive,
    /// S3-FIFO: three FIFO queues; scans pass through the small one without touching what is hot.
    S3Fifo,
    /// Least recently used, exactly: every L2 hit takes the shard's exclusive lock.
    Lru,
}

impl PolicyKind {
    pub(crate) fn build<K: Hold, V: Hold>(self, duel: &Arc<Duel>) -> Box<dyn Policy<K, V>> {
        match self {
            Self::Adaptive => Box::new(adaptive::Adaptive::new(duel.clone())),
            Self::S3Fifo => Box::new(s3fifo::S3Fifo::new()),
            Self::Lru => Box::new(lru::Lru::new()),
        }
    }

    /// Whether hits must reach [`Policy::hit`], under the exclusive lock.
    pub(crate) const fn orders_hits(self) -> bool {
        matches!(self, Self::Lru)
    }
}

/// The order of eviction in one shard.
pub(crate) trait Policy<K: Hold, V: Hold>: Send + Sync {
    /// An entry with this hash will be inserted; what is needed then may be fetched meanwhile.
    fn expect(&self, hash: u32);

    /// `slot` has just been filled.
    fn insert(&mut self, slots: &mut Slots<K, V>, slot: u32);

    /// `slot` was hit; called only for policies that [order hits](PolicyKind::orders_hits).
    fn hit(&mut self, slots: &mut Slots<K, V>, slot: u32);

    /// `slot` is about to be freed for another reason than [`victim`](Self::victim).
    fn remove(&mut self, slots: &mut Slots<K, V>, slot: u32);

    /// Takes the next slot to evict out of the order; `None` only when there is none.
    fn victim(&mut self, slots: &mut Slots<K, V>) -> Option<u32>;

    /// Which slot the next [`victim`](Self::victim) will probably be, without looking far; what is needed then may be
    /// fetched meanwhile.
    fn foresee(&self, slots: &Slots<K, V>) -> Option<u32>;

    /// Bytes the policy itself uses.
    fn bytes(&self) -> usize;

    /// Bytes that it would allocate for an insertion into the next place.
    fn growth(&self, slots: &Slots<K, V>) -> usize;
}
