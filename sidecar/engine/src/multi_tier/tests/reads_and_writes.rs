//! One caller at a time, or one that goes away: where answers come from and what writes kill.

use futures::poll;

use super::*;

#[tokio::test]
async fn a_value_rises_from_l3_over_l2_to_l1() {
    let f = fixture();
    f.cache.insert("k".into(), "v".into()).await.unwrap();
    for _ in 0..12 {
        assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"));
    }
    let stats = f.cache.stats();
    assert_eq!((stats.l3.hits, stats.l2.hits, stats.l1.hits), (1, 10, 1));
    assert_eq!((stats.l2.promotions, stats.l1.promotions), (1, 1));
    assert_eq!((stats.l1.misses, stats.l2.misses), (11, 1));
    let sizes = f.cache.tier_sizes();
    assert_eq!((sizes.l1_entries, sizes.l2_entries, sizes.l3_entries), (1, 1, Some(1)));
    assert!(sizes.l1_bytes > 0 && sizes.l1_bytes < sizes.l2_bytes as u64);
    assert!((f.cache.hit_rate() - 11.0 / 12.0).abs() < 1e-9);
    assert!((stats.tier(CacheTier::L3).hit_rate() - 1.0).abs() < 1e-9);
}

#[tokio::test]
async fn insert_hot_goes_straight_into_l1() {
    let f = fixture();
    f.cache.insert_hot("k".into(), "v".into()).await.unwrap();
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"));
    assert_eq!((f.cache.stats().l1.hits, f.reads_of_l3()), (1, 1));
}

#[tokio::test]
async fn a_write_kills_the_copy_in_every_threads_l1() {
    let f = fixture();
    f.cache.insert_hot("k".into(), "old".into()).await.unwrap();
    let (to_reader, reader_gets) = std::sync::mpsc::channel::<()>();
    let (to_test, test_gets) = std::sync::mpsc::channel();
    let reader = std::thread::spawn({
        let cache = f.cache.clone();
        move || {
            while reader_gets.recv().is_ok() {
                to_test.send(cache.get_local("k")).unwrap();
            }
        }
    });
    let there = || {
        to_reader.send(()).unwrap();
        test_gets.recv().unwrap()
    };
    for _ in 0..11 {
        assert_eq!(there(), Some(Some("old".into())));
    }
    assert_eq!(f.cache.tier_sizes().l1_entries, 2, "both threads have it");
    f.cache.insert("k".into(), "new".into()).await.unwrap();
    assert_eq!(there(), None);
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("new"));
    assert_eq!(there(), Some(Some("new".into())));
    drop(to_reader);
    reader.join().unwrap();
    assert_eq!(f.cache.tier_sizes().l1_entries, 0, "an ended thread gives up its L1; this one's slot is dead and gone");
}

#[tokio::test]
async fn a_write_kills_the_copies_of_every_cache_over_the_same_l3() {
    let f = fixture();
    let other = f.neighbour();
    f.cache.insert("k".into(), "old".into()).await.unwrap();
    assert_eq!(other.get("k").await.unwrap().as_deref(), Some("old"));
    f.cache.insert("k".into(), "new".into()).await.unwrap();
    assert_eq!(other.get_local("k"), None);
    assert_eq!(other.get("k").await.unwrap().as_deref(), Some("new"));
    f.cache.remove("k").await.unwrap();
    assert_eq!(other.get("k").await.unwrap(), None);
    f.cache.insert("k".into(), "newer".into()).await.unwrap();
    assert_eq!(other.get("k").await.unwrap().as_deref(), Some("newer"), "also the copy of nothing");
    f.cache.clear().await.unwrap();
    assert_eq!(other.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn that_l3_has_nothing_is_remembered_for_a_while() {
    let f = fixture();
    for _ in 0..3 {
        assert_eq!(f.cache.get("k").await.unwrap(), None);
    }
    assert_eq!((f.reads_of_l3(), f.cache.get_local("k")), (1, Some(None)));
    f.timer.advance(f.config.negative_ttl);
    assert_eq!(f.cache.get("k").await.unwrap(), None);
    assert_eq!(f.reads_of_l3(), 2);
}

#[tokio::test]
async fn a_value_is_not_served_past_its_time() {
    let f = fixture();
    f.cache.insert_for("k".into(), "v".into(), Lifetime::of(10 * SECOND)).await.unwrap();
    f.timer.advance(9 * SECOND);
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("v"));
    f.timer.advance(SECOND);
    assert_eq!(f.cache.get_local("k"), None);
    assert_eq!(f.cache.get("k").await.unwrap(), None);
    assert_eq!(f.cache.tier_sizes().l2_entries, 1, "the copy of nothing in place of the value");
}

#[tokio::test]
async fn remove_tells_whether_there_was_something() {
    let f = fixture();
    assert!(!f.cache.remove("k").await.unwrap());
    f.cache.insert("k".into(), "v".into()).await.unwrap();
    assert!(f.cache.remove("k").await.unwrap());
    assert!(!f.cache.expire("k").await.unwrap());
}

#[tokio::test]
async fn what_is_expired_is_not_found_any_more() {
    for stale_if_error in [Duration::ZERO, 60 * SECOND] {
        let f = Fixture::new(TierConfig { stale_if_error, ..TierConfig::default() });
        f.cache.insert_hot("k".into(), "v".into()).await.unwrap();
        assert!(f.cache.expire("k").await.unwrap());
        assert_eq!(f.cache.get("k").await.unwrap(), None);
        assert_eq!(f.neighbour().get("k").await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_writer_that_goes_away_leaves_no_old_copy() {
    let f = fixture();
    f.cache.insert_hot("k".into(), "old".into()).await.unwrap();
    f.remote.silent.store(true, Ordering::SeqCst);
    {
        let mut write = Box::pin(f.cache.insert("k".into(), "new".into()));
        assert!(poll!(&mut write).is_pending(), "executed, but not answered");
        assert_eq!(f.reads_of_l3(), 1);
    }
    f.remote.silent.store(false, Ordering::SeqCst);
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("new"));
}

#[tokio::test]
async fn own_writes_are_seen_at_once_also_where_l3_tells_nobody_of_them() {
    let f = Fixture::mute(TierConfig { stale_if_error: 60 * SECOND, ..TierConfig::default() });
    let cache = &f.cache;
    cache.insert_hot("k".into(), "1".into()).await.unwrap();
    assert!(cache.get_local("k").is_some());
    cache.insert("k".into(), "2".into()).await.unwrap();
    assert_eq!(cache.get("k").await.unwrap().as_deref(), Some("2"));
    cache.expire("k").await.unwrap();
    assert_eq!(cache.get("k").await.unwrap(), None);
    cache.insert_hot("k".into(), "3".into()).await.unwrap();
    cache.remove("k").await.unwrap();
    assert_eq!(cache.get("k").await.unwrap(), None);
    cache.insert_hot("k".into(), "4".into()).await.unwrap();
    cache.clear().await.unwrap();
    assert_eq!(cache.get("k").await.unwrap(), None);
    cache.get_or_load("k", async || Ok::<_, CacheError>("5".into())).await.unwrap();
    assert_eq!(cache.get("k").await.unwrap().as_deref(), Some("5"), "also over a copy of nothing");
    f.remote.silent.store(true, Ordering::SeqCst);
    assert!(poll!(Box::pin(cache.insert("k".into(), "6".into()))).is_pending(), "executed; then its caller goes away");
    f.remote.silent.store(false, Ordering::SeqCst);
    assert_eq!(cache.get("k").await.unwrap().as_deref(), Some("6"));
}

#[tokio::test]
async fn where_l3_tells_nobody_of_writes_copies_are_as_old_as_allowed_and_no_older() {
    let f = Fixture::mute(TierConfig::default());
    let other = f.neighbour();
    f.cache.insert("k".into(), "old".into()).await.unwrap();
    assert_eq!(other.get("k").await.unwrap().as_deref(), Some("old"));
    f.cache.insert("k".into(), "new".into()).await.unwrap();
    f.timer.advance(Duration::from_millis(999));
    assert_eq!(other.get("k").await.unwrap().as_deref(), Some("old"));
    f.timer.advance(Duration::from_millis(1));
    assert_eq!(other.get("k").await.unwrap().as_deref(), Some("new"));
}

#[tokio::test]
async fn an_l3_that_fails_is_an_error_and_not_an_absent_key() {
    let f = fixture();
    f.cache.insert_hot("hot".into(), "v".into()).await.unwrap();
    f.remote.down.store(true, Ordering::SeqCst);
    assert!(matches!(f.cache.get("k").await, Err(CacheError::Read(_))));
    assert!(matches!(f.cache.insert("k".into(), "v".into()).await, Err(CacheError::Write(_))));
    assert!(matches!(f.cache.remove("k").await, Err(CacheError::Remove(_))));
    assert!(matches!(f.cache.expire("k").await, Err(CacheError::Expire(_))));
    assert_eq!(
        f.cache.get("hot").await.unwrap().as_deref(),
        Some("v"),
        "what is here is current: nobody else writes it"
    );
    assert!(matches!(f.cache.insert("hot".into(), "w".into()).await, Err(CacheError::Write(_))));
    assert!(matches!(f.cache.get("hot").await, Err(CacheError::Read(_))), "the write may have happened");
    assert!(matches!(f.cache.clear().await, Err(CacheError::Clear(_))));
    assert_eq!(f.cache.stats().l3.errors, 2);
}

#[tokio::test]
async fn a_silent_l3_is_waited_for_so_long_and_no_longer() {
    let f = fixture();
    f.remote.silent.store(true, Ordering::SeqCst);
    let mut one = Box::pin(f.cache.get("k"));
    let mut two = Box::pin(f.cache.get("k"));
    assert!(poll!(&mut one).is_pending() && poll!(&mut two).is_pending());
    assert_eq!(f.reads_of_l3(), 1, "one read for both");
    f.timer.advance(f.config.wait_timeout);
    assert!(matches!(one.await, Err(CacheError::TimedOut(_))));
    assert!(matches!(two.await, Err(CacheError::TimedOut(_))));
}

#[tokio::test]
async fn when_the_reader_of_l3_goes_away_another_reads() {
    let f = fixture();
    f.cache.insert("k".into(), "v".into()).await.unwrap();
    f.remote.silent.store(true, Ordering::SeqCst);
    let mut one = Box::pin(f.cache.get("k"));
    let mut two = Box::pin(f.cache.get("k"));
    assert!(poll!(&mut one).is_pending() && poll!(&mut two).is_pending());
    f.remote.silent.store(false, Ordering::SeqCst);
    drop(one);
    assert_eq!(two.await.unwrap().as_deref(), Some("v"));
    assert_eq!(f.reads_of_l3(), 2);
}

#[tokio::test]
async fn a_reader_after_a_write_does_not_join_a_read_from_before_it() {
    let f = fixture();
    f.cache.insert("k".into(), "old".into()).await.unwrap();
    f.remote.silent.store(true, Ordering::SeqCst);
    let mut early = Box::pin(f.cache.get("k"));
    assert!(poll!(&mut early).is_pending(), "has read the old value");
    f.remote.silent.store(false, Ordering::SeqCst);
    f.cache.insert("k".into(), "new".into()).await.unwrap();
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("new"));
}

#[tokio::test]
async fn who_comes_by_keeps_the_tiers_tidy() {
    let f = fixture();
    f.cache.insert_hot("idle".into(), "v".into()).await.unwrap();
    f.cache.insert_for("short".into(), "v".into(), Lifetime::of(SECOND)).await.unwrap();
    f.cache.get("short").await.unwrap();
    assert_eq!((f.cache.tier_sizes().l1_entries, f.cache.tier_sizes().l2_entries), (1, 2));
    f.timer.advance(f.config.demote_after_idle + 2 * SECOND);
    for n in 0..8 {
        f.cache.get(&format!("other {n}")).await.unwrap();
    }
    let stats = f.cache.stats();
    assert_eq!((stats.l1.demotions.idle, stats.l2.evictions.expired), (1, 1));
    assert_eq!(f.cache.tier_sizes().l1_entries, 0);
}

#[tokio::test]
async fn maintain_does_it_at_once() {
    let f = fixture();
    f.cache.insert_hot("idle".into(), "v".into()).await.unwrap();
    f.cache.insert_for("short".into(), "v".into(), Lifetime::of(SECOND)).await.unwrap();
    f.cache.get("short").await.unwrap();
    f.timer.advance(f.config.demote_after_idle + 2 * SECOND);
    f.cache.maintain();
    assert_eq!((f.cache.tier_sizes().l1_entries, f.cache.tier_sizes().l2_entries), (0, 1));
}

#[tokio::test]
async fn a_thread_lets_go_of_caches_that_are_gone() {
    std::thread::spawn(|| {
        for _ in 0..5 {
            let f = fixture();
            assert_eq!(f.cache.get_local("k"), None);
            assert_eq!(threads::known(), 1);
        }
    })
    .join()
    .unwrap();
}

/// A value that uses the cache that it is in.
struct Meddler(parking_lot::Mutex<Option<Meddled>>);

type Meddled = MultiTierCache<String, Arc<Meddler>>;

impl Weigh for Meddler {
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        let cache = self.0.lock().take().unwrap();
        assert_eq!(cache.get_local("other").map(|_| ()), None);
    }
}

#[tokio::test]
async fn a_value_may_use_its_cache_while_the_cache_drops_it() {
    let cache = Meddled::in_process(TierConfig::default());
    let meddler = Arc::new(Meddler(parking_lot::Mutex::new(Some(cache.clone()))));
    let gone = Arc::downgrade(&meddler);
    cache.insert_hot("k".into(), meddler).await.unwrap();
    cache.remove("k").await.unwrap();
    assert!(cache.get("k").await.unwrap().is_none());
    cache.maintain();
    assert_eq!(gone.strong_count(), 0);
}
