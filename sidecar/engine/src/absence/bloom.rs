//! A split block Bloom filter (Putze, Sanders, Singler: "Cache-, Hash- and Space-Efficient Bloom Filters", WEA 2007; the
//! form that Apache Parquet uses): one bit in each of the eight words of one block, so one cache line per look.
//!
//! Threads add and look at the same time. Sized for 12 bits per key: some 0.5 % of absent keys are taken for present
//! when it is full. It takes hashes, mixed already, not keys.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::hash::KeyHash;

const WORDS: usize = 8;
const BITS_PER_KEY: usize = 12;
/// Odd numbers by which the words of a block choose their bits; Parquet's.
const SALTS: [u32; WORDS] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

#[derive(Debug)]
pub(super) struct Bloom {
    words: Box<[AtomicU32]>,
    len: AtomicUsize,
}

impl Bloom {
    pub(super) fn new(capacity: usize) -> Self {
        let words = Self::bytes_for(capacity) / size_of::<AtomicU32>();
        Self { words: (0..words).map(|_| AtomicU32::new(0)).collect(), len: AtomicUsize::new(0) }
    }

    pub(super) const fn bytes_for(capacity: usize) -> usize {
        let block = WORDS * size_of::<AtomicU32>();
        let blocks = capacity.saturating_mul(BITS_PER_KEY).div_ceil(block * 8);
        if blocks == 0 { block } else { blocks * block }
    }

    pub(super) fn add(&self, key: KeyHash) {
        let mut is_new = false;
        for (word, bit) in self.bits(key) {
            is_new |= word.fetch_or(bit, Ordering::Relaxed) & bit == 0;
        }
        if is_new {
            self.len.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `false`: it was never added.
    pub(super) fn may_have(&self, key: KeyHash) -> bool {
        self.bits(key).all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Keys that changed something when they were added.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    fn bits(&self, key: KeyHash) -> impl Iterator<Item = (&AtomicU32, u32)> {
        let (high, low) = (key.raw() >> 32, key.raw() as u32);
        let blocks = (self.words.len() / WORDS) as u64;
        let first = ((high * blocks) >> 32) as usize * WORDS;
        let bit = move |salt: &u32| 1 << (low.wrapping_mul(*salt) >> 27);
        self.words[first..first + WORDS].iter().zip(SALTS.iter().map(bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> KeyHash {
        KeyHash::of(&n.to_le_bytes())
    }

    #[test]
    fn what_was_added_is_there_and_of_the_rest_few_are_taken_for_it() {
        for capacity in [1, 100, 20_000] {
            let bloom = Bloom::new(capacity);
            (0..capacity as u32).for_each(|n| bloom.add(key(n)));
            assert!((0..capacity as u32).all(|n| bloom.may_have(key(n))));
            let len = bloom.len();
            assert!(len <= capacity && len * 100 >= capacity * 98, "{len} of {capacity}");
            let wrong = (1_000_000..1_100_000).filter(|n| bloom.may_have(key(*n))).count();
            assert!(wrong < 1_500, "{wrong} of 100,000 at {capacity}");
        }
        assert!(!Bloom::new(0).may_have(key(1)));
    }
}
