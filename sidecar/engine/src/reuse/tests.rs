use super::*;
use crate::hash::KeyHash;
use std::collections::{HashMap, VecDeque};

/// SplitMix64: the same traces on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Keys by Zipf's law: the cumulative weights, and a draw by bisection.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(keys: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        Self(
            (1..=keys)
                .map(|rank| {
                    sum += (rank as f64).powf(-exponent);
                    sum
                })
                .collect(),
        )
    }

    fn draw(&self, random: &mut Random) -> u64 {
        let at = random.unit() * self.0.last().unwrap();
        self.0.partition_point(|sum| *sum < at) as u64
    }
}

/// Values of 50 to 850 bytes, the same for a key every time.
fn size(key: u64) -> usize {
    50 + (Random(key).next() % 800) as usize
}

/// LRU of so many bytes, in full: recency by a queue with stale entries, which is exact.
struct Lru {
    last: HashMap<u64, u64>,
    queue: VecDeque<(u64, u64)>,
    bytes: usize,
    capacity: usize,
    time: u64,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Self { last: HashMap::new(), queue: VecDeque::new(), bytes: 0, capacity, time: 0 }
    }

    fn read(&mut self, key: u64) -> bool {
        self.time += 1;
        let hit = self.last.insert(key, self.time).is_some();
        self.queue.push_back((self.time, key));
        self.bytes += if hit { 0 } else { size(key) };
        while self.bytes > self.capacity {
            let (time, key) = self.queue.pop_front().unwrap();
            if self.last.get(&key) == Some(&time) {
                self.last.remove(&key);
                self.bytes -= size(key);
            }
        }
        hit
    }
}

/// Plays a trace of (group, key) to the sample and to full simulations at ½, 1, 2 and 4 times `capacity`; fails if an
/// estimate is more than two points off, of any group.
fn compare(name: &str, groups: usize, capacity: usize, trace: impl Iterator<Item = (usize, u64)>) {
    let sample = ReuseSample::default();
    let sizes = [capacity / 2, capacity, 2 * capacity, 4 * capacity];
    let mut full: Vec<Lru> = sizes.iter().map(|size| Lru::new(*size)).collect();
    let mut hits = vec![[0_u64; 4]; groups];
    let mut reads = vec![Reads::default(); groups];
    let mut recorded = 0;
    for (group, key) in trace {
        // Not the process's own hash, whose seed is another in each run: which keys are sampled decides the error.
        let hash = TierHash::from_raw(Random(!key).next());
        for (place, lru) in full.iter_mut().enumerate() {
            hits[group][place] += u64::from(lru.read(key));
        }
        reads[group].recorded += 1;
        reads[group].all += 1;
        if sample.takes(hash) {
            recorded += 1;
            sample.hit(hash, group, size(key));
        }
    }
    sample.advance(reads.iter().copied(), Moment::ZERO);
    assert!(sample.bytes() < 2 << 20, "{name}: {} bytes", sample.bytes());
    println!("{name}: {recorded} of {} reads recorded", reads.iter().map(|reads| reads.all).sum::<u64>());
    for (group, hits) in hits.iter().enumerate() {
        for (hits, size) in hits.iter().zip(sizes) {
            let real = *hits as f64 / reads[group].all as f64;
            let estimate = sample.estimate(group, size as f64).unwrap().hit_ratio;
            println!("{name}, group {group}, {size} bytes: {real:.4} really, {estimate:.4} estimated");
            assert!((real - estimate).abs() <= 0.02, "{name}, {size} bytes: {real:.4} really, {estimate:.4} estimated");
        }
    }
}

/// The same where hits of L1 that follow one another within a short time are left out, as a worker leaves them out.
#[test]
fn estimates_hold_without_the_repeated_hits_of_l1() {
    let zipf = Zipf::new(4_000, 0.99);
    let mut random = Random(11);
    let (sample, capacity) = (ReuseSample::default(), 200_000);
    let sizes = [capacity / 2, capacity, 2 * capacity, 4 * capacity];
    let mut full: Vec<Lru> = sizes.iter().map(|size| Lru::new(*size)).collect();
    let mut hits = [0_u64; 4];
    let (mut last, mut left_out) = (HashMap::new(), 0_u64);
    for time in 0..READS as u64 {
        let key = zipf.draw(&mut random);
        full.iter_mut().zip(&mut hits).for_each(|(lru, hits)| *hits += u64::from(lru.read(key)));
        let (hash, second) = (TierHash::from_raw(Random(!key).next()), time / 100);
        // The hottest are in L1.
        let before = last.insert(key, second).filter(|_| key < 100);
        if sample.repeated(hash, size(key), before.map(|before| (second - before) as u32)) {
            left_out += 1;
        } else {
            sample.hit(hash, 0, size(key));
        }
    }
    assert!(left_out > READS as u64 / 10, "{left_out}");
    let reads = Reads { recorded: READS as u64, all: READS as u64 };
    sample.advance([reads].into_iter(), Moment::ZERO);
    for (hits, size) in hits.iter().zip(sizes) {
        let real = *hits as f64 / READS as f64;
        let estimate = sample.estimate(0, size as f64).unwrap().hit_ratio;
        assert!((real - estimate).abs() <= 0.02, "{size} bytes: {real:.4} really, {estimate:.4} estimated");
    }
}

const READS: usize = 600_000;

#[test]
fn estimates_are_within_two_points_of_a_full_simulation_under_zipf() {
    for exponent in [0.7, 0.99, 1.2] {
        let zipf = Zipf::new(200_000, exponent);
        let mut random = Random(exponent.to_bits());
        compare(&format!("Zipf {exponent}"), 1, 8 << 20, (0..READS).map(|_| (0, zipf.draw(&mut random))));
    }
}

#[test]
fn estimates_are_within_two_points_of_a_full_simulation_with_scans() {
    let zipf = Zipf::new(100_000, 0.99);
    let mut random = Random(7);
    // One read in four belongs to a scan that comes round after 60,000 keys: a cliff between two of the sizes.
    let mut scan = 0_u64;
    let trace = (0..READS).map(|_| {
        if random.next().is_multiple_of(4) {
            scan += 1;
            (1, 1_000_000 + scan % 60_000)
        } else {
            (0, zipf.draw(&mut random))
        }
    });
    compare("Zipf and a scan", 2, 8 << 20, trace);
}

#[test]
fn what_is_invalidated_is_a_miss_at_any_size() {
    let kernel = Kernel::new(&crate::KernelConfig::default());
    let source = kernel.register(crate::SourceKind::Local).unwrap();
    let sample = ReuseSample::default();
    let (key, now) = (KeyHash::of(b"k"), Moment::ZERO + Duration::from_secs(1));
    let fill = |deadline| {
        let basis = kernel.begin_fill(source, key, now).basis;
        sample.filled(key.tier(0), 0, 100, Copied { basis, deadline }, &kernel, now);
    };
    // Filled and evicted: more memory would have helped. Filled and written, or expired: it would not.
    for _ in 0..10 {
        fill(Moment::NEVER);
    }
    sample.advance([Reads { recorded: 10, all: 10 }].into_iter(), now);
    assert!((sample.estimate(0, 1e6).unwrap().hit_ratio - 0.9).abs() < 1e-6);
    for _ in 0..10 {
        kernel.bump(key);
        fill(now);
        fill(Moment::NEVER);
    }
    sample.advance([Reads { recorded: 30, all: 30 }].into_iter(), now);
    assert!((sample.estimate(0, 1e6).unwrap().hit_ratio - 0.3).abs() < 1e-6);
}

#[test]
fn what_is_old_fades() {
    let sample = ReuseSample::default();
    let hash = KeyHash::of(b"k").tier(0);
    (0..100).for_each(|_| sample.hit(hash, 0, 100));
    sample.advance([Reads { recorded: 100, all: 100 }].into_iter(), Moment::ZERO);
    assert!(sample.estimate(0, 1e6).unwrap().hit_ratio > 0.98);
    // Ten half-lives later a hundred reads that nothing could have answered.
    let later = Moment::ZERO + 10 * HALF_LIFE;
    sample.advance([Reads { recorded: 100, all: 100 }].into_iter(), later);
    sample.advance([Reads { recorded: 100, all: 200 }].into_iter(), later);
    assert!(sample.estimate(0, 1e6).unwrap().hit_ratio < 0.01);
}
