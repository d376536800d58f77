//! Hashes of entries lately evicted, each with how often it had been used: what a policy remembers of what it let go.
//!
//! Fingerprints in sets of eight, two for each place of the shard: four bytes. A memory is lost to a newer one in a full
//! set, fades when nearly twice as many others have come as the table has cells, and is taken for another one's in about
//! one of 130 questions. The table grows with the places, by a few sets at a time and without moving what is in it; the
//! few memories whose set is another one then are lost.

use crate::l2::Growing;

const WAYS: usize = 8;
const CHUNK_SETS: usize = 16;
/// Cells for each place.
const CELLS: usize = 2;
/// So many eras pass while as many memories come as there are cells.
const ERAS: usize = 4;
const ERA_MASK: u16 = 7;
const USES_SHIFT: u32 = 3;
const USES_MAX: u8 = 7;

/// Fingerprint (10 bits), uses (3 bits), era (3 bits).
type Cell = u16;
type Set = [Cell; WAYS];

const FINGERPRINT_SHIFT: u32 = 6;

/// What is known of an entry that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// How often it had been used, as far as this counts: up to 7, and less with time.
    pub(super) uses: u8,
    /// Fewer have left since than there are places.
    pub(super) is_recent: bool,
}

#[derive(Debug)]
pub(super) struct Ghost {
    #[expect(clippy::vec_box, reason = "a longer list must not copy what is in the chunks")]
    chunks: Vec<Box<[Set; CHUNK_SETS]>>,
    growing: Growing,
    era: u16,
    /// Memories of this era.
    count: usize,
}

impl Ghost {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), growing: Growing::new(1), era: 1, count: 0 }
    }

    /// Has a cell for each of so many places.
    pub(super) fn grow_to(&mut self, places: u32) {
        while self.cells() < places as usize * CELLS {
            self.chunks.push(Box::new([[0; WAYS]; CHUNK_SETS]));
            self.growing = Growing::new((self.chunks.len() * CHUNK_SETS) as u32);
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * size_of::<[Set; CHUNK_SETS]>()
            + self.chunks.capacity() * size_of::<Box<[Set; CHUNK_SETS]>>()
    }

    /// Bytes that growing to so many places would allocate.
    pub(super) fn growth(&self, places: u32) -> usize {
        if self.cells() >= places as usize * CELLS {
            return 0;
        }
        let list = if self.chunks.len() == self.chunks.capacity() { (2 * self.chunks.len()).max(4) } else { 0 };
        size_of::<[Set; CHUNK_SETS]>() + list * size_of::<Box<[Set; CHUNK_SETS]>>()
    }

    pub(super) fn remember(&mut self, hash: u32, uses: u8) {
        self.count += 1;
        if self.count * ERAS > self.cells() {
            self.count = 0;
            self.era = (self.era + 1) & ERA_MASK;
        }
        let era = self.era;
        let Some(set) = self.set_mut(hash) else { return };
        let known = set.iter().position(|&cell| is_of(cell, hash));
        let oldest = || (0..WAYS).max_by_key(|&way| if set[way] == 0 { u16::MAX } else { age(set[way], era) });
        if let Some(way) = known.or_else(oldest) {
            set[way] = fingerprint(hash) << FINGERPRINT_SHIFT | u16::from(uses.min(USES_MAX)) << USES_SHIFT | era;
        }
    }

    /// Forgets `hash` and tells what it knew of it.
    pub(super) fn take(&mut self, hash: u32) -> Option<Memory> {
        let era = self.era;
        let set = self.set_mut(hash)?;
        let way = set.iter().position(|&cell| is_of(cell, hash))?;
        let cell = std::mem::take(&mut set[way]);
        let age = age(cell, era);
        let uses = (cell >> USES_SHIFT) as u8 & USES_MAX;
        (age < ERA_MASK).then_some(Memory { uses: uses >> (age / 2), is_recent: usize::from(age) * CELLS <= ERAS })
    }

    fn cells(&self) -> usize {
        self.chunks.len() * CHUNK_SETS * WAYS
    }

    fn set_mut(&mut self, hash: u32) -> Option<&mut Set> {
        let set = self.growing.bucket(hash) as usize;
        self.chunks.get_mut(set / CHUNK_SETS).map(|chunk| &mut chunk[set % CHUNK_SETS])
    }
}

const fn age(cell: Cell, era: u16) -> u16 {
    era.wrapping_sub(cell) & ERA_MASK
}

const fn is_of(cell: Cell, hash: u32) -> bool {
    cell >> FINGERPRINT_SHIFT == fingerprint(hash)
}

/// Never zero, and of bits that do not choose the set as long as there are no more than 2^22 sets.
const fn fingerprint(hash: u32) -> u16 {
    let bits = (hash >> 22) as u16;
    if bits == 0 { 1 } else { bits }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    fn hash(n: u32) -> u32 {
        n.wrapping_mul(0x9E37_79B9) ^ n.rotate_left(13).wrapping_mul(0x85EB_CA6B)
    }

    #[test]
    fn what_left_lately_is_remembered_once_and_fades() {
        let mut ghost = Ghost::new();
        ghost.grow_to(1024);
        (0..200).for_each(|n| ghost.remember(hash(n), n as u8 % 8));
        let known =
            (0..200).filter(|&n| ghost.take(hash(n)) == Some(Memory { uses: n as u8 % 8, is_recent: true })).count();
        assert!(known > 190, "{known} of 200");
        assert!((0..200).all(|n| ghost.take(hash(n)).is_none()), "a memory is used up");
        ghost.remember(hash(1), 3);
        (1_000..6_000).for_each(|n| ghost.remember(hash(n), 0));
        assert_eq!(ghost.take(hash(1)), None);
    }

    #[test]
    fn most_memories_survive_growing() {
        let mut ghost = Ghost::new();
        ghost.grow_to(1024);
        (0..500).for_each(|n| ghost.remember(hash(n), 1));
        let before = ghost.bytes();
        let grown = ghost.growth(1025);
        ghost.grow_to(1025);
        assert!(ghost.bytes() <= before + grown);
        let known = (0..500).filter(|&n| ghost.take(hash(n)).is_some()).count();
        assert!(known > 450, "{known} of 500");
    }
}
