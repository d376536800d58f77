//! Read-through and refresh-ahead over a store that counts, in virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures::{FutureExt, pin_mut, poll};

use super::*;
use crate::store::{BackingStore, InMemoryStore, StoreError, StoreFuture, Stored};
use crate::timer::ManualTimer;
use crate::{InProcess, MultiTierCache, TierConfig, TierSize};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Default)]
struct Counting {
    values: InMemoryStore<String, String>,
    loads: AtomicUsize,
    down: AtomicBool,
    hangs: AtomicBool,
}

impl BackingStore<String, String> for Counting {
    fn load_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Vec<Option<Stored<String>>>> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        if self.down.load(Ordering::Relaxed) {
            return async { Err(StoreError::Unavailable { reason: "down".into() }) }.boxed();
        }
        if self.hangs.load(Ordering::Relaxed) {
            return std::future::pending().boxed();
        }
        self.values.load_many(keys)
    }

    fn store_many<'a>(&'a self, entries: &'a [(String, String)]) -> StoreFuture<'a, ()> {
        self.values.store_many(entries)
    }

    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, ()> {
        self.values.delete_many(keys)
    }
}

struct Fixture {
    timer: Arc<ManualTimer>,
    store: Arc<Counting>,
    cache: MultiTierCache<String, String>,
}

fn fixture() -> Fixture {
    over(TierConfig {
        ttl: Some(10 * SECOND),
        stale_if_error: 60 * SECOND,
        negative_ttl: SECOND,
        ..TierConfig::default()
    })
}

fn over(config: TierConfig) -> Fixture {
    let timer = Arc::new(ManualTimer::default());
    timer.advance(100 * SECOND);
    let remote = Arc::new(InProcess::new(TierSize::new(100, 1 << 20), Arc::new(timer.clone())));
    let cache = MultiTierCache::with_timer(config, remote, Arc::new(timer.clone()));
    Fixture { timer, store: Arc::default(), cache }
}

impl Fixture {
    async fn put(&self, key: &str, value: &str) {
        self.store.store_many(&[(key.to_owned(), value.to_owned())]).await.unwrap();
    }

    fn loads(&self) -> usize {
        self.store.loads.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn what_is_absent_is_loaded_once_and_what_the_store_lacks_is_none() {
    let f = fixture();
    let through = ReadThroughCache::new(f.cache.clone(), f.store.clone());
    f.put("a", "1").await;
    assert_eq!(through.get("a").await.unwrap().as_deref(), Some("1"));
    assert_eq!(through.get("a").await.unwrap().as_deref(), Some("1"));
    assert_eq!(f.loads(), 1);
    assert_eq!(through.get("b").await.unwrap(), None);
}

#[tokio::test]
async fn a_store_that_is_down_leaves_the_old_value_and_one_that_is_well_takes_it() {
    let f = fixture();
    let through = ReadThroughCache::new(f.cache.clone(), f.store.clone());
    f.put("a", "1").await;
    through.get("a").await.unwrap();
    f.timer.advance(11 * SECOND);
    f.store.down.store(true, Ordering::Relaxed);
    assert_eq!(through.get("a").await.unwrap().as_deref(), Some("1"));
    let error = through.get("b").await.unwrap_err();
    assert!(matches!(error, ReadError::Store(StoreError::Unavailable { .. })), "{error:?}");
    f.store.down.store(false, Ordering::Relaxed);
    f.store.delete_many(&["a".to_owned()]).await.unwrap();
    assert_eq!(through.get("a").await.unwrap(), None, "it is gone, and the store says so");
    f.store.down.store(true, Ordering::Relaxed);
    assert!(through.get("a").await.is_err(), "not to be answered stale any more");
}

#[tokio::test]
async fn what_is_read_near_its_end_is_loaded_anew_behind_the_reader() {
    let f = fixture();
    let ahead = RefreshAheadCache::new(f.cache.clone(), f.store.clone(), StrategyConfig::default());
    let run = ahead.run();
    pin_mut!(run);
    f.put("a", "1").await;
    assert_eq!(ahead.get("a").await.unwrap().as_deref(), Some("1"));
    f.put("a", "2").await;
    f.timer.advance(7 * SECOND);
    assert_eq!(ahead.get("a").await.unwrap().as_deref(), Some("1"));
    assert!(poll!(&mut run).is_pending());
    assert_eq!(f.loads(), 1, "not due");
    f.timer.advance(2 * SECOND);
    for _ in 0..3 {
        assert_eq!(ahead.get("a").await.unwrap().as_deref(), Some("1"), "the reader does not wait");
    }
    assert!(poll!(&mut run).is_pending());
    assert_eq!(f.loads(), 2, "asked for once");
    f.timer.advance(5 * SECOND);
    assert_eq!(ahead.get("a").await.unwrap().as_deref(), Some("2"), "beyond the end of the first one");
    assert_eq!(f.loads(), 2);
}

#[tokio::test]
async fn a_refresh_that_fails_leaves_what_there_is() {
    let f = fixture();
    let ahead = RefreshAheadCache::new(f.cache.clone(), f.store.clone(), StrategyConfig::default());
    let run = ahead.run();
    pin_mut!(run);
    f.put("a", "1").await;
    ahead.get("a").await.unwrap();
    f.timer.advance(9 * SECOND);
    f.store.down.store(true, Ordering::Relaxed);
    ahead.get("a").await.unwrap();
    assert!(poll!(&mut run).is_pending());
    assert_eq!(ahead.get("a").await.unwrap().as_deref(), Some("1"));
    f.store.down.store(false, Ordering::Relaxed);
    assert!(poll!(&mut run).is_pending());
    assert_eq!(f.cache.stats().load_failures, 1);
}

#[tokio::test]
async fn what_lives_for_ever_is_not_refreshed() {
    let f = over(TierConfig { ttl: Some(Duration::MAX), ..TierConfig::default() });
    for refresh_at_percent in [1, 80, 99, u32::MAX] {
        let config = StrategyConfig { refresh_at_percent, ..StrategyConfig::default() };
        let ahead = RefreshAheadCache::new(f.cache.clone(), f.store.clone(), config);
        let run = ahead.run();
        pin_mut!(run);
        f.put("a", "1").await;
        assert_eq!(ahead.get("a").await.unwrap().as_deref(), Some("1"));
        f.timer.advance(1_000_000 * SECOND);
        assert_eq!(ahead.get("a").await.unwrap().as_deref(), Some("1"));
        assert!(poll!(&mut run).is_pending());
    }
    assert_eq!(f.loads(), 1);
}

#[tokio::test]
async fn no_more_refreshes_are_asked_for_than_allowed() {
    let f = fixture();
    let config = StrategyConfig { max_refreshes_waiting: 2, ..StrategyConfig::default() };
    let ahead = RefreshAheadCache::new(f.cache.clone(), f.store.clone(), config);
    let keys = ["a", "b", "c", "d", "e"];
    for key in keys {
        f.put(key, "1").await;
        ahead.get(key).await.unwrap();
    }
    f.timer.advance(9 * SECOND);
    for key in keys {
        ahead.get(key).await.unwrap();
    }
    let run = ahead.run();
    pin_mut!(run);
    assert!(poll!(&mut run).is_pending());
    assert_eq!(f.loads(), 5 + 2);
    for key in keys {
        ahead.get(key).await.unwrap();
    }
    assert!(poll!(&mut run).is_pending());
    assert_eq!(f.loads(), 5 + 4, "the next reads ask again");
}

#[tokio::test]
async fn who_refreshes_may_be_replaced_in_the_middle_of_it() {
    let f = fixture();
    let ahead = RefreshAheadCache::new(f.cache.clone(), f.store.clone(), StrategyConfig::default());
    f.put("a", "1").await;
    ahead.get("a").await.unwrap();
    f.timer.advance(9 * SECOND);
    f.store.hangs.store(true, Ordering::Relaxed);
    ahead.get("a").await.unwrap();
    {
        let first = ahead.run();
        pin_mut!(first);
        assert!(poll!(&mut first).is_pending());
        assert_eq!(f.loads(), 2);
    }
    f.store.hangs.store(false, Ordering::Relaxed);
    let second = ahead.run();
    pin_mut!(second);
    ahead.get("a").await.unwrap();
    assert!(poll!(&mut second).is_pending());
    assert_eq!(f.loads(), 3);
}
