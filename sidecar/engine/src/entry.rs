//! One cached value with all that decides whether it may be served, in one allocation. L2 owns it, L1 points to it.
//!
//! Everything but the marks of use and the dead flag is fixed at fill, so a reader needs no lock. Where it lies in L2, and
//! when it expires, the tiers keep beside it: here is only what a hit in either of them needs.

mod thin;

pub(crate) use thin::Parts;
use thin::Thin;

use crate::clock::Moment;
use crate::generations::{Dependency, worst};
use crate::hold::Hold;
use crate::kernel::{Basis, Kernel, Verdict};
use crate::sync::{AtomicBool, AtomicU8, Ordering};

/// Where credited hits stop.
const HITS_MAX: u8 = 15;

/// A value in L2, perhaps also reachable from L1. Cloning it is cheap: both are the same entry.
pub struct Entry<K: Hold, V: Hold>(Thin<K, V>);

/// An entry as tiers hold it.
pub type Shared<K, V> = Entry<K, V>;

/// What an entry has besides key and value.
///
/// Its alignment is two, so that with the reference count in front of it packed bytes begin after 18.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Header {
    stamp: [u8; 4],
    place: [u8; 4],
    flushes: u16,
    dead: AtomicBool,
    /// Hits credited and not yet used up.
    credit: AtomicU8,
    l2_hits: AtomicU8,
    /// What the eviction policy notes about it; only under the shard's lock.
    note: AtomicU8,
}

impl Header {
    fn new(basis: Basis) -> Self {
        let (stamp, place, flushes) = basis.into_parts();
        Self {
            stamp: stamp.to_ne_bytes(),
            place: place.to_ne_bytes(),
            flushes,
            dead: AtomicBool::new(false),
            credit: AtomicU8::new(0),
            l2_hits: AtomicU8::new(0),
            note: AtomicU8::new(0),
        }
    }
}

impl<K: Hold, V: Hold> Entry<K, V> {
    pub(crate) fn new(basis: Basis, key: Parts<'_, K>, value: Parts<'_, V>) -> Self {
        Self(Thin::new(Header::new(basis), key, value))
    }

    /// One entry, twice: for L2 and for whoever asked.
    pub(crate) fn pair(basis: Basis, key: Parts<'_, K>, value: Parts<'_, V>) -> (Self, Self) {
        let (one, other) = Thin::pair(Header::new(basis), key, value);
        (Self(one), Self(other))
    }

    /// What an entry costs beyond the bytes of key and value: its header with the reference count.
    pub const FIXED_BYTES: usize = Thin::<K, V>::FIXED_BYTES;

    /// The key.
    #[inline]
    pub fn key(&self) -> &K::Held {
        self.0.key()
    }

    /// The value.
    #[inline]
    pub fn value(&self) -> &V::Held {
        self.0.value()
    }

    /// What it counts against a budget: key, value and header, as allocated.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// What it was filled under, for [`Kernel::verdict`](crate::kernel::Kernel::verdict).
    #[inline]
    pub fn basis(&self) -> Basis {
        let header = self.0.header();
        Basis::from_parts(u32::from_ne_bytes(header.stamp), u32::from_ne_bytes(header.place), header.flushes)
    }

    /// Whether [`verdict`](Self::verdict) is plainly that it may be served; the way of most hits.
    #[inline]
    pub(crate) fn is_fresh(&self, kernel: &Kernel, deadline: Moment, now: Moment) -> bool {
        kernel.is_fresh(&self.basis(), deadline, now)
            && self.dependencies().iter().all(|dependency| dependency.is_fresh(kernel, now))
    }

    /// Whether it may be served at `now`: what the kernel says of the copy, and of the generations that it depends on.
    #[inline]
    pub(crate) fn verdict(&self, kernel: &Kernel, deadline: Moment, now: Moment) -> Verdict {
        let own = kernel.verdict(&self.basis(), deadline, now);
        self.dependencies().iter().fold(own, |verdict, dependency| worst(verdict, dependency.verdict(kernel, now)))
    }

    /// The generations that it depends on. Packed bytes have none, and are not looked at for it.
    #[inline]
    fn dependencies(&self) -> &[Dependency] {
        if V::PACKED { &[] } else { V::dependencies(self.value()) }
    }

    /// Whether L2 let go of it: evicted, replaced or removed. L1 slots that still point to it are void.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.0.header().dead.load(Ordering::Acquire)
    }

    pub(crate) fn kill(&self) {
        self.0.header().dead.store(true, Ordering::Release);
    }

    /// Whether somebody else points to it, too. Of an entry that no tier has any more, "no" is final.
    pub(crate) fn is_shared(&self) -> bool {
        self.0.is_shared()
    }

    /// It will be looked at soon: its memory may be fetched meanwhile.
    #[inline]
    pub(crate) fn prefetch(&self) {
        self.0.prefetch();
    }

    /// Whether both are the same entry.
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }

    /// What the eviction policy noted; only under the shard's lock.
    pub(crate) fn note(&self) -> u8 {
        self.0.header().note.load(Ordering::Relaxed)
    }

    pub(crate) fn set_note(&self, note: u8) {
        self.0.header().note.store(note, Ordering::Relaxed);
    }

    /// Credits a hit in any tier. Stops writing at the maximum, so a hot entry's line stays shared between cores.
    #[inline]
    pub(crate) fn credit(&self) {
        let seen = self.0.header().credit.load(Ordering::Relaxed);
        if seen < HITS_MAX {
            self.0.header().credit.store(seen + 1, Ordering::Relaxed);
        }
    }

    /// Hits credited and not yet used up by the eviction policy; it stops counting at 15.
    pub(crate) fn chances(&self) -> u8 {
        self.0.header().credit.load(Ordering::Relaxed)
    }

    /// A hit credited at the same time may be lost.
    pub(crate) fn set_chances(&self, chances: u8) {
        self.0.header().credit.store(chances, Ordering::Relaxed);
    }

    /// Counts a hit in L2 and tells how many there were, up to 255. A lost update delays a promotion by one hit.
    #[inline]
    pub(crate) fn count_l2_hit(&self) -> u8 {
        let hits = self.0.header().l2_hits.load(Ordering::Relaxed).saturating_add(1);
        self.0.header().l2_hits.store(hits, Ordering::Relaxed);
        hits
    }

    /// Takes over how much `old` was asked for.
    pub(crate) fn inherit(&self, old: &Self) {
        self.set_chances(old.chances());
        self.0.header().l2_hits.store(old.0.header().l2_hits.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// After idling out of L1 an entry has to earn its place anew.
    pub(crate) fn forget_l2_hits(&self) {
        self.0.header().l2_hits.store(0, Ordering::Relaxed);
    }
}

impl<K: Hold, V: Hold> Clone for Entry<K, V> {
    #[inline]
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Hold, V: Hold> std::fmt::Debug for Entry<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("basis", &self.basis()).field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}
