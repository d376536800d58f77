//! Two sidecars made of the engine's real parts, in front of a Redis in miniature: one key, a tracking table, ordered
//! streams both ways with each of them. All that the engine leaves to its caller is done here as the sidecar does it,
//! unless a [`Slip`] says otherwise.
//!
//! The value of the key is its version, so "older" can be seen. What has been seen by anybody is kept beside the
//! scheduled world, in [`Seen`]: it takes no part in the interleaving.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use caddy_engine::{
    Cache, CacheConfig, Clock, Doubt, FlightId, Flights, FlightsConfig, FlushCause, Guards, Incarnation, Joined,
    KernelConfig, KeyHash, L1Config, L2Config, Lookup, ManualClock, Moment, PolicyKind, Sent, SourceId, SourceKind,
    TieringConfig, Wanted, Worker,
};
use shuttle::sync::{Condvar, Mutex, MutexGuard, mpsc};

pub(crate) const MAX_STALENESS: Duration = Duration::from_secs(1);
const KEY: u64 = 7;

/// A duty of the caller that a test makes it neglect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slip {
    /// A write is answered first and bumped after.
    AnswerBeforeBump,
    /// Pushes are applied by another task than the one that hands replies on.
    PushNotInline,
    /// A read that went over a relay is answered without a bump.
    RelayedReadWithoutBump,
    /// After a reconnect tracking is not switched on again.
    NoRetracking,
    /// The server does not push a sidecar's own writes (NOLOOP).
    OwnWritesNotPushed,
    /// What was written is put into the tiers, under a token taken when the write is answered.
    PopulateFromWrite,
    /// What fills the tiers is read on another connection than the tracked one.
    FillFromRelay,
    /// The push that says "everything" is not applied.
    IgnoreFlush,
}

/// What the apps and the server have seen so far.
#[derive(Debug, Default)]
struct Seen {
    /// No request sent to this sidecar from now on may be answered with an older version.
    floors: [u64; SIDECARS],
    /// When each version was overwritten, at the server.
    overwritten: Vec<Moment>,
    history: Vec<String>,
    violation: Option<String>,
}

#[derive(Debug)]
enum Request {
    Get(FlightId),
    Probe(Sent),
}

#[derive(Debug)]
enum Reply {
    Value(FlightId, u64),
    Proof(Sent),
    Push(u64),
    /// Everything was replaced.
    Flush(u64),
}

/// The tracking table's row for the sidecar's connection.
#[derive(Debug, Default, PartialEq, Eq)]
enum Tracking {
    #[default]
    Off,
    On,
    /// On, and the key was read since its last write.
    Registered,
}

#[derive(Debug, Default)]
struct Server {
    version: u64,
    closing: bool,
    connections: [Connection; SIDECARS],
}

/// A sidecar's tracked connection.
#[derive(Debug, Default)]
struct Connection {
    tracking: Tracking,
    broken: bool,
    requests: VecDeque<Request>,
    replies: VecDeque<Reply>,
    late_pushes: VecDeque<u64>,
}

type Answer = Option<u64>;

pub(crate) const SIDECARS: usize = 2;

struct Sidecar {
    cache: Arc<Cache<u64, u64>>,
    flights: Flights<u64, mpsc::Sender<Answer>>,
    source: SourceId,
    first: Incarnation,
}

pub(crate) struct World {
    sidecars: [Sidecar; SIDECARS],
    clock: ManualClock,
    server: Mutex<Server>,
    changed: Condvar,
    seen: parking_lot::Mutex<Seen>,
    slip: Option<Slip>,
}

impl Sidecar {
    fn new(guards: Guards, clock: &ManualClock) -> Self {
        let kernel = KernelConfig { stripes: 1, max_sources: 1, max_staleness: MAX_STALENESS, guards };
        let cache = Cache::new(CacheConfig {
            kernel,
            l1: L1Config { max_entries: 2, max_bytes: 1 << 16 },
            l2: L2Config { max_bytes: 1 << 16, max_entries: 4, shards: 1, policy: PolicyKind::S3Fifo },
            tiering: TieringConfig { promote_after_hits: 1, ..TieringConfig::default() },
        });
        let source = cache.kernel().register(SourceKind::Tracked).expect("an empty table");
        let first = cache.kernel().connected(source);
        cache.kernel().proved(&cache.kernel().sending(source, clock.now()), clock.now());
        Self { cache, flights: Flights::new(FlightsConfig::default()), source, first }
    }
}

impl World {
    pub(crate) fn new(guards: Guards, slip: Option<Slip>) -> Arc<Self> {
        let clock = ManualClock::default();
        let mut server = Server::default();
        for connection in &mut server.connections {
            connection.tracking = Tracking::On;
        }
        Arc::new(Self {
            sidecars: std::array::from_fn(|_| Sidecar::new(guards, &clock)),
            clock,
            server: Mutex::new(server),
            changed: Condvar::new(),
            seen: parking_lot::Mutex::new(Seen::default()),
            slip,
        })
    }

    pub(crate) fn violation(&self) -> Option<String> {
        let seen = self.seen.lock();
        seen.violation.as_ref().map(|what| format!("{what}\n  {}", seen.history.join("\n  ")))
    }

    pub(crate) fn worker(&self, at: usize) -> Worker<u64, u64> {
        self.sidecars[at].cache.worker()
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().expect("no thread of the world panics")
    }

    fn wait<'a>(&self, server: MutexGuard<'a, Server>) -> MutexGuard<'a, Server> {
        self.changed.wait(server).expect("no thread of the world panics")
    }

    fn note(&self, what: String) {
        self.seen.lock().history.push(what);
    }

    fn raise_floor(&self, at: usize, version: u64) {
        let floor = &mut self.seen.lock().floors[at];
        *floor = (*floor).max(version);
    }
}

// === what happens at the server ===

impl World {
    /// A write, by a sidecar over one of its relays or by a foreigner.
    fn overwrite(&self, server: &mut Server, by: Option<usize>) -> u64 {
        server.version += 1;
        self.seen.lock().overwritten.push(self.clock.now());
        for (at, connection) in server.connections.iter_mut().enumerate() {
            if connection.tracking == Tracking::Registered {
                connection.tracking = Tracking::On;
                if by != Some(at) || self.slip != Some(Slip::OwnWritesNotPushed) {
                    connection.replies.push_back(Reply::Push(server.version));
                }
            }
        }
        self.changed.notify_all();
        server.version
    }

    /// Anybody with a Redis client.
    pub(crate) fn foreign_write(&self) {
        let version = self.overwrite(&mut self.server(), None);
        self.note(format!("foreign write of {version}"));
    }

    /// FLUSHALL, and a write in the same step so that it can be seen.
    pub(crate) fn foreign_flush(&self) {
        let mut server = self.server();
        server.version += 1;
        self.seen.lock().overwritten.push(self.clock.now());
        let version = server.version;
        for connection in &mut server.connections {
            if connection.tracking != Tracking::Off {
                connection.tracking = Tracking::On;
                connection.replies.push_back(Reply::Flush(version));
            }
        }
        self.changed.notify_all();
        self.note(format!("everything is replaced by {version}"));
    }

    /// The tracked connection breaks; what was on its way is lost.
    pub(crate) fn lose_connection(&self, at: usize) {
        let mut server = self.server();
        let connection = &mut server.connections[at];
        connection.requests.clear();
        connection.replies.clear();
        (connection.tracking, connection.broken) = (Tracking::Off, true);
        self.note("connection lost".into());
        self.changed.notify_all();
    }

    pub(crate) fn tick(&self, span: Duration) {
        self.clock.advance(span);
        self.note(format!("{span:?} later"));
    }

    /// Executes what arrives on a tracked connection, in order.
    pub(crate) fn serve(&self, at: usize) {
        loop {
            let mut server = self.server();
            while server.connections[at].requests.is_empty() && !server.closing {
                server = self.wait(server);
            }
            let version = server.version;
            let connection = &mut server.connections[at];
            let Some(request) = connection.requests.pop_front() else { return };
            self.note(format!("server executes {request:?} of {at} at {version}"));
            match request {
                Request::Get(id) => {
                    if connection.tracking == Tracking::On {
                        connection.tracking = Tracking::Registered;
                    }
                    connection.replies.push_back(Reply::Value(id, version));
                }
                Request::Probe(sent) => connection.replies.push_back(Reply::Proof(sent)),
            }
            self.changed.notify_all();
        }
    }

    /// Nothing more will be asked: the threads of server and connection end when they have worked off their queues.
    pub(crate) fn close(&self) {
        self.server().closing = true;
        self.changed.notify_all();
    }
}

// === the tracked connection's reader ===

impl World {
    pub(crate) fn receive(&self, at: usize) {
        let mut incarnation = self.sidecars[at].first;
        loop {
            let mut server = self.server();
            while server.connections[at].replies.is_empty() && !server.connections[at].broken && !server.closing {
                server = self.wait(server);
            }
            if server.connections[at].broken {
                drop(server);
                incarnation = self.reconnect(at, incarnation);
                continue;
            }
            let Some(reply) = server.connections[at].replies.pop_front() else {
                if server.connections[at].requests.is_empty() {
                    return;
                }
                drop(server);
                shuttle::thread::yield_now();
                continue;
            };
            drop(server);
            self.note(format!("sidecar {at} receives {reply:?}"));
            self.apply(at, &reply);
        }
    }

    fn apply(&self, at: usize, reply: &Reply) {
        let Sidecar { cache, flights, source, .. } = &self.sidecars[at];
        let kernel = cache.kernel();
        match *reply {
            Reply::Push(version) if self.slip == Some(Slip::PushNotInline) => {
                self.server().connections[at].late_pushes.push_back(version);
                self.changed.notify_all();
            }
            Reply::Push(version) => self.apply_push(at, version),
            Reply::Flush(version) => {
                if self.slip != Some(Slip::IgnoreFlush) {
                    kernel.flush(*source, FlushCause::Overwritten);
                }
                self.raise_floor(at, version);
            }
            Reply::Proof(sent) => kernel.proved(&sent, self.clock.now()),
            Reply::Value(id, version) => {
                let Some(landed) = flights.land(id) else { return };
                let now = self.clock.now();
                kernel.proved(&landed.token.sent(), now);
                let filled = cache.fill(&landed.token, landed.hash, landed.key, version, Moment::NEVER, now);
                self.note(format!(
                    "fill of {version}: {}",
                    filled.map_or_else(|refused| refused.to_string(), |_| "ok".into())
                ));
                for waiter in landed.waiters {
                    let _ = waiter.send(Some(version));
                }
            }
        }
    }

    fn apply_push(&self, at: usize, version: u64) {
        self.sidecars[at].cache.kernel().bump(KeyHash::from_raw(KEY));
        self.raise_floor(at, version);
    }

    /// Only for [`Slip::PushNotInline`]: the other task.
    pub(crate) fn apply_late_pushes(&self, at: usize) {
        loop {
            let mut server = self.server();
            while server.connections[at].late_pushes.is_empty() && !server.closing {
                server = self.wait(server);
            }
            let Some(version) = server.connections[at].late_pushes.pop_front() else { return };
            drop(server);
            self.apply_push(at, version);
        }
    }

    fn reconnect(&self, at: usize, incarnation: Incarnation) -> Incarnation {
        let Sidecar { cache, flights, source, .. } = &self.sidecars[at];
        cache.kernel().lost(*source, incarnation);
        for waiter in flights.abandon_source(*source) {
            let _ = waiter.send(None);
        }
        let mut server = self.server();
        let connection = &mut server.connections[at];
        connection.broken = false;
        connection.tracking = if self.slip == Some(Slip::NoRetracking) { Tracking::Off } else { Tracking::On };
        self.note("reconnected".into());
        cache.kernel().connected(*source)
    }
}

// === what apps do ===

impl World {
    /// One read by an app on this worker, checked against C1, C3 and C4.
    pub(crate) fn read(&self, at: usize, worker: &mut Worker<u64, u64>) {
        let start = self.clock.now();
        let floor = self.seen.lock().floors[at];
        let key_hash = KeyHash::from_raw(KEY);
        let hash = key_hash.tier(0);
        let (how, answer) = match worker.lookup(hash, &KEY, start) {
            Lookup::Hit(hit) => {
                let version = *hit.entry.value();
                let how = format!("{:?}", hit.tier);
                if hit.probe_due {
                    self.probe(at, start);
                }
                (how, Some(version))
            }
            Lookup::Uncertain(uncertain) if uncertain.doubt == Doubt::Lapsed => {
                self.probe(at, start);
                ("relay".to_owned(), Some(self.relayed_read(at)))
            }
            Lookup::Uncertain(_) | Lookup::Miss(_) if self.slip == Some(Slip::FillFromRelay) => {
                ("relay".to_owned(), Some(self.fill_from_relay(at, start)))
            }
            Lookup::Uncertain(_) | Lookup::Miss(_) => ("L3".to_owned(), self.fly(at, key_hash, start)),
        };
        let Some(version) = answer else { return };
        let mut seen = self.seen.lock();
        seen.history.push(format!("read by {at} sent at {start:?} above {floor} is answered {version} from {how}"));
        if version < floor {
            seen.violation.get_or_insert_with(|| format!("C1/C3: answered {version} below {floor}"));
        }
        if seen.overwritten.get(version as usize).is_some_and(|&at| start > at + MAX_STALENESS) {
            seen.violation.get_or_insert_with(|| format!("C4: {version} was overwritten before the bound"));
        }
        let floor = &mut seen.floors[at];
        *floor = (*floor).max(version);
    }

    fn fly(&self, at: usize, key_hash: KeyHash, now: Moment) -> Answer {
        let Sidecar { cache, flights, source, .. } = &self.sidecars[at];
        let (sender, receiver) = mpsc::channel();
        let wanted = Wanted { source: *source, key_hash, hash: key_hash.tier(0), key: &KEY };
        match flights.join(cache.kernel(), &wanted, |key| *key, sender, now, Moment::NEVER) {
            Joined::Lead(id, _) => {
                if !self.send(at, Request::Get(id)) {
                    for waiter in flights.abandon(id) {
                        let _ = waiter.send(None);
                    }
                }
            }
            Joined::Waiting(_) => {}
            Joined::Refused(_) => return None,
        }
        receiver.recv().ok().flatten()
    }

    fn probe(&self, at: usize, now: Moment) {
        let Sidecar { cache, source, .. } = &self.sidecars[at];
        if let Some(sent) = cache.kernel().claim_probe(*source, now) {
            self.send(at, Request::Probe(sent));
        }
    }

    fn send(&self, at: usize, request: Request) -> bool {
        let mut server = self.server();
        let connection = &mut server.connections[at];
        if connection.broken {
            return false;
        }
        connection.requests.push_back(request);
        self.changed.notify_all();
        true
    }

    /// Over another connection than the tracked one: its reply bumps before it is handed on.
    fn relayed_read(&self, at: usize) -> u64 {
        let version = self.server().version;
        if self.slip != Some(Slip::RelayedReadWithoutBump) {
            self.sidecars[at].cache.kernel().bump(KeyHash::from_raw(KEY));
        }
        version
    }

    /// Only for [`Slip::FillFromRelay`].
    fn fill_from_relay(&self, at: usize, now: Moment) -> u64 {
        let Sidecar { cache, source, .. } = &self.sidecars[at];
        let token = cache.kernel().begin_fill(*source, KeyHash::from_raw(KEY), now);
        let version = self.server().version;
        let _ = cache.fill(&token, KeyHash::from_raw(KEY).tier(0), KEY, version, Moment::NEVER, now);
        version
    }

    pub(crate) fn read_past_the_cache(&self, at: usize) {
        let version = self.relayed_read(at);
        self.note(format!("relayed read by {at} is answered {version}"));
        self.raise_floor(at, version);
    }

    /// One write by an app, over a relay.
    pub(crate) fn write(&self, at: usize) {
        let version = self.overwrite(&mut self.server(), Some(at));
        self.note(format!("own write of {version} by {at} executes"));
        if self.slip == Some(Slip::AnswerBeforeBump) {
            self.raise_floor(at, version);
            shuttle::thread::yield_now();
        }
        let Sidecar { cache, source, .. } = &self.sidecars[at];
        cache.kernel().bump(KeyHash::from_raw(KEY));
        if self.slip == Some(Slip::PopulateFromWrite) {
            let (key, now) = (KeyHash::from_raw(KEY), self.clock.now());
            let token = cache.kernel().begin_fill(*source, key, now);
            let _ = cache.fill(&token, key.tier(0), KEY, version, Moment::NEVER, now);
        }
        self.note(format!("own write of {version} by {at} is answered"));
        self.raise_floor(at, version);
    }

    /// A write whose relay is lost: its app is told that nobody knows, and it executes later.
    pub(crate) fn lost_write(&self, at: usize) {
        self.sidecars[at].cache.kernel().bump(KeyHash::from_raw(KEY));
        self.note(format!("a write by {at} is answered by an error"));
        shuttle::thread::yield_now();
        let version = self.overwrite(&mut self.server(), Some(at));
        self.note(format!("lost write of {version} by {at} executes"));
    }

    /// L2 lets go of the entry.
    pub(crate) fn evict(&self, at: usize) {
        self.sidecars[at].cache.remove(KeyHash::from_raw(KEY).tier(0), &KEY);
    }
}
