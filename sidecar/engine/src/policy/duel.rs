//! Which rule would serve the present load best: a small simulation of each, on a sample of the keys.
//!
//! Keys are sampled by their hash, and the caches simulated are smaller by the same factor, so that each has about the hit
//! ratio that the whole cache would have under its rule (Waldspurger, Saemundsson, Ahmad, Park: "Cache modeling and
//! optimization using miniature simulations", USENIX ATC 2017). They hold hashes and no values, and fill together with the
//! whole cache: when that is full, they are too, with the same keys. Whoever reads a sampled key pays for the simulation;
//! if another is at it, the read is not counted. Hits that L1 serves are not seen: what is in L1 would stay under every rule.

use super::segments::{Rule, Segments};
use crate::clock::Moment;
use crate::entry::{Entry, Parts};
use crate::hash::TierHash;
use crate::kernel::Basis;
use crate::l2::{Index, Placed, Slots, Times};
use crate::slab::Slab;
use crate::sync::{AtomicBool, AtomicU8, AtomicU64, Mutex, Ordering};

/// The rules that compete. The first one rules until another has shown to be better: where it is not the best it loses
/// little, and of a loop or a scan it keeps the right part from the beginning.
const RULES: [Rule; 4] = [Rule::Lirs(5), Rule::Lirs(1), Rule::S3Fifo(10), Rule::Recency];
/// A simulation has at most so many entries, and at least a quarter of them where enough keys are sampled.
const MINIATURE: usize = 512;
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
const MOST_FACTOR: usize = 1 << (u64::BITS - SAMPLE_SHIFT);
/// Another rule follows when it has had so many more hits than the present one…
const LEAD: u32 = 32;
/// …and also more in about so many of the last sampled reads: in a loop each rule has its turn.
const WINDOW: u32 = 1024;
/// What a hit weighs in them, so that fractions of it can be lost.
const HIT: u32 = 1 << 12;

#[derive(Debug)]
pub(crate) struct Duel {
    winner: AtomicU8,
    /// Keys whose hash has none of these bits above [`SAMPLE_SHIFT`] are sampled.
    mask: AtomicU64,
    /// The whole cache is, and so the simulations are too.
    is_full: AtomicBool,
    arena: Mutex<Arena>,
}

#[derive(Debug)]
struct Arena {
    /// One for each rule; none where there is no room.
    minis: Vec<Mini>,
    /// The most entries that a simulation may have.
    most: usize,
}

impl Duel {
    /// For a cache of so many bytes.
    pub(crate) fn new(max_bytes: usize) -> Self {
        let most = (max_bytes / BUDGET_SHARE / RULES.len()).saturating_sub(FIXED_BYTES) / ENTRY_BYTES;
        let most = if most < LEAST { 0 } else { most.min(MINIATURE) };
        let minis = if most == 0 { Vec::new() } else { RULES.map(|rule| Mini::new(rule, most)).into() };
        let arena = Mutex::new(Arena { minis, most });
        // Without simulations as few as possible come to look for them.
        let mask = if most == 0 { MOST_FACTOR as u64 - 1 } else { 0 };
        Self { winner: AtomicU8::new(0), mask: AtomicU64::new(mask), is_full: AtomicBool::new(false), arena }
    }

    /// What the simulations allocate at most.
    pub(crate) fn bytes(&self) -> usize {
        let most = self.arena.lock().most;
        if most == 0 { 0 } else { RULES.len() * (FIXED_BYTES + most * ENTRY_BYTES) }
    }

    pub(super) fn winner(&self) -> Rule {
        RULES[self.winner.load(Ordering::Relaxed) as usize % RULES.len()]
    }

    /// A key that is in the whole cache was read. As long as that is not full, every rule does alike.
    #[inline]
    pub(crate) fn read(&self, hash: TierHash) {
        if self.is_full.load(Ordering::Relaxed) && self.is_sampled(hash) {
            self.simulate(hash);
        }
    }

    #[inline]
    fn is_sampled(&self, hash: TierHash) -> bool {
        (hash.raw() >> SAMPLE_SHIFT) & self.mask.load(Ordering::Relaxed) == 0
    }

    /// A key was put into the whole cache; it is full with about so many `entries`, if others had to leave for it.
    #[inline]
    pub(crate) fn filled(&self, hash: TierHash, entries: Option<usize>) {
        // The number of entries changes slowly.
        if let Some(entries) = entries
            && (!self.is_full.load(Ordering::Relaxed) || hash.raw() >> (u64::BITS - 6) == 0)
        {
            self.resize(entries);
        }
        if self.is_sampled(hash) {
            self.simulate(hash);
        }
    }

    #[inline(never)]
    fn simulate(&self, hash: TierHash) {
        let Some(mut arena) = self.arena.try_lock() else { return };
        if arena.minis.is_empty() {
            return;
        }
        let sample = (hash.raw() >> SAMPLE_SHIFT) as u16;
        let mut hits = [false; RULES.len()];
        for (mini, hit) in arena.minis.iter_mut().zip(&mut hits) {
            *hit = mini.read(hash.raw() as u32, sample);
        }
        self.compare(&mut arena.minis, hits);
        let factor = self.mask.load(Ordering::Relaxed) as usize + 1;
        let most = if factor < LEAST_FACTOR { arena.most.min(2 * LEAST) } else { arena.most };
        if !self.is_full.load(Ordering::Relaxed) && arena.minis.iter().any(|mini| mini.index.len() >= most) {
            self.sample_one_in(2 * factor, &mut arena);
        }
    }

    /// Page's test for a change (E. S. Page: "Continuous inspection schemes", Biometrika 1954): a lead begins anew whenever it
    /// is used up, so a great difference decides soon, a small one in time, and what was long ago not at all.
    fn compare(&self, minis: &mut [Mini], hits: [bool; RULES.len()]) {
        let winner = self.winner.load(Ordering::Relaxed) as usize % RULES.len();
        for (mini, hit) in minis.iter_mut().zip(hits) {
            mini.lead = (mini.lead + u32::from(hit)).saturating_sub(u32::from(hits[winner]));
            mini.hits = mini.hits + u32::from(hit) * HIT - mini.hits / WINDOW;
        }
        let to_beat = minis[winner].hits;
        if let Some(best) = minis.iter().position(|mini| mini.lead >= LEAD && mini.hits > to_beat) {
            self.winner.store(best as u8, Ordering::Relaxed);
            for mini in minis {
                mini.lead = 0;
            }
        }
    }

    /// Gives the simulations their share of so many entries.
    #[inline(never)]
    fn resize(&self, entries: usize) {
        let Some(mut arena) = self.arena.try_lock() else { return };
        let most = arena.most;
        if most == 0 {
            return;
        }
        self.is_full.store(true, Ordering::Relaxed);
        let factor = self.mask.load(Ordering::Relaxed) as usize + 1;
        if entries / factor > most {
            self.sample_one_in(entries.div_ceil(most).next_power_of_two(), &mut arena);
        } else if factor > LEAST_FACTOR && entries / factor < most / 4 {
            // The keys that should be in them are not known: they begin anew.
            arena.minis = RULES.map(|rule| Mini::new(rule, most)).into();
            self.sample_one_in((entries / (most / 2)).next_power_of_two().max(LEAST_FACTOR), &mut arena);
        }
        let factor = self.mask.load(Ordering::Relaxed) as usize + 1;
        for mini in &mut arena.minis {
            mini.capacity = (entries / factor).clamp(1, most);
        }
    }

    /// From now on one key in `factor` is sampled. What is known of others is forgotten.
    fn sample_one_in(&self, factor: usize, arena: &mut Arena) {
        let mask = factor.min(MOST_FACTOR) as u64 - 1;
        self.mask.store(mask, Ordering::Relaxed);
        for mini in &mut arena.minis {
            mini.keep(mask as u16);
        }
    }
}

/// A cache of hashes under one rule.
struct Mini {
    rule: Rule,
    capacity: usize,
    segments: Segments,
    /// Keys are the bits by which they were sampled.
    slots: Slots<u16, ()>,
    index: Index,
    /// Hits that it had more than the present rule's, since it last had none.
    lead: u32,
    /// Of the last [`WINDOW`] reads, older ones counting less.
    hits: u32,
}

impl std::fmt::Debug for Mini {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mini").field("rule", &self.rule).field("lead", &self.lead).finish_non_exhaustive()
    }
}

impl Mini {
    fn new(rule: Rule, capacity: usize) -> Self {
        Self { rule, capacity, segments: Segments::new(), slots: Slab::new(), index: Index::new(), lead: 0, hits: 0 }
    }

    /// Whether it was there.
    fn read(&mut self, hash: u32, sample: u16) -> bool {
        if let Some((_, placed)) = self.index.find(&self.slots, hash, |_| true) {
            placed.entry.credit();
            return true;
        }
        // Two, so that it gets down to a smaller capacity bit by bit.
        for _ in 0..2 {
            if self.index.len() >= self.capacity
                && let Some(victim) = self.segments.victim(&mut self.slots, self.rule)
            {
                self.free(victim);
            }
        }
        let key = Parts { field: sample, tail: &[] };
        let entry = Entry::new(Basis::from_parts(0, 0, 0), key, Parts { field: (), tail: &[] });
        let slot = self.slots.insert(Placed::new(entry, hash, Times::new(Moment::NEVER, Moment::ZERO)));
        self.index.insert(&mut self.slots, slot);
        self.segments.insert(&mut self.slots, slot, self.rule);
        false
    }

    /// Forgets the keys that have any of these bits.
    fn keep(&mut self, mask: u16) {
        for slot in 0..self.slots.span() {
            if self.slots.item(slot).is_some_and(|placed| placed.entry.key() & mask != 0) {
                self.segments.remove(&mut self.slots, slot);
                self.free(slot);
            }
        }
    }

    /// Frees a place that is in no queue any more.
    fn free(&mut self, slot: u32) {
        self.index.remove(&mut self.slots, slot);
        self.slots.remove(slot);
    }
}
