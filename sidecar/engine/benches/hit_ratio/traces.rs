//! Sequences of keys: generated ones, and those of trace files.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::{fs, io};

/// Keys in the order of their reads.
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) keys: Vec<u64>,
    /// Sizes of cache to try, in entries.
    pub(crate) sizes: Vec<usize>,
}

/// A replayable source of randomness (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// At least 0 and less than 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Ranks from 0 on, the first ones the most likely.
struct Zipf {
    cumulated: Vec<f64>,
}

impl Zipf {
    fn new(count: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let cumulated = (1..=count).map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        });
        Self { cumulated: cumulated.collect() }
    }

    fn draw(&self, random: &mut Random) -> u64 {
        let point = random.share() * self.cumulated.last().copied().unwrap_or(1.0);
        self.cumulated.partition_point(|&sum| sum <= point) as u64
    }
}

const READS: usize = 400_000;
const KEYS: usize = 100_000;
const SIZES: [usize; 2] = [1_000, 10_000];

/// Sets keys of one part of a trace apart from those of another.
const fn part(number: u64) -> u64 {
    number << 40
}

/// Zipf at several skews, a shifting hot set, scans, loops, and mixes of them.
pub(crate) fn generated() -> Vec<Trace> {
    let mut traces = Vec::new();
    let mut add = |name: &str, sizes: &[usize], keys: Vec<u64>| {
        traces.push(Trace { name: name.into(), keys, sizes: sizes.into() });
    };
    for skew in [0.6, 0.8, 0.99, 1.2] {
        let (zipf, mut random) = (Zipf::new(KEYS, skew), Random(7));
        add(&format!("zipf {skew}"), &SIZES, (0..READS).map(|_| zipf.draw(&mut random)).collect());
    }
    add("shifting hot set", &SIZES, shifting());
    add("zipf 0.99 and scans", &SIZES, with_scans(0.99));
    add("zipf 0.8 and scans", &SIZES, with_scans(0.8));
    for length in [1_200, 2_000, 12_000, 20_000] {
        let size = if length < 5_000 { 1_000 } else { 10_000 };
        add(&format!("loop of {length}"), &[size], (0..READS as u64).map(|n| n % length).collect());
    }
    add("loop and zipf", &SIZES, loop_and_zipf());
    add("recent ones again", &SIZES, recency());
    add("phases", &SIZES, phases());
    add("scan", &SIZES, (0..READS as u64).map(|n| n % 300_000).collect());
    traces
}

/// The ranks wander over the keys: every so often the hottest becomes one that nobody has read for long.
fn shifting() -> Vec<u64> {
    let (zipf, mut random) = (Zipf::new(KEYS, 0.99), Random(11));
    let key = |n: usize, rank: u64| (rank + (n / 50_000) as u64 * 20_000) % (5 * KEYS as u64);
    (0..READS).map(|n| key(n, zipf.draw(&mut random))).collect()
}

/// Every 20,000 reads, 5,000 keys in a row that are not read again.
fn with_scans(skew: f64) -> Vec<u64> {
    let (zipf, mut random) = (Zipf::new(KEYS, skew), Random(13));
    let mut scanned = part(1);
    let mut next = |n: usize| {
        if n % 20_000 < 5_000 {
            scanned += 1;
            return scanned;
        }
        zipf.draw(&mut random)
    };
    (0..READS).map(&mut next).collect()
}

fn loop_and_zipf() -> Vec<u64> {
    let (zipf, mut random) = (Zipf::new(KEYS, 0.99), Random(17));
    let mut place = 0;
    let mut next = |_| {
        if random.below(3) == 0 {
            place = (place + 1) % 15_000;
            return part(1) + place;
        }
        zipf.draw(&mut random)
    };
    (0..READS).map(&mut next).collect()
}

/// Reads of what was read lately: the distance back is the rank, new keys come in between.
fn recency() -> Vec<u64> {
    let (zipf, mut random) = (Zipf::new(30_000, 0.7), Random(19));
    let mut keys: Vec<u64> = Vec::with_capacity(READS);
    let mut fresh = 0;
    for n in 0..READS {
        let back = zipf.draw(&mut random) as usize + 1;
        if back > n || random.below(5) == 0 {
            fresh += 1;
            keys.push(fresh);
        } else {
            keys.push(keys[n - back]);
        }
    }
    keys
}

/// A quarter each of Zipf, a loop, recency and Zipf again over other keys.
fn phases() -> Vec<u64> {
    let quarter = READS / 4;
    let (zipf, mut random) = (Zipf::new(KEYS, 0.9), Random(23));
    let mut keys: Vec<u64> = (0..quarter).map(|_| zipf.draw(&mut random)).collect();
    keys.extend((0..quarter as u64).map(|n| part(1) + n % 12_000));
    keys.extend(recency().into_iter().take(quarter).map(|key| part(2) + key));
    keys.extend((0..quarter).map(|_| part(3) + zipf.draw(&mut random)));
    keys
}

/// Reads a trace file, by its ending: `.arc` (in every line first block, number of blocks and two fields that are ignored),
/// `.lis`, `.lirs` (a block a line, `*` separates), `.bin` (64-bit little-endian), anything else one key per line.
pub(crate) fn read(path: &Path) -> io::Result<Trace> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default();
    let keys = match ending.as_str() {
        "bin" => little_endian(&fs::read(path)?)?,
        "arc" => arc(&fs::read_to_string(path)?)?,
        "lis" | "lirs" => lines(&fs::read_to_string(path)?, |line| line != "*"),
        _ => lines(&fs::read_to_string(path)?, |_| true),
    };
    if keys.is_empty() {
        return Err(malformed("there is no key in it"));
    }
    let unique = keys.iter().collect::<HashSet<_>>().len();
    let sizes = [100, 20, 5].map(|part| (unique / part).max(1)).into();
    Ok(Trace { name: path.display().to_string(), keys, sizes })
}

fn malformed(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn little_endian(bytes: &[u8]) -> io::Result<Vec<u64>> {
    let (keys, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes are not a multiple of eight", bytes.len())));
    }
    Ok(keys.iter().copied().map(u64::from_le_bytes).collect())
}

fn arc(text: &str) -> io::Result<Vec<u64>> {
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(count))) = (fields.next(), fields.next()) else {
            return Err(malformed(format!("line {}: no first block and number of blocks in {line:?}", number + 1)));
        };
        keys.extend(first..first.saturating_add(count));
    }
    Ok(keys)
}

/// One key per line, whatever it looks like.
fn lines(text: &str, is_key: impl Fn(&str) -> bool) -> Vec<u64> {
    let mut numbers = HashMap::new();
    let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && is_key(line));
    keys.map(|key| {
        let next = numbers.len() as u64;
        *numbers.entry(key).or_insert(next)
    })
    .collect()
}
