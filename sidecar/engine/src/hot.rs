//! Which names are read most, from a sample of the reads, in fixed memory.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi: "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT
//! 2005): so many counters and no more; a name that has none takes the least one over with its count, which is then how
//! far its own may be too high. Whatever makes up more than one part in [`PLACES`] of the reads has a counter. Counts
//! fade with forward decay (Cormode, Shkapenyuk, Srivastava, Xu, ICDE 2009): new reads weigh more instead of old ones less,
//! so that nothing has to be done as time goes by.
//!
//! [`HotNames`] is shared, under a lock that only sampled reads take. A [`Sampler`] belongs to one thread and decides
//! which reads those are: each one while there are few, then so many per second, at random distances (at even ones a
//! client that goes round would be seen at one key only). Names are known by their hash alone. It never looks at values.

use std::{cell::Cell, collections::HashMap, time::Duration};

use crate::clock::Moment;
use crate::hash::TierHash;
use crate::sync::Mutex;

/// Counters of a [`HotNames`] by default.
pub const PLACES: usize = 1024;
/// What was read so long ago counts half.
pub const HALF_LIFE: Duration = Duration::from_mins(1);
/// Rates of what was first seen a moment ago are those over so long.
const LEAST_AGE: Duration = Duration::from_secs(1);
/// The weight of a new read is at most two to this power; then all counts are brought down.
const MAX_EXPONENT: f64 = 64.0;

/// See the module.
#[derive(Debug)]
pub struct HotNames<N> {
    places: usize,
    state: Mutex<State<N>>,
}

#[derive(Debug)]
struct State<N> {
    /// By hash, where the counter is.
    index: HashMap<TierHash, u32>,
    /// Apart from the rest, since the least is looked for among all.
    counts: Vec<f64>,
    counters: Vec<Counter<N>>,
    /// A read weighs one at this moment, and twice as much one [`HALF_LIFE`] later.
    origin: Moment,
    /// The first read.
    since: Option<Moment>,
}

#[derive(Debug)]
struct Counter<N> {
    hash: TierHash,
    name: N,
    /// What of its count may be others'.
    error: f64,
}

/// A name that is read often.
#[derive(Clone, Debug, PartialEq)]
pub struct Hot<N> {
    /// What is read.
    pub name: N,
    /// Reads per second, estimated over some [`HALF_LIFE`]: the sample aside, never too low.
    pub per_second: f64,
    /// The same, the sample aside never too high.
    pub at_least: f64,
}

impl<N> Default for HotNames<N> {
    fn default() -> Self {
        Self::new(PLACES)
    }
}

impl<N> HotNames<N> {
    /// So many counters, none of them taken.
    pub fn new(places: usize) -> Self {
        let places = places.max(1);
        let state = State {
            index: HashMap::with_capacity(places),
            counts: Vec::with_capacity(places),
            counters: Vec::with_capacity(places),
            origin: Moment::ZERO,
            since: None,
        };
        Self { places, state: Mutex::new(state) }
    }

    /// A sampled read that stands for `weight` reads. `name` is asked for when it gets a counter.
    pub fn record(&self, hash: TierHash, weight: u32, now: Moment, name: impl FnOnce() -> N) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.since.is_none() {
            (state.since, state.origin) = (Some(now), now);
        }
        let weight = f64::from(weight) * state.scale(now);
        if let Some(place) = state.index.get(&hash) {
            state.counts[*place as usize] += weight;
        } else if state.counts.len() < self.places {
            state.index.insert(hash, state.counts.len() as u32);
            state.counts.push(weight);
            state.counters.push(Counter { hash, name: name(), error: 0.0 });
        } else {
            let (least, count) = least(&state.counts);
            let counter = &mut state.counters[least];
            state.index.remove(&counter.hash);
            state.index.insert(hash, least as u32);
            *counter = Counter { hash, name: name(), error: count };
            state.counts[least] = count + weight;
        }
    }
}

impl<N: Clone> HotNames<N> {
    /// The names that are read most, the hottest first, at most `n`.
    pub fn hottest(&self, n: usize, now: Moment) -> Vec<Hot<N>> {
        let mut state = self.state.lock();
        let Some(since) = state.since else { return Vec::new() };
        let scale = state.scale(now);
        let age = now.since(since).max(LEAST_AGE).as_secs_f64();
        let half_life = HALF_LIFE.as_secs_f64();
        // What one read per second, ever since, would have come to.
        let steady = half_life / std::f64::consts::LN_2 * (1.0 - (-age / half_life).exp2());
        let mut order: Vec<usize> = (0..state.counts.len()).collect();
        order.sort_by(|a, b| state.counts[*b].total_cmp(&state.counts[*a]));
        let hot = |place: usize| {
            let (counter, count) = (&state.counters[place], state.counts[place]);
            let per_second = |count: f64| count / scale / steady;
            let (name, at_least) = (counter.name.clone(), per_second(count - counter.error));
            Hot { name, per_second: per_second(count), at_least }
        };
        order.into_iter().take(n).map(hot).collect()
    }
}

impl<N> State<N> {
    /// What a read weighs at `now`.
    fn scale(&mut self, now: Moment) -> f64 {
        let exponent = now.since(self.origin).as_secs_f64() / HALF_LIFE.as_secs_f64();
        if exponent <= MAX_EXPONENT {
            return exponent.exp2();
        }
        let down = (-exponent).exp2();
        self.counts.iter_mut().for_each(|count| *count *= down);
        self.counters.iter_mut().for_each(|counter| counter.error *= down);
        self.origin = now;
        1.0
    }
}

fn least(counts: &[f64]) -> (usize, f64) {
    let mut least = (0, f64::INFINITY);
    for (place, count) in counts.iter().enumerate() {
        if *count < least.1 {
            least = (place, *count);
        }
    }
    least
}

/// Samples that one thread takes in a [`WINDOW`] before it looks at fewer reads.
const SAMPLES: u32 = 100;
const WINDOW: Duration = Duration::from_millis(100);
/// Of so many reads one is looked at, at least.
const MAX_GAP: u32 = 1024;

/// Which reads of a thread are looked at; see the module.
#[derive(Debug)]
pub struct Sampler {
    /// Reads until the next one.
    left: Cell<u32>,
    /// Of how many reads one is looked at now, and was when the next one was chosen.
    gap: Cell<u32>,
    chosen: Cell<u32>,
    /// Samples since the window began, and when that was.
    taken: Cell<u32>,
    window: Cell<Moment>,
    random: Cell<u64>,
}

impl Sampler {
    /// One that looks at every read for now; `seed` makes it repeatable.
    pub fn new(seed: u64) -> Self {
        Self {
            left: Cell::new(1),
            gap: Cell::new(1),
            chosen: Cell::new(1),
            taken: Cell::new(0),
            window: Cell::new(Moment::ZERO),
            random: Cell::new(seed | 1),
        }
    }

    /// Counts a read. `true`: it is to be looked at, and [`take`](Self::take) called.
    #[inline]
    pub fn is_due(&self) -> bool {
        let left = self.left.get().wrapping_sub(1);
        self.left.set(left);
        left == 0
    }

    /// How many reads this one stands for; chooses the next one.
    pub fn take(&self, now: Moment) -> u32 {
        let weight = self.chosen.get();
        let (taken, gap) = (self.taken.get() + 1, self.gap.get());
        self.taken.set(taken);
        let is_over = now.since(self.window.get()) >= WINDOW;
        if is_over || taken >= SAMPLES {
            if !is_over {
                self.gap.set((gap * 2).min(MAX_GAP));
            } else if taken < SAMPLES / 4 {
                self.gap.set((gap / 2).max(1));
            }
            self.taken.set(0);
            self.window.set(now);
        }
        let gap = self.gap.get();
        self.chosen.set(gap);
        // Even between one and twice the gap less one: the gap on average.
        self.left.set(1 + (self.next_random() % u64::from(2 * gap - 1)) as u32);
        weight
    }

    /// xorshift64* (Vigna 2014).
    fn next_random(&self) -> u64 {
        let mut state = self.random.get();
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        self.random.set(state);
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;
    use crate::hash::KeyHash;

    fn hash(name: u32) -> TierHash {
        KeyHash::of(&name.to_le_bytes()).tier(0)
    }

    fn at(seconds: f64) -> Moment {
        Moment::from_nanos(1_000_000_000) + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn few_reads_are_counted_one_by_one() {
        let (hot, sampler) = (HotNames::new(16), Sampler::new(7));
        for (name, times) in [(1, 5), (2, 2), (3, 9)] {
            for _ in 0..times {
                assert!(sampler.is_due(), "the first reads are all looked at");
                hot.record(hash(name), sampler.take(at(0.0)), at(0.0), || name);
            }
        }
        let names: Vec<u32> = hot.hottest(2, at(0.0)).iter().map(|hot| hot.name).collect();
        assert_eq!(names, [3, 1]);
        assert_eq!(hot.hottest(9, at(0.0)).len(), 3);
    }

    /// A million reads by Zipf's law over 50,000 names, seen by a sampler at a hundred thousand reads per second.
    #[test]
    fn the_hottest_of_many_are_found_and_their_rates_are_about_right() {
        let (hot, sampler) = (HotNames::<u32>::new(256), Sampler::new(1));
        let weights: Vec<f64> = (0..50_000).map(|n| 1.0 / f64::from(n + 1)).collect();
        let total: f64 = weights.iter().sum();
        let sums: Vec<f64> = weights
            .iter()
            .scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            })
            .collect();
        let random = Sampler::new(99);
        let (mut looked_at, reads, rate) = (0, 1_000_000_u32, 100_000.0);
        for read in 0..reads {
            let point = (random.next_random() as f64) / f64::from(u32::MAX) * total;
            let name = sums.partition_point(|sum| *sum < point).min(49_999) as u32;
            if sampler.is_due() {
                let now = at(f64::from(read) / rate);
                hot.record(hash(name), sampler.take(now), now, || name);
                looked_at += 1;
            }
        }
        assert!(looked_at < 20_000, "{looked_at} reads of ten seconds were looked at");
        let found = hot.hottest(20, at(f64::from(reads) / rate));
        let top: Vec<u32> = found.iter().map(|hot| hot.name).collect();
        assert!((0..5).all(|name| top.contains(&name)), "{top:?}");
        let expected = rate / total;
        assert!((found[0].per_second / expected - 1.0).abs() < 0.15, "{:?} and not {expected}", found[0]);
        for hot in &found {
            assert!(hot.at_least <= hot.per_second);
        }
    }

    #[test]
    fn what_is_no_longer_read_fades() {
        let hot = HotNames::new(4);
        for second in 0..600 {
            hot.record(hash(1), 100, at(f64::from(second)), || 1);
        }
        for second in 600..900 {
            hot.record(hash(2), 10, at(f64::from(second)), || 2);
        }
        let found = hot.hottest(2, at(900.0));
        assert_eq!((found[0].name, found[1].name), (2, 1), "{found:?}");
        assert!((found[0].per_second - 10.0).abs() < 1.0, "{found:?}");
        // Beyond what a number could hold, had it not been brought down.
        hot.record(hash(3), 1, at(1e6), || 3);
        let found = hot.hottest(1, at(1e6));
        assert!(found[0].name == 3 && found[0].per_second.is_finite(), "{found:?}");
    }

    #[test]
    fn there_are_never_more_counters_and_an_estimate_is_never_too_low() {
        let hot = HotNames::new(8);
        for name in 0..1000 {
            hot.record(hash(name), 1, at(0.0), || name);
            hot.record(hash(0), 1, at(0.0), || 0);
        }
        let found = hot.hottest(100, at(0.0));
        assert_eq!((found.len(), found[0].name), (8, 0));
        let steady = HALF_LIFE.as_secs_f64() / std::f64::consts::LN_2 * (1.0 - (-1.0 / HALF_LIFE.as_secs_f64()).exp2());
        assert!(found[0].per_second * steady >= 1000.0 && found[0].at_least * steady <= 1001.01, "{found:?}");
    }

    /// At even distances a client that goes round over 128 keys would be seen at a few of them only.
    #[test]
    fn a_client_that_goes_round_is_seen_everywhere() {
        let sampler = Sampler::new(3);
        let mut seen = std::collections::HashSet::new();
        for read in 0..1_000_000_u32 {
            if sampler.is_due() {
                sampler.take(at(f64::from(read) / 1e6));
                seen.insert(read % 128);
            }
        }
        assert_eq!(seen.len(), 128);
    }
}
