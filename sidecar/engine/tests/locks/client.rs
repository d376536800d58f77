//! Clients in virtual time: tokio's paused clock, which moves when nothing else can.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use caddy_engine::{
    Clock, Moment,
    locks::{
        Acquire, Answer, Ask, BackendError, Claim, DistributedMutex, DistributedRwLock, FencingToken, InProcess,
        LockBackend, LockClient, LockConfig, LockError, LockLimits, LockListener, LockMode, LockStatus, LockWatcher,
        LostReason, Owner, Reply, Ticket, Timer,
    },
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

pub(crate) struct Paused(pub(crate) Instant);

impl Clock for Paused {
    fn now(&self) -> Moment {
        Moment::from_millis(3_600_000) + self.0.elapsed()
    }
}

impl Timer for Paused {
    fn sleep_until(&self, deadline: Moment) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(sleep(deadline.since(self.now())))
    }
}

/// Which client looks for deadlocks, and until when.
pub(crate) type Duty = Arc<Mutex<Option<(&'static str, Moment)>>>;

/// A backend that can be away, answer late, or lose its answers, in front of the real one.
pub(crate) struct Faulty {
    inner: Arc<InProcess<String>>,
    timer: Arc<Paused>,
    client: &'static str,
    duty: Duty,
    away: AtomicBool,
    deaf: AtomicBool,
    /// What is to be let go is stuck on its way there, and lost.
    stuck: AtomicBool,
    /// Which lock cannot be read.
    unreadable: Mutex<Option<&'static str>>,
    asks: AtomicUsize,
}

impl Faulty {
    /// One client's way to it.
    pub(crate) fn new(
        inner: Arc<InProcess<String>>,
        timer: Arc<Paused>,
        client: &'static str,
        duty: Duty,
    ) -> Arc<Self> {
        let (away, deaf, stuck, unreadable, asks) = Default::default();
        Arc::new(Self { inner, timer, client, duty, away, deaf, stuck, unreadable, asks })
    }

    fn read(&self, name: &str) -> Result<(), BackendError> {
        if *self.unreadable.lock() == Some(name) {
            return Err(BackendError::Unreadable("somebody else wrote there".into()));
        }
        Ok(())
    }

    fn others_have_the_duty(&self) -> bool {
        self.duty.lock().is_some_and(|(holder, until)| holder != self.client && self.timer.now() < until)
    }

    fn pass<'a, T: Send + 'a>(&'a self, answer: Reply<'a, T>) -> Reply<'a, T> {
        let (away, deaf) = (self.away.load(Ordering::SeqCst), self.deaf.load(Ordering::SeqCst));
        Box::pin(async move {
            if away {
                return Err(BackendError::Unavailable("the backend is away".into()));
            }
            let answer = answer.await;
            if deaf {
                sleep(Duration::from_secs(2)).await;
                return Err(BackendError::Unavailable("the answer was lost".into()));
            }
            answer
        })
    }
}

impl LockBackend<String> for Faulty {
    fn attach(&self, listener: Weak<dyn LockListener>) {
        self.inner.attach(listener);
    }
    fn acquire<'a>(&'a self, ask: &'a Ask<String>) -> Reply<'a, Answer> {
        self.asks.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) {
            return self.pass(Box::pin(std::future::pending()));
        }
        self.pass(self.inner.acquire(ask))
    }
    fn cancel<'a>(&'a self, ask: &'a Ask<String>) -> Reply<'a, ()> {
        let inner = self.inner.clone();
        self.pass(Box::pin(async move {
            self.read(&ask.name)?;
            inner.cancel(ask).await
        }))
    }
    fn renew<'a>(&'a self, claims: &'a [Claim<String>]) -> Reply<'a, Vec<bool>> {
        let inner = self.inner.clone();
        self.pass(Box::pin(async move { inner.renew(claims).await }))
    }
    fn release<'a>(&'a self, claim: &'a Claim<String>) -> Reply<'a, bool> {
        let inner = self.inner.clone();
        self.pass(Box::pin(async move {
            self.read(&claim.name)?;
            if !self.stuck.load(Ordering::SeqCst) {
                return inner.release(claim).await;
            }
            while self.stuck.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(10)).await;
            }
            Err(BackendError::Unavailable("the request was lost".into()))
        }))
    }
    fn keep_waiting(&self) -> Reply<'_, ()> {
        self.pass(self.inner.keep_waiting())
    }
    fn status<'a>(&'a self, name: &'a String) -> Reply<'a, LockStatus<String>> {
        self.pass(self.inner.status(name))
    }
    fn contended(&self) -> Reply<'_, Vec<LockStatus<String>>> {
        self.pass(self.inner.contended())
    }
    fn take_duty(&self, lease: Duration) -> Reply<'_, bool> {
        let takes = !self.others_have_the_duty();
        if takes {
            *self.duty.lock() = Some((self.client, self.timer.now() + lease));
        }
        self.pass(Box::pin(std::future::ready(Ok(takes))))
    }
    fn leave_duty(&self) -> Reply<'_, ()> {
        if !self.others_have_the_duty() {
            *self.duty.lock() = None;
        }
        self.pass(Box::pin(std::future::ready(Ok(()))))
    }
    fn break_deadlock<'a>(&'a self, name: &'a String, ticket: &'a Ticket, cycle: &'a str) -> Reply<'a, bool> {
        self.pass(self.inner.break_deadlock(name, ticket, cycle))
    }
}

#[derive(Default)]
struct Losses(Mutex<Vec<(String, LostReason)>>);

impl LockWatcher<String> for Losses {
    fn lost(&self, _: &Owner, name: &String, _: FencingToken, reason: LostReason) {
        self.0.lock().push((name.clone(), reason));
    }
}

struct World {
    backend: Arc<Faulty>,
    client: Arc<LockClient<String>>,
    losses: Arc<Losses>,
}

fn world_with(config: LockConfig) -> World {
    let timer = Arc::new(Paused(Instant::now()));
    let backend = Faulty::new(InProcess::new(timer.clone()), timer.clone(), "test", Duty::default());
    let client = LockClient::new(backend.clone(), timer, config, "test");
    let losses = Arc::new(Losses::default());
    client.watch(losses.clone());
    let keeper = client.clone();
    tokio::task::spawn_local(async move { keeper.run().await });
    World { backend, client, losses }
}

fn world() -> World {
    world_with(LockConfig::default())
}

/// Runs a story in virtual time.
pub(crate) fn play<F: Future<Output = ()>>(story: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async { story().await });
}

pub(crate) fn owner(name: &str) -> Owner {
    Owner::new(name)
}

fn name() -> String {
    "l".to_owned()
}

pub(crate) fn within(millis: u64) -> Acquire {
    Acquire { timeout: Some(Duration::from_millis(millis)), ..Acquire::default() }
}

#[test]
fn a_held_lock_is_renewed_for_as_long_as_it_is_held() {
    play(|| async {
        let World { client, backend, losses } = world();
        let guard = DistributedMutex::new(client.clone(), name()).lock(&owner("a")).await.unwrap();
        sleep(Duration::from_mins(10)).await;
        assert!(guard.is_held());
        assert_eq!(losses.0.lock().len(), 0);
        assert_eq!(backend.inner.status(&name()).await.unwrap().holders[0].token, guard.token());
        guard.unlock().await.unwrap();
        assert_eq!(backend.inner.names(), Vec::<String>::new());
    });
}

#[test]
fn a_lease_of_nothing_and_one_of_for_ever_are_held_like_any() {
    play(|| async {
        for lease in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let World { client, losses, .. } = world_with(LockConfig { lease, ..LockConfig::default() });
            let guard = DistributedMutex::new(client.clone(), name()).lock(&owner("a")).await.unwrap();
            client.renew(&name(), &owner("a"), guard.token(), Some(lease)).await.unwrap();
            sleep(Duration::from_mins(1)).await;
            assert!(guard.is_held(), "{lease:?}");
            assert_eq!(losses.0.lock().len(), 0);
            guard.unlock().await.unwrap();
        }
    });
}

#[test]
fn without_any_pause_looks_for_deadlocks_are_not_all_that_a_client_does() {
    play(|| async {
        let World { client, .. } = world_with(LockConfig { deadlock_check: Duration::ZERO, ..LockConfig::default() });
        let mutex = DistributedMutex::new(client.clone(), name());
        let guard = mutex.lock(&owner("a")).await.unwrap();
        let late = mutex.lock_with(&owner("b"), within(1_000)).await;
        assert!(matches!(late, Err(LockError::TimedOut(_))));
        guard.unlock().await.unwrap();
    });
}

#[test]
fn an_outage_shorter_than_the_lease_is_survived_and_a_longer_one_told_in_time() {
    play(|| async {
        let World { client, backend, losses } = world();
        let guard = DistributedMutex::new(client.clone(), name()).lock(&owner("a")).await.unwrap();
        backend.away.store(true, Ordering::SeqCst);
        sleep(Duration::from_secs(15)).await;
        backend.away.store(false, Ordering::SeqCst);
        sleep(Duration::from_secs(5)).await;
        assert!(guard.is_held(), "two retries fit");
        // From now on answers are lost, each after two seconds: the end is noticed nevertheless, before the lease is over.
        let renewed = backend.inner.status(&name()).await.unwrap().holders[0].remaining;
        backend.deaf.store(true, Ordering::SeqCst);
        backend.away.store(true, Ordering::SeqCst);
        let before = Instant::now();
        assert_eq!(guard.lost().await, LostReason::NotRenewed);
        assert!(before.elapsed() < renewed, "{:?} of {renewed:?}", before.elapsed());
        assert_eq!(*losses.0.lock(), [(name(), LostReason::NotRenewed)]);
        assert!(guard.unlock().await.is_err());
    });
}

#[test]
fn a_lock_that_the_backend_forgot_is_lost_at_the_next_renewal() {
    play(|| async {
        let World { client, backend, losses } = world();
        let grant = client.acquire(&name(), &owner("a"), Acquire::default()).await.unwrap();
        let claim = Claim { name: name(), owner: owner("a"), token: grant.token, lease: Duration::ZERO };
        backend.inner.release(&claim).await.unwrap();
        sleep(Duration::from_secs(11)).await;
        assert_eq!(*losses.0.lock(), [(name(), LostReason::Gone)]);
        assert_eq!(client.release(&name(), &owner("a"), grant.token).await, Err(LockError::NotHeld));
    });
}

/// The message that a lock was handed over says not when; it may have been on its way for long.
#[test]
fn a_lock_that_was_handed_over_is_believed_for_less_than_its_lease() {
    play(|| async {
        let World { client, backend, .. } = world();
        let first = client.acquire(&name(), &owner("a"), Acquire::default()).await.unwrap();
        let waiting = client.clone();
        let waiter =
            tokio::task::spawn_local(async move { waiting.acquire(&name(), &owner("b"), within(20_000)).await });
        sleep(Duration::from_millis(900)).await;
        let asked = backend.asks.load(Ordering::SeqCst);
        client.release(&name(), &owner("a"), first.token).await.unwrap();
        let second = waiter.await.unwrap().unwrap();
        assert_eq!(backend.asks.load(Ordering::SeqCst), asked, "it asked again");
        let config = client.config();
        let validity = config.validity(config.lease).checked_sub(Duration::from_millis(900)).unwrap();
        assert!(second.remaining <= validity, "{:?} of {validity:?}", second.remaining);
    });
}

#[test]
fn waiters_get_it_in_their_order_and_time_out_on_time() {
    play(|| async {
        let World { client, .. } = world();
        let first = client.acquire(&name(), &owner("0"), Acquire::default()).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 1..=5 {
            let (client, order) = (client.clone(), order.clone());
            tasks.push(tokio::task::spawn_local(async move {
                let me = owner(&number.to_string());
                let timeout = if number == 3 { 500 } else { 60_000 };
                let begun = Instant::now();
                match client.acquire(&name(), &me, within(timeout)).await {
                    Ok(grant) => {
                        order.lock().push(number);
                        client.release(&name(), &me, grant.token).await.unwrap();
                    }
                    Err(error) => {
                        assert_eq!(error, LockError::TimedOut(Duration::from_millis(500)));
                        assert!(begun.elapsed() <= Duration::from_millis(502), "{:?}", begun.elapsed());
                    }
                }
            }));
            sleep(Duration::from_millis(1)).await;
        }
        sleep(Duration::from_secs(1)).await;
        client.release(&name(), &owner("0"), first.token).await.unwrap();
        let released = Instant::now();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), [1, 2, 4, 5]);
        assert!(released.elapsed() < Duration::from_millis(5), "by wake-ups, not by polling: {:?}", released.elapsed());
        let stats = client.stats();
        assert_eq!((stats.acquired, stats.contended, stats.timed_out, stats.held, stats.waiting), (5, 5, 1, 0, 0));
    });
}

#[test]
fn a_waiting_writer_stops_new_readers_and_readers_share() {
    play(|| async {
        let World { client, .. } = world();
        let lock = Arc::new(DistributedRwLock::new(client, name()));
        let (a, b) = (lock.read(&owner("a")).await.unwrap(), lock.read(&owner("b")).await.unwrap());
        assert!(a.token() < b.token());
        let upgrade = lock.write(&owner("a")).await;
        assert!(matches!(upgrade, Err(LockError::Upgrade(token)) if token == a.token()), "{:?}", upgrade.err());
        let writer = lock.clone();
        let writing = tokio::task::spawn_local(async move { writer.write(&owner("w")).await });
        sleep(Duration::from_millis(1)).await;
        let shared = Acquire { mode: LockMode::Shared, ..within(100) };
        assert!(lock.lock_with(&owner("c"), shared).await.is_err(), "behind the writer");
        assert!(lock.lock_with(&owner("b"), shared).await.is_ok(), "who reads already may again");
        drop(a);
        b.unlock().await.unwrap();
        // Both of b's are gone: the guard of the second was dropped at once.
        let writer = writing.await.unwrap().unwrap();
        writer.unlock().await.unwrap();
    });
}

#[test]
fn what_is_given_up_leaves_nothing_behind() {
    play(|| async {
        let World { client, backend, .. } = world();
        let held = client.acquire(&name(), &owner("a"), Acquire::default()).await.unwrap();
        // A dropped future, a timeout, a departed owner, an answer that was lost.
        let (lock, b) = (name(), owner("b"));
        let dropped = tokio::time::timeout(Duration::from_millis(10), client.acquire(&lock, &b, within(9999)));
        assert!(dropped.await.is_err());
        assert!(client.acquire(&name(), &owner("c"), within(10)).await.is_err());
        let waiting = client.clone();
        let departed =
            tokio::task::spawn_local(async move { waiting.acquire(&name(), &owner("d"), within(9999)).await });
        sleep(Duration::from_millis(1)).await;
        client.depart(&owner("d"));
        assert_eq!(departed.await.unwrap(), Err(LockError::Abandoned));
        backend.deaf.store(true, Ordering::SeqCst);
        let unheard = client.acquire(&"other".to_owned(), &owner("e"), Acquire::default()).await;
        assert!(matches!(unheard, Err(LockError::Unavailable(_))), "{unheard:?}");
        assert_eq!(backend.inner.status(&"other".to_owned()).await.unwrap().holders.len(), 1, "it was granted");
        backend.deaf.store(false, Ordering::SeqCst);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(backend.inner.status(&"other".to_owned()).await.unwrap().holders.len(), 0, "and taken back");
        assert_eq!(backend.inner.status(&name()).await.unwrap().waiters, []);
        client.depart(&owner("a"));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(backend.inner.names(), Vec::<String>::new());
        assert_eq!(client.release(&name(), &owner("a"), held.token).await, Err(LockError::NotHeld));
    });
}

#[test]
fn what_was_being_let_go_when_its_future_was_dropped_is_let_go() {
    play(|| async {
        let World { client, backend, .. } = world();
        let (lock, a) = (name(), owner("a"));
        let held = client.acquire(&lock, &a, Acquire::default()).await.unwrap();
        backend.stuck.store(true, Ordering::SeqCst);
        let dropped = tokio::time::timeout(Duration::from_millis(50), client.release(&lock, &a, held.token)).await;
        assert!(dropped.is_err());
        assert_eq!(backend.inner.names(), [name()], "it is still there");
        backend.stuck.store(false, Ordering::SeqCst);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(backend.inner.names(), Vec::<String>::new());
        assert_eq!(client.stats().held, 0);
    });
}

/// What could not be let go is let go behind the next acquisition of the same owner: which must not go by its token.
#[test]
fn nobody_goes_by_a_token_that_is_being_let_go() {
    play(|| async {
        let World { client, backend, .. } = world();
        let (lock, a) = (name(), owner("a"));
        let held = client.acquire(&lock, &a, Acquire::default()).await.unwrap();
        backend.stuck.store(true, Ordering::SeqCst);
        let dropped = tokio::time::timeout(Duration::from_millis(50), client.release(&lock, &a, held.token)).await;
        assert!(dropped.is_err());
        let again = {
            let client = client.clone();
            tokio::task::spawn_local(async move { client.acquire(&name(), &owner("a"), within(20_000)).await })
        };
        sleep(Duration::from_millis(500)).await;
        backend.stuck.store(false, Ordering::SeqCst);
        let again = again.await.unwrap().unwrap();
        sleep(Duration::from_secs(2)).await;
        let holders = backend.inner.status(&lock).await.unwrap().holders;
        assert_eq!(holders.iter().map(|holder| holder.token).collect::<Vec<_>>(), [again.token], "it is held");
        assert!(again.token > held.token);
    });
}

#[test]
fn a_lock_that_cannot_be_read_is_in_no_others_way_and_let_go_when_it_can() {
    play(|| async {
        let World { backend, client, .. } = world();
        let how = Acquire { timeout: Some(Duration::from_secs(1)), ..Acquire::default() };
        let (ann, bea) = (owner("ann"), owner("bea"));
        for name in ["a", "bad", "z"] {
            client.acquire(&name.to_owned(), &ann, how).await.unwrap();
        }
        *backend.unreadable.lock() = Some("bad");
        let timed_out = client.acquire(&"bad".to_owned(), &bea, how).await;
        assert!(matches!(timed_out, Err(LockError::TimedOut(_))), "{timed_out:?}");
        client.depart(&ann);
        for name in ["a", "z"] {
            client.acquire(&name.to_owned(), &bea, how).await.unwrap();
        }
        *backend.unreadable.lock() = None;
        client.acquire(&"bad".to_owned(), &bea, how).await.unwrap();
    });
}

#[test]
fn limits_are_errors_and_ten_thousand_waiters_are_served() {
    play(|| async {
        let limits = LockLimits { max_held: 3, max_waiters: 10_000 };
        let World { client, backend, .. } = world_with(LockConfig { limits, ..LockConfig::default() });
        let held = client.acquire(&name(), &owner("h"), Acquire::default()).await.unwrap();
        let mut tasks = Vec::new();
        for number in 0..10_000 {
            let client = client.clone();
            tasks.push(tokio::task::spawn_local(async move {
                let me = owner(&number.to_string());
                let grant = client.acquire(&name(), &me, within(3_600_000)).await.unwrap();
                client.release(&name(), &me, grant.token).await.unwrap();
            }));
        }
        sleep(Duration::from_secs(3)).await;
        let refused = client.acquire(&name(), &owner("x"), within(1)).await;
        assert!(matches!(refused, Err(LockError::Limit { what: "locks.limits.maxWaiters", .. })), "{refused:?}");
        let before = backend.asks.load(Ordering::SeqCst);
        sleep(Duration::from_secs(10)).await;
        let polls = backend.asks.load(Ordering::SeqCst) - before;
        assert!(polls < 10_100, "who waits asks by itself once in 15 s, the oldest once a second: {polls} in 10 s");
        client.release(&name(), &owner("h"), held.token).await.unwrap();
        for task in tasks {
            task.await.unwrap();
        }
        for number in 0..3 {
            client.acquire(&number.to_string(), &owner("h"), Acquire::default()).await.unwrap();
        }
        let refused = client.acquire(&name(), &owner("h"), Acquire::default()).await;
        assert!(matches!(refused, Err(LockError::Limit { what: "locks.limits.maxHeld", limit: 3 })), "{refused:?}");
        client.depart(&owner("h"));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(backend.inner.names(), Vec::<String>::new());
    });
}

#[test]
fn wrong_tokens_and_strangers_change_nothing() {
    play(|| async {
        let World { client, .. } = world();
        let grant = client.acquire(&name(), &owner("a"), Acquire::default()).await.unwrap();
        let wrong = FencingToken::new(grant.token.epoch(), grant.token.counter() + 1);
        for (who, token) in [("a", wrong), ("b", grant.token)] {
            assert_eq!(client.release(&name(), &owner(who), token).await, Err(LockError::NotHeld));
            assert_eq!(client.renew(&name(), &owner(who), token, None).await, Err(LockError::NotHeld));
        }
        assert!(client.held(&owner("a"), &name()).is_some());
        let longer = client.renew(&name(), &owner("a"), grant.token, Some(Duration::from_secs(90))).await.unwrap();
        assert!(longer.remaining > Duration::from_secs(80));
        client.stop_renewing(&owner("a"));
        sleep(Duration::from_secs(91)).await;
        assert_eq!(
            client.renew(&name(), &owner("a"), grant.token, None).await,
            Err(LockError::NotHeld),
            "after its end"
        );
    });
}
