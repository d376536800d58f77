//! What a hit costs, all checks included, beside the bare data structures it is measured by.
//!
//! `cargo bench -p caddy-engine --bench hits`. Rounds alternate between the opponents, so that what the machine does
//! meanwhile hits all alike; printed are medians of CPU nanoseconds per get and of the ratio within a round. Hashing the key
//! is part of every get, ours included.

#![expect(clippy::print_stdout, reason = "a report")]

use std::hint::black_box;

use bytes::Bytes;
use caddy_engine::{
    Cache, CacheConfig, Clock, KeyHash, L1Config, L2Config, Lookup, ManualClock, Moment, SourceKind, TieringConfig,
    Worker,
};

const ROUNDS: usize = 61;
const GETS: usize = 200_000;

type Key = Box<[u8]>;

/// A key's borrowed form.
struct KeyRef<'a>(&'a [u8]);

impl hashbrown::Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.0 == **key
    }
}

fn keys(count: usize) -> Vec<Key> {
    (0..count).map(|n| format!("user:{n:011}").into_bytes().into()).collect()
}

/// A fixed pseudo-random order in which every key is equally likely.
fn order(count: usize) -> Vec<u32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % count as u64) as u32
    };
    (0..GETS).map(|_| next()).collect()
}

struct Ours {
    worker: Worker<Key, Bytes>,
    now: Moment,
}

impl Ours {
    /// With `l1` entries of L1: either all keys are there, or none.
    fn new(keys: &[Key], l1: usize) -> Self {
        let promote_after_hits = if l1 == 0 { u16::MAX } else { 1 };
        let cache = Cache::<Key, Bytes>::new(CacheConfig {
            l1: L1Config { max_entries: l1, max_bytes: usize::MAX },
            l2: L2Config { max_bytes: 1 << 30, ..L2Config::default() },
            tiering: TieringConfig { promote_after_hits, ..TieringConfig::default() },
            ..CacheConfig::default()
        });
        let now = ManualClock::default().now();
        let source = cache.kernel().register(SourceKind::Tracked).expect("an empty table");
        cache.kernel().proved(&cache.kernel().sending(source, now), now);
        let mut ours = Self { worker: cache.worker(), now };
        for key in keys {
            let hash = KeyHash::of(key);
            let token = cache.kernel().begin_fill(source, hash, now);
            let value = Bytes::from(vec![7; 100]);
            cache.fill(&token, hash.tier(0), key.clone(), value, Moment::NEVER, now).expect("room enough");
            ours.get(key);
        }
        ours
    }

    #[expect(clippy::inline_always, reason = "as the opponents, whose get is inlined into the loop")]
    #[inline(always)]
    fn get(&mut self, key: &[u8]) -> u8 {
        match self.worker.lookup(KeyHash::of(key).tier(0), &KeyRef(key), self.now) {
            Lookup::Hit(hit) => hit.entry.value()[0],
            _ => 0,
        }
    }
}

/// CPU time of this thread, in nanoseconds.
fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn time(keys: &[Key], order: &[u32], mut get: impl FnMut(&[u8]) -> u8) -> f64 {
    let start = cpu_time();
    let mut sum = 0_u64;
    for &index in order {
        sum += u64::from(get(black_box(&keys[index as usize])));
    }
    assert_eq!(sum, 7 * GETS as u64, "every get is a hit");
    (cpu_time() - start) / GETS as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(what: &str, opponent: &str, keys: &[Key], mut ours: Ours, mut theirs: impl FnMut(&[u8]) -> u8) {
    let order = order(keys.len());
    let rounds: Vec<(f64, f64)> =
        (0..ROUNDS).map(|_| (time(keys, &order, |key| ours.get(key)), time(keys, &order, &mut theirs))).collect();
    let own = median(rounds.iter().map(|round| round.0).collect());
    let other = median(rounds.iter().map(|round| round.1).collect());
    let ratio = median(rounds.iter().map(|round| round.0 / round.1).collect());
    println!("{what:<7} {:>7} keys   {own:>6.1} ns   {opponent} {other:>6.1} ns   ratio {ratio:.2}", keys.len());
}

fn main() {
    for count in [1_000, 10_000, 100_000] {
        let keys = keys(count);
        let mut lru = lru::LruCache::<Key, Bytes>::unbounded();
        for key in &keys {
            lru.put(key.clone(), Bytes::from(vec![7; 100]));
        }
        compare("L1 hit", "lru", &keys, Ours::new(&keys, count), |key| lru.get(key).map_or(0, |value| value[0]));

        let quick = quick_cache::sync::Cache::<Key, Bytes>::new(2 * count);
        for key in &keys {
            quick.insert(key.clone(), Bytes::from(vec![7; 100]));
        }
        compare("L2 hit", "quick_cache", &keys, Ours::new(&keys, 0), |key| quick.get(key).map_or(0, |value| value[0]));
    }
}
