//! Which rule would serve the present load best: a small simulation of each, on a sample of the keys.
//!
//! Keys are sampled by their hash, and the caches simulated are smaller by the same factor, so that each has about the hit
//! ratio that the whole cache would have under its rule (Waldspurger, Saemundsson, Ahmad, Park: "Cache modeling and
//! optimization using miniature simulations", USENIX ATC 2017). They hold hashes and no values. Whoever reads a sampled
//! key pays for the simulation; if another is at it, the read is not counted. Hits that L1 serves are not seen: what is in
//! L1 would stay under every rule.

use super::segments::{Rule, Segments};
use crate::clock::Moment;
use crate::entry::{Entry, Parts};
use crate::hash::TierHash;
use crate::kernel::Basis;
use crate::l2::{Index, Placed, Slots, Times};
use crate::slab::Slab;
use crate::sync::{AtomicU8, AtomicU64, Mutex, Ordering};

/// The rules that compete; the first one rules until another has shown to be better.
const RULES: [Rule; 5] = [Rule::S3Fifo(10), Rule::S3Fifo(2), Rule::TinyLfu(1), Rule::TinyLfu(20), Rule::Recency];
/// A simulation has between so many entries and twice as many.
const MINIATURE: usize = 256;
/// One that has no room for so many says nothing.
const LEAST: usize = 16;
/// Simulations cost at most one part in so many of the budget.
const BUDGET_SHARE: usize = 50;
/// What an entry of a simulation allocates, and what a simulation does besides, rounded up.
const ENTRY_BYTES: usize = 80;
const FIXED_BYTES: usize = 5 << 10;
/// At most one key in so many is sampled, unless the simulations would be too small.
const LEAST_FACTOR: usize = 16;
/// Bits of the hash that say whether a key is sampled; shard and bucket are chosen by others.
const SAMPLE_SHIFT: u32 = 50;
/// Nobody is sampled: the whole cache is not full, so every rule does alike.
const NOBODY: u64 = u64::MAX;
/// Sampled reads after which the rules are compared, and older reads count half.
const ROUND: u32 = 1024;
/// Another rule follows when it has so many hundredths more hits than the present one.
const MARGIN: u32 = 2;

#[derive(Debug)]
pub(crate) struct Duel {
    winner: AtomicU8,
    /// Keys whose hash has none of these bits above [`SAMPLE_SHIFT`] are sampled.
    mask: AtomicU64,
    arena: Mutex<Arena>,
}

#[derive(Debug)]
struct Arena {
    minis: Vec<Mini>,
    /// The most entries that a simulation may have.
    most: usize,
    reads: u32,
}

impl Duel {
    /// For a cache of so many bytes.
    pub(crate) fn new(max_bytes: usize) -> Self {
        let most = (max_bytes / BUDGET_SHARE / RULES.len()).saturating_sub(FIXED_BYTES) / ENTRY_BYTES;
        let most = if most < LEAST { 0 } else { most.min(2 * MINIATURE) };
        let arena = Arena { minis: Vec::new(), most, reads: 0 };
        Self { winner: AtomicU8::new(0), mask: AtomicU64::new(NOBODY), arena: Mutex::new(arena) }
    }

    /// What the simulations allocate at most.
    pub(crate) fn bytes(&self) -> usize {
        let most = self.arena.lock().most;
        if most == 0 { 0 } else { RULES.len() * (FIXED_BYTES + most * ENTRY_BYTES) }
    }

    pub(super) fn winner(&self) -> Rule {
        RULES[self.winner.load(Ordering::Relaxed) as usize % RULES.len()]
    }

    /// A key that is in the whole cache was read.
    #[inline]
    pub(crate) fn read(&self, hash: TierHash) {
        if (hash.raw() >> SAMPLE_SHIFT) & self.mask.load(Ordering::Relaxed) == 0 {
            self.simulate(hash);
        }
    }

    /// A key was put into the whole cache, for which others had to leave it: it is full with about so many `entries`.
    pub(crate) fn filled(&self, hash: TierHash, entries: Option<usize>) {
        if let Some(entries) = entries
            && (self.mask.load(Ordering::Relaxed) == NOBODY || hash.raw() >> (u64::BITS - 6) == 0)
        {
            self.resize(entries);
        }
        self.read(hash);
    }

    #[inline(never)]
    fn simulate(&self, hash: TierHash) {
        let Some(mut arena) = self.arena.try_lock() else { return };
        for mini in &mut arena.minis {
            mini.read(hash.raw() as u32);
        }
        arena.reads += 1;
        if arena.reads >= ROUND {
            arena.reads = 0;
            self.compare(&mut arena.minis);
        }
    }

    fn compare(&self, minis: &mut [Mini]) {
        let present = self.winner.load(Ordering::Relaxed) as usize % RULES.len();
        let Some(to_beat) = minis.get(present).map(|mini| mini.hits + mini.hits * MARGIN / 100 + 1) else { return };
        let best = (0..minis.len()).max_by_key(|&index| minis[index].hits).unwrap_or(present);
        if minis[best].hits > to_beat {
            self.winner.store(best as u8, Ordering::Relaxed);
        }
        for mini in minis {
            mini.hits /= 2;
        }
    }

    /// Gives the simulations their share of so many entries.
    fn resize(&self, entries: usize) {
        let Some(mut arena) = self.arena.try_lock() else { return };
        let most = arena.most;
        if most == 0 {
            return;
        }
        let least_factor = LEAST_FACTOR.min((entries / LEAST).max(1));
        let ideal = (entries / MINIATURE).max(least_factor).max(entries.div_ceil(most)).next_power_of_two();
        let present = self.mask.load(Ordering::Relaxed);
        // The number of entries is an estimate: the factor stays until it is wrong by more than that.
        let stays = present != NOBODY && {
            let capacity = entries / (present as usize + 1);
            capacity <= most && capacity * 2 >= entries / ideal
        };
        let factor = if stays { present as usize + 1 } else { ideal };
        if !stays {
            self.mask.store(factor as u64 - 1, Ordering::Relaxed);
            // Other keys are sampled from now on.
            arena.minis = RULES.map(Mini::new).into();
        }
        let capacity = (entries / factor).clamp(1, most);
        for mini in &mut arena.minis {
            mini.capacity = capacity;
        }
    }
}

/// A cache of hashes under one rule.
struct Mini {
    rule: Rule,
    capacity: usize,
    segments: Segments,
    slots: Slots<(), ()>,
    index: Index,
    /// Of sampled reads, older ones counting less.
    hits: u32,
}

impl std::fmt::Debug for Mini {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mini").field("rule", &self.rule).field("hits", &self.hits).finish_non_exhaustive()
    }
}

impl Mini {
    fn new(rule: Rule) -> Self {
        Self { rule, capacity: 0, segments: Segments::new(), slots: Slab::new(), index: Index::new(), hits: 0 }
    }

    fn read(&mut self, hash: u32) {
        let mut slot = self.index.first(hash);
        while let Some(placed) = self.slots.item(slot) {
            if placed.hash == hash {
                placed.entry.credit();
                self.hits += 1;
                return;
            }
            slot = placed.next;
        }
        while self.index.len() >= self.capacity.max(1) {
            let Some(victim) = self.segments.victim(&mut self.slots, self.rule) else { break };
            self.index.remove(&mut self.slots, victim);
            self.slots.remove(victim);
        }
        let unit = || Parts { field: (), tail: &[] };
        let entry = Entry::new(Basis::from_parts(0, 0, 0), unit(), unit());
        let slot = self.slots.insert(Placed::new(entry, hash, Times::new(Moment::NEVER, Moment::ZERO)));
        self.index.insert(&mut self.slots, slot);
        self.segments.insert(&mut self.slots, slot, self.rule);
    }
}
