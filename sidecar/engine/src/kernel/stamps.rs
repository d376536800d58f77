//! Stamps: one counter per stripe of the key space; a change kills every copy filled under the old value.

use crate::hash::KeyHash;
use crate::sync::{AtomicU64, Ordering};

/// A fixed array of counters, indexed by key hash. Keys that share a stripe cost each other a spare miss, no more.
#[derive(Debug)]
pub(super) struct Stamps {
    counters: Box<[AtomicU64]>,
}

impl Stamps {
    /// `stripes` is rounded up to a power of two, and to at least one.
    pub(super) fn new(stripes: u32) -> Self {
        let count = stripes.clamp(1, super::basis::MAX_STRIPES).next_power_of_two();
        Self { counters: (0..count).map(|_| AtomicU64::new(0)).collect() }
    }

    pub(super) fn stripe(&self, key: KeyHash) -> u32 {
        // The length is a power of two of at most 2^22: the mask keeps the index in range and in 32 bits.
        (key.raw() & (self.counters.len() as u64 - 1)) as u32
    }

    #[inline]
    pub(super) fn read(&self, stripe: u32) -> u64 {
        self.counters[stripe as usize].load(Ordering::Acquire)
    }

    /// The new value.
    pub(super) fn bump(&self, stripe: u32) -> u64 {
        self.counters[stripe as usize].fetch_add(1, Ordering::Release) + 1
    }

    /// Kills every copy that there is.
    pub(super) fn bump_all(&self) {
        for counter in &self.counters {
            counter.fetch_add(1, Ordering::Release);
        }
    }

    #[cfg(all(test, not(feature = "shuttle")))]
    pub(super) fn set(&self, stripe: u32, value: u64) {
        self.counters[stripe as usize].store(value, Ordering::Release);
    }
}
