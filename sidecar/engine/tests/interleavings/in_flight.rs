//! One budget for what is in L2 and what is in flight, while both change at once.

use std::sync::Arc;

use caddy_engine::{Cache, CacheConfig, KernelConfig, KeyHash, L2Config, Moment, PolicyKind, SourceKind};
use shuttle::scheduler::RandomScheduler;
use shuttle::{Config, Runner, thread};

use crate::SEED;

const BUDGET: usize = 64 << 10;
const VALUE: usize = 6 << 10;

#[test]
fn what_is_put_in_while_room_is_made_for_what_is_in_flight_stays_within_what_is_left() {
    let order = || {
        let cache = Cache::<u64, Vec<u8>>::new(CacheConfig {
            kernel: KernelConfig { stripes: 1, max_sources: 1, ..KernelConfig::default() },
            l2: L2Config { max_bytes: BUDGET, shards: 1, policy: PolicyKind::S3Fifo, ..L2Config::default() },
            ..CacheConfig::default()
        });
        let source = cache.kernel().register(SourceKind::Local).expect("an empty table");
        let fill = move |cache: &Arc<Cache<u64, Vec<u8>>>, key: u64| {
            let hash = KeyHash::from_raw(key);
            let token = cache.kernel().begin_fill(source, hash, Moment::ZERO);
            let value = vec![7; VALUE];
            cache.fill(&token, hash.tier(0), key, value, Moment::NEVER, Moment::ZERO).map(drop)
        };
        (0..8).for_each(|key| fill(&cache, key).expect("it fits"));
        let filling = cache.clone();
        let filler = thread::spawn(move || (8..10).for_each(|key| fill(&filling, key).expect("it fits")));
        let held = cache.hold(BUDGET / 3);
        filler.join().expect("no panic");
        let stats = cache.stats();
        let all = stats.l2_bytes + stats.in_flight_bytes;
        assert!(stats.in_flight_bytes == held.bytes() && all <= BUDGET, "{stats:?}");
    };
    Runner::new(RandomScheduler::new_from_seed(SEED, 2000), Config::default()).run(order);
}
