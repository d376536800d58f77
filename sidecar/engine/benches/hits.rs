//! What a hit costs, all checks included, beside the bare data structures it is measured by.
//!
//! `cargo bench -p caddy-engine --bench hits`. Rounds alternate between the opponents, so that what the machine does
//! meanwhile hits all alike; printed are medians of CPU nanoseconds per get and of the ratio within a round. Hashing the key
//! is part of every get, ours included.

#![expect(clippy::print_stdout, reason = "a report")]

use std::hint::black_box;

use bytes::Bytes;
use caddy_engine::{
    Cache, CacheConfig, Clock, KeyHash, L1Config, L2Config, Lookup, ManualClock, Moment, SourceId, SourceKind,
    TieringConfig, Weigh, Worker,
    codec::envelope::GenerationValue,
    generations::{Dependency, Generations},
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

/// A value that a hit looks at.
trait Look: Weigh + 'static {
    fn first(&self) -> u8;
}

impl Look for Bytes {
    fn first(&self) -> u8 {
        self[0]
    }
}

/// A value with three tags.
struct Tagged(Bytes, [Dependency; 3]);

impl Weigh for Tagged {
    fn heap_bytes(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn dependencies(&self) -> &[Dependency] {
        &self.1
    }
}

impl Look for Tagged {
    fn first(&self) -> u8 {
        self.0[0]
    }
}

struct Ours<V: Look> {
    worker: Worker<Key, V>,
    now: Moment,
}

impl<V: Look> Ours<V> {
    /// With `l1` entries of L1: either all keys are there, or none.
    fn new(keys: &[Key], l1: usize, mut value: impl FnMut(&Cache<Key, V>, SourceId, usize) -> V) -> Self {
        let promote_after_hits = if l1 == 0 { u16::MAX } else { 1 };
        let cache = Cache::<Key, V>::new(CacheConfig {
            l1: L1Config { max_entries: l1, max_bytes: usize::MAX },
            l2: L2Config { max_bytes: 1 << 30, ..L2Config::default() },
            tiering: TieringConfig { promote_after_hits, ..TieringConfig::default() },
            ..CacheConfig::default()
        });
        let now = ManualClock::default().now();
        let source = cache.kernel().register(SourceKind::Tracked).expect("an empty table");
        cache.kernel().proved(&cache.kernel().sending(source, now), now);
        let mut ours = Self { worker: cache.worker(), now };
        for (at, key) in keys.iter().enumerate() {
            let value = value(&cache, source, at);
            let hash = KeyHash::of(key);
            let token = cache.kernel().begin_fill(source, hash, now);
            cache.fill(&token, hash.tier(0), key.clone(), value, Moment::NEVER, now).expect("room enough");
            ours.get(key);
        }
        ours
    }

    #[expect(clippy::inline_always, reason = "as the opponents, whose get is inlined into the loop")]
    #[inline(always)]
    fn get(&mut self, key: &[u8]) -> u8 {
        match self.worker.lookup(KeyHash::of(key).tier(0), &KeyRef(key), self.now) {
            Lookup::Hit(hit) => hit.entry.value().first(),
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

fn plain(_: &Cache<Key, Bytes>, _: SourceId, _: usize) -> Bytes {
    Bytes::from(vec![7; 100])
}

/// Values with three of a thousand tags each.
fn tagged() -> impl FnMut(&Cache<Key, Tagged>, SourceId, usize) -> Tagged {
    let generations = Generations::new(1 << 20);
    move |cache, source, at| {
        let kernel = cache.kernel();
        let dependency = |n: usize| {
            let cell = generations.cell(kernel, source, format!("caddy:bench:g:t:{}", n % 1000).as_bytes());
            let reading = cell.in_force(kernel, Moment::ZERO).unwrap_or_else(|| {
                let token = cell.begin_read(kernel, Moment::ZERO);
                cell.report(kernel, &token, Some((GenerationValue([7; 16]), Bytes::new())), Moment::NEVER)
            });
            reading.dependency(&cell).expect("it has a value")
        };
        Tagged(Bytes::from(vec![7; 100]), [dependency(at), dependency(at * 7 + 1), dependency(at * 13 + 2)])
    }
}

fn compare<V: Look>(what: &str, opponent: &str, keys: &[Key], mut ours: Ours<V>, mut theirs: impl FnMut(&[u8]) -> u8) {
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
        compare("L1 hit", "lru", &keys, Ours::new(&keys, count, plain), |key| lru.get(key).map_or(0, |value| value[0]));

        let quick = quick_cache::sync::Cache::<Key, Bytes>::new(2 * count);
        for key in &keys {
            quick.insert(key.clone(), Bytes::from(vec![7; 100]));
        }
        compare("L2 hit", "quick_cache", &keys, Ours::new(&keys, 0, plain), |key| {
            quick.get(key).map_or(0, |value| value[0])
        });

        for (what, l1) in [("L1 tags", count), ("L2 tags", 0)] {
            let mut untagged = Ours::new(&keys, l1, plain);
            compare(what, "without", &keys, Ours::new(&keys, l1, tagged()), |key| untagged.get(key));
        }
    }
}
