//! One sidecar made of the engine's real parts, in front of a Redis in miniature: one key, a tracking table, ordered
//! streams both ways. All that the engine leaves to its caller is done here as the sidecar does it, unless a [`Slip`]
//! says otherwise.
//!
//! The value of the key is its version, so "older" can be seen. What has been seen by anybody is kept beside the
//! scheduled world, in [`Seen`]: it takes no part in the interleaving.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use caddy_engine::{
    Cache, CacheConfig, Clock, Doubt, FlightId, Flights, FlightsConfig, Guards, Incarnation, Joined, KernelConfig,
    KeyHash, L1Config, L2Config, Lookup, ManualClock, Moment, PolicyKind, Sent, SourceId, SourceKind, TieringConfig,
    Wanted, Worker,
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
}

/// What the apps and the server have seen so far.
#[derive(Debug, Default)]
struct Seen {
    /// No request sent from now on may be answered with an older version.
    floor: u64,
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
    tracking: Tracking,
    broken: bool,
    closing: bool,
    requests: VecDeque<Request>,
    replies: VecDeque<Reply>,
    late_pushes: VecDeque<u64>,
}

type Answer = Option<u64>;

pub(crate) struct World {
    cache: Arc<Cache<u64, u64>>,
    flights: Flights<u64, mpsc::Sender<Answer>>,
    source: SourceId,
    first: Incarnation,
    clock: ManualClock,
    server: Mutex<Server>,
    changed: Condvar,
    seen: parking_lot::Mutex<Seen>,
    slip: Option<Slip>,
}

impl World {
    pub(crate) fn new(guards: Guards, slip: Option<Slip>) -> Arc<Self> {
        let kernel = KernelConfig { stripes: 1, max_sources: 1, max_staleness: MAX_STALENESS, guards };
        let cache = Cache::new(CacheConfig {
            kernel,
            l1: L1Config { max_entries: 2, max_bytes: 1 << 16 },
            l2: L2Config { max_bytes: 1 << 16, max_entries: 4, shards: 1, policy: PolicyKind::S3Fifo },
            tiering: TieringConfig { promote_after_hits: 1, ..TieringConfig::default() },
        });
        let source = cache.kernel().register(SourceKind::Tracked).expect("an empty table");
        let clock = ManualClock::default();
        let first = cache.kernel().connected(source);
        cache.kernel().proved(&cache.kernel().sending(source, clock.now()), clock.now());
        Arc::new(Self {
            cache,
            flights: Flights::new(FlightsConfig::default()),
            source,
            first,
            clock,
            server: Mutex::new(Server { tracking: Tracking::On, ..Server::default() }),
            changed: Condvar::new(),
            seen: parking_lot::Mutex::new(Seen::default()),
            slip,
        })
    }

    pub(crate) fn violation(&self) -> Option<String> {
        let seen = self.seen.lock();
        seen.violation.as_ref().map(|what| format!("{what}\n  {}", seen.history.join("\n  ")))
    }

    pub(crate) fn worker(&self) -> Worker<u64, u64> {
        self.cache.worker()
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

    fn raise_floor(&self, version: u64) {
        let mut seen = self.seen.lock();
        seen.floor = seen.floor.max(version);
    }
}

// === what happens at the server ===

impl World {
    fn overwrite(&self, server: &mut Server) -> u64 {
        server.version += 1;
        self.seen.lock().overwritten.push(self.clock.now());
        if server.tracking == Tracking::Registered {
            server.tracking = Tracking::On;
            server.replies.push_back(Reply::Push(server.version));
            self.changed.notify_all();
        }
        server.version
    }

    /// Another sidecar, or anybody with a Redis client.
    pub(crate) fn foreign_write(&self) {
        let version = self.overwrite(&mut self.server());
        self.note(format!("foreign write of {version}"));
    }

    /// The tracked connection breaks; what was on its way is lost.
    pub(crate) fn lose_connection(&self) {
        let mut server = self.server();
        server.requests.clear();
        server.replies.clear();
        (server.tracking, server.broken) = (Tracking::Off, true);
        self.note("connection lost".into());
        self.changed.notify_all();
    }

    pub(crate) fn tick(&self, span: Duration) {
        self.clock.advance(span);
        self.note(format!("{span:?} later"));
    }

    /// Executes what arrives on the tracked connection, in order.
    pub(crate) fn serve(&self) {
        loop {
            let mut server = self.server();
            while server.requests.is_empty() && !server.closing {
                server = self.wait(server);
            }
            let Some(request) = server.requests.pop_front() else { return };
            let version = server.version;
            self.note(format!("server executes {request:?} at {version}"));
            match request {
                Request::Get(id) => {
                    if server.tracking == Tracking::On {
                        server.tracking = Tracking::Registered;
                    }
                    server.replies.push_back(Reply::Value(id, version));
                }
                Request::Probe(sent) => server.replies.push_back(Reply::Proof(sent)),
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
    pub(crate) fn receive(&self) {
        let mut incarnation = self.first;
        loop {
            let mut server = self.server();
            while server.replies.is_empty() && !server.broken && !server.closing {
                server = self.wait(server);
            }
            if server.broken {
                drop(server);
                incarnation = self.reconnect(incarnation);
                continue;
            }
            let Some(reply) = server.replies.pop_front() else {
                if server.requests.is_empty() {
                    return;
                }
                drop(server);
                shuttle::thread::yield_now();
                continue;
            };
            drop(server);
            self.note(format!("sidecar receives {reply:?}"));
            self.apply(&reply);
        }
    }

    fn apply(&self, reply: &Reply) {
        let kernel = self.cache.kernel();
        match *reply {
            Reply::Push(version) if self.slip == Some(Slip::PushNotInline) => {
                self.server().late_pushes.push_back(version);
                self.changed.notify_all();
            }
            Reply::Push(version) => self.apply_push(version),
            Reply::Proof(sent) => kernel.proved(&sent, self.clock.now()),
            Reply::Value(id, version) => {
                let Some(landed) = self.flights.land(id) else { return };
                let now = self.clock.now();
                kernel.proved(&landed.token.sent(), now);
                let filled = self.cache.fill(&landed.token, landed.hash, landed.key, version, Moment::NEVER, now);
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

    fn apply_push(&self, version: u64) {
        self.cache.kernel().bump(KeyHash::from_raw(KEY));
        self.raise_floor(version);
    }

    /// Only for [`Slip::PushNotInline`]: the other task.
    pub(crate) fn apply_late_pushes(&self) {
        loop {
            let mut server = self.server();
            while server.late_pushes.is_empty() && !server.closing {
                server = self.wait(server);
            }
            let Some(version) = server.late_pushes.pop_front() else { return };
            drop(server);
            self.apply_push(version);
        }
    }

    fn reconnect(&self, incarnation: Incarnation) -> Incarnation {
        let kernel = self.cache.kernel();
        kernel.lost(self.source, incarnation);
        for waiter in self.flights.abandon_source(self.source) {
            let _ = waiter.send(None);
        }
        let mut server = self.server();
        server.broken = false;
        server.tracking = if self.slip == Some(Slip::NoRetracking) { Tracking::Off } else { Tracking::On };
        self.note("reconnected".into());
        kernel.connected(self.source)
    }
}

// === what apps do ===

impl World {
    /// One read by an app on this worker, checked against C1, C3 and C4.
    pub(crate) fn read(&self, worker: &mut Worker<u64, u64>) {
        let start = self.clock.now();
        let floor = self.seen.lock().floor;
        let key_hash = KeyHash::from_raw(KEY);
        let hash = key_hash.tier(0);
        let (how, answer) = match worker.lookup(hash, &KEY, start) {
            Lookup::Hit(hit) => {
                let version = *hit.entry.value();
                let how = format!("{:?}", hit.tier);
                if hit.probe_due {
                    self.probe(start);
                }
                (how, Some(version))
            }
            Lookup::Uncertain(uncertain) if uncertain.doubt == Doubt::Lapsed => {
                self.probe(start);
                ("relay".to_owned(), Some(self.relayed_read()))
            }
            Lookup::Uncertain(_) | Lookup::Miss(_) => ("L3".to_owned(), self.fly(key_hash, start)),
        };
        let Some(version) = answer else { return };
        let mut seen = self.seen.lock();
        seen.history.push(format!("read sent at {start:?} above {floor} is answered {version} from {how}"));
        if version < floor {
            seen.violation.get_or_insert_with(|| format!("C1/C3: answered {version} below {floor}"));
        }
        if seen.overwritten.get(version as usize).is_some_and(|&at| start > at + MAX_STALENESS) {
            seen.violation.get_or_insert_with(|| format!("C4: {version} was overwritten before the bound"));
        }
        seen.floor = seen.floor.max(version);
    }

    fn fly(&self, key_hash: KeyHash, now: Moment) -> Answer {
        let (sender, receiver) = mpsc::channel();
        let wanted = Wanted { source: self.source, key_hash, hash: key_hash.tier(0), key: &KEY };
        match self.flights.join(self.cache.kernel(), &wanted, |key| *key, sender, now, Moment::NEVER) {
            Joined::Lead(id, _) => {
                if !self.send(Request::Get(id)) {
                    for waiter in self.flights.abandon(id) {
                        let _ = waiter.send(None);
                    }
                }
            }
            Joined::Waiting(_) => {}
            Joined::Refused(_) => return None,
        }
        receiver.recv().ok().flatten()
    }

    fn probe(&self, now: Moment) {
        if let Some(sent) = self.cache.kernel().claim_probe(self.source, now) {
            self.send(Request::Probe(sent));
        }
    }

    fn send(&self, request: Request) -> bool {
        let mut server = self.server();
        if server.broken {
            return false;
        }
        server.requests.push_back(request);
        self.changed.notify_all();
        true
    }

    /// Over another connection than the tracked one: its reply bumps before it is handed on.
    fn relayed_read(&self) -> u64 {
        let version = self.server().version;
        if self.slip != Some(Slip::RelayedReadWithoutBump) {
            self.cache.kernel().bump(KeyHash::from_raw(KEY));
        }
        version
    }

    pub(crate) fn read_past_the_cache(&self) {
        let version = self.relayed_read();
        self.note(format!("relayed read is answered {version}"));
        self.raise_floor(version);
    }

    /// One write by an app, over a relay.
    pub(crate) fn write(&self) {
        let version = self.overwrite(&mut self.server());
        self.note(format!("own write of {version} executes"));
        if self.slip == Some(Slip::AnswerBeforeBump) {
            self.raise_floor(version);
            shuttle::thread::yield_now();
        }
        self.cache.kernel().bump(KeyHash::from_raw(KEY));
        self.note(format!("own write of {version} is answered"));
        self.raise_floor(version);
    }

    /// L2 lets go of the entry.
    pub(crate) fn evict(&self) {
        self.cache.remove(KeyHash::from_raw(KEY).tier(0), &KEY);
    }
}
