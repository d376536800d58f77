//! The same operations under criterion, each cache by itself: its statistics, its history between runs, its filters.
//!
//! `cargo bench --manifest-path sidecar/engine/rivals/Cargo.toml --bench statistics [-- FILTER]`. For comparisons on a machine that
//! does other things meanwhile use `rounds`.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use caddy_engine_rivals::loads::{Key, keys, uniform, zipf};
use caddy_engine_rivals::subjects::{BareLru, Foyer, LockedLru, Moka, Opponent, Ours, Quick, Threaded};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const KEYS: usize = 100_000;
const ROOM: usize = 20_000;
const DRAWS: usize = 1 << 16;

/// Measures one operation on key after key in the order of the draws.
fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, order: &[u32], mut operation: impl FnMut(usize)) {
    let mut at = 0;
    group.bench_function(name, |bencher| {
        bencher.iter(|| {
            operation(order[at] as usize);
            at = (at + 1) % order.len();
        });
    });
}

fn get_hit(criterion: &mut Criterion) {
    for count in [1_000, KEYS] {
        let (keys, order) = (keys("user", count), uniform(count, DRAWS, 1));
        let mut group = criterion.benchmark_group(format!("get-hit/{count} keys"));
        group.throughput(Throughput::Elements(1));
        let mut hit = |name: &str, subject: &mut dyn Opponent| {
            measure(&mut group, name, &order, |key| assert!(subject.get(&keys[key])));
        };
        hit("L1", &mut Ours::all_in_l1(&keys));
        hit("L2", &mut Ours::all_in_l2(&keys));
        hit("lru", &mut BareLru::new(&keys));
        hit("quick_cache", &mut Quick::with(&keys, 2 * count));
        hit("moka", &mut Moka::with(&keys, 2 * count));
        hit("foyer", &mut Foyer::with(&keys, 2 * count));
        group.finish();
    }
}

fn get_miss_and_insert(criterion: &mut Criterion) {
    let (present, absent, order) = (keys("user", KEYS), keys("none", KEYS), uniform(KEYS, DRAWS, 2));
    let mut subjects: [(&str, Box<dyn Opponent>); 5] = [
        ("tiers", Box::new(Ours::all_in_l2(&present))),
        ("lru", Box::new(BareLru::new(&present))),
        ("quick_cache", Box::new(Quick::with(&present, 2 * KEYS))),
        ("moka", Box::new(Moka::with(&present, 2 * KEYS))),
        ("foyer", Box::new(Foyer::with(&present, 2 * KEYS))),
    ];
    let mut group = criterion.benchmark_group("get-miss");
    for (name, subject) in &mut subjects {
        measure(&mut group, name, &order, |key| assert!(!subject.get(&absent[key])));
    }
    group.finish();
    let mut group = criterion.benchmark_group("insert");
    for (name, subject) in &mut subjects {
        measure(&mut group, name, &order, |key| subject.put(&present[key]));
    }
    group.finish();
}

/// Get, and insert where that was a miss, in a cache for a fifth of the keys.
fn mixed<T: Threaded>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, keys: &[Key], order: &[u32], subject: &T) {
    for threads in [1, 2] {
        group.bench_function(BenchmarkId::new(name, format!("{threads} thread(s)")), |bencher| {
            bencher.iter_custom(|rounds| together(threads, rounds, keys, order, subject));
        });
    }
}

/// How long so many threads take for so many operations each.
fn together<T: Threaded>(threads: usize, rounds: u64, keys: &[Key], order: &[u32], subject: &T) -> Duration {
    let barrier = Barrier::new(threads);
    let work = |part: usize| {
        let mut handle = subject.handle();
        barrier.wait();
        let start = Instant::now();
        for at in 0..rounds as usize {
            let key = &keys[order[(part * order.len() / threads + at) % order.len()] as usize];
            if !black_box(handle.get(key)) {
                handle.put(key);
            }
        }
        start.elapsed()
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|part| scope.spawn(move || work(part))).collect();
        others.into_iter().fold(work(0), |longest, other| longest.max(other.join().expect("no panic")))
    })
}

fn zipf_mixed(criterion: &mut Criterion) {
    let (keys, order) = (keys("user", KEYS), zipf(KEYS, DRAWS, 7));
    let mut group = criterion.benchmark_group("mixed, Zipf 0.99");
    group.throughput(Throughput::Elements(1));
    mixed(&mut group, "tiers", &keys, &order, &Ours::with_room_for(ROOM, &keys));
    mixed(&mut group, "lru, locked", &keys, &order, &LockedLru::with_room_for(ROOM));
    mixed(&mut group, "quick_cache", &keys, &order, &Quick::with(&[], ROOM));
    mixed(&mut group, "moka", &keys, &order, &Moka::with(&[], ROOM));
    mixed(&mut group, "foyer", &keys, &order, &Foyer::with(&[], ROOM));
    group.finish();
}

criterion_group!(benches, get_hit, get_miss_and_insert, zipf_mixed);
criterion_main!(benches);
