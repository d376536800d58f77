//! The file's meaning: what the sidecar works with. Only [`RawConfig::parse`] and [`Config::default`] make one.

use crate::{
    Algorithm, Auth, ByteSize, CacheMode, Coherence, Faults, KeyspaceMode, L2Policy, OnUncertain, QuantityError,
    RawCompression, RawConfig, RawConsistency, RawKeyspace, RawL3, RawRedis, RawSentinel, RawTls, RedisMode,
    SentinelTls, parse_duration,
};
use std::{collections::HashSet, fmt, net::IpAddr, path::PathBuf, time::Duration};

/// Longest path that fits into a Unix socket address, its closing NUL not counted.
const SOCKET_PATH_MAX: usize = 107;
/// Least L2: below it the fixed tables are larger than the data.
const L2_MIN: ByteSize = ByteSize::mebi(1);
/// Least lease: several round trips, so that it can be renewed at all.
pub const LEASE_MIN_MILLIS: u64 = 100;
/// Levels of ZSTD: above 19 a compressor takes hundreds of megabytes.
const LEVELS: std::ops::RangeInclusive<i32> = -7..=19;
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
    /// Bytes of keys, values and metadata.
    pub max_bytes: ByteSize,
    /// Which entries leave when it is full.
    pub policy: L2Policy,
    /// How values are kept small, where their keyspace does not say otherwise.
    pub compression: Compression,
}

/// How values are kept small in L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// How they are compressed.
    pub algorithm: Algorithm,
    /// For `Zstd`.
    pub level: i32,
    /// Smaller values stay as they are.
    pub min_bytes: ByteSize,
}

/// The tier that the sidecars of a cluster share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum L3 {
    /// In this process: each sidecar has its own data.
    Embedded,
    /// A Redis or Valkey.
    Redis(Box<Redis>),
}

/// A Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// How its nodes form one store.
    pub mode: RedisMode,
    /// At least one; exactly one in mode `Standalone`, every Sentinel in mode `Sentinel`, in mode `Cluster` those to ask for
    /// the others, in order.
    pub endpoints: Vec<Endpoint>,
    /// Set in mode `Sentinel`, and only there.
    pub sentinel: Option<Sentinel>,
    /// User for AUTH; none means Redis's default user.
    pub username: Option<String>,
    /// File that holds the user, read on each connect.
    pub username_file: Option<PathBuf>,
    /// File that holds the password, read on each connect, so that a rotated Secret is used.
    pub password_file: Option<PathBuf>,
    /// TLS; none means plain text.
    pub tls: Option<Tls>,
    /// Deadline of a connect with its handshake.
    pub connect_timeout: Duration,
    /// Deadline of a command.
    pub timeout: Duration,
}

/// How to ask the Sentinels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinel {
    /// What they call the primary.
    pub master_name: String,
    /// User for AUTH at the Sentinels.
    pub username: Option<String>,
    /// File that holds that user.
    pub username_file: Option<PathBuf>,
    /// File that holds their password.
    pub password_file: Option<PathBuf>,
    /// Whether TLS, where it is set for Redis, is used towards the Sentinels too.
    pub tls: SentinelTls,
}

/// TLS towards a Redis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificates of the authorities that are trusted; none means the system's.
    pub ca_file: Option<PathBuf>,
    /// Files of the certificate that is shown to the server, and of its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must be for; none means the endpoint's host.
    pub server_name: Option<String>,
}

/// Address of an L3 node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host name or address (IPv6 without brackets) and a port.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Path of a Unix socket.
    Unix(PathBuf),
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

/// A rule for the keys that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyspace {
    /// Name in metrics and messages, unique.
    pub name: String,
    /// Redis glob over whole keys.
    pub pattern: String,
    /// Whether copies are kept.
    pub cache: CacheMode,
    /// Whether copies answer, or are only counted.
    pub mode: KeyspaceMode,
    /// Bound on the life of a copy.
    pub ttl: Option<Duration>,
    /// Bound on the life of a copy that says "absent".
    pub negative_ttl: Option<Duration>,
    /// How its values are kept small.
    pub compression: Compression,
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

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = String;

    /// Reads `host:port`, `[v6]:port` or `unix:/path`; the error says what to write.
    fn from_str(text: &str) -> Result<Self, String> {
        let unclear = || format!("{text:?} is not an endpoint; write host:port (e.g. redis.shop:6379) or unix:/path");
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let fits = path.starts_with('/') && path.len() <= SOCKET_PATH_MAX;
            return fits.then(|| Self::Unix(path.into())).ok_or_else(unclear);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(unclear)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(unclear)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bracketed.unwrap_or(host);
        let named = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/@[]?#".contains(c));
        if !named || (host.contains(':') && bracketed.is_none()) {
            return Err(unclear());
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
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
                max_bytes: read.size_from("l2.maxBytes", &self.l2.max_bytes, L2_MIN),
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
            keyspaces: read.keyspaces(&self.keyspaces, &self.l2.compression),
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

/// Reads values and notes what is wrong with them; a faulty value's stand-in never leaves [`RawConfig::parse`].
#[derive(Default)]
struct Reader {
    faults: Faults,
}

impl Reader {
    fn check(&mut self, holds: bool, path: &str, message: impl Into<String>) {
        if !holds {
            self.faults.add(path, message);
        }
    }

    fn noted<T: Default>(&mut self, path: &str, value: Result<T, QuantityError>) -> T {
        value.unwrap_or_else(|error| {
            self.faults.add(path, error.to_string());
            T::default()
        })
    }

    fn size(&mut self, path: &str, text: &str) -> ByteSize {
        self.noted(path, text.parse())
    }

    fn size_from(&mut self, path: &str, text: &str, least: ByteSize) -> ByteSize {
        let known = self.faults.len();
        let size = self.size(path, text);
        self.check(
            size >= least || self.faults.len() > known,
            path,
            format!("{text} is too small; write at least {least}"),
        );
        size
    }

    fn time(&mut self, path: &str, text: &str, least_millis: u64) -> Duration {
        let known = self.faults.len();
        let time = self.noted(path, parse_duration(text));
        let least = Duration::from_millis(least_millis);
        self.check(
            (least..=Duration::from_hours(24)).contains(&time) || self.faults.len() > known,
            path,
            format!("{text} is out of range; write {least:?} to 24h"),
        );
        time
    }

    /// A time that need not be said.
    fn bound(&mut self, path: &str, text: &str) -> Option<Duration> {
        (!text.is_empty()).then(|| self.time(path, text, 10))
    }

    fn within(&mut self, path: &str, value: u32, least: u32, most: u32) -> u32 {
        self.check((least..=most).contains(&value), path, format!("{value} is out of range; write {least} to {most}"));
        value
    }

    fn address(&mut self, path: &str, text: &str) -> IpAddr {
        text.parse().unwrap_or_else(|_| {
            self.faults.add(path, format!("{text:?} is not an IP address; write e.g. 127.0.0.1 or 0.0.0.0"));
            IpAddr::from([127, 0, 0, 1])
        })
    }

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

    fn l3(&mut self, raw: &RawL3) -> L3 {
        match (&raw.embedded, &raw.redis) {
            (Some(_), None) => L3::Embedded,
            (None, Some(redis)) => L3::Redis(Box::new(self.redis(redis))),
            (Some(_), Some(_)) => {
                self.faults.add("l3", "has both embedded and redis; keep exactly one");
                L3::Embedded
            }
            (None, None) => {
                self.faults.add(
                    "l3",
                    "must have exactly one of embedded, redis; write e.g. `l3: {redis: {endpoints: [\"redis:6379\"]}}`",
                );
                L3::Embedded
            }
        }
    }

    fn redis(&mut self, raw: &RawRedis) -> Redis {
        let mut endpoints = Vec::new();
        for (n, text) in raw.endpoints.iter().enumerate() {
            match text.parse() {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(message) => self.faults.add(format!("l3.redis.endpoints[{n}]"), message),
            }
        }
        match raw.mode {
            RedisMode::Standalone => self.check(
                raw.endpoints.len() == 1,
                "l3.redis.endpoints",
                format!("has {}; mode Standalone takes exactly one", raw.endpoints.len()),
            ),
            RedisMode::Cluster => self.check(
                !raw.endpoints.is_empty(),
                "l3.redis.endpoints",
                "is empty; mode Cluster takes one or more nodes to ask for the others",
            ),
            RedisMode::Sentinel => {
                self.check(
                    !raw.endpoints.is_empty(),
                    "l3.redis.endpoints",
                    "is empty; mode Sentinel takes the addresses of all Sentinels",
                );
            }
        }
        let sentinel = raw.sentinel.as_ref().map(|sentinel| self.sentinel(sentinel));
        self.check(
            sentinel.is_some() == (raw.mode == RedisMode::Sentinel),
            "l3.redis.sentinel",
            "belongs to mode Sentinel, which needs it; write e.g. `mode: Sentinel, sentinel: {masterName: mymaster}`",
        );
        self.check(
            raw.username.is_empty() || raw.username_file.is_empty(),
            "l3.redis.usernameFile",
            "stands beside username; keep one of them",
        );
        let tls = raw.tls.as_ref().map(|tls| self.tls(tls));
        let over_unix = raw.endpoints.iter().any(|endpoint| endpoint.starts_with("unix:"));
        self.check(
            tls.is_none() || !over_unix,
            "l3.redis.tls",
            "is for endpoints host:port; a Redis speaks no TLS on a Unix socket",
        );
        Redis {
            mode: raw.mode,
            endpoints,
            sentinel,
            username: named(&raw.username),
            username_file: named(&raw.username_file),
            password_file: named(&raw.password_file),
            tls,
            connect_timeout: self.time("l3.redis.connectTimeout", &raw.connect_timeout, 10),
            timeout: self.time("l3.redis.timeout", &raw.timeout, 10),
        }
    }

    fn sentinel(&mut self, raw: &RawSentinel) -> Sentinel {
        let plain = !raw.master_name.is_empty() && !raw.master_name.chars().any(char::is_whitespace);
        self.check(plain, "l3.redis.sentinel.masterName", "must be what the Sentinels call the primary, e.g. mymaster");
        self.check(
            raw.username.is_empty() || raw.username_file.is_empty(),
            "l3.redis.sentinel.usernameFile",
            "stands beside username; keep one of them",
        );
        Sentinel {
            master_name: raw.master_name.clone(),
            username: named(&raw.username),
            username_file: named(&raw.username_file),
            password_file: named(&raw.password_file),
            tls: raw.tls,
        }
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

    fn tls(&mut self, raw: &RawTls) -> Tls {
        self.check(
            raw.cert_file.is_empty() == raw.key_file.is_empty(),
            "l3.redis.tls.certFile",
            "must stand together with keyFile; a certificate is of use only with its key",
        );
        Tls {
            ca_file: named(&raw.ca_file),
            client_certificate: named(&raw.cert_file).zip(named(&raw.key_file)),
            server_name: named(&raw.server_name),
        }
    }

    fn compression(&mut self, path: &str, raw: &RawCompression) -> Compression {
        let level = raw.level;
        self.check(
            (LEVELS).contains(&level),
            &format!("{path}.level"),
            format!("{level} is out of range; write {} to {}", LEVELS.start(), LEVELS.end()),
        );
        let min_bytes = self.size(&format!("{path}.minBytes"), &raw.min_bytes);
        Compression { algorithm: raw.algorithm, level, min_bytes }
    }

    fn keyspaces(&mut self, raw: &[RawKeyspace], compression: &RawCompression) -> Vec<Keyspace> {
        let mut names = HashSet::new();
        for (n, keyspace) in raw.iter().enumerate() {
            let path = format!("keyspaces[{n}]");
            let name = &keyspace.name;
            let plain = (1..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            self.check(
                plain,
                &format!("{path}.name"),
                format!("{name:?} must be 1 to 63 letters, digits, `-`, `_`, `.`"),
            );
            self.check(
                names.insert(name),
                &format!("{path}.name"),
                format!("{name:?} is taken by an earlier keyspace; names are unique"),
            );
            self.check(
                (1..=512).contains(&keyspace.pattern.len()),
                &format!("{path}.match"),
                "must be a Redis glob of 1 to 512 bytes, e.g. user:*",
            );
        }
        let parsed = |(n, keyspace): (usize, &RawKeyspace)| {
            let ttl = self.bound(&format!("keyspaces[{n}].ttl"), &keyspace.ttl);
            Keyspace {
                name: keyspace.name.clone(),
                pattern: keyspace.pattern.clone(),
                cache: keyspace.cache,
                mode: keyspace.mode,
                ttl,
                negative_ttl: self.bound(&format!("keyspaces[{n}].negativeTtl"), &keyspace.negative_ttl).or(ttl),
                compression: match &keyspace.compression {
                    Some(own) => self.compression(&format!("keyspaces[{n}].compression"), own),
                    None => Self::default().compression("", compression),
                },
            }
        };
        raw.iter().enumerate().map(parsed).collect()
    }
}

/// An empty text says nothing.
fn named<T: for<'a> From<&'a String>>(text: &String) -> Option<T> {
    (!text.is_empty()).then(|| T::from(text))
}
