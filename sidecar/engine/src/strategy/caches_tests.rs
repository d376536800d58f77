//! Caches that write to a store: who has what after each way that a write can end.

use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, pin_mut, poll};

use super::behind::{BehindConfig, BehindError};
use super::*;
use crate::multi_tier::CacheError;
use crate::remote::RemoteError;
use crate::store::{BackingStore, InMemoryStore, StoreError, StoreFuture, Stored};
use crate::sync::Mutex;
use crate::timer::ManualTimer;
use crate::{InProcess, MultiTierCache, TierConfig, TierSize};

const SECOND: Duration = Duration::from_secs(1);

/// A store that fails when told to, and answers some writes only when told to.
#[derive(Default)]
struct Database {
    values: InMemoryStore<String, String>,
    is_down: Mutex<bool>,
    /// Writes of this value are done at once and answered when the other end says so.
    slow: Mutex<Option<(String, futures::channel::oneshot::Receiver<()>)>>,
}

impl Database {
    async fn has(&self, key: &str) -> Option<String> {
        self.values.load_many(&[key.to_owned()]).await.unwrap().pop().flatten().map(|stored| stored.value)
    }

    fn check(&self) -> Result<(), StoreError> {
        if *self.is_down.lock() { Err(StoreError::Unavailable { reason: "down".into() }) } else { Ok(()) }
    }
}

impl BackingStore<String, String> for Database {
    fn load_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Vec<Option<Stored<String>>>> {
        self.values.load_many(keys)
    }

    fn store_many<'a>(&'a self, entries: &'a [(String, String)]) -> StoreFuture<'a, ()> {
        async move {
            self.check()?;
            self.values.store_many(entries).await?;
            let slow = self.slow.lock().take_if(|(value, _)| *value == entries[0].1);
            if let Some((_, answer)) = slow {
                let _ = answer.await;
            }
            Ok(())
        }
        .boxed()
    }

    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, ()> {
        async move {
            self.check()?;
            self.values.delete_many(keys).await
        }
        .boxed()
    }
}

fn tiers() -> (Arc<ManualTimer>, MultiTierCache<String, String>) {
    let timer = Arc::new(ManualTimer::default());
    let remote = Arc::new(InProcess::new(TierSize::new(100, 1 << 20), Arc::new(timer.clone())));
    let cache = MultiTierCache::with_timer(TierConfig::default(), remote, Arc::new(timer.clone()));
    (timer, cache)
}

fn through() -> (Arc<Database>, WriteThroughCache<String, String>) {
    let database = Arc::new(Database::default());
    (database.clone(), WriteThroughCache::new(tiers().1, database))
}

const TOO_LARGE: usize = 2 << 20;

#[tokio::test]
async fn written_through_is_written_to_both_and_removed_from_both() {
    let (database, cache) = through();
    cache.insert("a".into(), "1".into()).await.unwrap();
    assert_eq!((cache.get("a").await.unwrap(), database.has("a").await), (Some("1".into()), Some("1".into())));
    cache.remove("a").await.unwrap();
    assert_eq!((cache.get("a").await.unwrap(), database.has("a").await), (None, None));
}

#[tokio::test]
async fn what_the_store_does_not_take_changes_nothing() {
    let (database, cache) = through();
    cache.insert("a".into(), "1".into()).await.unwrap();
    *database.is_down.lock() = true;
    let down = StoreWriteError::Store(StoreError::Unavailable { reason: "down".into() });
    assert_eq!(cache.insert("a".into(), "2".into()).await, Err(down.clone()));
    assert_eq!(cache.remove("a").await, Err(down));
    assert_eq!((cache.get("a").await.unwrap(), database.has("a").await), (Some("1".into()), Some("1".into())));
}

#[tokio::test]
async fn what_only_the_store_takes_leaves_no_old_copy() {
    let (database, cache) = through();
    cache.insert("a".into(), "1".into()).await.unwrap();
    let error = cache.insert("a".into(), "x".repeat(TOO_LARGE)).await.unwrap_err();
    let StoreWriteError::Cache(CacheError::Write(RemoteError::TooLarge { .. })) = error else { panic!("{error:?}") };
    assert_eq!(database.has("a").await.map(|value| value.len()), Some(TOO_LARGE));
    assert_eq!(cache.get("a").await.unwrap(), None);
}

#[tokio::test]
async fn writes_of_one_key_reach_store_and_cache_in_one_order() {
    let (database, cache) = through();
    let (answer, answered) = futures::channel::oneshot::channel();
    *database.slow.lock() = Some(("1".into(), answered));
    let (first, second) = (cache.insert("a".into(), "1".into()), cache.insert("a".into(), "2".into()));
    pin_mut!(first, second);
    assert!(poll!(&mut first).is_pending(), "the store has it and has not said so");
    assert!(poll!(&mut second).is_pending(), "it waits for its turn");
    answer.send(()).unwrap();
    first.await.unwrap();
    second.await.unwrap();
    assert_eq!((cache.get("a").await.unwrap(), database.has("a").await), (Some("2".into()), Some("2".into())));
}

#[tokio::test]
async fn a_store_that_answers_too_few_or_too_many_values_is_not_believed() {
    struct Careless(usize);
    impl BackingStore<String, String> for Careless {
        fn load_many<'a>(&'a self, _: &'a [String]) -> StoreFuture<'a, Vec<Option<Stored<String>>>> {
            async { Ok(vec![Some(Stored::new("whose?".to_owned())); self.0]) }.boxed()
        }
        fn store_many<'a>(&'a self, _: &'a [(String, String)]) -> StoreFuture<'a, ()> {
            async { Ok(()) }.boxed()
        }
        fn delete_many<'a>(&'a self, _: &'a [String]) -> StoreFuture<'a, ()> {
            async { Ok(()) }.boxed()
        }
    }
    for answers in [0, 2] {
        let read = ReadThroughCache::new(tiers().1, Arc::new(Careless(answers)));
        let error = read.get("a").await.unwrap_err();
        assert!(matches!(error, ReadError::Store(StoreError::Malformed { .. })), "{error:?}");
        let behind = WriteBehindCache::new(tiers().1, Arc::new(Careless(answers)), BehindConfig::default(), None);
        let error = behind.behind().load_many(&["a".into()]).await.unwrap_err();
        assert!(matches!(error, StoreError::Malformed { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn written_behind_is_in_the_cache_at_once_and_in_the_store_later() {
    let (timer, tiers) = tiers();
    let database = Arc::new(Database::default());
    let cache = WriteBehindCache::new(tiers.clone(), database.clone(), BehindConfig::default(), None);
    let read = ReadThroughCache::new(tiers, Arc::new(cache.behind().clone()));
    let run = cache.behind().run();
    pin_mut!(run);
    assert!(poll!(&mut run).is_pending());

    cache.insert("a".into(), "1".into()).await.unwrap();
    assert_eq!((cache.get("a").await.unwrap(), database.has("a").await), (Some("1".into()), None));
    cache.cache().remove("a").await.unwrap();
    assert_eq!(read.get("a").await.unwrap().as_deref(), Some("1"), "a loader sees what is on its way");
    timer.advance(SECOND);
    assert!(poll!(&mut run).is_pending());
    assert_eq!(database.has("a").await.as_deref(), Some("1"));

    cache.remove("a").await.unwrap();
    assert_eq!((read.get("a").await.unwrap(), database.has("a").await), (None, Some("1".into())));
    timer.advance(SECOND);
    assert!(poll!(&mut run).is_pending());
    assert_eq!(database.has("a").await, None);
}

#[tokio::test]
async fn without_any_pause_a_store_that_is_down_is_not_all_that_a_thread_does() {
    let (timer, tiers) = tiers();
    let database = Arc::new(Database::default());
    *database.is_down.lock() = true;
    let nothing = Duration::ZERO;
    let config =
        BehindConfig { flush_interval: nothing, first_retry: nothing, last_retry: nothing, ..BehindConfig::default() };
    let cache = WriteBehindCache::new(tiers, database.clone(), config, None);
    cache.insert("a".into(), "1".into()).await.unwrap();
    let run = cache.behind().run();
    pin_mut!(run);
    assert!(poll!(&mut run).is_pending());
    *database.is_down.lock() = false;
    timer.advance(SECOND);
    assert!(poll!(&mut run).is_pending());
    assert_eq!(database.has("a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn without_room_nothing_is_written_behind_and_what_l3_refuses_is_not_stored() {
    let (timer, tiers) = tiers();
    let database = Arc::new(Database::default());
    let config = BehindConfig { max_records: 1, max_bytes: 2 * TOO_LARGE, ..BehindConfig::default() };
    let cache = WriteBehindCache::new(tiers, database.clone(), config, None);

    let error = cache.insert("b".into(), "x".repeat(TOO_LARGE)).await.unwrap_err();
    assert!(matches!(error, StoreWriteError::CacheFirst(CacheError::Write(RemoteError::TooLarge { .. }))), "{error:?}");
    assert_eq!(cache.behind().backlog().records, 0);

    cache.insert("a".into(), "1".into()).await.unwrap();
    let refused = cache.insert("b".into(), "2".into());
    pin_mut!(refused);
    assert!(poll!(&mut refused).is_pending(), "it waits for room");
    timer.advance(2 * SECOND);
    let error = refused.await.unwrap_err();
    assert!(matches!(error, StoreWriteError::Room(BehindError::Full { records: 1, .. })), "{error:?}");
    assert_eq!(cache.get("b").await.unwrap(), None);
}
