//! The locks of this sidecar's apps: one client of whatever they live in (Redis, or this process), one of those that live
//! in Kubernetes Leases, and which session owns what.
//!
//! A connection is an owner of its own; its end lets go of its locks. A named owner outlives its connections: with the
//! last one that used it, its locks are no longer renewed and end with their leases, unless another connection comes.
//! With an embedded L3 the locks live in this process: each pod has its own.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use caddy_contract::{Config, coordination::LOCKS_MAX};
use caddy_engine::{
    BootClock, Clock, TokioTimer, glob,
    locks::{FencingToken, InProcess, LockClient, LockConfig, LockLimits, LockStats, LockWatcher, LostReason, Owner},
};
use caddy_remote::{
    Target,
    locks::{EpochStatus, LockLane, RedisLocks, Standing},
};
use parking_lot::Mutex;

use crate::{
    coordination::Coordination,
    guards,
    mailbox::{Delivery, Mailbox},
    shared::{L3, Shared},
    supervisor::Supervisor,
};

/// How long the end of the sidecar waits for Redis to hear of the locks that are let go.
const DRAIN: Duration = Duration::from_secs(1);
/// Lost locks that a session is told of; it lets go of what it does not read about.
const MAX_NOTES: usize = 1024;

/// See the module.
pub(crate) struct Locks {
    client: Arc<LockClient<Bytes>>,
    /// Of locks in Leases; None without an API server.
    leases: Option<Arc<LockClient<Bytes>>>,
    backend: Backend,
    sessions: Arc<Sessions>,
    /// Begins the name of every connection as an owner.
    prefix: String,
    lane: Mutex<Option<LockLane>>,
    connected: AtomicBool,
}

const NO_API_SERVER: &str = "BACKEND lease is not available: this sidecar has no access to an API server";

/// Where a lock lives, as LOCK commands name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Home {
    /// Redis, or this process where there is none.
    #[default]
    L3,
    /// A Kubernetes Lease.
    Lease,
}

enum Backend {
    Embedded(Arc<InProcess<Bytes>>),
    Redis(Arc<RedisLocks>),
}

/// What a session has to do with locks, also seen by other threads.
#[derive(Debug)]
pub(crate) struct LockSession {
    mailbox: Arc<Mailbox>,
    lost: Mutex<Vec<LostLock>>,
}

/// A lock that a session does not hold any more.
#[derive(Debug, Clone)]
pub(crate) struct LostLock {
    pub(crate) name: Bytes,
    pub(crate) token: FencingToken,
    pub(crate) reason: LostReason,
}

impl LockSession {
    /// Those that the app was not told of yet.
    pub(crate) fn take_lost(&self) -> Vec<LostLock> {
        std::mem::take(&mut self.lost.lock())
    }
}

/// Which sessions speak for an owner.
#[derive(Default)]
struct Sessions(Mutex<HashMap<Owner, Vec<Weak<LockSession>>>>);

impl LockWatcher<Bytes> for Sessions {
    fn lost(&self, owner: &Owner, name: &Bytes, token: FencingToken, reason: LostReason) {
        tracing::warn!(%owner, name = %name.escape_ascii(), %token, reason = reason.text(), "a lock was lost");
        let sessions = self.0.lock();
        for session in sessions.get(owner).into_iter().flatten().filter_map(Weak::upgrade) {
            let mut lost = session.lost.lock();
            if lost.len() < MAX_NOTES {
                lost.push(LostLock { name: name.clone(), token, reason });
            }
            drop(lost);
            session.mailbox.deliver(Delivery::LocksLost);
        }
    }
}

impl Locks {
    /// Over the only Redis, over a cluster (then [`start`](Self::start) finds the node), or in this process.
    pub(crate) fn new(config: &Config, only: Option<Arc<Target>>, coordination: &Coordination) -> Self {
        let id = format!("{:016x}", RandomState::new().hash_one(BootClock.now()));
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "host".to_owned());
        let timer = Arc::new(TokioTimer);
        let locks = lock_config(config);
        let authority = coordination.epoch_authority(config);
        let leases = coordination.lease_locks(config);
        let leases = leases.map(|backend| LockClient::new(backend, timer.clone(), few(locks), id.clone()));
        let (client, backend, lane) = if matches!(config.l3, caddy_contract::L3::Embedded) {
            let backend = InProcess::new(timer.clone());
            (LockClient::new(backend.clone(), timer, locks, id.clone()), Backend::Embedded(backend), None)
        } else {
            let backend = RedisLocks::new(&config.cluster.domain, &id, authority);
            let lane = only.map(|target| backend.connect(target));
            (LockClient::new(backend.clone(), timer, locks, id.clone()), Backend::Redis(backend), lane)
        };
        let sessions = Arc::new(Sessions::default());
        client.watch(sessions.clone());
        if let Some(leases) = &leases {
            leases.watch(sessions.clone());
        }
        let prefix = format!("conn:{host}/{id}:");
        Self { client, leases, backend, sessions, prefix, lane: Mutex::new(lane), connected: AtomicBool::new(false) }
    }

    /// Runs what renews the locks, ends them and breaks deadlocks: not where requests are served, since it sets timers.
    pub(crate) fn keep(&self, supervisor: &Supervisor) {
        let client = self.client.clone();
        supervisor.spawn_vital("locks", async move { client.run().await });
        if let Some(leases) = self.leases.clone() {
            supervisor.spawn_vital("locks in Leases", async move { leases.run().await });
        }
    }

    /// Connects, once, on the thread that calls first.
    pub(crate) fn connect(&self, shared: &Arc<Shared>, supervisor: &Supervisor) {
        if self.connected.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(lane) = self.lane.lock().take() {
            supervisor.spawn_vital("lock connection", lane);
        }
        let is_cluster = matches!(&shared.l3, L3::Redis(redis) if redis.cluster().is_some());
        if is_cluster && let Backend::Redis(backend) = &self.backend {
            supervisor.spawn_vital("node of the locks", follow(shared.clone(), backend.clone(), supervisor.clone()));
        }
    }

    /// The client of the locks that live there, or why there are none.
    pub(crate) fn client(&self, place: Home) -> Result<&Arc<LockClient<Bytes>>, &'static str> {
        match place {
            Home::L3 => Ok(&self.client),
            Home::Lease => self.leases.as_ref().ok_or(NO_API_SERVER),
        }
    }

    /// Where the owner has the lock under this token, as far as this sidecar knows.
    pub(crate) fn place_of(&self, name: &Bytes, owner: &Owner, token: FencingToken) -> Option<Home> {
        let holds = |client: &LockClient<Bytes>| client.held(owner, name).is_some_and(|(held, ..)| held == token);
        if holds(&self.client) {
            return Some(Home::L3);
        }
        self.leases.as_ref().is_some_and(|leases| holds(leases)).then_some(Home::Lease)
    }

    fn clients(&self) -> impl Iterator<Item = &Arc<LockClient<Bytes>>> {
        std::iter::once(&self.client).chain(&self.leases)
    }

    pub(crate) fn reconfigure(&self, config: &Config) {
        self.client.reconfigure(lock_config(config));
        if let Some(leases) = &self.leases {
            leases.reconfigure(few(lock_config(config)));
        }
    }

    /// Whether the locks live in this process.
    pub(crate) fn is_embedded(&self) -> bool {
        matches!(self.backend, Backend::Embedded(_))
    }

    pub(crate) fn stats(&self) -> LockStats {
        self.clients().map(|client| client.stats()).sum()
    }

    pub(crate) fn epoch(&self) -> EpochStatus {
        match &self.backend {
            Backend::Embedded(backend) => {
                EpochStatus { epoch: backend.epoch(), has_server_ids: true, ..EpochStatus::default() }
            }
            Backend::Redis(backend) => backend.epoch(),
        }
    }

    /// What a token of a lock in Redis is worth at this moment; an error says why nobody can tell.
    pub(crate) async fn standing(&self, name: &Bytes, token: FencingToken) -> Result<Standing, String> {
        match &self.backend {
            Backend::Embedded(_) => Err("locks live in this process".to_owned()),
            Backend::Redis(backend) => backend.standing(name, token).await.map_err(|error| error.to_string()),
        }
    }

    /// The epoch, if it is one that other sidecars share.
    pub(crate) fn shared_epoch(&self) -> Option<EpochStatus> {
        (!self.is_embedded()).then(|| self.epoch())
    }

    /// Lines of the INFO section.
    pub(crate) fn info(&self) -> String {
        let (stats, epoch) = (self.stats(), self.epoch());
        let durability = match &self.backend {
            Backend::Embedded(_) => "none: locks and tokens live in this process, each pod has its own".to_owned(),
            Backend::Redis(_) if epoch.epoch == 0 => "unknown: no lock was asked for yet".to_owned(),
            Backend::Redis(_) => describe_durability(&epoch),
        };
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = write!(
            text,
            "caddy_locks_held:{}\r\ncaddy_lock_waiters:{}\r\ncaddy_lock_epoch:{}\r\ncaddy_lock_tokens:{durability}\r\n",
            stats.held, stats.waiting, epoch.epoch
        );
        text
    }

    /// Names of locks that match, at most `most`.
    pub(crate) async fn names(&self, pattern: &[u8], most: usize) -> Result<Vec<Bytes>, String> {
        match &self.backend {
            Backend::Embedded(backend) => {
                let names = backend.names().into_iter();
                Ok(names.filter(|name| glob::matches(pattern, name)).take(most).collect())
            }
            Backend::Redis(backend) => backend.names(pattern, most).await.map_err(|error| error.to_string()),
        }
    }

    /// Lets go of what connections hold: they will not be there to do it.
    pub(crate) async fn drain(&self) {
        let owners: Vec<Owner> = self.sessions.0.lock().keys().cloned().collect();
        for owner in owners.iter().filter(|owner| owner.as_str().starts_with(&self.prefix)) {
            self.clients().for_each(|client| client.depart(owner));
        }
        let drained = futures::future::join_all(self.clients().map(|client| client.drain()));
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some locks could not be let go before the end; they end with their leases");
        }
    }

    // === sessions ===

    /// The owner that a connection is.
    pub(crate) fn owner_of(&self, session: u64) -> Owner {
        Owner::new(format!("{}{session}", self.prefix))
    }

    /// A session that takes part, by its mailbox.
    pub(crate) fn session(mailbox: Arc<Mailbox>) -> Arc<LockSession> {
        Arc::new(LockSession { mailbox, lost: Mutex::default() })
    }

    /// The session speaks for the owner from now on.
    pub(crate) fn join(&self, owner: &Owner, session: &Arc<LockSession>) {
        let mut sessions = self.sessions.0.lock();
        sessions.entry(owner.clone()).or_default().push(Arc::downgrade(session));
    }

    /// A connection has ended.
    pub(crate) fn leave(&self, own: &Owner, named: &HashSet<Owner>, session: &Arc<LockSession>) {
        let mut orphans = Vec::new();
        let mut sessions = self.sessions.0.lock();
        sessions.remove(own);
        for owner in named {
            let Some(speakers) = sessions.get_mut(owner) else { continue };
            speakers.retain(|speaker| speaker.upgrade().is_some_and(|other| !Arc::ptr_eq(&other, session)));
            if speakers.is_empty() {
                sessions.remove(owner);
                orphans.push(owner);
            }
        }
        drop(sessions);
        for client in self.clients() {
            client.depart(own);
            for owner in &orphans {
                client.stop_renewing(owner);
            }
        }
    }
}

/// Keeps the locks' connection at the node of a cluster that has their slot.
async fn follow(shared: Arc<Shared>, backend: Arc<RedisLocks>, supervisor: Supervisor) {
    let L3::Redis(redis) = &shared.l3 else { return };
    let Some(cluster) = redis.cluster() else { return };
    let mut maps = cluster.maps();
    let mut there = None;
    loop {
        maps.mark_unchanged();
        if let Some(node) = redis.owner(&backend.key())
            && there.replace(node.id) != Some(node.id)
        {
            tracing::debug!(node = %node.target.endpoint, "the locks are there");
            supervisor.spawn_local("lock connection", backend.connect(node.target.clone()));
        }
        tokio::select! {
            changed = maps.changed() => if changed.is_err() { return },
            () = backend.doubtful() => cluster.refresh(),
        }
    }
}

/// What the growth of tokens rests on, in words.
fn describe_durability(epoch: &EpochStatus) -> String {
    let mut text = match &epoch.authority {
        None => "as durable as L3 (no API server is configured)".to_owned(),
        Some(lease) if epoch.trouble.is_empty() => {
            format!("their epoch is kept in the Lease {lease} and mirrored in L3")
        }
        Some(lease) => {
            format!(
                "as durable as L3 until the Lease {lease} can be asked, and a new epoch waits for that: {}",
                epoch.trouble
            )
        }
    };
    text.push_str(if epoch.has_server_ids {
        "; loss of L3's data is noticed"
    } else {
        "; loss of L3's data is noticed by the epoch's mirror only (INFO is refused)"
    });
    text
}

/// As many as there may be in a namespace.
fn few(config: LockConfig) -> LockConfig {
    let max_held = config.limits.max_held.min(LOCKS_MAX);
    LockConfig { limits: LockLimits { max_held, ..config.limits }, ..config }
}

fn lock_config(config: &Config) -> LockConfig {
    let locks = &config.locks;
    LockConfig {
        timeout: locks.timeout,
        lease: locks.lease,
        renew_at_percent: locks.renew_at_percent,
        deadlock_check: locks.deadlock_check,
        limits: LockLimits { max_held: locks.max_held, max_waiters: locks.max_waiters },
        guards: guards::engine(),
    }
}
