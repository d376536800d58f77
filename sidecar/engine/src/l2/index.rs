//! From hashes to places: a chained hash table that grows by one bucket at a time.
//!
//! Litwin, "Linear hashing: a new tool for file and table addressing", VLDB 1980. There is no moment at which everything
//! is rehashed, and none at which a table is there twice: an insertion splits at most two buckets. Chains go through the
//! places themselves ([`Placed::next`](super::slots::Placed)). There are seven buckets for four entries, seven bytes each, so
//! that a place looked at is nearly always the one asked for: each other one would be a line of memory more to wait for.
//!
//! Whatever leads to a place, a bucket or a place before it, is a [`Way`], which tells seven bits of the hash there, and
//! whether the chain ends there. So eight of nine questions for what is absent look at the bucket and at no place.

use super::slots::{Placed, Slots};
use crate::hold::Hold;
use crate::prefetch::prefetch;

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

    /// Without a jump: which of both it is nothing foretells.
    #[inline]
    pub(crate) fn bucket(self, hash: u32) -> u32 {
        let wide = hash & (2 * self.half - 1);
        std::hint::select_unpredictable(wide < self.count, wide, hash & (self.half - 1))
    }
}

/// The place that comes next in a bucket, in the lowest 24 bits; whether another comes after it, in the next one; in the
/// highest seven those of its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way(u32);

const PLACE_BITS: u32 = 24;
const PLACE: u32 = (1 << PLACE_BITS) - 1;
const MORE: u32 = 1 << PLACE_BITS;
const TAG: u32 = !(PLACE | MORE);

/// An index has at most so many places.
pub(crate) const MAX_PLACES: usize = PLACE as usize;

impl Way {
    /// To no place, as which the last one counts: to ask there finds nothing, and nothing comes after it.
    pub(crate) const NONE: Self = Self(PLACE);

    fn to(slot: u32, hash: u32, next: Self) -> Self {
        let more = if next.slot() == PLACE { 0 } else { MORE };
        Self(hash & TAG | more | slot)
    }

    const fn slot(self) -> u32 {
        self.0 & PLACE
    }

    const fn may_be(self, hash: u32) -> bool {
        (self.0 ^ hash) & TAG == 0
    }

    const fn goes_on(self) -> bool {
        self.0 & MORE != 0
    }

    /// The same, to what has become the last place of its bucket.
    const fn to_the_end(self) -> Self {
        Self(self.0 & !MORE)
    }
}

#[derive(Debug)]
pub(crate) struct Index {
    #[expect(clippy::vec_box, reason = "a longer list must not copy what is in the segments")]
    segments: Vec<Box<[Way; SEGMENT]>>,
    growing: Growing,
    len: u32,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { segments: vec![Box::new([Way::NONE; SEGMENT])], growing: Growing::new(1), len: 0 }
    }

    /// The place of `hash` in which `is` finds what is looked for.
    #[inline]
    pub(crate) fn find<'a, K: Hold, V: Hold>(
        &self,
        slots: &'a Slots<K, V>,
        hash: u32,
        is: impl Fn(&Placed<K, V>) -> bool,
    ) -> Option<(u32, &'a Placed<K, V>)> {
        let mut way = *self.bucket(hash);
        loop {
            if way.may_be(hash)
                && let Some(placed) = slots.item(way.slot())
                && placed.hash == hash
                && is(placed)
            {
                return Some((way.slot(), placed));
            }
            if !way.goes_on() {
                return None;
            }
            way = slots.item(way.slot())?.next;
        }
    }

    /// Asks for the memory of the bucket that `hash` falls into.
    pub(crate) fn prefetch(&self, hash: u32) {
        prefetch(self.bucket(hash));
    }

    #[inline]
    fn bucket(&self, hash: u32) -> &Way {
        let bucket = self.growing.bucket(hash);
        &self.segments[(bucket >> SEGMENT_BITS) as usize][bucket as usize & (SEGMENT - 1)]
    }

    #[inline]
    fn bucket_mut(&mut self, bucket: u32) -> &mut Way {
        &mut self.segments[(bucket >> SEGMENT_BITS) as usize][bucket as usize & (SEGMENT - 1)]
    }

    pub(crate) const fn len(&self) -> usize {
        self.len as usize
    }

    /// For a place below [`MAX_PLACES`].
    pub(crate) fn insert<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        self.len += 1;
        for _ in 0..SPLITS {
            if self.growing.count >= wanted(self.len) {
                break;
            }
            self.split(slots);
        }
        self.chain(slots, slot);
    }

    fn chain<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        if let Some(placed) = slots.item_mut(slot) {
            let bucket = self.bucket_mut(self.growing.bucket(placed.hash));
            placed.next = *bucket;
            *bucket = Way::to(slot, placed.hash, placed.next);
        }
    }

    /// Adds a bucket and deals out the one that shared its hashes: as many steps as that has entries.
    fn split<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>) {
        let added = self.growing.count;
        if added as usize == self.segments.len() << SEGMENT_BITS {
            self.segments.push(Box::new([Way::NONE; SEGMENT]));
        }
        let shared = self.growing.bucket(added);
        self.growing = Growing::new(added + 1);
        let mut way = std::mem::replace(self.bucket_mut(shared), Way::NONE);
        while let Some(placed) = slots.item(way.slot()) {
            let next = placed.next;
            self.chain(slots, way.slot());
            way = next;
        }
    }

    pub(crate) fn remove<K: Hold, V: Hold>(&mut self, slots: &mut Slots<K, V>, slot: u32) {
        let Some((hash, next)) = slots.item(slot).map(|placed| (placed.hash, placed.next)) else { return };
        self.len -= 1;
        let bucket = self.bucket_mut(self.growing.bucket(hash));
        if bucket.slot() == slot {
            *bucket = next;
            return;
        }
        let (mut to_before, mut before) = (None, bucket.slot());
        while let Some(placed) = slots.item_mut(before) {
            if placed.next.slot() != slot {
                to_before = Some(before);
                before = placed.next.slot();
                continue;
            }
            placed.next = next;
            if next == Way::NONE {
                let way = match to_before.and_then(|place| slots.item_mut(place)) {
                    Some(placed) => &mut placed.next,
                    None => self.bucket_mut(self.growing.bucket(hash)),
                };
                *way = way.to_the_end();
            }
            return;
        }
    }

    /// Bytes allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.segments.len() * size_of::<[Way; SEGMENT]>() + self.segments.capacity() * size_of::<Box<[Way; SEGMENT]>>()
    }

    /// Bytes that the next insertion would allocate: a segment, and perhaps a longer list of segments beside the old one.
    pub(crate) fn growth(&self) -> usize {
        let wanted = wanted(self.len + 1);
        if wanted <= self.growing.count {
            return 0;
        }
        let buckets = wanted.min(self.growing.count + SPLITS) as usize;
        if buckets <= self.segments.len() << SEGMENT_BITS {
            return 0;
        }
        let list = if self.segments.len() == self.segments.capacity() { (2 * self.segments.len()).max(4) } else { 0 };
        size_of::<[Way; SEGMENT]>() + list * size_of::<Box<[Way; SEGMENT]>>()
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::clock::Moment;
    use crate::entry::{Entry, Parts};
    use crate::kernel::Basis;
    use crate::l2::Times;

    fn place(key: u64, hash: u32) -> Placed<u64, ()> {
        let key = Parts { field: key, tail: &[] };
        let entry = Entry::new(Basis::from_parts(0, 0, 0), key, Parts { field: (), tail: &[] });
        Placed::new(entry, hash, Times::new(Moment::NEVER, Moment::ZERO))
    }

    /// Few buckets and few tags, so that chains are long and tags mislead.
    fn hash(key: u64) -> u32 {
        (key % 3) as u32 | ((key % 5) as u32) << 25 | ((key % 7) as u32) << 8
    }

    /// Whatever leads to a place says what is there, and goes on where, and only where, another one comes.
    fn assert_ways_are_true(index: &Index, slots: &Slots<u64, ()>) {
        for bucket in 0..index.growing.count {
            let mut way = index.segments[(bucket >> SEGMENT_BITS) as usize][bucket as usize & (SEGMENT - 1)];
            while way != Way::NONE {
                let placed = slots.item(way.slot()).expect("no way leads to an empty place");
                assert!(way.may_be(placed.hash) && index.growing.bucket(placed.hash) == bucket);
                assert_eq!(way.goes_on(), placed.next != Way::NONE);
                way = placed.next;
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_in_is_found_and_nothing_else(steps in proptest::collection::vec((0_u64..60, any::<bool>()), 1..300)) {
            let (mut index, mut slots, mut model) = (Index::new(), Slots::new(), HashMap::new());
            for (key, keep) in steps {
                match model.remove(&key) {
                    Some(slot) => {
                        index.remove(&mut slots, slot);
                        slots.remove(slot);
                    }
                    None if keep => {
                        let slot = slots.insert(place(key, hash(key)));
                        index.insert(&mut slots, slot);
                        model.insert(key, slot);
                    }
                    None => {}
                }
                assert_ways_are_true(&index, &slots);
                prop_assert_eq!(index.len(), model.len());
                for key in 0..60 {
                    let found = index.find(&slots, hash(key), |placed| *placed.entry.key() == key);
                    prop_assert_eq!(found.map(|(slot, _)| slot), model.get(&key).copied());
                }
            }
        }
    }

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
