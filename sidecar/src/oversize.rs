//! Which keys had values that were too large to be kept when they were last read: for people who ask why there is no copy.
//!
//! Of some lately read ones only, by their hashes: it decides nothing, and fails by not knowing.

use std::sync::atomic::{AtomicBool, Ordering};

use caddy_engine::TierHash;
use parking_lot::Mutex;

const SLOTS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Oversize {
    /// Whether there ever was one: all that others pay for it.
    any: AtomicBool,
    slots: Mutex<[Option<(TierHash, usize)>; SLOTS]>,
}

impl Default for Oversize {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), slots: Mutex::new([None; SLOTS]) }
    }
}

impl Oversize {
    /// A value of so many bytes was not kept.
    pub(crate) fn note(&self, hash: TierHash, bytes: usize) {
        self.any.store(true, Ordering::Relaxed);
        self.slots.lock()[slot(hash)] = Some((hash, bytes));
    }

    /// A value of the key was small enough.
    #[inline]
    pub(crate) fn forget(&self, hash: TierHash) {
        if self.any.load(Ordering::Relaxed) {
            self.slots.lock()[slot(hash)].take_if(|(of, _)| *of == hash);
        }
    }

    /// How many bytes the value had.
    pub(crate) fn bytes(&self, hash: TierHash) -> Option<usize> {
        self.slots.lock()[slot(hash)].filter(|(of, _)| *of == hash).map(|(_, bytes)| bytes)
    }
}

fn slot(hash: TierHash) -> usize {
    hash.raw() as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_too_large_is_known_until_it_is_not() {
        let (oversize, hash) = (Oversize::default(), TierHash::from_raw);
        oversize.note(hash(7), 2_000_000);
        oversize.forget(hash(7 + SLOTS as u64));
        assert_eq!((oversize.bytes(hash(7)), oversize.bytes(hash(7 + SLOTS as u64))), (Some(2_000_000), None));
        oversize.forget(hash(7));
        assert_eq!(oversize.bytes(hash(7)), None);
    }
}
