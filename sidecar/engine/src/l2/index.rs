//! From hashes to places: a chained hash table that grows by one bucket at a time.
//!
//! Litwin, "Linear hashing: a new tool for file and table addressing", VLDB 1980. There is no moment at which everything
//! is rehashed, and none at which a table is there twice: an insertion splits at most two buckets. Chains go through the
//! places themselves ([`Placed::next`](super::slots::Placed)). There are seven buckets for four entries, seven bytes each, so
//! that a place looked at is nearly always the one asked for: each other one would be a line of memory more to wait for.

use super::slots::Slots;
use crate::hold::Hold;
use crate::prefetch::prefetch;
use crate::slab::NIL;

const SEGMENT_BITS: u32 = 8;
const SEGMENT: usize = 1 << SEGMENT_BITS;
/// So many buckets may be added for an entry.
const SPLITS: u32 = 2;

/// Buckets for so many entries.
const fn wanted(entries: u32) -> u32 {
    entries + entries / 2 + entries / 4
}

/// Buckets that grow by one: bucket `b` is split into itself and `b + half` when its turn comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Growing {
    count: u32,
    /// The largest power of two that is at most `count`.
    half: u32,
}

impl Growing {
    pub(crate) const fn new(count: u32) -> Self {
        Self { count, half: 1 << count.ilog2() }
    }

    #[inline]
    pub(crate) const fn bucket(self, hash: u32) -> u32 {
        let wide = hash & (2 * self.half - 1);
        if wide < self.count { wide } else { hash & (self.half - 1) }
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    #[expect(clippy::vec_box, reason = "a longer list must not copy what is in the segments")]
    segments: Vec<Box<[u32; SEGMENT]>>,
    growing: Growing,
    len: u32,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { segments: vec![Box::new([NIL; SEGMENT])], growing: Growing::new(1), len: 0 }
    }

    /// The first place of the bucket that `hash` falls into; the others follow by their `next`.
    #[inline]
    pub(crate) fn first(&self, hash: u32) -> u32 {
        let bucket = self.growing.bucket(hash);
        self.segments[(bucket >> SEGMENT_BITS) as usize][bucket as usize & (SEGMENT - 1)]
    }

    /// Asks for the memory of the bucket that `hash` falls into.
    pub(crate) fn prefetch(&self, hash: u32) {
        let bucket = self.growing.bucket(hash);
        prefetch(&self.segments[(bucket >> SEGMENT_BITS) as usize][bucket as usize & (SEGMENT - 1)]);
    }

    fn bucket_mut(&mut self, bucket: u32) -> &mut u32 {
        &mut self.segments[(bucket >> SEGMENT_BITS) as usize][bucket as usize & (SEGMENT - 1)]
    }

    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) fn insert<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.len += 1;
        for _ in 0..SPLITS {
            if self.growing.count < wanted(self.len) {
                self.split(slots);
            }
        }
        self.chain(slots, slot);
    }

    fn chain<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        if let Some(placed) = slots.item_mut(slot) {
            let bucket = self.bucket_mut(self.growing.bucket(placed.hash));
            placed.next = std::mem::replace(bucket, slot);
        }
    }

    /// Adds a bucket and deals out the one that shared its hashes: as many steps as that has entries.
    fn split<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>) {
        let added = self.growing.count;
        if added as usize == self.segments.len() << SEGMENT_BITS {
            self.segments.push(Box::new([NIL; SEGMENT]));
        }
        let shared = self.growing.bucket(added);
        self.growing = Growing::new(added + 1);
        let mut slot = std::mem::replace(self.bucket_mut(shared), NIL);
        while let Some(placed) = slots.item(slot) {
            let next = placed.next;
            self.chain(slots, slot);
            slot = next;
        }
    }

    pub(crate) fn remove<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some((hash, next)) = slots.item(slot).map(|placed| (placed.hash, placed.next)) else { return };
        self.len -= 1;
        let bucket = self.bucket_mut(self.growing.bucket(hash));
        if *bucket == slot {
            *bucket = next;
            return;
        }
        let mut before = *bucket;
        while let Some(placed) = slots.item_mut(before) {
            if placed.next == slot {
                placed.next = next;
                return;
            }
            before = placed.next;
        }
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.segments.len() * size_of::<[u32; SEGMENT]>() + self.segments.capacity() * size_of::<Box<[u32; SEGMENT]>>()
    }

    /// Bytes that the next insertion would allocate: a segment, and perhaps a longer list of segments beside the old one.
    pub(crate) fn growth(&self) -> usize {
        let buckets = wanted(self.len + 1).min(self.growing.count + SPLITS) as usize;
        if buckets <= self.segments.len() << SEGMENT_BITS {
            return 0;
        }
        let list = if self.segments.len() == self.segments.capacity() { (2 * self.segments.len()).max(4) } else { 0 };
        size_of::<[u32; SEGMENT]>() + list * size_of::<Box<[u32; SEGMENT]>>()
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[test]
    fn growing_by_one_moves_hashes_only_to_the_new_bucket() {
        let hashes: Vec<u32> = (0..1_000_u32).map(|n| n.wrapping_mul(0x9E37_79B9).rotate_left(7)).collect();
        for count in 1..300 {
            let (before, after) = (Growing::new(count), Growing::new(count + 1));
            for &hash in &hashes {
                let (old, new) = (before.bucket(hash), after.bucket(hash));
                assert!(old < count && (new == old || new == count && old == before.bucket(count)), "{count} {hash}");
            }
        }
    }
}
