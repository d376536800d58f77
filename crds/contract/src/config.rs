//! The file's meaning: what the sidecar works with. Only [`RawConfig::parse`] and [`Config::default`] make one.

mod keyspaces;
mod l3;
mod reader;
mod stores;
mod tags;

pub use keyspaces::{Behind, Compression, Keyspace, Loading, NegativeFilter};
pub use l3::{Endpoint, L3, Redis, Sentinel, Tls};
pub use stores::{HttpStore, PostgresStore, Store, StoreKind};
pub use tags::{TAG_BYTES, TAGS_MAX, TagTemplate, stars};

use crate::{Auth, Budget, ByteSize, Coherence, Faults, L2Policy, OnUncertain, RawConfig, RawConsistency, RawWarming};
use reader::Reader;
use std::{net::IpAddr, path::PathBuf, time::Duration};

/// Longest path that fits into a Unix socket address, its closing NUL not counted.
const SOCKET_PATH_MAX: usize = 107;
/// Least L2: below it the fixed tables are larger than the data.
const L2_MIN: ByteSize = ByteSize::mebi(1);
/// Least lease: several round trips, so that it can be renewed at all.
pub const LEASE_MIN_MILLIS: u64 = 100;
/// Least frame: room for any command with a key and small arguments.
const FRAME_MIN: ByteSize = ByteSize::new(16 << 10);
/// Largest frame: positions within one are kept in 32 bits.
const FRAME_MAX: ByteSize = ByteSize::mebi(4095);

/// The whole configuration of a sidecar.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The CacheCluster's `metadata.generation`; 0 in files written by hand.
    pub config_generation: u64,
    /// Whose sidecar this is.
    pub cluster: Cluster,
    /// Where apps connect.
    pub listen: Listen,
    /// Health and metrics.
    pub admin: Admin,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// The tier of each worker.
    pub l1: L1,
    /// The tier of the sidecar.
    pub l2: L2,
    /// The tier of the cluster.
    pub l3: L3,
    /// When entries move between L1 and L2.
    pub tiering: Tiering,
    /// What a reader is promised.
    pub consistency: Consistency,
    /// Rules for keys; the first match wins; keys that match none are `Auto`.
    pub keyspaces: Vec<Keyspace>,
    /// The app's databases, which keyspaces name.
    pub stores: Vec<Store>,
    /// What is read before it is asked for; none: nothing.
    pub warming: Option<Warming>,
    /// How the API server is reached; none outside of Kubernetes.
    pub kubernetes: Option<Kubernetes>,
    /// Bounds on everything that a client controls.
    pub limits: Limits,
    /// Who may use the socket.
    pub auth: Auth,
    /// Locks between the pods.
    pub locks: Locks,
}

/// Locks between the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locks {
    /// How long a lock outlives an owner that died.
    pub lease: Duration,
    /// How long an acquisition waits for its turn unless it says otherwise.
    pub timeout: Duration,
    /// At which part of the lease it is renewed, percent.
    pub renew_at_percent: u32,
    /// Pause between two looks for deadlocks.
    pub deadlock_check: Duration,
    /// Locks that one sidecar holds at a time.
    pub max_held: usize,
    /// Acquisitions under way at one sidecar at a time, waiting ones included.
    pub max_waiters: usize,
}

/// What a sidecar that starts reads before it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warming {
    /// Reads that a sidecar tells of, and that one which starts makes.
    pub keys: usize,
    /// How many of them it makes in a second, at least 1.
    pub rate_per_second: u32,
    /// Which share of them the startup probe waits for, percent.
    pub startup_share: u32,
    /// How long it waits at most.
    pub startup_deadline: Duration,
}

/// How the sidecar speaks to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// Directory with `token` and `ca.crt`, which may come later.
    pub identity_dir: PathBuf,
    /// How many sidecars the cluster has, rounded up.
    pub members: u32,
}

/// Whose sidecar this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Name of the CacheCluster.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Name under which sidecars share generations, locks and events.
    pub domain: String,
    /// Uid of the CacheCluster, if there is one.
    pub uid: Option<String>,
}

/// Where apps connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Port on 127.0.0.1, if there is one.
    pub tcp_port: Option<u16>,
}

/// Health and metrics, never data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Port; 0 lets the system choose one.
    pub port: u16,
    /// Address it is bound to.
    pub address: IpAddr,
}

/// The private tier of each worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L1 {
    /// Entries, all workers together; 0 turns L1 off.
    pub max_entries: usize,
    /// Bytes, all workers together.
    pub max_bytes: ByteSize,
}

/// The tier that the workers of a sidecar share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2 {
    /// Bytes of keys, values and metadata, or which share of the memory limit they may take.
    pub max_bytes: Budget,
    /// Which entries leave when it is full.
    pub policy: L2Policy,
    /// How values are kept small, where their keyspace does not say otherwise.
    pub compression: Compression,
}

/// When entries move between L1 and L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiering {
    /// L2 hits after which an entry is copied into L1, at least 1.
    pub promote_after_hits: u32,
    /// Idle time after which it leaves L1.
    pub demote_after_idle: Duration,
    /// Pause between two maintenance runs.
    pub maintenance_interval: Duration,
}

/// What a reader is promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consistency {
    /// Bound on how long an overwritten state may still be read.
    pub max_staleness: Duration,
    /// What a read gets while the sidecar cannot prove its copies current.
    pub on_uncertain: OnUncertain,
    /// How the sidecar learns of writes.
    pub coherence: Coherence,
    /// With `Broadcast`: only keys that begin with one of these are announced and cached; none: all keys.
    pub broadcast_prefixes: Vec<String>,
    /// With `ServeStale`: also to RESP2 sessions.
    pub allow_unmarked: bool,
}

/// Bounds on everything that a client controls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of apps at one time.
    pub max_connections: usize,
    /// Bytes of one command.
    pub max_frame_bytes: ByteSize,
    /// Bytes of a value; larger ones are relayed and never cached.
    pub max_value_bytes: ByteSize,
    /// Unanswered commands of one connection.
    pub max_pipeline: usize,
    /// Bytes of replies that wait for one slow reader.
    pub output_buffer_bytes: ByteSize,
    /// Time a reader may make no progress with a full buffer.
    pub slow_reader_timeout: Duration,
    /// Time after which a connection that sends nothing is closed.
    pub idle_timeout: Option<Duration>,
}

impl Default for Config {
    /// What an empty file says: the embedded L3 behind [`crate::SOCKET_PATH`].
    fn default() -> Self {
        RawConfig::default().parse().expect("the defaults are valid: a unit test parses them")
    }
}

impl RawConfig {
    /// The meaning of the file.
    ///
    /// # Errors
    /// Every fault, each with its path.
    pub fn parse(&self) -> Result<Config, Faults> {
        let mut read = Reader::default();
        let listen = Listen {
            socket: PathBuf::from(&self.listen.socket),
            tcp_port: (self.listen.tcp_port != 0).then_some(self.listen.tcp_port),
        };
        read.check(
            (1..=SOCKET_PATH_MAX).contains(&self.listen.socket.len()),
            "listen.socket",
            format!("must be a path of 1 to {SOCKET_PATH_MAX} bytes; that is all a Unix socket address holds"),
        );
        let config = Config {
            config_generation: self.config_generation.unwrap_or(0),
            cluster: read.cluster(self),
            listen,
            admin: Admin { port: self.admin.port, address: read.address("admin.address", &self.admin.address) },
            workers: read.within("workers", self.workers, 1, 64) as usize,
            l1: L1 {
                max_entries: usize::try_from(self.l1.max_entries).unwrap_or(usize::MAX),
                max_bytes: read.size("l1.maxBytes", &self.l1.max_bytes),
            },
            l2: L2 {
                max_bytes: read.budget_from("l2.maxBytes", &self.l2.max_bytes, L2_MIN),
                policy: self.l2.policy,
                compression: read.compression("l2.compression", &self.l2.compression),
            },
            l3: read.l3(&self.l3),
            tiering: Tiering {
                promote_after_hits: read.within(
                    "tiering.promoteAfterHits",
                    self.tiering.promote_after_hits,
                    1,
                    1_000_000,
                ),
                demote_after_idle: read.time("tiering.demoteAfterIdle", &self.tiering.demote_after_idle, 1_000),
                maintenance_interval: read.time("tiering.maintenanceInterval", &self.tiering.maintenance_interval, 100),
            },
            consistency: Consistency {
                max_staleness: read.time("consistency.maxStaleness", &self.consistency.max_staleness, 10),
                on_uncertain: self.consistency.on_uncertain,
                coherence: self.consistency.coherence,
                broadcast_prefixes: read.prefixes(&self.consistency),
                allow_unmarked: self.consistency.allow_unmarked,
            },
            stores: read.stores(&self.stores),
            keyspaces: read.keyspaces(self),
            warming: read.warming(self),
            kubernetes: self.kubernetes.as_ref().map(|kubernetes| Kubernetes {
                identity_dir: PathBuf::from(&kubernetes.identity_dir),
                members: kubernetes.members.max(1),
            }),
            limits: Limits {
                max_connections: read.within("limits.maxConnections", self.limits.max_connections, 1, 1_000_000)
                    as usize,
                max_frame_bytes: read.size_from("limits.maxFrameBytes", &self.limits.max_frame_bytes, FRAME_MIN),
                max_value_bytes: read.size("limits.maxValueBytes", &self.limits.max_value_bytes),
                max_pipeline: read.within("limits.maxPipeline", self.limits.max_pipeline, 1, 1_000_000) as usize,
                output_buffer_bytes: read.size_from(
                    "limits.outputBufferBytes",
                    &self.limits.output_buffer_bytes,
                    FRAME_MIN,
                ),
                slow_reader_timeout: read.time("limits.slowReaderTimeout", &self.limits.slow_reader_timeout, 100),
                idle_timeout: (!self.limits.idle_timeout.is_empty())
                    .then(|| read.time("limits.idleTimeout", &self.limits.idle_timeout, 100)),
            },
            locks: Locks {
                lease: read.time("locks.lease", &self.locks.lease, LEASE_MIN_MILLIS),
                timeout: read.time("locks.timeout", &self.locks.timeout, 0),
                renew_at_percent: read.within("locks.renewAtPercent", self.locks.renew_at_percent, 1, 70),
                deadlock_check: read.time("locks.deadlockCheck", &self.locks.deadlock_check, 100),
                max_held: read.within("locks.limits.maxHeld", self.locks.limits.max_held, 1, 1_000_000) as usize,
                max_waiters: read.within("locks.limits.maxWaiters", self.locks.limits.max_waiters, 1, 1_000_000)
                    as usize,
            },
            auth: self.auth.parse(&mut read.faults),
        };
        read.check(
            config.limits.max_frame_bytes <= FRAME_MAX,
            "limits.maxFrameBytes",
            format!("{} is too large; write at most {FRAME_MAX}", self.limits.max_frame_bytes),
        );
        read.faults.or(config)
    }
}

impl Reader {
    fn cluster(&mut self, raw: &RawConfig) -> Cluster {
        let cluster = &raw.cluster;
        self.check(!cluster.name.is_empty(), "cluster.name", "must not be empty");
        self.check(!cluster.namespace.is_empty(), "cluster.namespace", "must not be empty");
        let domain = match cluster.domain.as_str() {
            "" => format!("{}.{}", cluster.namespace, cluster.name),
            domain => domain.to_owned(),
        };
        // It becomes part of key names such as `caddy:<domain>:g:<name>`.
        let plain = domain.len() <= 253 && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        self.check(
            plain,
            "cluster.domain",
            format!("{domain:?} must be letters, digits, `-`, `_` and `.`, at most 253"),
        );
        let uid = (!cluster.uid.is_empty()).then(|| cluster.uid.clone());
        Cluster { name: cluster.name.clone(), namespace: cluster.namespace.clone(), domain, uid }
    }

    fn warming(&mut self, raw: &RawConfig) -> Option<Warming> {
        let RawWarming { enabled, keys, rate_per_second, startup_share, startup_deadline } = &raw.warming;
        let warming = Warming {
            keys: self.within("warming.keys", *keys, 1, 1000) as usize,
            rate_per_second: self.within("warming.ratePerSecond", *rate_per_second, 1, 100_000),
            startup_share: self.within("warming.startupShare", *startup_share, 0, 100),
            startup_deadline: self.time("warming.startupDeadline", startup_deadline, 1000),
        };
        self.check(
            warming.startup_deadline <= Duration::from_mins(10),
            "warming.startupDeadline",
            format!("{startup_deadline} is too long; write at most 10m"),
        );
        self.check(
            *enabled || warming.startup_share == 0,
            "warming.startupShare",
            "is of use with warming.enabled: true only",
        );
        self.check(
            !enabled || raw.l3.redis.is_some(),
            "warming.enabled",
            "needs l3.redis: what is read most is written down there",
        );
        enabled.then_some(warming)
    }

    /// Redis refuses prefixes of which one begins with another.
    fn prefixes(&mut self, raw: &RawConsistency) -> Vec<String> {
        let prefixes = &raw.broadcast_prefixes;
        self.check(
            prefixes.is_empty() || raw.coherence == Coherence::Broadcast,
            "consistency.broadcastPrefixes",
            "is of use with coherence Broadcast only",
        );
        for (n, prefix) in prefixes.iter().enumerate() {
            let overlaps = prefixes.iter().enumerate().any(|(m, other)| m != n && prefix.starts_with(other.as_str()));
            self.check(
                !prefix.is_empty() && !overlaps,
                &format!("consistency.broadcastPrefixes[{n}]"),
                format!("{prefix:?} is empty or begins with another one of the list; leave it out"),
            );
        }
        prefixes.clone()
    }
}
