//! What an entry of L2 costs: bytes allocated beyond key and value, bytes counted by the cache, resident memory.
//!
//! `cargo bench -p caddy-engine --bench memory`. A million entries of a 16-byte key and a 100-byte value, with and without
//! a deadline, and mixed sizes; each measured in a process of its own, so that nobody inherits another's free memory.

#![expect(unsafe_code, reason = "a counting allocator cannot be written without")]
#![expect(clippy::print_stdout, reason = "a report")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use caddy_engine::{Cache, CacheConfig, Clock, KeyHash, L2Config, ManualClock, Moment, Packed, PolicyKind, SourceKind};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counter is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ENTRIES: u64 = 1_000_000;

struct Case {
    name: &'static str,
    policy: PolicyKind,
    expires: bool,
    /// The length of the value of entry `n`.
    length: fn(u64) -> usize,
}

const CASES: [Case; 4] = [
    Case { name: "100 B", policy: PolicyKind::S3Fifo, expires: false, length: |_| 100 },
    Case { name: "100 B, expiring", policy: PolicyKind::S3Fifo, expires: true, length: |_| 100 },
    Case { name: "100 B, LRU", policy: PolicyKind::Lru, expires: false, length: |_| 100 },
    Case { name: "20 B to 379 B", policy: PolicyKind::S3Fifo, expires: true, length: |n| 20 + (n * 7 % 360) as usize },
];

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells it");
    let kib: usize = line.trim().trim_end_matches(" kB").parse().expect("a number of KiB");
    kib << 10
}

fn measure(case: &Case) {
    let cache = Cache::<Packed, Packed>::new(CacheConfig {
        l2: L2Config { max_bytes: 1 << 30, policy: case.policy, ..L2Config::default() },
        ..CacheConfig::default()
    });
    let source = cache.kernel().register(SourceKind::Local).expect("an empty table");
    let now = ManualClock::default().now();
    let value = [7; 400];
    let (live, before, empty) = (LIVE.load(Ordering::Relaxed), resident(), cache.stats().l2_bytes);
    let mut payload = 0;
    for n in 0..ENTRIES {
        let key = format!("user:{n:011}");
        let hash = KeyHash::of(key.as_bytes());
        let token = cache.kernel().begin_fill(source, hash, now);
        let deadline = if case.expires { now + Duration::from_secs(n * 7_919 % 86_400 + 1) } else { Moment::NEVER };
        let length = (case.length)(n);
        payload += key.len() + length;
        cache.fill_bytes(&token, hash.tier(0), key.as_bytes(), &value[..length], deadline, now).expect("room enough");
    }
    let per_entry = |bytes: usize| bytes as f64 / ENTRIES as f64;
    let (allocated, rss) = (LIVE.load(Ordering::Relaxed) - live, resident() - before);
    println!(
        "{:<16} payload {:>6.1} B   metadata {:>5.1} B   counted {:>6.1} B   allocated {:>6.1} B   resident {:>6.1} B",
        case.name,
        per_entry(payload),
        per_entry(allocated - payload),
        per_entry(cache.stats().l2_bytes - empty),
        per_entry(allocated),
        per_entry(rss),
    );
}

fn main() {
    if let Some(case) = std::env::var("CASE").ok().and_then(|case| case.parse::<usize>().ok()) {
        return measure(&CASES[case]);
    }
    println!("per entry, {ENTRIES} entries:");
    for case in 0..CASES.len() {
        let program = std::env::current_exe().expect("the path of this program");
        let status = Command::new(program).env("CASE", case.to_string()).status().expect("this program can be run");
        assert!(status.success(), "case {case} failed");
    }
}
