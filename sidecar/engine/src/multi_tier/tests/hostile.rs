//! What no program should do and some program does: configurations at their extremes, keys and values that break what their
//! traits ask for, writers that clear while others load. Wrong answers, panics of ours and unbounded memory are not among the
//! outcomes.

use std::sync::atomic::AtomicUsize;

use futures::FutureExt as _;
use futures::channel::oneshot;

use super::*;
use crate::cache::CacheConfig;
use crate::policy::PolicyKind;

const MIB: usize = 1 << 20;
const WHOLE: TierSize = TierSize::new(usize::MAX, usize::MAX);

fn extremes() -> Vec<(&'static str, TierConfig)> {
    let sized = |l1, l2, l3| TierConfig { l1, l2, l3, ..TierConfig::default() };
    let TierConfig { l1, l2, l3, .. } = TierConfig::default();
    let with = |change: fn(&mut TierConfig)| {
        let mut config = TierConfig::default();
        change(&mut config);
        config
    };
    let one = TierSize::new(1, 1);
    let one_entry = TierSize::new(1, 64 * MIB);
    vec![
        ("everything unbounded", sized(WHOLE, WHOLE, WHOLE)),
        ("one byte of L1", sized(one, l2, l3)),
        ("one entry of L1", sized(one_entry, l2, l3)),
        ("one byte of L2", sized(l1, one, l3)),
        ("one entry of L2", sized(l1, one_entry, l3)),
        ("one byte of L3", sized(l1, l2, one)),
        ("one entry of L3", sized(l1, l2, one_entry)),
        (
            "three entries, exactly by recency",
            TierConfig { policy: PolicyKind::Lru, ..sized(l1, TierSize::new(3, MIB), l3) },
        ),
        ("three entries, by queues", TierConfig { policy: PolicyKind::S3Fifo, ..sized(l1, TierSize::new(3, MIB), l3) }),
        ("no stamps", with(|config| config.stamps = 0)),
        ("one stamp", with(|config| config.stamps = 1)),
        ("all stamps", with(|config| config.stamps = u32::MAX)),
        ("no staleness", with(|config| config.max_staleness = Duration::ZERO)),
        ("any staleness", with(|config| config.max_staleness = Duration::MAX)),
        ("nobody may wait", with(|config| config.max_waiters = 0)),
        ("no lease for loaders", with(|config| config.loader_lease = Duration::ZERO)),
        ("a TTL of a nanosecond", with(|config| config.ttl = Some(Duration::from_nanos(1)))),
        ("promotion never", with(|config| config.promote_after_hits = u16::MAX)),
    ]
}

#[tokio::test]
async fn at_the_extremes_of_the_configuration_answers_are_right_and_bounds_are_kept() {
    for (name, config) in extremes() {
        let f = Fixture::new(config.clone());
        for n in 0..20 {
            let key = format!("key {n}");
            let (old, new) = ("o".repeat(n), "n".repeat(n));
            // What L3 has no room for is refused; then nothing is there.
            let stored = f.cache.insert(key.clone(), old.clone()).await.is_ok();
            let read = f.cache.get(&key).await.unwrap();
            assert!(read.is_none() || stored && read == Some(old), "{name}: {read:?}");
            let stored = f.cache.insert_hot(key.clone(), new.clone()).await.is_ok();
            for _ in 0..12 {
                let read = f.cache.get(&key).await.unwrap();
                assert!(read.is_none() || stored && read.as_ref() == Some(&new), "{name}: {read:?}");
            }
            let other = format!("load {n}");
            let loaded = f.cache.get_or_load(&other, async || Ok::<_, CacheError>(new.clone())).await.unwrap();
            assert_eq!(loaded.value, new, "{name}");
            f.cache.expire(&key).await.unwrap();
            assert_eq!(f.cache.get(&key).await.unwrap(), None, "{name}");
            f.cache.remove(&other).await.unwrap();
            assert_eq!(f.cache.get(&other).await.unwrap(), None, "{name}");
            f.timer.advance(SECOND);
            let sizes = f.cache.tier_sizes();
            assert!(sizes.l1_entries <= config.l1.max_entries as u64, "{name}: {sizes:?}");
            assert!(sizes.l2_entries <= config.l2.max_entries, "{name}: {sizes:?}");
        }
        f.cache.clear().await.unwrap();
        f.cache.maintain();
        let sizes = f.cache.tier_sizes();
        assert_eq!((sizes.l1_entries, sizes.l2_entries, sizes.l3_entries), (0, 0, Some(0)), "{name}");
    }
}

/// Weighs what it is told, at any time.
#[derive(Clone, Debug)]
struct Claimed(Arc<AtomicUsize>);

impl Claimed {
    fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }
}

impl Weigh for Claimed {
    fn heap_bytes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn weighing(l2: TierSize) -> MultiTierCache<u64, Claimed> {
    MultiTierCache::in_process(TierConfig { l1: WHOLE, l2, l3: WHOLE, ..TierConfig::default() })
}

#[tokio::test]
async fn weights_beyond_32_bits_are_counted_in_full() {
    let weight = (1 << 30) + (1 << 29);
    let cache = weighing(TierSize::new(1_000, 8 << 30));
    for key in 0..20 {
        cache.insert(key, Claimed::new(weight)).await.unwrap();
        assert!(cache.get(&key).await.unwrap().is_some());
        let sizes = cache.tier_sizes();
        assert!(sizes.l2_bytes <= 8 << 30, "{sizes:?}");
        assert!(sizes.l2_bytes >= sizes.l2_entries * weight, "{sizes:?}");
    }
    assert!(cache.tier_sizes().l2_entries >= 2);
    let refused = cache.insert(99, Claimed::new(5 << 30)).await.unwrap_err();
    assert!(matches!(refused, CacheError::Write(RemoteError::TooLarge { max, .. }) if max == 2 << 30), "{refused:?}");
}

#[tokio::test]
async fn a_weight_that_changes_spoils_the_count_and_nothing_else() {
    for changed in [0, 100_000, usize::MAX] {
        let cache = weighing(TierSize::new(1_000, MIB));
        let weight = Claimed::new(1_000);
        for key in 0..100 {
            cache.insert(key, weight.clone()).await.unwrap();
            cache.insert_hot(1_000 + key, weight.clone()).await.unwrap();
            for _ in 0..5 {
                assert!(cache.get(&key).await.unwrap().is_some());
            }
        }
        weight.0.store(changed, Ordering::SeqCst);
        for key in 0..50 {
            cache.remove(&key).await.unwrap();
            assert!(cache.get(&key).await.unwrap().is_none());
        }
        // Newcomers make the rest leave, by way of every queue.
        for key in 2_000..4_000 {
            cache.insert_hot(key, Claimed::new(1_000)).await.unwrap();
            assert!(cache.get(&key).await.unwrap().is_some());
        }
        cache.clear().await.unwrap();
        cache.maintain();
        cache.insert(7, Claimed::new(1_000)).await.unwrap();
        assert!(cache.get(&7).await.unwrap().is_some(), "{changed}");
    }
}

/// A key in a group of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Grouped(u64);

impl Name for Grouped {
    fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T {
        self.0.with_name(then)
    }
}

impl Weigh for Grouped {
    fn heap_bytes(&self) -> usize {
        0
    }

    fn group(&self) -> usize {
        if self.0 < 6_000 { self.0 as usize } else { usize::MAX }
    }
}

#[tokio::test]
async fn thousands_of_groups_are_counted_and_their_rows_bounded() {
    let cache = Cache::<Grouped, u64>::new(CacheConfig::default());
    let source = cache.kernel().register(SourceKind::Local).unwrap();
    let now = Moment::ZERO;
    let fill = |key: u64| {
        let key = Grouped(key);
        let token = cache.kernel().begin_fill(source, key.key_hash(), now);
        cache.fill(&token, key.key_hash().tier(0), key, 0, Moment::NEVER, now).map(drop).unwrap();
    };
    (0..6_001).for_each(fill);
    let groups = cache.groups();
    assert_eq!(groups.len(), 4_096);
    assert_eq!((groups[7].entries, groups[4_095].entries), (1, 6_001 - 4_095));
    cache.remove(Grouped(6_000).key_hash().tier(0), &Grouped(6_000));
    assert_eq!(cache.groups()[4_095].entries, 6_000 - 4_095);
}

/// Different keys of one name, which [`Name`] forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Nameless(u64);

impl Name for Nameless {
    fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T {
        then(b"")
    }
}

impl Weigh for Nameless {
    fn heap_bytes(&self) -> usize {
        0
    }
}

#[tokio::test]
async fn keys_that_all_collide_are_told_apart() {
    let cache = MultiTierCache::<Nameless, u64>::in_process(TierConfig::default());
    for key in 0..500 {
        cache.insert(Nameless(key), key).await.unwrap();
    }
    for _ in 0..12 {
        for key in 0..500 {
            assert_eq!(cache.get(&Nameless(key)).await.unwrap(), Some(key));
        }
    }
    assert!(cache.remove(&Nameless(7)).await.unwrap());
    assert_eq!(cache.get(&Nameless(7)).await.unwrap(), None);
    assert_eq!(cache.get(&Nameless(8)).await.unwrap(), Some(8));
}

/// Panics where it is told to.
#[derive(Debug)]
struct Trap {
    armed: Option<&'static str>,
}

impl Trap {
    fn spring(&self, here: &'static str) {
        assert_ne!(self.armed, Some(here), "sprung");
    }
}

impl Clone for Trap {
    fn clone(&self) -> Self {
        self.spring("clone");
        Self { armed: self.armed }
    }
}

impl Weigh for Trap {
    fn heap_bytes(&self) -> usize {
        self.spring("weigh");
        0
    }
}

impl PartialEq for Trap {
    fn eq(&self, other: &Self) -> bool {
        self.spring("compare");
        self.armed == other.armed
    }
}

impl Eq for Trap {}

impl Name for Trap {
    fn with_name<T>(&self, then: impl FnOnce(&[u8]) -> T) -> T {
        self.spring("name");
        then(self.armed.unwrap_or("harmless").as_bytes())
    }
}

#[tokio::test]
async fn a_key_or_value_that_panics_does_so_in_its_callers_hands_and_others_go_on() {
    let values = MultiTierCache::<u64, Trap>::in_process(TierConfig::default());
    let keys = MultiTierCache::<Trap, u64>::in_process(TierConfig::default());
    for armed in ["clone", "weigh", "compare", "name"] {
        let trap = || Trap { armed: Some(armed) };
        for _ in 0..2 {
            let write = async { (values.insert(1, trap()).await.is_ok(), values.get(&1).await.is_ok()) };
            let read = async {
                let stored = keys.insert(trap(), 1).await.is_ok();
                // Twice: to be compared, there has to be one.
                (stored, keys.insert(trap(), 2).await.is_ok(), keys.get(&trap()).await.is_ok())
            };
            let _ = std::panic::AssertUnwindSafe(write).catch_unwind().await;
            let _ = std::panic::AssertUnwindSafe(read).catch_unwind().await;
        }
        values.insert(2, Trap { armed: None }).await.unwrap();
        assert!(values.get(&2).await.unwrap().is_some(), "after a value that panicked: {armed}");
        keys.insert(Trap { armed: None }, 3).await.unwrap();
        assert_eq!(keys.get(&Trap { armed: None }).await.unwrap(), Some(3), "after a key that panicked: {armed}");
    }
}

#[tokio::test]
async fn what_is_read_or_loaded_while_all_is_cleared_is_not_kept() {
    let f = fixture();
    f.cache.insert("read".into(), "old".into()).await.unwrap();
    f.remote.silent.store(true, Ordering::SeqCst);
    // Its reply is under way: the value is out of L3 already.
    let mut read = Box::pin(f.cache.get("read"));
    assert!(futures::poll!(&mut read).is_pending());
    f.remote.silent.store(false, Ordering::SeqCst);
    let (loaded, load) = oneshot::channel::<String>();
    let mut waits = Box::pin(f.cache.get_or_load("loaded", || load));
    assert!(futures::poll!(&mut waits).is_pending());

    f.cache.clear().await.unwrap();
    loaded.send("old".into()).unwrap();
    assert_eq!(waits.await.unwrap().value, "old", "it is an answer to who asked before");
    assert_eq!(f.cache.get("loaded").await.unwrap(), None);
    assert_eq!(f.cache.get("read").await.unwrap(), None);
    drop(read);
    assert_eq!(f.cache.stats().loads_not_stored, 1);
}

#[tokio::test]
async fn a_cache_outlives_its_last_handle_for_those_who_still_wait() {
    let f = fixture();
    let (loaded, load) = oneshot::channel::<String>();
    let cache = f.neighbour();
    let mut waits = Box::pin(async move { cache.get_or_load("k", || load).await });
    assert!(futures::poll!(&mut waits).is_pending());
    loaded.send("v".into()).unwrap();
    assert_eq!(waits.as_mut().await.unwrap().value, "v");
    drop(waits);
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"), "and L3 goes on without it");
    f.cache.insert("k".into(), "w".into()).await.unwrap();
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("w"));
}

#[tokio::test]
async fn when_a_caller_goes_away_with_its_loader_another_may_load_at_once() {
    let f = fixture();
    let mut gone = Box::pin(f.cache.get_or_load("k", std::future::pending::<Result<String, CacheError>>));
    assert!(futures::poll!(&mut gone).is_pending());
    drop(gone);
    let other = f.neighbour();
    let mut next = Box::pin(other.get_or_load("k", async || Ok::<_, CacheError>("v".into())));
    // Without a moment passing: L3's lease was given back.
    let std::task::Poll::Ready(loaded) = futures::poll!(&mut next) else {
        panic!("it waits for the lease of the gone")
    };
    assert_eq!(loaded.unwrap().value, "v");
}

#[tokio::test]
async fn a_clock_that_jumps_an_hour_either_way_leaves_right_answers() {
    let hour = Duration::from_hours(1);
    let f = Fixture::new(TierConfig { ttl: Some(10 * SECOND), ..TierConfig::default() });
    f.timer.advance(10 * hour);
    f.cache.insert_hot("k".into(), "v".into()).await.unwrap();
    let start = f.timer.now();

    f.timer.jump_to(start - hour);
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"));
    f.cache.insert("k".into(), "w".into()).await.unwrap();
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("w"), "a write counts whatever the clock says");
    f.timer.advance(11 * SECOND);
    assert_eq!(f.cache.get("k").await.unwrap(), None, "written an hour ago by one clock, 11 s by the other");

    let loaded = f.cache.get_or_load("k", async || Ok::<_, CacheError>("x".into())).await.unwrap();
    assert_eq!(loaded.value, "x");
    f.timer.jump_to(start + hour);
    assert_eq!(f.cache.get("k").await.unwrap(), None);
    let loaded = f.cache.get_or_load("k", async || Ok::<_, CacheError>("y".into())).await.unwrap();
    assert_eq!(loaded.value, "y");
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("y"));
}
