//! The budget of L2 against what the allocator really gave: keys, values, tables, queues, timers, ghosts.

#![cfg(not(feature = "shuttle"))]
#![expect(unsafe_code, reason = "a counting allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use caddy_engine::{
    Cache, CacheConfig, Clock, KernelConfig, KeyHash, L2Config, ManualClock, Moment, PolicyKind, SourceKind,
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

/// One test, since the counters are the process's.
#[test]
fn the_heap_never_outgrows_the_budget() {
    for (policy, size) in
        [(PolicyKind::Adaptive, 60), (PolicyKind::S3Fifo, 60), (PolicyKind::S3Fifo, 900), (PolicyKind::Lru, 60)]
    {
        let clock = ManualClock::default();
        let cache = Cache::<Box<[u8]>, Box<[u8]>>::new(CacheConfig {
            kernel: KernelConfig { stripes: 1024, ..KernelConfig::default() },
            l2: L2Config { max_bytes: BUDGET, shards: 4, policy, ..L2Config::default() },
            ..CacheConfig::default()
        });
        let source = cache.kernel().register(SourceKind::Local).expect("an empty table");
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        for round in 0..150_000_u64 {
            let key: Box<[u8]> = format!("user:{:011}", round.wrapping_mul(7_919) % 100_000).into_bytes().into();
            let hash = KeyHash::of(&key);
            let now = clock.now();
            let token = cache.kernel().begin_fill(source, hash, now);
            let deadline = if round % 2 == 0 { now + Duration::from_secs(round % 500 + 1) } else { Moment::NEVER };
            let value = vec![7; size + round as usize % 100].into_boxed_slice();
            cache.fill(&token, hash.tier(0), key, value, deadline, now).expect("it fits");
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
            live / stats.l2_entries - payload,
        );
        assert!(stats.l2_bytes > BUDGET * 9 / 10, "the budget is used");
        assert!(live <= BUDGET, "live {live} is above the budget of {BUDGET}");
        assert!(peak <= BUDGET + BUDGET / 50, "the peak {peak} is more than one rehash above the budget of {BUDGET}");
    }
}
