//! Hashes of entries lately evicted, each with when it left: what a policy remembers of what it let go.
//!
//! Fingerprints in sets of eight, two for each place of the shard: four bytes. A memory is lost to a newer one in a full
//! set, fades when twice as many others have come as there are places, and is taken for another one's in about one of
//! 130 questions. The table grows with the places, by a few sets at a time and without moving what is in it; the few
//! memories whose set is another one then are lost.
//!
//! Time is counted in *eras*, of which one passes while a sixteenth of the places are evicted from.

use crate::l2::Growing;
use crate::prefetch::prefetch;

const WAYS: usize = 1 << WAY_BITS;
const WAY_BITS: u32 = 3;
const CHUNK_SETS: usize = 16;
/// Cells for each place.
const CELLS: usize = 2;
/// So many eras pass while as many entries leave as there are places.
pub(super) const ERAS: u32 = 16;
/// A memory so many eras old has faded.
const FADED: u16 = CELLS as u16 * ERAS as u16;

/// Fingerprint (10 bits), era (6 bits); zero: nothing.
type Cell = u16;
type Set = [Cell; WAYS];

const ERA_BITS: u32 = 6;
const ERA_MASK: u16 = (1 << ERA_BITS) - 1;

#[derive(Debug)]
pub(super) struct Ghost {
    #[expect(clippy::vec_box, reason = "a longer list must not copy what is in the chunks")]
    chunks: Vec<Box<[Set; CHUNK_SETS]>>,
    growing: Growing,
    era: u32,
    /// Memories of this era.
    count: usize,
}

impl Ghost {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), growing: Growing::new(1), era: 0, count: 0 }
    }

    /// Has a cell for each of so many places.
    #[inline]
    pub(super) fn grow_to(&mut self, places: u32) {
        if self.cells() < places as usize * CELLS {
            self.grow(places);
        }
    }

    #[cold]
    fn grow(&mut self, places: u32) {
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

    /// The present era.
    pub(super) fn era(&self) -> u32 {
        self.era
    }

    /// An entry leaves that was last used so many eras ago.
    pub(super) fn remember(&mut self, hash: u32, idle: u32) {
        self.count += 1;
        if self.count * CELLS * ERAS as usize > self.cells() {
            self.count = 0;
            self.era = self.era.wrapping_add(1);
        }
        let era = self.era as u16 & ERA_MASK;
        if idle >= u32::from(FADED) {
            return;
        }
        let used = era.wrapping_sub(idle as u16) & ERA_MASK;
        let Some(set) = self.set_mut(hash) else { return };
        // What has faded would look young again one day.
        *set = set.map(|cell| if age(cell, era) < FADED { cell } else { 0 });
        // An empty cell, or else the oldest. (It has no cell of its own: what was remembered of it was taken when it came.)
        let way = fittest(set, |cell| u16::from(cell == 0) << ERA_BITS | age(cell, era));
        set[way] = fingerprint(hash) << ERA_BITS | used;
    }

    /// Forgets `hash` and tells how many eras ago it was last used.
    pub(super) fn take(&mut self, hash: u32) -> Option<u32> {
        let era = self.era as u16 & ERA_MASK;
        let set = self.set_mut(hash)?;
        let way = fittest(set, |cell| u16::from(is_of(cell, hash)));
        if !is_of(set[way], hash) {
            return None;
        }
        let age = age(std::mem::take(&mut set[way]), era);
        (age < FADED).then_some(u32::from(age))
    }

    /// Asks for the memory in which `hash` would be remembered.
    pub(super) fn prefetch(&self, hash: u32) {
        let set = self.growing.bucket(hash) as usize;
        if let Some(chunk) = self.chunks.get(set / CHUNK_SETS) {
            prefetch(&raw const chunk[set % CHUNK_SETS]);
        }
    }

    fn cells(&self) -> usize {
        self.chunks.len() * CHUNK_SETS * WAYS
    }

    fn set_mut(&mut self, hash: u32) -> Option<&mut Set> {
        let set = self.growing.bucket(hash) as usize;
        self.chunks.get_mut(set / CHUNK_SETS).map(|chunk| &mut chunk[set % CHUNK_SETS])
    }
}

/// The first of the cells for which `fitness`, some bits, is greatest. Without a jump: which one it is nothing foretells.
#[inline]
fn fittest(set: &Set, fitness: impl Fn(Cell) -> u16) -> usize {
    let mut place = WAYS as u16;
    let ranks = set.map(|cell| {
        place -= 1;
        fitness(cell) << WAY_BITS | place
    });
    WAYS - 1 - (ranks.into_iter().fold(0, u16::max) as usize & (WAYS - 1))
}

/// Of a cell, in eras.
const fn age(cell: Cell, era: u16) -> u16 {
    era.wrapping_sub(cell) & ERA_MASK
}

const fn is_of(cell: Cell, hash: u32) -> bool {
    cell >> ERA_BITS == fingerprint(hash)
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
    fn what_left_lately_is_remembered_once_with_its_age_and_fades() {
        let mut ghost = Ghost::new();
        ghost.grow_to(1024);
        (0..128).for_each(|n| ghost.remember(hash(n), 0));
        (1_000..1_512).for_each(|n| ghost.remember(hash(n), 0));
        let ages: Vec<u32> = (0..128).filter_map(|n| ghost.take(hash(n))).collect();
        assert!(ages.len() > 120, "{} of 128", ages.len());
        assert!(ages.iter().all(|age| (8..=10).contains(age)), "512 of 1024 places are 8 eras: {ages:?}");
        assert!((0..128).all(|n| ghost.take(hash(n)).is_none()), "a memory is used up");
        ghost.remember(hash(1), 5);
        assert_eq!(ghost.take(hash(1)), Some(5), "counted from its last use");
        ghost.remember(hash(1), 0);
        (2_000..5_000).for_each(|n| ghost.remember(hash(n), 0));
        assert_eq!(ghost.take(hash(1)), None);
    }

    #[test]
    fn a_memory_does_not_look_young_when_eras_come_round() {
        let mut ghost = Ghost::new();
        ghost.grow_to(1024);
        (0..100).for_each(|n| ghost.remember(hash(n), 0));
        // 70 eras in which nothing stays that would push the others out.
        for n in 1_000..1_000 + 70 * 64 {
            ghost.remember(hash(n), 0);
            ghost.take(hash(n));
        }
        assert_eq!((0..100).filter_map(|n| ghost.take(hash(n))).count(), 0);
    }

    #[test]
    fn most_memories_survive_growing() {
        let mut ghost = Ghost::new();
        ghost.grow_to(1024);
        (0..500).for_each(|n| ghost.remember(hash(n), 0));
        let before = ghost.bytes();
        let grown = ghost.growth(1025);
        ghost.grow_to(1025);
        assert!(ghost.bytes() <= before + grown);
        let known = (0..500).filter(|&n| ghost.take(hash(n)).is_some()).count();
        assert!(known > 450, "{known} of 500");
    }
}
