//! `get_or_load` under every order of steps that a scheduler can find: callers that wait, go away or come late, and
//! somebody who writes meanwhile. Whoever hangs is a deadlock to the scheduler.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use caddy_engine::remote::{Claim, Fetched, LoadLease, RemoteFuture};
use caddy_engine::{
    CacheError, Clock, Coherence, InProcess, Lifetime, Moment, MultiTierCache, Remote, Sleep, SourceKind, TierConfig,
    TierSize, Timer,
};
use shuttle::future::block_on;
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use super::try_orders;

const KEY: u64 = 7;
const BATCHES: u64 = 1;

/// A duty of L3 that a test makes it neglect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    /// It stores whatever comes, lease or not.
    StoreWithoutLease,
    /// It gives everybody a lease.
    LeaseToAll,
    /// It tells nobody of writes.
    Mute,
}

/// A short nap is one step; time stands still, so no deadline ever comes.
struct Naps;

impl Clock for Naps {
    fn now(&self) -> Moment {
        Moment::from_millis(5_000)
    }
}

impl Timer for Naps {
    fn sleep_until(&self, deadline: Moment) -> Sleep {
        let mut short = deadline.since(self.now()) < Duration::from_secs(1);
        Box::pin(std::future::poll_fn(move |cx| {
            if std::mem::take(&mut short) {
                cx.waker().wake_by_ref();
                thread::yield_now();
            } else if deadline.since(Self.now()) < Duration::from_secs(1) {
                return Poll::Ready(());
            }
            Poll::Pending
        }))
    }
}

struct L3 {
    inner: InProcess<u64, u64>,
    slip: Option<Slip>,
    leases: AtomicU64,
}

impl Remote<u64, u64> for L3 {
    fn kind(&self) -> SourceKind {
        self.inner.kind()
    }

    fn attach(&self, coherence: Coherence) {
        if self.slip != Some(Slip::Mute) {
            self.inner.attach(coherence);
        }
    }

    fn read<'a>(&'a self, key: &'a u64) -> RemoteFuture<'a, Option<Fetched<u64>>> {
        Box::pin(async move {
            thread::yield_now();
            self.inner.read(key).await
        })
    }

    fn write<'a>(&'a self, key: &'a u64, value: &'a u64, lifetime: Lifetime) -> RemoteFuture<'a, ()> {
        self.inner.write(key, value, lifetime)
    }

    fn remove<'a>(&'a self, key: &'a u64) -> RemoteFuture<'a, bool> {
        self.inner.remove(key)
    }

    fn expire<'a>(&'a self, key: &'a u64) -> RemoteFuture<'a, bool> {
        self.inner.expire(key)
    }

    fn clear(&self) -> RemoteFuture<'_, ()> {
        self.inner.clear()
    }

    fn claim<'a>(&'a self, key: &'a u64, span: Duration) -> RemoteFuture<'a, Claim> {
        if self.slip == Some(Slip::LeaseToAll) {
            let id = u128::from(self.leases.fetch_add(1, Ordering::SeqCst));
            return Box::pin(async move { Ok(Claim::Granted(LoadLease { id, present: None })) });
        }
        self.inner.claim(key, span)
    }

    fn store<'a>(
        &'a self,
        key: &'a u64,
        value: &'a u64,
        lifetime: Lifetime,
        lease: &'a LoadLease,
    ) -> RemoteFuture<'a, bool> {
        if self.slip.is_some_and(|slip| slip != Slip::Mute) {
            return Box::pin(async move { self.inner.write(key, value, lifetime).await.map(|()| true) });
        }
        self.inner.store(key, value, lifetime, lease)
    }

    fn release(&self, key: &u64, lease: &LoadLease) {
        self.inner.release(key, lease);
    }
}

/// The store that loaders read, and two processes' caches in front of it.
struct World {
    database: AtomicU64,
    loads: AtomicU64,
    caches: [MultiTierCache<u64, u64>; 2],
    wrong: parking_lot::Mutex<Option<String>>,
}

impl World {
    fn new(slip: Option<Slip>) -> Arc<Self> {
        let size = TierSize::new(4, 1 << 20);
        let config =
            TierConfig { l1: size, l2: size, l3: size, promote_after_hits: 1, stamps: 1, ..TierConfig::default() };
        let inner = InProcess::new(config.l3, Arc::new(Naps));
        let remote = Arc::new(L3 { inner, slip, leases: AtomicU64::new(0) });
        let cache = || MultiTierCache::with_timer(config.clone(), remote.clone(), Arc::new(Naps));
        Arc::new(Self {
            database: AtomicU64::new(0),
            loads: AtomicU64::new(0),
            caches: [cache(), cache()],
            wrong: parking_lot::Mutex::default(),
        })
    }

    fn load(&self) -> u64 {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let version = self.database.load(Ordering::SeqCst);
        thread::yield_now();
        version
    }

    /// One caller; `least` is what it must see.
    fn call(&self, at: usize, least: u64) {
        match block_on(self.caches[at].get_or_load(&KEY, async || Ok::<_, Infallible>(self.load()))) {
            Ok(loaded) if loaded.value >= least => {}
            other => self.fail(format!("process {at} was answered {other:?} after it had written {least}")),
        }
    }

    /// A caller that goes away after its first step.
    fn call_and_leave(&self, at: usize) {
        let mut call = Box::pin(self.caches[at].get_or_load(&KEY, || async {
            let version = self.load();
            let mut polled = false;
            std::future::poll_fn(|cx| {
                cx.waker().wake_by_ref();
                if std::mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            Ok::<_, Infallible>(version)
        }));
        block_on(std::future::poll_fn(|cx| {
            let _ = call.as_mut().poll(cx);
            Poll::Ready(())
        }));
    }

    /// Writes the store, then tells the cache; from then on its process must not see less.
    fn write(&self, at: usize) {
        let version = self.database.fetch_add(1, Ordering::SeqCst) + 1;
        if let Err(error) = block_on(self.caches[at].remove(&KEY)) {
            self.fail(error.to_string());
        }
        self.call(at, version);
    }

    /// When all is quiet, what is kept is what the store has.
    fn check_at_rest(&self) {
        let version = self.database.load(Ordering::SeqCst);
        for (at, cache) in self.caches.iter().enumerate() {
            let kept: Result<Option<u64>, CacheError> = block_on(cache.get(&KEY));
            if !matches!(kept, Ok(None)) && kept != Ok(Some(version)) {
                self.fail(format!("process {at} keeps {kept:?}, the store has {version}"));
            }
        }
    }

    fn fail(&self, what: String) {
        self.wrong.lock().get_or_insert(what);
    }
}

type Actor = fn(&World);

fn run(slip: Option<Slip>, actors: &[Actor], check: Actor) -> Option<String> {
    let world = World::new(slip);
    let threads = actors.iter().map(|&actor| {
        let world = world.clone();
        thread::spawn(move || actor(&world))
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().expect("no thread of the world panics");
    }
    check(&world);
    world.wrong.lock().clone()
}

fn holds(actors: &'static [Actor], check: Actor) {
    let violation = try_orders(BATCHES, move || run(None, actors, check));
    assert!(violation.is_none(), "{}", violation.unwrap_or_default());
}

fn breaks(slip: Slip, actors: &'static [Actor], check: Actor) {
    let violation = try_orders(20 * BATCHES, move || run(Some(slip), actors, check));
    assert!(violation.is_some(), "no order of steps breaks a promise with {slip:?}: it is not tested");
}

const CALLERS: [Actor; 3] = [|world| world.call(0, 0), |world| world.call(0, 0), |world| world.call(1, 0)];
const WRITERS: [Actor; 3] = [
    |world| world.call(0, 0),
    |world| world.write(0),
    |world| {
        world.write(1);
        world.write(1);
    },
];
const LEAVERS: [Actor; 3] = [|world| world.call_and_leave(0), |world| world.call(0, 0), |world| world.call(1, 0)];

fn one_load(world: &World) {
    let loads = world.loads.load(Ordering::SeqCst);
    if loads != 1 {
        world.fail(format!("{loads} loads for one key that nobody wrote"));
    }
    world.check_at_rest();
}

#[test]
fn of_all_callers_in_two_processes_one_loads() {
    holds(&CALLERS, one_load);
}

#[test]
fn a_writer_sees_its_write_and_what_was_loaded_before_it_is_not_kept() {
    holds(&WRITERS, World::check_at_rest);
}

#[test]
fn a_caller_that_goes_away_leaves_nobody_waiting() {
    holds(&LEAVERS, World::check_at_rest);
}

#[test]
fn when_l3_gives_leases_to_all_more_than_one_loads() {
    breaks(Slip::LeaseToAll, &CALLERS, one_load);
}

#[test]
fn when_l3_stores_without_a_lease_old_values_come_back() {
    breaks(Slip::StoreWithoutLease, &WRITERS, World::check_at_rest);
}

#[test]
fn when_l3_tells_nobody_of_writes_old_copies_are_kept() {
    breaks(Slip::Mute, &WRITERS, World::check_at_rest);
}
