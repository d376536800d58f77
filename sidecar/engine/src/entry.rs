//! One cached value with all that decides whether it may be served. Shared by L2 (which owns it) and L1 (which points).
//!
//! Everything but the meters and the dead flag is fixed at fill, so a reader needs no lock.

use std::sync::Arc;

use crate::clock::Moment;
use crate::hash::TierHash;
use crate::kernel::Basis;
use crate::sync::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};
use crate::weigh::Weigh;

/// Where an eviction policy stops counting hits: S3-FIFO tells 0, 1, 2 and "3 or more" apart.
const FREQUENCY_CAP: u8 = 3;

/// A value in L2, perhaps also reachable from L1.
///
/// The fields are in the order of use: what a hit reads lies together, in as few cache lines as it fits.
#[derive(Debug)]
#[repr(C)]
pub struct Entry<K, V> {
    key: K,
    dead: AtomicBool,
    frequency: AtomicU8,
    l2_hits: AtomicU16,
    timer: AtomicU16,
    queue: AtomicU8,
    basis: Basis,
    deadline: Moment,
    value: V,
    hash: TierHash,
    read_at: Moment,
    slot: AtomicU32,
    bytes: u32,
}

impl<K: Weigh, V: Weigh> Entry<K, V> {
    pub(crate) fn new(basis: Basis, deadline: Moment, read_at: Moment, hash: TierHash, key: K, value: V) -> Self {
        let heap = key.heap_bytes().saturating_add(value.heap_bytes());
        let bytes = heap.saturating_add(Self::FIXED_BYTES);
        Self {
            basis,
            deadline,
            read_at,
            hash,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            slot: AtomicU32::new(u32::MAX),
            l2_hits: AtomicU16::new(0),
            timer: AtomicU16::new(u16::MAX),
            queue: AtomicU8::new(0),
            frequency: AtomicU8::new(0),
            dead: AtomicBool::new(false),
            key,
            value,
        }
    }
}

impl<K, V> Entry<K, V> {
    /// What an entry costs beyond the heap bytes of key and value: itself with the counts of its `Arc`. The containers
    /// it is in are counted apart, by what they allocated.
    pub const FIXED_BYTES: usize = size_of::<Self>() + 2 * size_of::<usize>();

    /// The key.
    pub const fn key(&self) -> &K {
        &self.key
    }

    /// The value.
    pub const fn value(&self) -> &V {
        &self.value
    }

    /// When it expires; [`Moment::NEVER`] if it does not.
    pub const fn deadline(&self) -> Moment {
        self.deadline
    }

    /// When the read that brought it was sent.
    pub const fn read_at(&self) -> Moment {
        self.read_at
    }

    /// What it counts against a budget: key, value and metadata.
    pub const fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// The hash it is found under.
    pub const fn hash(&self) -> TierHash {
        self.hash
    }

    /// What it was filled under, for [`Kernel::verdict`](crate::kernel::Kernel::verdict).
    pub const fn basis(&self) -> &Basis {
        &self.basis
    }

    /// Whether L2 let go of it: evicted, replaced or removed. L1 slots that still point to it are void.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::Release);
    }

    pub(crate) fn slot(&self) -> u32 {
        self.slot.load(Ordering::Relaxed)
    }

    pub(crate) fn set_slot(&self, slot: u32) {
        self.slot.store(slot, Ordering::Relaxed);
    }

    /// Which of its queues the eviction policy has it in; only under the shard's lock.
    pub(crate) fn queue(&self) -> u8 {
        self.queue.load(Ordering::Relaxed)
    }

    pub(crate) fn set_queue(&self, queue: u8) {
        self.queue.store(queue, Ordering::Relaxed);
    }

    /// Which bucket the timer wheel has it in; only under the shard's lock.
    pub(crate) fn timer(&self) -> u16 {
        self.timer.load(Ordering::Relaxed)
    }

    pub(crate) fn set_timer(&self, bucket: u16) {
        self.timer.store(bucket, Ordering::Relaxed);
    }

    /// Credits a hit in any tier. Stops writing at the cap, so a hot entry's line stays shared between cores.
    #[inline]
    pub(crate) fn credit(&self) {
        let seen = self.frequency.load(Ordering::Relaxed);
        if seen < FREQUENCY_CAP {
            self.frequency.store(seen + 1, Ordering::Relaxed);
        }
    }

    pub(crate) fn frequency(&self) -> u8 {
        self.frequency.load(Ordering::Relaxed)
    }

    pub(crate) fn set_frequency(&self, frequency: u8) {
        self.frequency.store(frequency, Ordering::Relaxed);
    }

    /// Counts a hit in L2 and tells how many there were. A lost update delays a promotion by one hit.
    #[inline]
    pub(crate) fn count_l2_hit(&self) -> u16 {
        let hits = self.l2_hits.load(Ordering::Relaxed).saturating_add(1);
        self.l2_hits.store(hits, Ordering::Relaxed);
        hits
    }

    /// After idling out of L1 an entry has to earn its place anew.
    pub(crate) fn forget_l2_hits(&self) {
        self.l2_hits.store(0, Ordering::Relaxed);
    }
}

/// An entry as tiers hold it.
pub type Shared<K, V> = Arc<Entry<K, V>>;
