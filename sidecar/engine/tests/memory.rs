//! The budget of L2 against what the allocator really gave: keys, values, tables, queues, timers, ghosts, entries that L1 still
//! points to when L2 has let them go, and buffers in flight.

#![cfg(not(feature = "shuttle"))]
#![expect(unsafe_code, reason = "a counting allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use caddy_engine::{
    Cache, CacheConfig, Clock, KernelConfig, KeyHash, L1Config, L2Config, ManualClock, Moment, PolicyKind, SourceKind,
    TieringConfig,
};

struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counters are beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
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

const BUDGET: usize = 8 << 20;
/// At most so many entries are in L1, and so many bytes of its own it needs for them: those are not L2's.
const L1_ENTRIES: usize = 1000;
const L1_TABLES: usize = 100 << 10;
/// Buffers in flight at a time, and the bytes of each.
const BUFFERS: usize = 24;
const BUFFER: usize = 64 << 10;

/// One test, since the counters are the process's.
#[test]
fn the_heap_never_outgrows_the_budget() {
    for (policy, size) in
        [(PolicyKind::Adaptive, 60), (PolicyKind::S3Fifo, 60), (PolicyKind::S3Fifo, 900), (PolicyKind::Lru, 60)]
    {
        let clock = ManualClock::default();
        let cache = Cache::<Box<[u8]>, Box<[u8]>>::new(CacheConfig {
            kernel: KernelConfig { stripes: 1024, ..KernelConfig::default() },
            l1: L1Config { max_entries: L1_ENTRIES, max_bytes: usize::MAX },
            l2: L2Config { max_bytes: BUDGET, shards: 4, policy, ..L2Config::default() },
            tiering: TieringConfig { promote_after_hits: 1, ..TieringConfig::default() },
        });
        let source = cache.kernel().register(SourceKind::Local).expect("an empty table");
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let (mut worker, mut in_flight) = (cache.worker(), VecDeque::new());
        for round in 0..150_000_u64 {
            let key: Box<[u8]> = format!("user:{:011}", round.wrapping_mul(7_919) % 100_000).into_bytes().into();
            let hash = KeyHash::of(&key);
            let now = clock.now();
            let token = cache.kernel().begin_fill(source, hash, now);
            let deadline = if round % 2 == 0 { now + Duration::from_secs(round % 500 + 1) } else { Moment::NEVER };
            let value = vec![7; size + round as usize % 100].into_boxed_slice();
            let entry = cache.fill(&token, hash.tier(0), key, value, deadline, now).expect("it fits");
            // What goes into L1 at first stays there, whatever becomes of it in L2.
            if round < 3 * L1_ENTRIES as u64 {
                worker.lookup(hash.tier(0), entry.key(), now);
            }
            if round % 50 == 0 {
                if in_flight.len() == BUFFERS {
                    in_flight.pop_front();
                }
                in_flight.push_back(cache.hold(BUFFER).with(Bytes::from(vec![7; BUFFER])));
            }
            if round % 1_000 == 0 {
                clock.advance(Duration::from_secs(1));
                cache.maintain(clock.now(), 500);
            }
        }
        let (live, peak) = (LIVE.load(Ordering::Relaxed) - before, PEAK.load(Ordering::Relaxed) - before);
        let stats = cache.stats();
        let payload = 16 + size + 50;
        println!(
            "{policy:?}, {size} B: {} entries, counted {}, live {live}, peak {peak}, metadata {} B per entry",
            stats.l2_entries,
            stats.l2_bytes,
            (live - BUFFERS * BUFFER) / stats.l2_entries - payload,
        );
        assert!(stats.l2_bytes + BUFFERS * BUFFER > BUDGET * 9 / 10, "the budget is used");
        assert!(live <= BUDGET + L1_TABLES, "live {live} is above the budget of {BUDGET}");
        assert!(
            peak <= BUDGET + L1_TABLES + BUDGET / 50,
            "the peak {peak} is more than one rehash above the budget of {BUDGET}"
        );
    }
}
