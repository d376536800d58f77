//! What the tiers cost, all checks included, beside the bare data structures they are measured by: hits in L1 and in L2,
//! misses, insertions, the whole cycle of a full cache (get, miss, insert, evict), and reads by Zipf's law (0.99) in one
//! thread and in two. What dependencies add to a hit is the engine's `--bench hits`.
//!
//! `cargo bench --manifest-path sidecar/engine/rivals/Cargo.toml --bench rounds`; with words behind `--` only rows whose name
//! contains one of them. Rounds alternate between the opponents, so that what the machine does meanwhile hits all alike; printed are medians of CPU
//! nanoseconds per operation and of the ratio within a round. Hashing the key is part of every operation, ours included.

use std::sync::Barrier;

use caddy_engine_rivals::loads::{Key, keys, uniform, zipf};
use caddy_engine_rivals::subjects::{
    BareLru, Bytewise, Foyer, LockedLru, Moka, Opponent, Ours, Quick, Threaded,
};

const ROUNDS: usize = 31;
const OPERATIONS: usize = 200_000;

/// CPU time of this thread, in nanoseconds.
fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Nanoseconds for each operation.
fn time(order: &[u32], mut operation: impl FnMut(u32)) -> f64 {
    let start = cpu_time();
    for index in order {
        operation(*index);
    }
    (cpu_time() - start) / order.len() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Lets both do their rounds in turn, and prints a line.
fn compare(row: &str, opponent: &str, mut ours: impl FnMut(usize) -> f64, mut theirs: impl FnMut(usize) -> f64) {
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|round| (ours(round), theirs(round))).collect();
    let own = median(rounds.iter().map(|round| round.0).collect());
    let other = median(rounds.iter().map(|round| round.1).collect());
    let ratio = median(rounds.iter().map(|round| round.0 / round.1).collect());
    println!("{row:<30} {own:>7.1} ns   {opponent:<11} {other:>7.1} ns   ratio {ratio:.2}");
}

/// A round of hits; fails if one is none.
fn hits(keys: &[Key], order: &[u32], subject: &mut impl Opponent) -> f64 {
    let mut found = 0_usize;
    let spent = time(order, |index| found += usize::from(subject.get(&keys[index as usize])));
    assert_eq!(found, order.len(), "every get is a hit");
    spent
}

/// A round of get, and put where that was a miss. The order is another in each round.
fn cycle(keys: &[Key], order: &[u32], subject: &mut impl Opponent) -> f64 {
    time(order, |index| {
        let key = &keys[index as usize];
        if !subject.get(key) {
            subject.put(key);
        }
    })
}

/// The same by so many threads at once: the mean of what each of them needed.
fn threaded<T: Threaded>(threads: usize, keys: &[Key], order: &[u32], subject: &T) -> f64 {
    let start = Barrier::new(threads);
    let share = order.len() / threads;
    let work = |part: usize| {
        let mut handle = subject.handle();
        start.wait();
        cycle(keys, &order[part * share..(part + 1) * share], &mut handle)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|part| scope.spawn(move || work(part))).collect();
        let own = work(0);
        others.into_iter().fold(own, |sum, other| sum + other.join().expect("no panic")) / threads as f64
    })
}

fn hit_rows(wanted: &dyn Fn(&str) -> bool) {
    for count in [1_000, 10_000, 100_000] {
        let keys = keys("user", count);
        let order = uniform(count, OPERATIONS, 1);
        let row = format!("L1 hit, {count} keys");
        if wanted(&row) {
            let (mut lru, mut quick) = (BareLru::new(&keys), Quick::with(&keys, 2 * count));
            let mut ours = Ours::all_in_l1(&keys);
            compare(&row, "lru", |_| hits(&keys, &order, &mut ours), |_| hits(&keys, &order, &mut lru));
            compare(&row, "quick_cache", |_| hits(&keys, &order, &mut ours), |_| hits(&keys, &order, &mut quick));
            let mut ours = Bytewise::all_in_l1(&keys);
            let row = format!("{row}, unpacked");
            compare(&row, "lru", |_| hits(&keys, &order, &mut ours), |_| hits(&keys, &order, &mut lru));
        }
        let row = format!("L2 hit, {count} keys");
        if wanted(&row) {
            let mut quick = Quick::with(&keys, 2 * count);
            let mut ours = Ours::all_in_l2(&keys);
            compare(&row, "quick_cache", |_| hits(&keys, &order, &mut ours), |_| hits(&keys, &order, &mut quick));
            let mut foyer = Foyer::with(&keys, 2 * count);
            compare(&row, "foyer", |_| hits(&keys, &order, &mut ours), |_| hits(&keys, &order, &mut foyer));
            let mut moka = Moka::with(&keys, 2 * count);
            compare(&row, "moka", |_| hits(&keys, &order, &mut ours), |_| hits(&keys, &order, &mut moka));
            let mut ours = Bytewise::all_in_l2(&keys);
            let row = format!("{row}, unpacked");
            compare(&row, "quick_cache", |_| hits(&keys, &order, &mut ours), |_| hits(&keys, &order, &mut quick));
        }
    }
}

fn miss_rows(wanted: &dyn Fn(&str) -> bool) {
    let count = 100_000;
    let (present, absent) = (keys("user", count), keys("none", count));
    let order = uniform(count, OPERATIONS, 2);
    let misses = |subject: &mut dyn FnMut(&Key) -> bool| {
        let mut found = 0_usize;
        let spent = time(&order, |index| found += usize::from(subject(&absent[index as usize])));
        assert_eq!(found, 0, "no get is a hit");
        spent
    };
    if wanted("miss") {
        let (mut ours, mut quick) = (Ours::all_in_l2(&present), Quick::with(&present, 2 * count));
        compare(
            "miss, 100000 keys",
            "quick_cache",
            |_| misses(&mut |key| ours.get(key)),
            |_| misses(&mut |key| quick.get(key)),
        );
        let mut moka = Moka::with(&present, 2 * count);
        compare(
            "miss, 100000 keys",
            "moka",
            |_| misses(&mut |key| ours.get(key)),
            |_| misses(&mut |key| moka.get(key)),
        );
        let mut foyer = Foyer::with(&present, 2 * count);
        compare(
            "miss, 100000 keys",
            "foyer",
            |_| misses(&mut |key| ours.get(key)),
            |_| misses(&mut |key| foyer.get(key)),
        );
    }
    if wanted("insert") {
        let puts = |subject: &mut dyn FnMut(&Key)| time(&order, |index| subject(&present[index as usize]));
        let (mut ours, mut quick) = (Ours::all_in_l2(&present), Quick::with(&present, 2 * count));
        compare(
            "insert over, 100000 keys",
            "quick_cache",
            |_| puts(&mut |key| ours.put(key)),
            |_| puts(&mut |key| quick.put(key)),
        );
        let mut moka = Moka::with(&present, 2 * count);
        compare(
            "insert over, 100000 keys",
            "moka",
            |_| puts(&mut |key| ours.put(key)),
            |_| puts(&mut |key| moka.put(key)),
        );
        let mut foyer = Foyer::with(&present, 2 * count);
        compare(
            "insert over, 100000 keys",
            "foyer",
            |_| puts(&mut |key| ours.put(key)),
            |_| puts(&mut |key| foyer.put(key)),
        );
    }
}

/// All keys are equally likely, and one in ten fits.
fn cycle_rows(wanted: &dyn Fn(&str) -> bool) {
    let (room, count) = (20_000, 200_000);
    let row = "get, miss, insert, evict";
    if wanted(row) {
        let keys = keys("user", count);
        let orders: Vec<Vec<u32>> = (0..4).map(|seed| uniform(count, OPERATIONS, 3 + seed)).collect();
        let order = |round: usize| &orders[round % orders.len()];
        let (mut ours, mut quick) = (Ours::with_room_for(room, &keys), Quick::with(&[], room));
        compare(
            row,
            "quick_cache",
            |round| cycle(&keys, order(round), &mut ours),
            |round| cycle(&keys, order(round), &mut quick),
        );
        let (mut lru, mut moka) = (BareLru::with_room_for(room), Moka::with(&[], room));
        compare(
            row,
            "lru",
            |round| cycle(&keys, order(round), &mut ours),
            |round| cycle(&keys, order(round), &mut lru),
        );
        compare(
            row,
            "moka",
            |round| cycle(&keys, order(round), &mut ours),
            |round| cycle(&keys, order(round), &mut moka),
        );
        let mut foyer = Foyer::with(&[], room);
        compare(
            row,
            "foyer",
            |round| cycle(&keys, order(round), &mut ours),
            |round| cycle(&keys, order(round), &mut foyer),
        );
    }
}

fn mixed_rows(wanted: &dyn Fn(&str) -> bool) {
    let (room, count) = (20_000, 100_000);
    for threads in [1, 2] {
        let row = format!("Zipf 0.99, {threads} thread(s)");
        if wanted(&row) {
            let keys = keys("user", count);
            let orders: Vec<Vec<u32>> = (0..4).map(|seed| zipf(count, OPERATIONS, 7 + seed)).collect();
            let order = |round: usize| &orders[round % orders.len()];
            let ours = Ours::with_room_for(room, &keys);
            let (quick, moka, lru) = (Quick::with(&[], room), Moka::with(&[], room), LockedLru::with_room_for(room));
            compare(
                &row,
                "quick_cache",
                |round| threaded(threads, &keys, order(round), &ours),
                |round| threaded(threads, &keys, order(round), &quick),
            );
            compare(
                &row,
                "moka",
                |round| threaded(threads, &keys, order(round), &ours),
                |round| threaded(threads, &keys, order(round), &moka),
            );
            let foyer = Foyer::with(&[], room);
            compare(
                &row,
                "foyer",
                |round| threaded(threads, &keys, order(round), &ours),
                |round| threaded(threads, &keys, order(round), &foyer),
            );
            compare(
                &row,
                "lru, locked",
                |round| threaded(threads, &keys, order(round), &ours),
                |round| threaded(threads, &keys, order(round), &lru),
            );
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |row: &str| words.is_empty() || words.iter().any(|word| row.contains(word.as_str()));
    hit_rows(&wanted);
    miss_rows(&wanted);
    cycle_rows(&wanted);
    mixed_rows(&wanted);
}
