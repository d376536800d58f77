//! What hit ratio other amounts of memory would give, from a small sample of the reads.
//!
//! SHARDS with a fixed number of samples (Waldspurger, Park, Garthwaite, Ahmad: "Efficient MRC Construction with SHARDS",
//! FAST 2015). A key is sampled if its hash is below a threshold, so that all of its reads are seen or none; for each
//! read of such a key the *reuse distance* is taken: the bytes of all keys read since its last read. A cache of that size
//! under LRU would just have held it. When there are more sampled keys than places, the threshold sinks and the keys above
//! it go, and so memory stays fixed however many keys there are.
//!
//! Owns the sample and its histograms by [group](crate::Weigh::group). Never looks at values, and costs a read whose key
//! is not sampled one comparison. What it knows fades (half of it within [`HALF_LIFE`]), so that it speaks of the present.
//! The distances are those of LRU; the cache's own policy may do better.
//!
//! A thousand reads of one key within a second say no more than two of them, and would each cost more than the hit does:
//! hits of an L1 that follow one another so soon are not shown ([`repeated`](ReuseSample::repeated)), and count as reuse
//! over no distance. That is as good as true while what is read within two seconds is less than the sizes asked about.

mod distance;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Moment;
use crate::hash::TierHash;
use crate::kernel::{Basis, Kernel};
use crate::sync::Mutex;
use distance::Distances;

/// Sampled keys. With so many the paper finds errors of less than a hundredth.
pub const SAMPLES: usize = 8192;
/// What was seen so long ago counts half.
pub const HALF_LIFE: Duration = Duration::from_mins(15);
/// Steps of the histograms to a doubling of size, and the sizes they span: 256 B to 64 TiB.
const STEPS: u32 = 16;
const LEAST_BITS: u32 = 8;
const BUCKETS: usize = 38 * STEPS as usize;

/// See the module.
#[derive(Debug)]
pub struct ReuseSample {
    threshold: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    distances: Distances,
    groups: Vec<Group>,
    faded_at: Option<Moment>,
}

/// Weights, not counts: what is old weighs less, and the weight of a read is one over the share of keys that is sampled.
#[derive(Clone, Debug, Default)]
struct Group {
    /// Reads that other memory could make hits, by distance.
    reused: Vec<f32>,
    /// All sampled reads.
    sampled: f64,
    /// Reads that were sampled, not weighted.
    seen: u64,
    /// Of the reads that could have been sampled.
    recorded: Fading,
    /// Of all reads.
    reads: Fading,
}

/// A counter from elsewhere, faded like the rest.
#[derive(Clone, Copy, Debug, Default)]
struct Fading {
    last: u64,
    weight: f64,
}

impl Fading {
    fn advance(&mut self, to: u64) {
        self.weight += to.saturating_sub(self.last) as f64;
        self.last = to;
    }
}

/// What is known of a group's reads from elsewhere, as counters that only grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reads {
    /// Reads that were shown to the sample: those that hit, and those that filled.
    pub recorded: u64,
    /// All reads.
    pub all: u64,
}

/// A group's estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The share of reads that would hit, between 0 and 1.
    pub hit_ratio: f64,
    /// How many reads were sampled for it since the start; below some thousands it says little.
    pub samples: u64,
}

impl Default for ReuseSample {
    fn default() -> Self {
        Self::new(SAMPLES)
    }
}

impl ReuseSample {
    /// An empty sample of at most so many keys.
    pub fn new(samples: usize) -> Self {
        let state = State { distances: Distances::new(samples), groups: Vec::new(), faded_at: None };
        Self { threshold: AtomicU64::new(u64::MAX), state: Mutex::new(state) }
    }

    /// Whether reads of this key are to be [recorded](Self::hit). One load and one comparison.
    #[inline]
    pub fn takes(&self, hash: TierHash) -> bool {
        spread(hash) < self.threshold.load(Ordering::Relaxed)
    }

    /// A read of a sampled key that a copy of so many bytes answered.
    pub fn hit(&self, hash: TierHash, group: usize, bytes: usize) {
        self.record(hash, group, bytes, |_| true, None);
    }

    /// A read of a sampled key that was answered from below, and left a copy of so many bytes. Whether more memory would
    /// have helped depends on the last copy: it would not, if that has been invalidated or has expired.
    pub fn filled(&self, hash: TierHash, group: usize, bytes: usize, copy: Copied, kernel: &Kernel, now: Moment) {
        let lives = |last: &Copied| {
            let evidence = kernel.evidence(&last.basis, now);
            last.deadline > now && evidence.stamp.0 == evidence.stamp.1 && evidence.flushes.0 == evidence.flushes.1
        };
        self.record(hash, group, bytes, lives, Some(copy));
    }

    /// A hit of L1 so many seconds after the one before ([`Hit::idle`](crate::Hit::idle)): whether it need not be shown
    /// as a [`hit`](Self::hit). From time to time it is noted that the key is still read.
    #[inline]
    pub fn repeated(&self, hash: TierHash, bytes: usize, idle: Option<u32>) -> bool {
        if idle == Some(1) {
            self.refresh(hash, bytes);
        }
        matches!(idle, Some(0 | 1))
    }

    #[inline(never)]
    fn refresh(&self, hash: TierHash, bytes: usize) {
        let mut state = self.state.lock();
        if spread(hash) < self.threshold.load(Ordering::Relaxed) {
            let _ = state.distances.touch(spread(hash), bytes, None, |_| true);
            self.make_room(&mut state);
        }
    }

    fn make_room(&self, state: &mut State) {
        if let Some(highest) = state.distances.make_room() {
            self.threshold.store(highest, Ordering::Relaxed);
        }
    }

    fn record(
        &self,
        hash: TierHash,
        group: usize,
        bytes: usize,
        lives: impl FnOnce(&Copied) -> bool,
        copy: Option<Copied>,
    ) {
        let place = spread(hash);
        let mut state = self.state.lock();
        let state = &mut *state;
        if place >= self.threshold.load(Ordering::Relaxed) {
            return;
        }
        if state.groups.len() <= group {
            state.groups.resize(group + 1, Group::default());
        }
        let rate = rate(self.threshold.load(Ordering::Relaxed));
        let found = state.distances.touch(place, bytes, copy, lives);
        let weight = 1.0 / rate;
        let counted = &mut state.groups[group];
        counted.sampled += weight;
        counted.seen += 1;
        if let Some(distance) = found {
            if counted.reused.is_empty() {
                counted.reused.resize(BUCKETS, 0.0);
            }
            counted.reused[position(distance as f64 / rate).0] += weight as f32;
        }
        self.make_room(state);
    }

    /// Lets what is old fade, and takes over the counters of each group. Call it now and then, and before
    /// [`estimate`](Self::estimate).
    pub fn advance(&self, reads: impl ExactSizeIterator<Item = Reads>, now: Moment) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.groups.len() < reads.len() {
            state.groups.resize(reads.len(), Group::default());
        }
        let past = state.faded_at.replace(now).map_or(Duration::ZERO, |before| now.since(before));
        let keep = (-past.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        for (group, reads) in state.groups.iter_mut().zip(reads) {
            group.recorded.advance(reads.recorded);
            group.reads.advance(reads.all);
            group.recorded.weight *= keep;
            group.reads.weight *= keep;
            group.sampled *= keep;
            group.reused.iter_mut().for_each(|weight| *weight *= keep as f32);
        }
    }

    /// What share of a group's reads an LRU cache of so many bytes, shared by all groups as now, would answer. `None`:
    /// nothing is known of it.
    pub fn estimate(&self, group: usize, bytes: f64) -> Option<Estimate> {
        let state = self.state.lock();
        let group = state.groups.get(group).filter(|group| group.seen > 0 && group.reads.weight > 0.0)?;
        let (whole, part) = position(bytes);
        let at = |bucket: usize| group.reused.get(bucket).map_or(0.0, |weight| f64::from(*weight));
        let reused = (0..whole).map(at).sum::<f64>() + at(whole) * part;
        // The sample has more of the hottest keys than their share, or less: what it misses, or has too much, are their
        // reads, whose distances are near zero (the paper's SHARDS-adj).
        let adjusted = reused + group.recorded.weight - group.sampled;
        let hit_ratio = (adjusted / group.reads.weight).clamp(0.0, 1.0);
        Some(Estimate { hit_ratio, samples: group.seen })
    }

    /// Bytes that it takes at most.
    pub fn bytes(&self) -> usize {
        let state = self.state.lock();
        state.distances.bytes() + state.groups.capacity() * (size_of::<Group>() + BUCKETS * size_of::<f32>())
    }
}

/// What a key was last filled under.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// What it is valid under.
    pub basis: Basis,
    /// When it expires.
    pub deadline: Moment,
}

/// Apart from the bits by which tables and shards are chosen: a product by an odd number, of which the high bits count.
#[inline]
fn spread(hash: TierHash) -> u64 {
    hash.raw().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The share of keys below a threshold.
fn rate(threshold: u64) -> f64 {
    threshold as f64 / u64::MAX as f64
}

/// In which bucket a size is counted, and how far up in it.
#[expect(clippy::cast_sign_loss, reason = "clamped to what is positive")]
fn position(bytes: f64) -> (usize, f64) {
    let steps = (bytes.max(1.0).log2() - f64::from(LEAST_BITS)) * f64::from(STEPS);
    let steps = steps.clamp(0.0, (BUCKETS - 1) as f64);
    (steps as usize, steps.fract())
}

#[cfg(test)]
mod tests;
