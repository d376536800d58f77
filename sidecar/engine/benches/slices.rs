//! How long others wait at most while L2 works: the longest slice of filling, evicting, expiring and shrinking, in CPU time.
//!
//! `cargo bench -p caddy-engine --bench slices`. A full L2 of a million entries of a 16-byte key and a 100-byte value, half of
//! which expire. A slice is one call of the library: what a worker does before it looks at its connections again. Counted is
//! the thread's CPU time, page faults included. Interrupts are in it too, which are not ours: everything is done several times
//! over in the same order, and of each slice counts the quickest time. The longest is to stay below 200 µs.

#![expect(clippy::print_stdout, reason = "a report")]

use std::sync::Arc;
use std::time::Duration;

use caddy_engine::{
    Cache, CacheConfig, Clock, KeyHash, L1Config, L2Config, ManualClock, Moment, Packed, PolicyKind, SourceId,
    SourceKind,
};

const ENTRIES: u64 = 1_000_000;
/// What the sidecar gives a slice of maintenance.
const STEPS: usize = 64;
const VALUE: [u8; 100] = [7; 100];
const ROUNDS: usize = 3;

/// CPU time of this thread, in microseconds.
fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// How long each slice took, in microseconds.
struct Slices {
    what: &'static str,
    times: Vec<f64>,
}

impl Slices {
    const fn new(what: &'static str) -> Self {
        Self { what, times: Vec::new() }
    }

    fn time<T>(&mut self, slice: impl FnOnce() -> T) -> T {
        let start = cpu_time();
        let result = slice();
        self.times.push(cpu_time() - start);
        result
    }

    /// Of the same slices in two rounds the quicker ones.
    fn quicker(mut self, other: &Self) -> Self {
        assert_eq!(self.times.len(), other.times.len(), "rounds do the same");
        self.times.iter_mut().zip(&other.times).for_each(|(own, other)| *own = own.min(*other));
        self
    }

    fn report(mut self) {
        self.times.sort_by(f64::total_cmp);
        let last = self.times.len() - 1;
        println!(
            "  {:<42}{:>9} slices{:>9.1}{:>9.1}{:>9.1}",
            self.what,
            self.times.len(),
            self.times[last / 2],
            self.times[last - last / 10_000],
            self.times[last]
        );
    }
}

struct Filler {
    cache: Arc<Cache<Packed, Packed>>,
    source: SourceId,
    next: u64,
}

impl Filler {
    fn fill(&mut self, now: Moment) {
        let n = self.next;
        self.next += 1;
        let key = format!("user:{n:011}");
        let hash = KeyHash::of(key.as_bytes());
        let token = self.cache.kernel().begin_fill(self.source, hash, now);
        let lives = Duration::from_secs(n * 7_919 % 86_400 + 1);
        let deadline = if n.is_multiple_of(2) { now + lives } else { Moment::NEVER };
        self.cache.fill_bytes(&token, hash.tier(0), key.as_bytes(), &VALUE, deadline, now).expect("it fits");
    }
}

fn round(policy: PolicyKind) -> Vec<Slices> {
    let mut all = Vec::new();
    let clock = ManualClock::default();
    let cache = Cache::<Packed, Packed>::new(CacheConfig {
        l1: L1Config { max_entries: 100_000, max_bytes: usize::MAX },
        l2: L2Config { max_bytes: 1 << 30, max_entries: ENTRIES as usize, policy, ..L2Config::default() },
        ..CacheConfig::default()
    });
    let source = cache.kernel().register(SourceKind::Local).expect("an empty table");
    let mut filler = Filler { cache: cache.clone(), source, next: 0 };

    let mut slices = Slices::new("fill, tables growing");
    (0..ENTRIES).for_each(|_| slices.time(|| filler.fill(clock.now())));
    all.push(slices);

    let mut slices = Slices::new("fill, one evicted");
    (0..ENTRIES / 2).for_each(|_| slices.time(|| filler.fill(clock.now())));
    all.push(slices);

    let mut slices = Slices::new("expire, an hour's at once");
    clock.advance(Duration::from_hours(1));
    while slices.time(|| cache.maintain(clock.now(), STEPS)) {}
    all.push(slices);

    let mut slices = Slices::new("expire, every minute of an hour");
    for _ in 0..60 {
        clock.advance(Duration::from_mins(1));
        while slices.time(|| cache.maintain(clock.now(), STEPS)) {}
    }
    all.push(slices);

    let mut slices = Slices::new("shrink to a half");
    cache.set_l2_max_bytes(cache.stats().l2_bytes / 2);
    while slices.time(|| cache.shrink()) {}
    all.push(slices);
    all
}

fn measure(policy: PolicyKind) {
    println!("{:<51}{:>16}{:>9}{:>9}", format!("{policy:?}"), "median", "99.99 %", "longest");
    let rounds = (1..ROUNDS).map(|_| round(policy));
    let quickest = rounds.fold(round(policy), |quickest, round| {
        quickest.into_iter().zip(&round).map(|(slices, other)| slices.quicker(other)).collect()
    });
    quickest.into_iter().for_each(Slices::report);
}

fn main() {
    println!("CPU time of a slice in µs, a full L2 of {ENTRIES} entries:");
    for policy in [PolicyKind::Adaptive, PolicyKind::S3Fifo, PolicyKind::Lru] {
        measure(policy);
    }
}
