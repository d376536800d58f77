//! Hit ratios of L2's policies beside those of others, and beside the best that is possible.
//!
//! `cargo bench -p caddy-engine --bench hit_ratio` compares on generated traces; `… -- FILE…` on trace files, whose ending
//! tells the format (see [`traces::read`]), with caches of a hundredth, a twentieth and a fifth of their keys. Belady's is the
//! best that is possible, by one who knows the future. The last column of each line is the adaptive policy's part of the best
//! rival's hit ratio; the lines at the end sum it up, traces where even the best hits less than a tenth apart.

#![expect(clippy::print_stdout, reason = "a report")]

mod rivals;
mod traces;

use std::path::Path;

use caddy_engine::{
    Cache, CacheConfig, KeyHash, L1Config, L2Config, Lookup, Moment, PolicyKind, SourceId, SourceKind, Worker,
};
use rivals::{RIVALS, Rival};

const OURS: [(&str, PolicyKind); 3] =
    [("Adaptive", PolicyKind::Adaptive), ("S3Fifo", PolicyKind::S3Fifo), ("Lru", PolicyKind::Lru)];

/// This crate's L2 without an L1 before it.
struct Ours {
    worker: Worker<u64, ()>,
    source: SourceId,
}

impl Ours {
    fn new(size: usize, policy: PolicyKind) -> Self {
        let cache = Cache::<u64, ()>::new(CacheConfig {
            l1: L1Config { max_entries: 0, max_bytes: 0 },
            l2: L2Config { max_bytes: 1 << 34, max_entries: size, shards: 1, policy },
            ..CacheConfig::default()
        });
        let source = cache.kernel().register(SourceKind::Local).expect("an empty table");
        Self { worker: cache.worker(), source }
    }
}

impl Rival for Ours {
    fn read(&mut self, key: u64) -> bool {
        let hash = KeyHash::of(&key.to_le_bytes());
        if matches!(self.worker.lookup(hash.tier(0), &key, Moment::ZERO), Lookup::Hit(_)) {
            return true;
        }
        let cache = self.worker.cache();
        let token = cache.kernel().begin_fill(self.source, hash, Moment::ZERO);
        let filled = cache.fill(&token, hash.tier(0), key, (), Moment::NEVER, Moment::ZERO);
        filled.expect("nothing is written meanwhile");
        false
    }
}

fn ratio(keys: &[u64], mut cache: Box<dyn Rival>) -> f64 {
    keys.iter().filter(|&&key| cache.read(key)).count() as f64 / keys.len() as f64
}

fn read(file: &str) -> traces::Trace {
    traces::read(Path::new(file)).unwrap_or_else(|error| {
        println!("cannot read the trace {file}: {error}");
        std::process::exit(1)
    })
}

fn main() {
    let files: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let traces = if files.is_empty() { traces::generated() } else { files.iter().map(|file| read(file)).collect() };
    print!("{:<22}{:>7}{:>9}", "hit ratio in %", "size", "Belady");
    RIVALS.iter().map(|rival| rival.0).chain(OURS.map(|own| own.0)).for_each(|name| print!("{name:>12}"));
    println!("{:>10}", "of best");
    let (mut parts, mut behind) = (Vec::new(), Vec::new());
    for trace in &traces {
        for &size in &trace.sizes {
            let possible = rivals::belady(&trace.keys, size) as f64 / trace.keys.len() as f64;
            print!("{:<22}{size:>7}{:>9.2}", trace.name, 100.0 * possible);
            let rivals = RIVALS.map(|(_, make)| ratio(&trace.keys, make(size)));
            let own = OURS.map(|(_, policy)| ratio(&trace.keys, Box::new(Ours::new(size, policy))));
            rivals.iter().chain(&own).for_each(|ratio| print!("{:>12.2}", 100.0 * ratio));
            let best = rivals.into_iter().fold(0.0, f64::max);
            println!("{:>10.3}", own[0] / best);
            if best < 0.1 {
                behind.push(100.0 * (best - own[0]));
            } else {
                parts.push(own[0] / best);
            }
        }
    }
    let mean = parts.iter().sum::<f64>() / parts.len() as f64;
    let worst = parts.iter().copied().fold(f64::INFINITY, f64::min);
    println!("Adaptive of the best rival: mean {mean:.3}, worst {worst:.3} ({} cases)", parts.len());
    if let Some(most) = behind.iter().copied().reduce(f64::max) {
        println!("where the best hits less than 10 %: at most {most:.2} points behind ({} cases)", behind.len());
    }
}
