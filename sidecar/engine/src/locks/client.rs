//! One party to the locks of a backend: takes, waits, counts, lets go. [`keeper`](super::keeper) keeps what it holds.
//!
//! Never believes to hold a lock longer than the backend keeps it: each holding counts from before its request was sent.
//! An acquisition that is given up, for whatever reason, is taken back in the background, so that nothing is left in a
//! queue; if even that fails, queues and leases end by themselves.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    Ask, Claim, FencingToken, LockBackend, LockConfig, LockError, LockKey, LockListener, LockMode, LockStats,
    LockStatus, LostReason, Owner, Ticket, Timer,
    attempt::{Attempt, Place},
    holdings::{Holding, Holdings, Lost, Released},
    signal::Signal,
};
use crate::Moment;

/// How an acquisition differs from the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acquire {
    /// How; exclusive if nothing is said.
    pub mode: LockMode,
    /// How long it may wait; zero: not at all.
    pub timeout: Option<Duration>,
    /// How long the lock outlives its owner; at least [`LockConfig::SHORTEST_LEASE`].
    pub lease: Option<Duration>,
}

/// A lock that was had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Under which token.
    pub token: FencingToken,
    /// For how long, at this moment, without a renewal.
    pub remaining: Duration,
}

/// Who is told of lost locks. Must not block, and must not call back.
pub trait LockWatcher<K>: Send + Sync {
    /// The owner does not hold the lock any more.
    fn lost(&self, owner: &Owner, name: &K, token: FencingToken, reason: LostReason);
}

/// What a waiting acquisition is told.
#[derive(Clone, Debug)]
pub(crate) enum News {
    AskAgain,
    HandedOver(FencingToken),
    Deadlock(String),
    Abandoned,
}

/// One party to the locks of a backend, usually one per process: takes, waits, counts, lets go, and while
/// [`run`](Self::run) is polled renews what it holds and looks for deadlocks.
///
/// [`DistributedMutex`](super::DistributedMutex) and [`DistributedRwLock`](super::DistributedRwLock) are its guarded faces. It
/// never believes to hold a lock longer than the backend keeps it: each holding counts from before its request was sent.
pub struct LockClient<K> {
    pub(super) backend: Arc<dyn LockBackend<K>>,
    pub(super) timer: Arc<dyn Timer>,
    pub(super) state: Mutex<State<K>>,
    config: Mutex<LockConfig>,
    name: Arc<str>,
    next: AtomicU64,
    /// Wakes the keeper's loops when what they wait for may come earlier.
    pub(super) renewals: Signal<()>,
    pub(super) ends: Signal<()>,
    pub(super) chores: Signal<()>,
    /// Somebody has begun to wait.
    pub(super) queues: Signal<()>,
    /// Whether this client looks for deadlocks of all.
    pub(super) has_duty: AtomicBool,
    /// Kept here because the backend holds it weakly.
    listener: Mutex<Option<Arc<Listener<K>>>>,
}

pub(super) struct State<K> {
    pub(super) holdings: Holdings<K>,
    pub(super) waiters: HashMap<u64, Waiter>,
    /// Of each lock the waiters of this client, the oldest first: it is the one that asks again by itself.
    pub(super) queues: HashMap<K, BTreeSet<u64>>,
    /// Acquisitions to be taken back, and until when that makes sense.
    pub(super) given_up: Vec<(Ask<K>, Moment)>,
    /// Locks to be let go, and until when that makes sense.
    pub(super) let_go: Vec<(Claim<K>, Moment)>,
    /// Until when the keeper's loops sleep.
    pub(super) renews_at: Moment,
    pub(super) ends_at: Moment,
    pub(super) stats: LockStats,
    pub(super) epoch: u64,
    watcher: Option<Arc<dyn LockWatcher<K>>>,
    /// Acquisitions that have not ended.
    pub(super) under_way: usize,
    /// Of them, those that wait for their turn.
    pub(super) queued: usize,
}

pub(super) struct Waiter {
    pub(super) owner: Owner,
    pub(super) news: Arc<Signal<News>>,
}

struct Listener<K>(Weak<LockClient<K>>);

impl<K: LockKey> LockListener for Listener<K> {
    fn wake(&self, ticket: &Ticket) {
        if let Some(client) = self.0.upgrade() {
            client.tell(ticket, News::AskAgain);
        }
    }

    fn handed_over(&self, ticket: &Ticket, token: FencingToken) {
        if let Some(client) = self.0.upgrade() {
            client.tell(ticket, News::HandedOver(token));
        }
    }

    fn deadlocked(&self, ticket: &Ticket, cycle: &str) {
        if let Some(client) = self.0.upgrade() {
            client.tell(ticket, News::Deadlock(cycle.to_owned()));
        }
    }

    fn epoch(&self, epoch: u64) {
        if let Some(client) = self.0.upgrade() {
            client.new_epoch(epoch);
        }
    }
}

impl<K: LockKey> LockClient<K> {
    /// How often the backend hears of a client that waits.
    pub const BEAT: Duration = Duration::from_secs(1);

    /// A client of `backend` whose tickets begin with `name`, which is unique among its clients and has no dash.
    pub fn new(
        backend: Arc<dyn LockBackend<K>>,
        timer: Arc<dyn Timer>,
        config: LockConfig,
        name: impl Into<Arc<str>>,
    ) -> Arc<Self> {
        let state = State {
            holdings: Holdings::new(),
            waiters: HashMap::new(),
            queues: HashMap::new(),
            given_up: Vec::new(),
            let_go: Vec::new(),
            renews_at: Moment::NEVER,
            ends_at: Moment::NEVER,
            stats: LockStats::default(),
            epoch: 0,
            watcher: None,
            under_way: 0,
            queued: 0,
        };
        let client = Arc::new(Self {
            backend,
            timer,
            state: Mutex::new(state),
            config: Mutex::new(config),
            name: name.into(),
            next: AtomicU64::new(1),
            renewals: Signal::default(),
            ends: Signal::default(),
            chores: Signal::default(),
            queues: Signal::default(),
            has_duty: AtomicBool::default(),
            listener: Mutex::default(),
        });
        let listener = Arc::new(Listener(Arc::downgrade(&client)));
        let weak: Weak<Listener<K>> = Arc::downgrade(&listener);
        client.backend.attach(weak);
        *client.listener.lock() = Some(listener);
        client
    }

    /// Who is told of lost locks, beside their guards.
    pub fn watch(&self, watcher: Arc<dyn LockWatcher<K>>) {
        self.state.lock().watcher = Some(watcher);
    }

    /// The configuration in force.
    pub fn config(&self) -> LockConfig {
        *self.config.lock()
    }

    /// For acquisitions, renewals and checks from now on.
    pub fn reconfigure(&self, config: LockConfig) {
        *self.config.lock() = config;
        self.chores.set(());
    }

    /// What was counted, and what is held now.
    pub fn stats(&self) -> LockStats {
        let state = self.state.lock();
        LockStats { held: state.holdings.len(), waiting: state.queued, ..state.stats }
    }

    /// Who holds and who waits.
    pub async fn status(&self, name: &K) -> Result<LockStatus<K>, LockError> {
        Ok(self.backend.status(name).await?)
    }

    /// All locks that somebody waits for, without those that cannot be read.
    pub async fn contended(&self) -> Result<Vec<LockStatus<K>>, LockError> {
        Ok(self.backend.contended().await?)
    }

    // === taking ===

    /// Takes a lock, or waits for its turn. If the future is dropped, the acquisition is taken back.
    pub async fn acquire(&self, name: &K, owner: &Owner, how: Acquire) -> Result<Grant, LockError> {
        self.acquire_watched(name, owner, how).await.map(|(grant, _)| grant)
    }

    pub(super) async fn acquire_watched(
        &self,
        name: &K,
        owner: &Owner,
        how: Acquire,
    ) -> Result<(Grant, Lost), LockError> {
        let config = self.config();
        let begun = self.timer.now();
        let timeout = how.timeout.unwrap_or(config.timeout);
        let _place = self.enter(&config)?;
        let ask = Ask {
            name: name.clone(),
            owner: owner.clone(),
            mode: how.mode,
            ticket: Ticket { client: self.name.clone(), number: self.next.fetch_add(1, Ordering::Relaxed) },
            lease: how.lease.unwrap_or(config.lease).max(LockConfig::SHORTEST_LEASE),
            waits: !timeout.is_zero(),
        };
        let mut attempt = Attempt::new(self, ask);
        let outcome = attempt.run(&config, begun, timeout).await;
        let waited = attempt.has_queued();
        // What is not settled is taken back here.
        drop(attempt);
        let mut state = self.state.lock();
        match &outcome {
            Ok(_) => state.stats.acquired += 1,
            Err(LockError::TimedOut(_)) => state.stats.timed_out += 1,
            Err(LockError::Deadlock(_)) => state.stats.deadlocks += 1,
            Err(_) => state.stats.refused += 1,
        }
        if waited {
            state.stats.contended += 1;
            state.stats.waited_millis += u64::try_from(self.timer.now().since(begun).as_millis()).unwrap_or(u64::MAX);
        }
        outcome
    }

    fn enter(&self, config: &LockConfig) -> Result<Place<'_, K>, LockError> {
        let mut state = self.state.lock();
        let refusal = |what, limit| Err(LockError::Limit { what, limit });
        if state.under_way >= config.limits.max_waiters {
            state.stats.refused += 1;
            return refusal("locks.limits.maxWaiters", config.limits.max_waiters);
        }
        if state.holdings.len() + state.under_way - state.queued >= config.limits.max_held {
            state.stats.refused += 1;
            return refusal("locks.limits.maxHeld", config.limits.max_held);
        }
        state.under_way += 1;
        Ok(Place::new(self))
    }

    // === letting go ===

    /// Lets go once: how often the owner still has it. An owner that this client knows nothing of is looked up in the
    /// backend. If the future is dropped, or the backend does not answer, it is let go in the background.
    pub async fn release(&self, name: &K, owner: &Owner, token: FencingToken) -> Result<u32, LockError> {
        let released = self.state.lock().holdings.release(owner, name, token);
        let lease = match released {
            Released::Still(count) => return Ok(count),
            Released::OtherToken => return Err(LockError::NotHeld),
            Released::Last(holding) => holding.lease,
            Released::Unknown => Duration::ZERO,
        };
        let claim = Claim { name: name.clone(), owner: owner.clone(), token, lease };
        let mut letting_go = LettingGo { client: self, claim, answered: false };
        let released = self.backend.release(&letting_go.claim).await?;
        letting_go.answered = true;
        if !released {
            return Err(LockError::NotHeld);
        }
        self.state.lock().stats.released += 1;
        Ok(0)
    }

    /// Extends a lock, by its own lease or another, also one that another client took for the same owner.
    pub async fn renew(
        &self,
        name: &K,
        owner: &Owner,
        token: FencingToken,
        lease: Option<Duration>,
    ) -> Result<Grant, LockError> {
        let config = self.config();
        let known = self.state.lock().holdings.get(owner, name).map(|holding| (holding.token, holding.lease));
        if known.is_some_and(|(held, _)| held != token) {
            return Err(LockError::NotHeld);
        }
        let lease = lease.or_else(|| known.map(|(_, lease)| lease)).unwrap_or(config.lease);
        let lease = lease.max(LockConfig::SHORTEST_LEASE);
        let claims = [Claim { name: name.clone(), owner: owner.clone(), token, lease }];
        let sent = self.timer.now();
        let renewed = self.backend.renew(&claims).await?;
        if renewed != [true] {
            self.gone(&claims[0]);
            return Err(LockError::NotHeld);
        }
        let valid_until = self.note_renewed(&claims[0], sent).unwrap_or_else(|| sent + config.validity(lease));
        Ok(Grant { token, remaining: valid_until.since(self.timer.now()) })
    }

    pub(super) fn note_renewed(&self, claim: &Claim<K>, sent: Moment) -> Option<Moment> {
        let config = self.config();
        let mut state = self.state.lock();
        state.stats.renewed += 1;
        let valid_until = state.holdings.renewed(&config, claim, sent);
        self.rearm(&state);
        valid_until
    }

    /// Wakes the keeper's loops that sleep for too long now.
    pub(super) fn rearm(&self, state: &State<K>) {
        if state.holdings.next_renewal() < state.renews_at {
            self.renewals.set(());
        }
        if state.holdings.next_end() < state.ends_at {
            self.ends.set(());
        }
    }

    /// The owner is gone: what it waits for is given up, what it holds is let go in the background.
    pub fn depart(&self, owner: &Owner) {
        let now = self.timer.now();
        self.later(|state| {
            for name in state.holdings.names_of(owner) {
                if let Some(Holding { token, lease, .. }) = state.holdings.remove(owner, &name) {
                    state.let_go.push((Claim { name, owner: owner.clone(), token, lease }, now + lease));
                }
            }
            for waiter in state.waiters.values().filter(|waiter| waiter.owner == *owner) {
                waiter.news.set(News::Abandoned);
            }
        });
    }

    /// Nobody vouches for the owner here any more: its locks are not renewed and end with their leases.
    pub fn stop_renewing(&self, owner: &Owner) {
        self.state.lock().holdings.stop_renewing(owner);
    }

    /// What the owner holds by this client: token, mode, and what is left.
    pub fn held(&self, owner: &Owner, name: &K) -> Option<(FencingToken, LockMode, Duration)> {
        let state = self.state.lock();
        let holding = state.holdings.get(owner, name)?;
        Some((holding.token, holding.mode, holding.valid_until.since(self.timer.now())))
    }

    /// Lets go of a guard's lock in the background.
    pub(super) fn drop_guard(&self, name: &K, owner: &Owner, token: FencingToken) {
        let now = self.timer.now();
        self.later(|state| {
            if let Released::Last(Holding { lease, .. }) = state.holdings.release(owner, name, token) {
                let claim = Claim { name: name.clone(), owner: owner.clone(), token, lease };
                state.let_go.push((claim, now + lease));
            }
        });
    }

    // === what the backend says ===

    fn tell(&self, ticket: &Ticket, news: News) {
        if ticket.client != self.name {
            return;
        }
        let state = self.state.lock();
        let Some(waiter) = state.waiters.get(&ticket.number) else { return };
        match news {
            // Must not hide that it is over.
            News::AskAgain => waiter.news.set_if_none(news),
            News::HandedOver(_) | News::Deadlock(_) | News::Abandoned => waiter.news.set(news),
        }
    }

    fn new_epoch(&self, epoch: u64) {
        let mut state = self.state.lock();
        state.epoch = state.epoch.max(epoch);
        let void = state.holdings.matching(|holding| holding.token.epoch() < epoch);
        for (owner, name) in void {
            if let Some(holding) = state.holdings.remove(&owner, &name) {
                state.lose(&owner, &name, &holding, LostReason::NewEpoch);
            }
        }
        for waiter in state.waiters.values() {
            waiter.news.set_if_none(News::AskAgain);
        }
    }

    /// The backend says that the claim does not hold.
    pub(super) fn gone(&self, claim: &Claim<K>) {
        let mut state = self.state.lock();
        let held = state.holdings.get(&claim.owner, &claim.name);
        if held.is_some_and(|holding| holding.token == claim.token)
            && let Some(holding) = state.holdings.remove(&claim.owner, &claim.name)
        {
            state.lose(&claim.owner, &claim.name, &holding, LostReason::Gone);
        }
    }

    /// Changes what the keeper has to do.
    pub(super) fn later(&self, change: impl FnOnce(&mut State<K>)) {
        change(&mut self.state.lock());
        self.chores.set(());
    }
}

/// A lock that is being let go; what was not answered is left to the keeper.
struct LettingGo<'a, K: LockKey> {
    client: &'a LockClient<K>,
    claim: Claim<K>,
    answered: bool,
}

impl<K: LockKey> Drop for LettingGo<'_, K> {
    fn drop(&mut self) {
        let Self { client, claim, answered } = self;
        if !*answered {
            let until = client.timer.now() + claim.lease;
            client.later(|state| state.let_go.push((claim.clone(), until)));
        }
    }
}

impl<K: LockKey> State<K> {
    pub(super) fn lose(&mut self, owner: &Owner, name: &K, holding: &Holding, reason: LostReason) {
        self.stats.lost += 1;
        holding.lost.set(reason);
        if let Some(watcher) = &self.watcher {
            watcher.lost(owner, name, holding.token, reason);
        }
    }

    pub(super) fn waits(&self) -> bool {
        self.queued > 0
    }

    pub(super) fn is_oldest(&self, name: &K, number: u64) -> bool {
        self.queues.get(name).and_then(BTreeSet::first) == Some(&number)
    }
}
