//! The locks of this sidecar's apps: one client of whatever they live in, and which session owns what.
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
use caddy_contract::Config;
use caddy_engine::{
    BootClock, Clock, TokioTimer, glob,
    locks::{FencingToken, InProcess, LockClient, LockConfig, LockLimits, LockStats, LockWatcher, LostReason, Owner},
};
use caddy_remote::{
    Target,
    locks::{EpochStatus, LockLane, RedisLocks},
};
use parking_lot::Mutex;

use crate::{
    mailbox::{Delivery, Mailbox},
    supervisor::Supervisor,
};

/// How long the end of the sidecar waits for Redis to hear of the locks that are let go.
const DRAIN: Duration = Duration::from_secs(1);
/// Lost locks that a session is told of; it lets go of what it does not read about.
const MAX_NOTES: usize = 1024;

/// See the module.
pub(crate) struct Locks {
    pub(crate) client: Arc<LockClient<Bytes>>,
    backend: Backend,
    sessions: Arc<Sessions>,
    /// Begins the name of every connection as an owner.
    prefix: String,
    lanes: Mutex<Option<[LockLane; 2]>>,
    started: AtomicBool,
    /// Why there are none.
    refusal: Option<&'static str>,
}

const NOT_OVER_A_CLUSTER: &str =
    "LOCK commands need l3.redis.mode Standalone: locks over a Redis Cluster are not built yet";

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
    /// Over the Redis at `target`, or in this process.
    pub(crate) fn new(config: &Config, target: Option<Arc<Target>>) -> Self {
        let id = format!("{:016x}", RandomState::new().hash_one(BootClock.now()));
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "host".to_owned());
        let timer = Arc::new(TokioTimer);
        let locks = lock_config(config);
        let (client, backend, lanes) = match target {
            None => {
                let backend = InProcess::new(timer.clone());
                (LockClient::new(backend.clone(), timer, locks, id.clone()), Backend::Embedded(backend), None)
            }
            Some(target) => {
                let (backend, lanes) = RedisLocks::new(target, &config.cluster.domain, &id);
                (LockClient::new(backend.clone(), timer, locks, id.clone()), Backend::Redis(backend), Some(lanes))
            }
        };
        let sessions = Arc::new(Sessions::default());
        client.watch(sessions.clone());
        let prefix = format!("conn:{host}/{id}:");
        let is_redis = matches!(config.l3, caddy_contract::L3::Redis(_));
        let refusal = (is_redis && lanes.is_none()).then_some(NOT_OVER_A_CLUSTER);
        Self { client, backend, sessions, prefix, lanes: Mutex::new(lanes), started: AtomicBool::new(false), refusal }
    }

    /// Runs what keeps the locks, once, on the thread that calls first.
    pub(crate) fn start(&self, supervisor: &Supervisor) {
        if self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        for lane in self.lanes.lock().take().into_iter().flatten() {
            supervisor.spawn_vital("lock connection", lane);
        }
        let client = self.client.clone();
        supervisor.spawn_vital("locks", async move { client.run().await });
    }

    pub(crate) fn reconfigure(&self, config: &Config) {
        self.client.reconfigure(lock_config(config));
    }

    /// Why there are no locks here; `None`: there are.
    pub(crate) fn refusal(&self) -> Option<&'static str> {
        self.refusal
    }

    /// Whether the locks live in this process.
    pub(crate) fn is_embedded(&self) -> bool {
        matches!(self.backend, Backend::Embedded(_))
    }

    pub(crate) fn stats(&self) -> LockStats {
        self.client.stats()
    }

    pub(crate) fn epoch(&self) -> EpochStatus {
        match &self.backend {
            Backend::Embedded(backend) => EpochStatus { epoch: backend.epoch(), changes: 0, has_server_ids: true },
            Backend::Redis(backend) => backend.epoch(),
        }
    }

    /// Lines of the INFO section.
    pub(crate) fn info(&self) -> String {
        let (stats, epoch) = (self.stats(), self.epoch());
        let durability = match &self.backend {
            _ if self.refusal.is_some() => "none: over a Redis Cluster LOCK commands are refused",
            Backend::Embedded(_) => "none: locks and tokens live in this process, each pod has its own",
            Backend::Redis(_) if epoch.epoch == 0 => "unknown: no lock was asked for yet",
            Backend::Redis(_) if epoch.has_server_ids => "as durable as L3, whose loss of data is noticed",
            Backend::Redis(_) => {
                "as durable as L3, whose loss of data is noticed by the epoch's mirror only (INFO is refused)"
            }
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
            Backend::Redis(backend) => {
                let mut names = backend.names(pattern, most).await.map_err(|error| error.to_string())?;
                names.sort_unstable();
                Ok(names)
            }
        }
    }

    /// Lets go of what connections hold: they will not be there to do it.
    pub(crate) async fn drain(&self) {
        let owners: Vec<Owner> = self.sessions.0.lock().keys().cloned().collect();
        for owner in owners.iter().filter(|owner| owner.as_str().starts_with(&self.prefix)) {
            self.client.depart(owner);
        }
        if tokio::time::timeout(DRAIN, self.client.drain()).await.is_err() {
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
        self.client.depart(own);
        for owner in orphans {
            self.client.stop_renewing(owner);
        }
    }
}

fn lock_config(config: &Config) -> LockConfig {
    let locks = &config.locks;
    LockConfig {
        timeout: locks.timeout,
        lease: locks.lease,
        renew_at_percent: locks.renew_at_percent,
        deadlock_check: locks.deadlock_check,
        limits: LockLimits { max_held: locks.max_held, max_waiters: locks.max_waiters },
    }
}
