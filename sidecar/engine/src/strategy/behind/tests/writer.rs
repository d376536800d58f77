//! The writer in virtual time: durability, room, draining, and a store that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, select};
use parking_lot::Mutex;

use super::super::{BehindConfig, BehindError, Done, Journal, JournalError, Ledger, Record, Write, WriteBehind};
use crate::store::{BackingStore, InMemoryStore, StoreError, StoreFuture, Stored};
use crate::timer::ManualTimer;

/// A store that can be down, and refuses the key `poison`.
#[derive(Default)]
struct Faulty {
    inner: InMemoryStore<String, String>,
    down: AtomicBool,
    calls: Mutex<Vec<usize>>,
}

impl Faulty {
    fn check(&self, keys: &[&String]) -> Result<(), StoreError> {
        self.calls.lock().push(keys.len());
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable { reason: "it is down".into() });
        }
        if keys.iter().any(|key| *key == "poison") {
            return Err(StoreError::Refused { reason: "it is poison".into() });
        }
        Ok(())
    }

    async fn get(&self, key: &str) -> Option<String> {
        let found = self.inner.load_many(&[key.to_owned()]).await.expect("it answers");
        found.into_iter().next().flatten().map(|stored| stored.value)
    }
}

impl BackingStore<String, String> for Faulty {
    fn load_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Vec<Option<Stored<String>>>> {
        self.inner.load_many(keys)
    }

    fn store_many<'a>(&'a self, entries: &'a [(String, String)]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.check(&entries.iter().map(|(key, _)| key).collect::<Vec<_>>())?;
            self.inner.store_many(entries).await
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.check(&keys.iter().collect::<Vec<_>>())?;
            self.inner.delete_many(keys).await
        })
    }
}

/// A journal that answers when it is told to.
#[derive(Default)]
struct Held {
    waiting: Mutex<Vec<Done>>,
    settled: Mutex<Vec<u64>>,
}

impl Held {
    fn answer(&self, result: &Result<(), JournalError>) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for done in waiting {
            done(result.clone());
        }
    }
}

impl Journal<String, String> for Held {
    fn append(&self, _: Vec<Record<String, String>>, done: Done) {
        self.waiting.lock().push(done);
    }
}

impl Ledger for Held {
    fn settled(&self, seqs: &[u64]) {
        self.settled.lock().extend(seqs);
    }

    fn replaced(&self, _: &[(u64, u64)]) {}

    fn name(&self, seq: u64) -> String {
        format!("write-{seq}")
    }
}

struct World {
    writer: WriteBehind<String, String>,
    store: Arc<Faulty>,
    journal: Arc<Held>,
    timer: Arc<ManualTimer>,
    /// What was told to who wrote, in this order.
    told: Arc<Mutex<Vec<(String, bool)>>>,
}

const CONFIG: BehindConfig = BehindConfig {
    batch_size: 10,
    flush_interval: Duration::from_millis(100),
    max_records: 4,
    max_bytes: 1 << 20,
    max_in_flight: 2,
    max_wait: Duration::from_secs(1),
    max_attempts: 2,
    first_retry: Duration::from_millis(100),
    last_retry: Duration::from_secs(1),
};

impl World {
    fn new(journalled: bool) -> Self {
        let (store, journal) = (Arc::new(Faulty::default()), Arc::new(Held::default()));
        let timer = Arc::new(ManualTimer::default());
        let kept: Option<Arc<dyn Journal<String, String>>> = if journalled { Some(journal.clone()) } else { None };
        let writer = WriteBehind::new(CONFIG, store.clone(), kept, Arc::new(timer.clone()));
        Self { writer, store, journal, timer, told: Arc::default() }
    }

    fn put(&self, key: &str, value: &str) {
        let write = Write::Put(value.to_owned());
        let room = self.writer.reserve(1, Record::weight(&key.to_owned(), &write)).expect("there is room");
        let (told, name) = (self.told.clone(), value.to_owned());
        let done = Box::new(move |kept: Result<(), JournalError>| told.lock().push((name, kept.is_ok())));
        self.writer.write(room, vec![(key.to_owned(), write)], done);
    }

    fn told(&self) -> Vec<(String, bool)> {
        std::mem::take(&mut *self.told.lock())
    }

    /// Runs the writer while so much time passes.
    async fn pass(&self, span: Duration) {
        let step = Duration::from_millis(50);
        let mut left = span;
        loop {
            self.turn().await;
            if left.is_zero() {
                return;
            }
            self.timer.advance(step.min(left));
            left = left.saturating_sub(step);
        }
    }

    async fn turn(&self) {
        let idle = async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        };
        let running = self.writer.run();
        if let Either::Left(_) = select(std::pin::pin!(running), std::pin::pin!(idle)).await {
            panic!("the writer ended");
        }
    }
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(test);
}

fn ok(name: &str) -> (String, bool) {
    (name.to_owned(), true)
}

#[test]
fn without_a_journal_a_write_is_acknowledged_at_once_and_stored_in_a_batch() {
    block_on(async {
        let world = World::new(false);
        world.put("a", "1");
        world.put("b", "2");
        world.put("a", "3");
        assert_eq!(world.told(), [ok("1"), ok("2"), ok("3")]);
        assert_eq!(world.writer.pending(&"a".to_owned()), Some(Write::Put("3".to_owned())));
        world.pass(Duration::from_millis(200)).await;
        assert_eq!((world.store.get("a").await, world.store.get("b").await), (Some("3".into()), Some("2".into())));
        assert_eq!(*world.store.calls.lock(), [2]);
        let stats = world.writer.stats();
        assert_eq!((stats.taken, stats.stored, stats.coalesced, stats.flushes), (3, 2, 1, 1));
        assert_eq!(world.writer.pending(&"a".to_owned()), None);
    });
}

#[test]
fn with_a_journal_a_write_is_acknowledged_when_the_journal_has_it() {
    block_on(async {
        let world = World::new(true);
        world.put("a", "1");
        assert_eq!(world.told(), []);
        world.journal.answer(&Ok(()));
        assert_eq!(world.told(), [ok("1")]);
        world.pass(Duration::from_millis(200)).await;
        assert_eq!(*world.journal.settled.lock(), [1]);
    });
}

#[test]
fn the_store_gets_nothing_before_the_journal_has_it() {
    block_on(async {
        let world = World::new(true);
        world.put("a", "1");
        let settle = async || {
            for _ in 0..20 {
                world.timer.advance(Duration::from_millis(50));
                tokio::task::yield_now().await;
            }
        };
        let steps = async {
            settle().await;
            assert_eq!(world.store.get("a").await, None, "after a crash an older write would be stored over it");
            world.journal.answer(&Ok(()));
            settle().await;
            assert_eq!(world.store.get("a").await, Some("1".into()));
        };
        let running = world.writer.run();
        if let Either::Left(_) = select(std::pin::pin!(running), std::pin::pin!(steps)).await {
            panic!("the writer ended");
        }
    });
}

#[test]
fn what_the_journal_cannot_keep_is_acknowledged_by_the_store_or_not_at_all() {
    block_on(async {
        let world = World::new(true);
        let full = Err(JournalError { reason: "no space left on device".into() });
        world.put("a", "1");
        world.journal.answer(&full);
        assert_eq!(world.told(), []);
        world.turn().await;
        assert_eq!(world.told(), [ok("1")], "it goes to the store at once");

        world.store.down.store(true, Ordering::SeqCst);
        world.put("a", "2");
        world.journal.answer(&full);
        world.pass(Duration::from_millis(900)).await;
        assert_eq!(world.told(), []);
        world.put("a", "3");
        world.journal.answer(&Ok(()));
        assert_eq!(world.told(), [ok("3")]);
        world.pass(Duration::from_millis(200)).await;
        assert_eq!(world.told(), [("2".to_owned(), false)], "nobody can promise it any more");
        world.store.down.store(false, Ordering::SeqCst);
        world.pass(Duration::from_secs(2)).await;
        assert_eq!(world.store.get("a").await, Some("3".into()));
    });
}

#[test]
fn without_room_writers_wait_and_are_refused_before_anything_is_written() {
    block_on(async {
        let world = World::new(false);
        world.store.down.store(true, Ordering::SeqCst);
        for key in ["a", "b", "c", "d"] {
            world.put(key, key);
        }
        let waiting = world.writer.room(1, 200);
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        world.pass(Duration::from_millis(900)).await;
        assert!(waiting.as_mut().now_or_never().is_none());
        world.pass(Duration::from_millis(200)).await;
        let refused = waiting.as_mut().now_or_never().expect("its time is over");
        let Err(BehindError::Full { records: 4, trouble, .. }) = refused else { panic!("{refused:?}") };
        assert!(trouble.contains("it is down"), "{trouble}");

        let waiting = world.writer.room(1, 200);
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        world.store.down.store(false, Ordering::SeqCst);
        world.pass(Duration::from_millis(950)).await;
        assert!(waiting.as_mut().now_or_never().expect("there is room").is_ok());
    });
}

#[test]
fn room_that_was_not_used_goes_to_who_waits_for_some() {
    block_on(async {
        let world = World::new(false);
        let write = Write::Put("1".to_owned());
        let weight = Record::weight(&"a".to_owned(), &write);
        let all = world.writer.reserve(4, 4 * weight).expect("there is room");
        let mut waits = Box::pin(world.writer.room(3, 3 * weight));
        assert!(waits.as_mut().now_or_never().is_none());
        world.writer.write(all, vec![("a".to_owned(), write)], Box::new(drop));
        // The store has nothing yet, and no time has passed.
        assert!(waits.as_mut().now_or_never().is_some_and(|room| room.is_ok()));
    });
}

#[test]
fn draining_sends_everything_at_once_and_leaves_what_is_refused() {
    block_on(async {
        let world = World::new(false);
        world.put("a", "1");
        world.put("poison", "2");
        let drain = world.writer.drain(Duration::from_secs(5));
        let mut drain = std::pin::pin!(drain);
        assert!(drain.as_mut().now_or_never().is_none());
        world.pass(Duration::from_millis(500)).await;
        let left = drain.as_mut().now_or_never().expect("it is drained");
        assert_eq!((left.records, left.dead_letters), (1, 1));
        assert_eq!(world.store.get("a").await, Some("1".into()));
        let letters = world.writer.dead_letters(10);
        assert!(letters[0].reason.contains("it is poison"), "{letters:?}");
    });
}

#[test]
fn a_dead_letter_can_be_replayed_and_given_up() {
    block_on(async {
        let world = World::new(true);
        world.put("poison", "1");
        world.journal.answer(&Ok(()));
        world.pass(Duration::from_secs(2)).await;
        assert_eq!(world.writer.stats().backlog.dead_letters, 1);
        assert_eq!(world.writer.replay(None), 1);
        world.pass(Duration::from_secs(2)).await;
        assert_eq!(world.writer.stats().backlog.dead_letters, 1);
        assert!(world.journal.settled.lock().is_empty(), "the journal keeps it");
        assert_eq!(world.writer.discard(Some(&["poison".to_owned()])), 1);
        assert_eq!(*world.journal.settled.lock(), [1]);
        assert_eq!(world.writer.stats().backlog.records, 0);
    });
}

#[test]
fn as_a_store_it_shows_what_is_on_its_way() {
    block_on(async {
        let world = World::new(false);
        world
            .store
            .inner
            .store_many(&[("a".to_owned(), "0".to_owned()), ("b".to_owned(), "0".to_owned())])
            .await
            .unwrap();
        world.put("a", "1");
        world.writer.delete_many(&["b".to_owned()]).await.unwrap();
        world.store.inner.store_many(&[("c".to_owned(), "0".to_owned())]).await.unwrap();
        let keys = ["a", "b", "c", "a", "d"].map(str::to_owned);
        let found = world.writer.load_many(&keys).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|stored| stored.map(|stored| stored.value)).collect();
        let some = |value: &str| Some(value.to_owned());
        assert_eq!(found, [some("1"), None, some("0"), some("1"), None]);
    });
}

// === the end ===

const DOWN: &str = "the store failed: it is down; see whether it is reachable and up";

#[tokio::test]
async fn a_queue_is_sealed_only_when_nothing_is_held_or_on_its_way() {
    let world = World::new(false);
    let room = world.writer.reserve(1, 10).expect("there is room");
    world.writer.drain(Duration::ZERO).await;
    assert_eq!(world.writer.seal().now_or_never(), None, "a write has room");
    world.writer.write(room, vec![("a".to_owned(), Write::Put("1".to_owned()))], Box::new(|_| {}));
    assert_eq!(world.writer.seal().now_or_never(), None, "it is not stored");
    assert_eq!(world.writer.run().now_or_never(), None);
    assert_eq!(world.writer.seal().now_or_never(), Some(()));
    assert!(world.writer.reserve(1, 10).is_none() && !world.writer.resume());
    assert!(matches!(world.writer.room(1, 10).await, Err(BehindError::Sealed)));
}

#[tokio::test]
async fn who_waits_for_room_in_a_queue_that_ends_is_let_in_or_refused() {
    let world = World::new(false);
    let all = world.writer.reserve(4, 10).expect("there is room");
    let waiting = world.writer.room(1, 10);
    futures::pin_mut!(waiting);
    assert!(waiting.as_mut().now_or_never().is_none(), "there is none");
    world.writer.drain(Duration::ZERO).await;
    drop(all);
    assert_eq!(world.writer.seal().now_or_never(), Some(()));
    assert!(matches!(waiting.await, Err(BehindError::Sealed)));
}

#[tokio::test]
async fn a_queue_that_goes_on_after_all_is_not_sealed() {
    let world = World::new(false);
    world.writer.drain(Duration::ZERO).await;
    assert!(world.writer.resume());
    assert_eq!(world.writer.seal().now_or_never(), None);
    assert!(world.writer.reserve(1, 10).is_some());
}

#[tokio::test]
async fn a_key_is_settled_when_the_store_has_it_and_not_before() {
    let world = World::new(false);
    let key = ["a".to_owned()];
    assert_eq!(world.writer.settled(&key).await, Ok(()), "nothing was written");
    world.store.down.store(true, Ordering::SeqCst);
    world.put("a", "1");
    world.writer.drain(Duration::ZERO).await;
    let settled = world.writer.settled(&key);
    futures::pin_mut!(settled);
    assert!(settled.as_mut().now_or_never().is_none());
    assert_eq!(world.writer.settled(&["b".to_owned()]).now_or_never(), Some(Ok(())), "another key");
    assert_eq!(world.writer.run().now_or_never(), None, "the store is down");
    world.timer.advance(CONFIG.max_wait);
    assert_eq!(settled.await, Err(BehindError::Unsettled { trouble: format!(", and it says: {DOWN}") }));
    world.store.down.store(false, Ordering::SeqCst);
    world.timer.advance(CONFIG.last_retry);
    assert_eq!(world.writer.run().now_or_never(), None);
    assert_eq!(world.writer.settled(&key).now_or_never(), Some(Ok(())));
}
