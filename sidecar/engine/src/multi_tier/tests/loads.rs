//! Single flight: who loads, who waits, for how long, and what is stored of it.

use std::future::pending;
use std::io;

use futures::channel::oneshot;
use futures::{FutureExt, poll};

use super::*;

type Never = std::convert::Infallible;

fn value(value: &str) -> std::future::Ready<Result<String, Never>> {
    std::future::ready(Ok(value.to_owned()))
}

fn failure() -> std::future::Ready<Result<String, io::Error>> {
    std::future::ready(Err(io::Error::other("the database is away")))
}

#[tokio::test]
async fn a_loaded_value_is_stored_and_kept() {
    let f = fixture();
    let loaded = f.cache.get_or_load("k", || value("v")).await.unwrap();
    assert_eq!((loaded.value.as_str(), loaded.from), ("v", LoadedFrom::Loader));
    let again = f.cache.get_or_load("k", || value("not asked for")).await.unwrap();
    assert_eq!((again.value.as_str(), again.from), ("v", LoadedFrom::Tier(CacheTier::L2)));
    let there = f.neighbour().get_or_load("k", || value("not asked for")).await.unwrap();
    assert_eq!((there.value.as_str(), there.from), ("v", LoadedFrom::Tier(CacheTier::L3)));
    assert_eq!(f.cache.stats().loads, 1);
}

#[tokio::test]
async fn of_many_callers_one_loads_and_all_are_answered() {
    let f = fixture();
    let (finish, finished) = oneshot::channel::<()>();
    let mut first = Box::pin(f.cache.get_or_load("k", async || {
        finished.await.unwrap();
        value("v").await
    }));
    assert!(poll!(&mut first).is_pending());
    let mut others: Vec<_> = (0..100).map(|_| Box::pin(f.cache.get_or_load("k", || value("second loader")))).collect();
    for other in &mut others {
        assert!(poll!(other).is_pending());
    }
    finish.send(()).unwrap();
    assert_eq!(first.await.unwrap().value, "v");
    for other in others {
        assert_eq!(other.await.unwrap(), Loaded { value: "v".into(), from: LoadedFrom::Loader });
    }
    assert_eq!(f.cache.stats().loads, 1);
}

#[tokio::test]
async fn of_many_processes_one_loads() {
    let f = fixture();
    let there = f.neighbour();
    let (finish, finished) = oneshot::channel::<()>();
    let mut here = Box::pin(f.cache.get_or_load("k", async || {
        finished.await.unwrap();
        value("v").await
    }));
    let mut elsewhere = Box::pin(there.get_or_load("k", || value("second loader")));
    assert!(poll!(&mut here).is_pending() && poll!(&mut elsewhere).is_pending());
    f.timer.advance(SECOND);
    assert!(poll!(&mut elsewhere).is_pending(), "looks again, and waits on");
    finish.send(()).unwrap();
    assert_eq!(here.await.unwrap().value, "v");
    f.timer.advance(SECOND);
    assert_eq!(elsewhere.await.unwrap(), Loaded { value: "v".into(), from: LoadedFrom::Tier(CacheTier::L3) });
    assert_eq!(there.stats().loads, 0);
}

#[tokio::test]
async fn everybody_has_a_deadline() {
    let f = Fixture::new(TierConfig { loader_lease: 60 * SECOND, ..TierConfig::default() });
    let mut leader = Box::pin(f.cache.get_or_load("k", pending::<Result<String, Never>>));
    assert!(poll!(&mut leader).is_pending());
    f.timer.advance(SECOND);
    let mut waiter = Box::pin(f.cache.get_or_load("k", || value("second loader")));
    assert!(poll!(&mut waiter).is_pending());
    f.timer.advance(9 * SECOND);
    assert!(matches!(poll!(&mut leader), std::task::Poll::Ready(Err(LoadError::TimedOut(_)))));
    assert_eq!(waiter.await.unwrap().value, "second loader", "it takes over with the time it has left");
}

#[tokio::test]
async fn a_waiter_gives_up_at_its_deadline_though_the_loader_never_returns_control() {
    // A loader that blocks its thread: nobody polls the leader.
    let f = Fixture::new(TierConfig { loader_lease: 60 * SECOND, ..TierConfig::default() });
    let mut leader = Box::pin(f.cache.get_or_load("k", pending::<Result<String, Never>>));
    assert!(poll!(&mut leader).is_pending());
    let mut waiter = Box::pin(f.cache.get_or_load("k", || value("second loader")));
    assert!(poll!(&mut waiter).is_pending());
    f.timer.advance(f.config.wait_timeout);
    assert!(matches!(waiter.await, Err(LoadError::TimedOut(_))));
}

#[tokio::test]
async fn a_hung_loader_loses_its_slot_and_what_it_brings_late_is_not_stored() {
    let f = fixture();
    let (finish, finished) = oneshot::channel::<()>();
    let mut slow = Box::pin(f.cache.get_or_load("k", async || {
        finished.await.unwrap();
        value("late").await
    }));
    assert!(poll!(&mut slow).is_pending());
    let mut waiter = Box::pin(f.cache.get_or_load("k", || value("in time")));
    assert!(poll!(&mut waiter).is_pending());
    f.timer.advance(f.config.loader_lease);
    assert_eq!(waiter.await.unwrap().value, "in time");
    finish.send(()).unwrap();
    assert_eq!(slow.await.unwrap().value, "late", "its own caller still gets it");
    assert_eq!(f.cache.get("k").await.unwrap().as_deref(), Some("in time"));
    let stats = f.cache.stats();
    assert_eq!((stats.loads, stats.loads_not_stored), (2, 1));
}

#[tokio::test]
async fn a_loader_that_lost_its_slot_stores_nothing_even_before_the_next_one_has() {
    let f = fixture();
    let (finish, finished) = oneshot::channel::<()>();
    let mut slow = Box::pin(f.cache.get_or_load("k", async || {
        finished.await.unwrap();
        value("late").await
    }));
    assert!(poll!(&mut slow).is_pending());
    f.timer.advance(f.config.loader_lease);
    let mut next = Box::pin(f.cache.get_or_load("k", pending::<Result<String, Never>>));
    assert!(poll!(&mut next).is_pending(), "has the slot");
    finish.send(()).unwrap();
    assert_eq!(slow.await.unwrap().value, "late");
    assert_eq!(f.cache.get("k").await.unwrap(), None);
}

#[tokio::test]
async fn what_was_loaded_while_the_key_was_written_is_not_stored() {
    for other_process in [false, true] {
        let f = fixture();
        let (finish, finished) = oneshot::channel::<()>();
        let mut load = Box::pin(f.cache.get_or_load("k", async || {
            finished.await.unwrap();
            value("old").await
        }));
        assert!(poll!(&mut load).is_pending());
        let writer = if other_process { f.neighbour() } else { f.cache.clone() };
        writer.insert("k".into(), "new".into()).await.unwrap();
        writer.remove("k").await.unwrap();
        finish.send(()).unwrap();
        assert_eq!(load.await.unwrap().value, "old", "it still answers who asked before");
        assert_eq!(f.cache.get("k").await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_caller_after_a_write_does_not_wait_for_a_load_from_before_it() {
    let f = fixture();
    let mut early = Box::pin(f.cache.get_or_load("k", pending::<Result<String, Never>>));
    assert!(poll!(&mut early).is_pending());
    f.cache.remove("k").await.unwrap();
    assert_eq!(f.cache.get_or_load("k", || value("new")).await.unwrap().value, "new");
}

#[tokio::test]
async fn a_failed_load_fails_for_all_who_waited_and_the_next_caller_loads_again() {
    let f = fixture();
    let (finish, finished) = oneshot::channel::<()>();
    let mut leader = Box::pin(f.cache.get_or_load("k", async || {
        finished.await.unwrap();
        failure().await
    }));
    assert!(poll!(&mut leader).is_pending());
    let mut waiter = Box::pin(f.cache.get_or_load("k", || value("not asked for")));
    assert!(poll!(&mut waiter).is_pending());
    finish.send(()).unwrap();
    for error in [leader.await.unwrap_err(), waiter.await.unwrap_err()] {
        let LoadError::Load(source) = error else { panic!("{error}") };
        assert_eq!(source.to_string(), "the database is away");
    }
    assert_eq!(f.cache.get_or_load("k", || value("v")).await.unwrap().value, "v");
    assert_eq!(f.cache.stats().load_failures, 1);
}

#[tokio::test]
async fn a_loader_that_panics_does_so_in_its_callers_hands_and_nobody_hangs() {
    let f = fixture();
    let (finish, finished) = oneshot::channel::<()>();
    let mut leader = Box::pin(
        std::panic::AssertUnwindSafe(f.cache.get_or_load("k", async || {
            finished.await.unwrap();
            assert_eq!(f.cache.stats().loads, 2, "a bug in the loader");
            value("never").await
        }))
        .catch_unwind(),
    );
    assert!(poll!(&mut leader).is_pending());
    let mut waiter = Box::pin(f.cache.get_or_load("k", || value("not asked for")));
    assert!(poll!(&mut waiter).is_pending());
    finish.send(()).unwrap();
    let panic = leader.await.unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("a bug in the loader"));
    assert!(matches!(waiter.await, Err(LoadError::LoaderPanicked)));
    assert_eq!(f.cache.get_or_load("k", || value("v")).await.unwrap().value, "v");
}

#[tokio::test]
async fn when_the_leader_goes_away_a_waiter_loads_at_once() {
    let f = fixture();
    let mut leader = Box::pin(f.cache.get_or_load("k", pending::<Result<String, Never>>));
    assert!(poll!(&mut leader).is_pending());
    let mut waiter = Box::pin(f.cache.get_or_load("k", || value("v")));
    assert!(poll!(&mut waiter).is_pending());
    drop(leader);
    assert_eq!(waiter.await.unwrap().value, "v");
    assert_eq!(
        f.cache.get("k").await.unwrap().as_deref(),
        Some("v"),
        "the lease of the one that went away is gone too"
    );
}

#[tokio::test]
async fn a_stale_value_stands_in_for_one_that_cannot_be_loaded_and_says_so() {
    let f = Fixture::new(TierConfig { ttl: Some(10 * SECOND), stale_if_error: 60 * SECOND, ..TierConfig::default() });
    f.cache.get_or_load("k", || value("old")).await.unwrap();
    f.timer.advance(10 * SECOND);
    for cache in [f.cache.clone(), f.neighbour()] {
        let loaded = cache.get_or_load("k", failure).await.unwrap();
        assert!(loaded.is_stale() && loaded.value == "old");
        assert_eq!(cache.stats().stale_served, 1);
        assert_eq!(cache.get("k").await.unwrap(), None, "a plain read never shows it");
    }
    assert_eq!(f.cache.get_or_load("k", || value("new")).await.unwrap().value, "new");
    f.timer.advance(70 * SECOND);
    assert!(f.cache.get_or_load("k", failure).await.is_err(), "nor for ever");
}

#[tokio::test]
async fn expire_keeps_the_value_for_a_load_that_fails_and_remove_does_not() {
    let f = Fixture::new(TierConfig { stale_if_error: 60 * SECOND, ..TierConfig::default() });
    f.cache.insert_hot("k".into(), "old".into()).await.unwrap();
    f.cache.expire("k").await.unwrap();
    assert!(f.cache.get_or_load("k", failure).await.unwrap().is_stale());
    f.remote.down.store(true, Ordering::SeqCst);
    assert!(f.cache.get_or_load("k", failure).await.unwrap().is_stale(), "also when L3 is away");
    f.remote.down.store(false, Ordering::SeqCst);
    f.cache.remove("k").await.unwrap();
    assert!(f.cache.get_or_load("k", failure).await.is_err());
}

#[tokio::test]
async fn an_l3_that_is_away_does_not_keep_loaders_from_answering() {
    let f = fixture();
    f.remote.down.store(true, Ordering::SeqCst);
    assert_eq!(f.cache.get_or_load("k", || value("v")).await.unwrap().value, "v");
    f.remote.down.store(false, Ordering::SeqCst);
    assert_eq!(f.cache.get("k").await.unwrap(), None, "and nothing was stored behind its back");
    assert_eq!(f.cache.stats().loads_not_stored, 1);
}

#[tokio::test]
async fn more_waiters_than_allowed_are_refused() {
    let f = Fixture::new(TierConfig { max_waiters: 1, ..TierConfig::default() });
    let mut leader = Box::pin(f.cache.get_or_load("k", pending::<Result<String, Never>>));
    assert!(poll!(&mut leader).is_pending());
    assert!(matches!(f.cache.get_or_load("k", || value("v")).await, Err(LoadError::TooManyWaiters)));
    assert_eq!(f.cache.get("k").await.unwrap(), None, "reads do not wait for loaders");
}
