//! Guards whose removal shows without any concurrency: each promise is asked with the guard on and with it off.

use std::sync::Arc;
use std::time::Duration;

use caddy_engine::{
    Cache, CacheConfig, Currency, Guard, Guards, KernelConfig, KeyHash, Lookup, Moment, SourceId, SourceKind,
    TieringConfig,
};

const NOW: Moment = Moment::from_millis(1_000);

struct Fixture {
    cache: Arc<Cache<u64, u64>>,
    source: SourceId,
}

impl Fixture {
    fn new(guards: Guards) -> Self {
        let cache = Cache::new(CacheConfig {
            kernel: KernelConfig { stripes: 1, max_sources: 1, guards, ..KernelConfig::default() },
            tiering: TieringConfig { promote_after_hits: 1, ..TieringConfig::default() },
            ..CacheConfig::default()
        });
        let source = cache.kernel().register(SourceKind::Tracked).expect("an empty table");
        cache.kernel().proved(&cache.kernel().sending(source, NOW), NOW);
        Self { cache, source }
    }

    fn fill(&self, key: u64, deadline: Moment) {
        let hash = KeyHash::from_raw(key);
        let token = self.cache.kernel().begin_fill(self.source, hash, NOW);
        self.cache.fill(&token, hash.tier(0), key, key, deadline, NOW).expect("nothing has moved");
    }
}

/// Runs `promise` under the test scheduler, which the engine's atomics need in this build.
fn kept(promise: fn(Guards) -> bool, guards: Guards) -> bool {
    let answer = Arc::new(parking_lot::Mutex::new(false));
    let slot = answer.clone();
    shuttle::check_random(move || *slot.lock() = promise(guards), 1);
    *answer.lock()
}

fn needed(guard: Guard, promise: fn(Guards) -> bool) {
    assert!(kept(promise, Guards::default()), "the promise does not hold at all");
    assert!(!kept(promise, Guards::without(guard)), "the promise holds without {guard:?}: the guard is not tested");
}

#[test]
fn without_the_expiry_check_copies_outlive_their_deadline() {
    needed(Guard::Expiry, |guards| {
        let f = Fixture::new(guards);
        let mut worker = f.cache.worker();
        let deadline = NOW + Duration::from_millis(10);
        f.fill(1, deadline);
        !matches!(worker.lookup(KeyHash::from_raw(1).tier(0), &1, deadline), Lookup::Hit(_))
    });
}

#[test]
fn without_the_dead_flag_a_removed_entry_lives_on_in_l1() {
    needed(Guard::DeadFlag, |guards| {
        let f = Fixture::new(guards);
        let mut worker = f.cache.worker();
        f.fill(1, Moment::NEVER);
        let hash = KeyHash::from_raw(1).tier(0);
        let promoted = matches!(worker.lookup(hash, &1, NOW), Lookup::Hit(_));
        f.cache.remove(hash, &1);
        promoted && matches!(worker.lookup(hash, &1, NOW), Lookup::Miss(_))
    });
}

#[test]
fn without_the_incarnation_check_a_dead_connection_proves_the_next_one() {
    // Behind the flush of the loss this is a second line: it alone never shows a stale value, but a source would count
    // as current before its new connection has answered anything.
    needed(Guard::IncarnationCheck, |guards| {
        let f = Fixture::new(guards);
        let kernel = f.cache.kernel();
        let incarnation = kernel.connected(f.source);
        let sent = kernel.sending(f.source, NOW);
        kernel.lost(f.source, incarnation);
        kernel.connected(f.source);
        kernel.proved(&sent, NOW);
        kernel.currency(f.source, NOW) == Currency::Lapsed
    });
}
