//! Bad input, each with its defined outcome.

use super::*;
use crate::cache::{CacheConfig, FillRefused};
use crate::l2::L2Config;
use crate::policy::PolicyKind;

fn with(change: impl FnOnce(&mut TierConfig)) -> Fixture {
    let mut config = TierConfig::default();
    change(&mut config);
    Fixture::new(config)
}

#[tokio::test]
async fn a_tier_of_zero_holds_nothing_and_everything_goes_past_it() {
    for nothing in [TierSize::new(0, 1 << 20), TierSize::new(100, 0), TierSize::new(0, 0)] {
        let f = with(|config| config.l1 = nothing);
        f.cache.insert_hot("k".into(), "v".into()).await.unwrap();
        for _ in 0..20 {
            assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"));
        }
        assert_eq!((f.cache.stats().l1.hits, f.cache.tier_sizes().l1_entries), (0, 0));

        let f = with(|config| config.l2 = nothing);
        f.cache.insert_hot("k".into(), "v".into()).await.unwrap();
        assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"));
        assert_eq!((f.reads_of_l3(), f.cache.tier_sizes().l2_entries), (2, 0));
        assert_eq!(f.cache.stats().l2.refused.too_large, 2);

        let f = with(|config| config.l3 = nothing);
        f.cache.insert_hot("k".into(), "v".into()).await.unwrap();
        assert_eq!(f.cache.get("k").await.unwrap(), None, "no L3 of this process keeps what it has no room for");
        assert_eq!(f.cache.get_or_load("k", async || Ok::<_, CacheError>("v".into())).await.unwrap().value, "v");
    }
}

#[tokio::test]
async fn a_value_larger_than_l2_is_read_past_it() {
    let f = with(|config| config.l2 = TierSize::new(100, 64 << 10));
    let large = "x".repeat(64 << 10);
    f.cache.insert_hot("k".into(), large.clone()).await.unwrap();
    assert_eq!(f.cache.get("k").await.unwrap(), Some(large));
    assert_eq!((f.cache.tier_sizes().l2_entries, f.reads_of_l3()), (0, 2));
    assert_eq!(f.cache.stats().l2.refused.too_large, 2);
}

#[tokio::test]
async fn a_value_larger_than_l1_stays_in_l2() {
    let f = with(|config| config.l1 = TierSize::new(100, 1 << 10));
    let large = "x".repeat(2 << 10);
    f.cache.insert_hot("k".into(), large.clone()).await.unwrap();
    for _ in 0..20 {
        assert_eq!(f.cache.get("k").await.unwrap(), Some(large.clone()));
    }
    assert_eq!((f.cache.stats().l2.hits, f.cache.tier_sizes().l1_entries), (20, 0));
}

#[tokio::test]
async fn a_value_larger_than_l3_is_refused_and_the_old_one_is_gone() {
    let f = with(|config| config.l3 = TierSize::new(100, 64 << 10));
    f.cache.insert_hot("k".into(), "small".into()).await.unwrap();
    let refused = f.cache.insert("k".into(), "x".repeat(64 << 10)).await;
    assert!(matches!(refused, Err(CacheError::Write(RemoteError::TooLarge { .. }))));
    assert_eq!(f.cache.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn keys_may_be_empty_or_as_large_as_what_fits_a_shard() {
    let f = fixture();
    let fits = "k".repeat(3 << 20);
    for key in ["", &fits] {
        f.cache.insert_hot(key.into(), "v".into()).await.unwrap();
        assert_eq!(f.cache.get_local(key), Some(Some("v".into())));
    }
    let too_large = "k".repeat(9 << 20);
    let refused = f.cache.insert(too_large.clone(), "v".into()).await;
    assert!(matches!(refused, Err(CacheError::Write(RemoteError::TooLarge { .. }))), "a shard of L3 is 8 MiB");
    assert_eq!(f.cache.get(&too_large).await.unwrap(), None);
}

/// Claims to be as heavy as anything can be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Monster;

impl Weigh for Monster {
    fn heap_bytes(&self) -> usize {
        usize::MAX
    }
}

#[test]
fn a_weight_beyond_all_bounds_is_too_large_and_nothing_overflows() {
    let l2 = L2Config { max_bytes: usize::MAX, shards: 1, policy: PolicyKind::Lru, ..L2Config::default() };
    let cache = Cache::<String, Monster>::new(CacheConfig { l2, ..CacheConfig::default() });
    let source = cache.kernel().register(SourceKind::Local).unwrap();
    let (key_hash, now) = ("k".key_hash(), Moment::ZERO);
    let token = cache.kernel().begin_fill(source, key_hash, now);
    let filled = cache.fill(&token, key_hash.tier(0), "k".into(), Monster, Moment::NEVER, now);
    assert_eq!(filled.map(drop), Err(FillRefused::TooLarge));
}

#[tokio::test]
async fn a_ttl_of_zero_removes() {
    let f = fixture();
    f.cache.insert("k".into(), "old".into()).await.unwrap();
    f.cache.insert_for("k".into(), "new".into(), Lifetime::of(Duration::ZERO)).await.unwrap();
    assert_eq!(f.cache.get("k").await.unwrap(), None);

    let f = with(|config| config.ttl = Some(Duration::ZERO));
    let loaded = f.cache.get_or_load("k", async || Ok::<_, CacheError>("v".into())).await.unwrap();
    assert_eq!((loaded.value.as_str(), loaded.from), ("v", LoadedFrom::Loader));
    assert_eq!(f.cache.get("k").await.unwrap(), None, "single flight, and nothing kept");
}

#[tokio::test]
async fn the_longest_ttl_is_for_ever() {
    let f = with(|config| (config.ttl, config.stale_if_error) = (Some(Duration::MAX), Duration::MAX));
    f.cache.insert_hot("k".into(), "v".into()).await.unwrap();
    f.timer.advance(Duration::from_hours(100 * 365 * 24));
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"));
    assert!(f.cache.expire("k").await.unwrap());
    assert_eq!(f.cache.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn times_of_zero_and_for_ever_have_their_plain_meaning() {
    let f = with(|config| {
        (config.wait_timeout, config.loader_lease) = (Duration::MAX, Duration::MAX);
        (config.demote_after_idle, config.maintenance_interval) = (Duration::ZERO, Duration::ZERO);
        (config.promote_after_hits, config.negative_ttl) = (0, Duration::ZERO);
    });
    f.cache.insert("k".into(), "v".into()).await.unwrap();
    for _ in 0..5 {
        assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"));
        assert_eq!(f.cache.get("absent").await.unwrap(), None);
    }
    assert_eq!(f.reads_of_l3(), 1 + 5, "nothing is remembered about the absent key");

    let f = with(|config| config.wait_timeout = Duration::ZERO);
    assert!(matches!(f.cache.get("k").await, Err(CacheError::TimedOut(_))), "no time to ask anybody");
}

#[tokio::test]
async fn a_clock_that_jumps_forward_expires_and_one_that_jumps_back_does_not_revive() {
    let f = fixture();
    f.cache.insert_for("k".into(), "v".into(), Lifetime::of(10 * SECOND)).await.unwrap();
    f.cache.get("k").await.unwrap();
    let start = f.timer.now();
    f.timer.advance(Duration::from_hours(30 * 24));
    assert_eq!(f.cache.get("k").await.unwrap(), None);
    f.cache.maintain();
    f.timer.jump_to(start);
    assert_eq!(f.cache.get("k").await.unwrap(), None, "what has expired was let go of");
    f.timer.jump_to(Moment::ZERO);
    f.cache.insert_hot("k".into(), "again".into()).await.unwrap();
    f.cache.maintain();
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("again"), "and everything works on");
}

#[tokio::test]
async fn a_waiter_survives_a_clock_that_jumps_back() {
    let f = fixture();
    f.remote.silent.store(true, Ordering::SeqCst);
    let mut read = Box::pin(f.cache.get("k"));
    assert!(futures::poll!(&mut read).is_pending());
    f.timer.jump_to(Moment::ZERO);
    assert!(futures::poll!(&mut read).is_pending());
    f.timer.advance(Duration::from_hours(1) + f.config.wait_timeout);
    assert!(matches!(read.await, Err(CacheError::TimedOut(_))));
}
