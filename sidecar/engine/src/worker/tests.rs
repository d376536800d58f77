use super::*;
use crate::cache::{CacheConfig, FillRefused, TieringConfig};
use crate::clock::{Clock, ManualClock};
use crate::hash::KeyHash;
use crate::kernel::{FlushCause, SourceKind};
use crate::l1::L1Config;
use crate::l2::L2Config;
use crate::policy::PolicyKind;
use std::time::Duration;

struct Fixture {
    clock: ManualClock,
    cache: Arc<Cache<Vec<u8>, Vec<u8>>>,
    source: SourceId,
}

fn fixture(l2: L2Config) -> Fixture {
    let tiering = TieringConfig { promote_after_hits: 2, ..TieringConfig::default() };
    let l1 = L1Config { max_entries: 2, max_bytes: 1 << 20 };
    let cache = Cache::new(CacheConfig { l1, l2, tiering, ..CacheConfig::default() });
    let source = cache.kernel().register(SourceKind::Tracked).unwrap();
    let f = Fixture { clock: ManualClock::default(), cache, source };
    f.prove();
    f
}

impl Fixture {
    fn prove(&self) {
        let now = self.clock.now();
        self.cache.kernel().proved(&self.cache.kernel().sending(self.source, now), now);
    }

    fn fill(&self, key: &str, value: &str, ttl: Duration) -> Result<(), FillRefused> {
        let (key, now) = (key.as_bytes().to_vec(), self.clock.now());
        let key_hash = KeyHash::of(&key);
        let token = self.cache.kernel().begin_fill(self.source, key_hash, now);
        self.cache.fill(&token, key_hash.tier(0), key, value.as_bytes().to_vec(), now + ttl, now).map(drop)
    }

    fn read(&self, worker: &mut Worker<Vec<u8>, Vec<u8>>, key: &str) -> String {
        let hash = KeyHash::of(key.as_bytes()).tier(0);
        match worker.lookup(hash, &key.as_bytes().to_vec(), self.clock.now()) {
            Lookup::Hit(hit) => format!("{:?} {}", hit.tier, String::from_utf8_lossy(hit.entry.value())),
            Lookup::Uncertain(uncertain) => format!("{:?}", uncertain.doubt),
            Lookup::Miss(miss) => format!("{miss:?}"),
        }
    }
}

const HOUR: Duration = Duration::from_hours(1);

#[test]
fn enough_l2_hits_put_an_entry_into_l1_of_that_worker_only() {
    let f = fixture(L2Config::default());
    let (mut one, mut two) = (f.cache.worker(), f.cache.worker());
    f.fill("k", "v", HOUR).unwrap();
    assert_eq!(f.read(&mut one, "k"), "L2 v");
    assert_eq!(f.read(&mut one, "k"), "L2 v");
    assert_eq!(f.read(&mut one, "k"), "L1 v");
    assert_eq!(f.read(&mut two, "k"), "L2 v");
    assert_eq!(f.cache.stats().get(Counter::HitL2), 3);
    drop(one);
    assert_eq!(f.cache.stats().get(Counter::HitL1), 1, "a worker's counts outlive it");
}

#[test]
fn a_bump_kills_the_copy_in_both_tiers_at_once() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    f.fill("k", "v", HOUR).unwrap();
    for _ in 0..3 {
        f.read(&mut worker, "k");
    }
    f.cache.kernel().bump(KeyHash::of(b"k"));
    assert_eq!(f.read(&mut worker, "k"), "Invalidated");
    f.fill("k", "w", HOUR).unwrap();
    assert_eq!(f.read(&mut worker, "k"), "L2 w");
}

#[test]
fn removing_and_replacing_in_l2_kills_the_l1_slot() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    f.fill("k", "v", HOUR).unwrap();
    for _ in 0..3 {
        f.read(&mut worker, "k");
    }
    assert_eq!(f.read(&mut worker, "k"), "L1 v");
    f.fill("k", "w", HOUR).unwrap();
    assert_eq!(f.read(&mut worker, "k"), "L2 w");
    f.read(&mut worker, "k");
    assert_eq!(f.read(&mut worker, "k"), "L1 w");
    assert!(f.cache.remove(KeyHash::of(b"k").tier(0), &b"k".to_vec()));
    assert_eq!(f.read(&mut worker, "k"), "Absent");
}

#[test]
fn a_lapsed_copy_is_uncertain_until_the_source_is_proven_again() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    f.fill("k", "v", HOUR).unwrap();
    for _ in 0..3 {
        f.read(&mut worker, "k");
    }
    f.clock.advance(Duration::from_millis(1001));
    assert_eq!(f.read(&mut worker, "k"), "Lapsed");
    f.prove();
    assert_eq!(f.read(&mut worker, "k"), "L1 v");
}

#[test]
fn a_hit_tells_when_a_probe_is_due() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    f.fill("k", "v", HOUR).unwrap();
    f.clock.advance(Duration::from_millis(300));
    let hash = KeyHash::of(b"k").tier(0);
    let Lookup::Hit(hit) = worker.lookup(hash, &b"k".to_vec(), f.clock.now()) else { panic!("a hit") };
    assert!(hit.probe_due);
}

#[test]
fn a_hit_of_l1_tells_how_long_ago_the_last_one_was() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    f.fill("k", "v", HOUR).unwrap();
    let mut hit = |expected| {
        f.prove();
        let hash = KeyHash::of(b"k").tier(0);
        let Lookup::Hit(hit) = worker.lookup(hash, &b"k".to_vec(), f.clock.now()) else { panic!("a hit") };
        assert_eq!((hit.tier, hit.idle), expected);
    };
    hit((Tier::L2, None));
    hit((Tier::L2, None));
    hit((Tier::L1, None));
    hit((Tier::L1, Some(0)));
    f.clock.advance(Duration::from_nanos(3 << 30));
    hit((Tier::L1, Some(3)));
    hit((Tier::L1, Some(0)));
}

#[test]
fn what_does_not_fit_into_l1_stays_in_l2_and_is_promoted_never() {
    let l1 = L1Config { max_entries: 2, max_bytes: 8 };
    let tiering = TieringConfig { promote_after_hits: 1, ..TieringConfig::default() };
    let cache = Cache::new(CacheConfig { l1, tiering, ..CacheConfig::default() });
    let source = cache.kernel().register(SourceKind::Local).unwrap();
    let f = Fixture { clock: ManualClock::default(), cache, source };
    let mut worker = f.cache.worker();
    f.fill("k", "far too long", HOUR).unwrap();
    for _ in 0..300 {
        assert_eq!(f.read(&mut worker, "k"), "L2 far too long");
    }
    assert_eq!(f.cache.stats().get(Counter::Promoted), 0);
}

#[test]
fn after_a_loss_the_copy_is_kept_for_stale_serving_only() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    f.fill("k", "v", HOUR).unwrap();
    f.cache.kernel().flush(f.source, FlushCause::Uncertain);
    assert_eq!(f.read(&mut worker, "k"), "Flushed");
    f.cache.kernel().flush(f.source, FlushCause::Overwritten);
    assert_eq!(f.read(&mut worker, "k"), "Invalidated");
}

#[test]
fn nothing_is_served_past_its_deadline_and_maintenance_frees_it() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    f.fill("k", "v", Duration::from_millis(500)).unwrap();
    f.fill("long", "v", HOUR).unwrap();
    f.clock.advance(Duration::from_millis(500));
    assert_eq!(f.read(&mut worker, "k"), "Expired");
    f.clock.advance(Duration::from_secs(3));
    while f.cache.maintain(f.clock.now(), 100) {}
    assert_eq!(f.cache.stats().l2_entries, 1);
    assert_eq!(f.cache.stats().get(Counter::Expired), 1);
    assert_eq!(f.fill("k", "v", Duration::ZERO), Err(FillRefused::Expired));
}

#[test]
fn a_slice_of_maintenance_is_bounded_for_all_shards_together() {
    let f = fixture(L2Config { shards: 8, ..L2Config::default() });
    (0..1_000).for_each(|key| f.fill(&format!("k{key}"), "v", Duration::from_secs(1)).unwrap());
    f.clock.advance(HOUR);
    let mut before = 1_000;
    while f.cache.maintain(f.clock.now(), 32) {
        let now = f.cache.stats().l2_entries;
        assert!(before - now <= 32, "{before} to {now}");
        before = now;
    }
    assert_eq!(f.cache.stats().l2_entries, 0);
}

#[test]
fn idle_and_dead_slots_leave_l1() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    for key in ["a", "b"] {
        f.fill(key, "v", HOUR).unwrap();
        for _ in 0..3 {
            f.read(&mut worker, key);
        }
    }
    assert_eq!(worker.l1_sizes().0, 2);
    f.cache.remove(KeyHash::of(b"b").tier(0), &b"b".to_vec());
    worker.maintain(f.clock.now(), 100);
    assert_eq!(worker.l1_sizes().0, 1);
    f.clock.advance(Duration::from_mins(5));
    worker.maintain(f.clock.now(), 100);
    assert_eq!(worker.l1_sizes(), (0, 0));
    assert_eq!(f.cache.stats().get(Counter::DemotedIdle), 1);
}

#[test]
fn l2_is_never_above_its_budget_under_any_policy() {
    for policy in [PolicyKind::Adaptive, PolicyKind::S3Fifo, PolicyKind::Lru] {
        let max_bytes = 64 << 10;
        let f = fixture(L2Config { max_bytes, max_entries: 100, shards: 2, policy });
        let mut worker = f.cache.worker();
        for round in 0..2000_usize {
            let key = format!("key-{}", round * 7919 % 400);
            f.read(&mut worker, &key);
            f.fill(&key, &"x".repeat(round % 3000), HOUR).unwrap();
            let stats = f.cache.stats();
            assert!(stats.l2_bytes <= max_bytes && stats.l2_entries <= 100, "{policy:?}: {stats:?}");
        }
        assert!(f.cache.stats().get(Counter::EvictedForRoom) > 100);
        assert_eq!(f.fill("huge", &"x".repeat(max_bytes), HOUR), Err(FillRefused::TooLarge));
        f.cache.clear();
        assert_eq!(f.cache.stats().l2_entries, 0);
    }
}

#[test]
fn why_explains_a_copy_without_counting_as_a_read() {
    let f = fixture(L2Config::default());
    let worker = f.cache.worker();
    f.fill("k", "v", HOUR).unwrap();
    f.clock.advance(Duration::from_millis(100));
    let hash = KeyHash::of(b"k").tier(0);
    let why = worker.why(hash, &b"k".to_vec(), f.clock.now()).unwrap();
    assert_eq!(why.verdict, Verdict::Valid(Currency::Proven));
    assert_eq!((why.age, why.in_l1), (Duration::from_millis(100), false));
    f.cache.kernel().bump(KeyHash::of(b"k"));
    let why = worker.why(hash, &b"k".to_vec(), f.clock.now()).unwrap();
    assert_eq!(why.verdict, Verdict::Invalidated);
    assert_eq!(why.evidence.stamp.0 + 1, why.evidence.stamp.1);
    assert_eq!(f.cache.stats().hit_rate().to_bits(), 0);
}

#[test]
fn a_renewed_value_takes_the_place_of_that_very_entry_only() {
    let f = fixture(L2Config::default());
    let mut worker = f.cache.worker();
    f.fill("k", "packed", HOUR).unwrap();
    f.read(&mut worker, "k");
    f.read(&mut worker, "k");
    let find = |worker: &mut Worker<Vec<u8>, Vec<u8>>| match worker.lookup(
        KeyHash::of(b"k").tier(0),
        &b"k".to_vec(),
        f.clock.now(),
    ) {
        Lookup::Hit(hit) => hit.entry.clone(),
        other => panic!("{other:?}"),
    };
    let old = find(&mut worker);
    let hash = KeyHash::of(b"k").tier(0);
    let new = f.cache.renew(hash, &old, b"k".to_vec(), b"ready".to_vec()).unwrap();
    assert!(old.is_dead() && !new.is_dead());
    assert_eq!(new.basis(), old.basis());
    assert_eq!(f.read(&mut worker, "k"), "L2 ready", "it has earned its place in L1 already");
    assert_eq!(f.read(&mut worker, "k"), "L1 ready");
    f.clock.advance(HOUR);
    assert_eq!(f.read(&mut worker, "k"), "Expired", "it lives no longer than the old one");

    assert!(f.cache.renew(hash, &old, b"k".to_vec(), b"late".to_vec()).is_none(), "the old one is gone");
    f.cache.remove(hash, &b"k".to_vec());
    assert!(f.cache.renew(hash, &new, b"k".to_vec(), b"late".to_vec()).is_none(), "what was removed stays so");
    assert_eq!(f.read(&mut worker, "k"), "Absent");
    assert_eq!(f.cache.stats().l2_entries, 0);
}

#[test]
fn a_smaller_budget_is_kept_at_once_and_reached_in_slices() {
    let f = fixture(L2Config { max_bytes: 4 << 20, shards: 2, ..L2Config::default() });
    let value = "v".repeat(1000);
    (0..3000).for_each(|key| f.fill(&format!("k{key}"), &value, HOUR).unwrap());
    assert!(f.cache.stats().l2_bytes > 3 << 20);
    f.cache.set_l2_max_bytes(1 << 20);
    let mut before = f.cache.stats().l2_entries;
    while f.cache.shrink() {
        let now = f.cache.stats().l2_entries;
        assert_eq!(before - now, 32, "a slice, whatever the number of shards");
        before = now;
    }
    let stats = f.cache.stats();
    assert!((1 << 19..=1 << 20).contains(&stats.l2_bytes), "{}", stats.l2_bytes);
    (0..3000).for_each(|key| f.fill(&format!("l{key}"), &value, HOUR).unwrap());
    assert!(f.cache.stats().l2_bytes <= 1 << 20);
    f.cache.set_l2_max_bytes(4 << 20);
    (0..3000).for_each(|key| f.fill(&format!("m{key}"), &value, HOUR).unwrap());
    assert!(f.cache.stats().l2_bytes > 3 << 20);
}

/// The list of those that somebody still points to is memory, too.
#[test]
fn what_leaves_while_it_is_held_takes_no_more_than_there_is() {
    for is_removed in [false, true] {
        let f = fixture(L2Config { max_bytes: 1 << 20, shards: 1, ..L2Config::default() });
        let soon = f.clock.now() + Duration::from_secs(1);
        let hash = |key: &[u8]| KeyHash::of(key).tier(0);
        let keys: Vec<Vec<u8>> = (0..100).map(|n| format!("k{n}").into_bytes()).collect();
        let held: Vec<_> = keys
            .iter()
            .map(|key| {
                let token = f.cache.kernel().begin_fill(f.source, KeyHash::of(key), f.clock.now());
                f.cache.fill(&token, hash(key), key.clone(), vec![b'v'; 100], soon, f.clock.now()).unwrap()
            })
            .collect();
        (0..100).for_each(|n| f.fill(&format!("stays{n}"), "v", HOUR).unwrap());
        let full = f.cache.stats().l2_bytes;
        f.cache.set_l2_max_bytes(full);
        let is_kept = || {
            let stats = f.cache.stats();
            assert!(stats.l2_bytes <= full, "{stats:?} of {full}, removed: {is_removed}");
        };
        if is_removed {
            for key in &keys {
                f.cache.remove(hash(key), key);
                is_kept();
            }
        } else {
            f.clock.advance(Duration::from_secs(2));
            while f.cache.maintain(f.clock.now(), 1) {
                is_kept();
            }
        }
        drop(held);
    }
}

#[test]
fn a_smaller_budget_is_no_matter_of_what_expires() {
    let f = fixture(L2Config { max_bytes: 4 << 20, shards: 1, ..L2Config::default() });
    f.fill("soon", "v", Duration::from_secs(1)).unwrap();
    (0..1000).for_each(|n| f.fill(&format!("k{n}"), &"v".repeat(1000), HOUR).unwrap());
    f.cache.set_l2_max_bytes(1 << 19);
    f.clock.advance(Duration::from_secs(2));
    while f.cache.maintain(f.clock.now(), 1) {}
    f.cache.remove(KeyHash::of(b"k0").tier(0), b"k0".as_slice());
    assert_eq!(f.cache.stats().l2_entries, 999, "those are let go in slices of their own");
}

#[test]
fn entries_make_way_for_what_is_in_flight() {
    for policy in [PolicyKind::Adaptive, PolicyKind::S3Fifo, PolicyKind::Lru] {
        let max_bytes = 1 << 20;
        let f = fixture(L2Config { max_bytes, shards: 2, policy, ..L2Config::default() });
        let value = "v".repeat(1000);
        let fill = |name: &str| (0..2000).for_each(|key| f.fill(&format!("{name}{key}"), &value, HOUR).unwrap());
        let sizes = || (f.cache.stats().l2_bytes, f.cache.stats().in_flight_bytes);
        fill("a");
        assert!(sizes().0 > max_bytes / 10 * 9, "{policy:?}: {:?}", sizes());
        let many: Vec<_> = (0..500).map(|_| f.cache.hold(1000)).collect();
        assert_eq!(sizes().1, 500_000);
        assert!((max_bytes / 3..=max_bytes - 500_000).contains(&sizes().0), "{policy:?}: {:?}", sizes());
        fill("b");
        assert!(sizes().0 <= max_bytes - 500_000, "{policy:?}: {:?}", sizes());
        drop(many);
        assert_eq!(sizes().1, 0);
        fill("c");
        assert!(sizes().0 > max_bytes / 10 * 9, "{policy:?}: {:?}", sizes());
        let all = f.cache.hold(max_bytes);
        assert_eq!(f.cache.stats().l2_entries, 0);
        assert_eq!(f.fill("k", "v", HOUR), Err(FillRefused::TooLarge), "there is no room at all");
        drop(all);
        f.fill("k", "v", HOUR).unwrap();
    }
}

#[test]
fn an_entry_counts_until_nobody_points_to_it_any_more() {
    let f = fixture(L2Config { shards: 1, ..L2Config::default() });
    let mut worker = f.cache.worker();
    let empty = f.cache.stats().l2_bytes;
    let bytes = || f.cache.stats().l2_bytes - empty;
    f.fill("k", &"v".repeat(100_000), HOUR).unwrap();
    (0..3).for_each(|_| assert!(f.read(&mut worker, "k").contains(" vvv")));
    assert_eq!(worker.l1_sizes().0, 1);
    f.cache.remove(KeyHash::of(b"k").tier(0), &b"k".to_vec());
    assert_eq!(f.cache.stats().l2_entries, 0);
    assert!(bytes() > 100_000, "L1 still points to it: {}", bytes());
    f.fill("other", "v", HOUR).unwrap();
    assert!(bytes() > 100_000, "{}", bytes());
    assert_eq!(f.read(&mut worker, "k"), "Absent");
    f.fill("other", "v", HOUR).unwrap();
    assert!(bytes() < 20_000, "{}", bytes());
}

#[test]
fn the_bound_on_entries_holds_whatever_bytes_are_allowed() {
    for max_bytes in [1 << 20, 64 << 30, usize::MAX] {
        let f = fixture(L2Config { max_bytes, max_entries: 16, shards: 2, ..L2Config::default() });
        (0..200).for_each(|number| f.fill(&number.to_string(), "v", HOUR).unwrap());
        assert_eq!(f.cache.stats().l2_entries, 16, "{max_bytes} bytes");
    }
}

/// A value that looks into its cache as it is dropped.
struct Returning {
    cache: Arc<std::sync::OnceLock<Arc<Cache<u64, Self>>>>,
    bytes: usize,
    looked: std::sync::mpsc::Sender<()>,
}

impl crate::Weigh for Returning {
    fn heap_bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        if let Some(cache) = self.cache.get() {
            cache.find(KeyHash::of(b"k").tier(0), &1, Moment::ZERO);
            let _ = self.looked.send(());
        }
    }
}

#[test]
fn what_has_left_is_dropped_without_a_lock_also_where_a_newcomer_is_refused() {
    let (looked, looks) = std::sync::mpsc::channel();
    // A thread of its own: whoever waits for a lock that it holds itself waits for ever.
    std::thread::spawn(move || {
        let l2 = L2Config { max_bytes: 1 << 20, shards: 1, ..L2Config::default() };
        let cache = Cache::<u64, Returning>::new(CacheConfig { l2, ..CacheConfig::default() });
        let (source, now, own) = (cache.kernel().register(SourceKind::Local).unwrap(), Moment::ZERO, Arc::default());
        let fill = |key: u64, bytes| {
            let hash = KeyHash::of(&key.to_le_bytes());
            let token = cache.kernel().begin_fill(source, hash, now);
            let value = Returning { cache: Arc::clone(&own), bytes, looked: looked.clone() };
            cache.fill(&token, hash.tier(0), key, value, Moment::NEVER, now).map(|entry| (hash, entry))
        };
        let (hash, entry) = fill(1, 100).unwrap();
        assert!(cache.remove(hash.tier(0), &1), "it leaves, and somebody points to it still");
        drop(entry);
        assert!(own.set(cache.clone()).is_ok());
        assert!(matches!(fill(2, 2 << 20), Err(FillRefused::TooLarge)));
    });
    for who in ["what has left", "the newcomer"] {
        looks.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|error| panic!("{who}: {error}"));
    }
}
