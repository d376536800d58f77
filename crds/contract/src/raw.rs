//! The file's shape, field by field, with the defaults. Quantities are still text; nothing is judged here.

use crate::RawAuth;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawConfig {
    /// The CacheCluster's `metadata.generation`. Only the operator writes it; its presence makes unknown fields harmless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_generation: Option<u64>,
    /// Whose sidecar this is.
    pub cluster: RawCluster,
    /// Where apps connect.
    pub listen: RawListen,
    /// Health and metrics.
    pub admin: RawAdmin,
    /// Worker threads, each with its own L1.
    pub workers: u32,
    /// The tier of each worker.
    pub l1: RawL1,
    /// The tier of the sidecar.
    pub l2: RawL2,
    /// The tier of the cluster.
    pub l3: RawL3,
    /// When entries move between L1 and L2.
    pub tiering: RawTiering,
    /// What a reader is promised.
    pub consistency: RawConsistency,
    /// Rules for keys; the first match wins.
    pub keyspaces: Vec<RawKeyspace>,
    /// Where the sidecar takes part in what is agreed on through the API server; absent outside of Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<RawKubernetes>,
    /// Bounds on everything that a client controls.
    #[serde(skip_serializing_if = "RawLimits::is_default")]
    pub limits: RawLimits,
    /// Locks between the pods.
    #[serde(skip_serializing_if = "RawLocks::is_default")]
    pub locks: RawLocks,
    /// Who may use the socket.
    #[serde(skip_serializing_if = "RawAuth::is_default")]
    pub auth: RawAuth,
}

/// Whose sidecar this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawCluster {
    /// Name of the CacheCluster.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Name under which sidecars share generations, locks and events; empty means `<namespace>.<name>`.
    pub domain: String,
    /// Uid of the CacheCluster, which owns what its sidecars make; empty outside of Kubernetes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Where apps connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawListen {
    /// Path of the Unix socket.
    pub socket: String,
    /// Port on 127.0.0.1 for clients that cannot use a Unix socket; 0 means none.
    pub tcp_port: u16,
}

/// Health and metrics, never data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawAdmin {
    /// Port of `/healthz`, `/readyz`, `/metrics`.
    pub port: u16,
    /// Address it is bound to. The operator writes `0.0.0.0`, so that Prometheus reaches it.
    pub address: String,
}

/// The private tier of each worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawL1 {
    /// Entries, all workers together; 0 turns L1 off.
    pub max_entries: u64,
    /// Bytes, all workers together.
    #[serde(deserialize_with = "text")]
    pub max_bytes: String,
}

/// The tier that the workers of a sidecar share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawL2 {
    /// Bytes of keys, values and metadata.
    #[serde(deserialize_with = "text")]
    pub max_bytes: String,
    /// Which entries leave when it is full.
    pub policy: L2Policy,
    /// How values are kept small.
    pub compression: RawCompression,
}

/// Which entries leave L2 when it is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum L2Policy {
    /// Follows the load: a simulation on a sample of the keys tells which rule would hit most.
    #[default]
    Adaptive,
    /// S3-FIFO: what is read once leaves soon.
    S3Fifo,
    /// What was not read for longest.
    Lru,
}

/// How values are kept small in L2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawCompression {
    /// `Lz4`, `Zstd` (with a dictionary trained for each keyspace) or `None`.
    pub algorithm: Algorithm,
    /// For `Zstd`: −7 (quickest) to 19.
    pub level: i32,
    /// Smaller values stay as they are; where a dictionary is at hand, those below 64 bytes.
    #[serde(deserialize_with = "text")]
    pub min_bytes: String,
}

/// How values are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// LZ4.
    #[default]
    Lz4,
    /// ZSTD.
    Zstd,
    /// Not at all.
    None,
}

/// The tier that the sidecars of a cluster share: exactly one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawL3 {
    /// In this process: each sidecar has its own data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedded: Option<RawEmbedded>,
    /// A Redis or Valkey.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RawRedis>,
}

/// The embedded L3 has nothing to set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawEmbedded {}

/// A Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawRedis {
    /// How its nodes form one store.
    pub mode: RedisMode,
    /// `host:port` or `unix:/path`; exactly one in mode `Standalone`, every Sentinel in mode `Sentinel`, in mode `Cluster`
    /// nodes to ask for the others.
    pub endpoints: Vec<String>,
    /// What mode `Sentinel` needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<RawSentinel>,
    /// User for AUTH; empty means Redis's default user.
    pub username: String,
    /// File that holds the user instead, read on each connect.
    pub username_file: String,
    /// File that holds the password, read on each connect; empty means no AUTH.
    pub password_file: String,
    /// TLS; without it connections are plain text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<RawTls>,
    /// Deadline of a connect with its handshake.
    pub connect_timeout: String,
    /// Deadline of a command.
    pub timeout: String,
}

/// TLS towards a Redis. All files are in PEM form and looked at before each connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawTls {
    /// Certificates of the authorities that are trusted; empty means the system's.
    pub ca_file: String,
    /// The certificate that is shown to the server, with its chain; empty means none.
    pub cert_file: String,
    /// Its key.
    pub key_file: String,
    /// The name that the server's certificate must be for; empty means the endpoint's host.
    pub server_name: String,
}

/// How to ask the Sentinels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawSentinel {
    /// What they call the primary.
    pub master_name: String,
    /// User for AUTH at the Sentinels; empty means their default user.
    pub username: String,
    /// File that holds that user instead.
    pub username_file: String,
    /// File that holds their password; empty means no AUTH.
    pub password_file: String,
    /// Whether TLS, where it is set for Redis, is used towards the Sentinels too.
    pub tls: SentinelTls,
}

/// TLS towards Sentinels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SentinelTls {
    /// As towards Redis.
    #[default]
    Same,
    /// Plain text.
    Off,
}

/// How the nodes of a Redis form one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedisMode {
    /// One server.
    #[default]
    Standalone,
    /// A Redis Cluster.
    Cluster,
    /// The primary that Sentinels name.
    Sentinel,
}

/// When entries move between L1 and L2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawTiering {
    /// L2 hits after which an entry is copied into L1.
    pub promote_after_hits: u32,
    /// Idle time after which it leaves L1.
    pub demote_after_idle: String,
    /// Pause between two maintenance runs.
    pub maintenance_interval: String,
}

/// What a reader is promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawConsistency {
    /// Bound on how long an overwritten state may still be read.
    pub max_staleness: String,
    /// What a read gets while the sidecar cannot prove its copies current.
    pub on_uncertain: OnUncertain,
    /// How the sidecar learns of writes.
    pub coherence: Coherence,
    /// With `Broadcast`: only keys that begin with one of these are announced and cached; none: all keys.
    pub broadcast_prefixes: Vec<String>,
    /// With `ServeStale`: also to RESP2 sessions, which cannot be told that a reply is stale.
    pub allow_unmarked: bool,
}

/// What a read gets while the sidecar cannot prove its copies current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnUncertain {
    /// L3's answer.
    #[default]
    Bypass,
    /// The copy, marked stale.
    ServeStale,
    /// An error.
    Fail,
}

/// How the sidecar learns of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Coherence {
    /// The server tells the readers of a key (`CLIENT TRACKING`).
    #[default]
    Tracking,
    /// The server tells every write (`CLIENT TRACKING … BCAST`).
    Broadcast,
    /// It tells nothing; copies live at most `maxStaleness`.
    Ttl,
}

/// A rule for the keys that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawKeyspace {
    /// Name in metrics and messages.
    pub name: String,
    /// Redis glob over whole keys.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Whether copies are kept.
    pub cache: CacheMode,
    /// Whether copies answer, or are only counted.
    pub mode: KeyspaceMode,
    /// Bound on the life of a copy; empty means that only L3's own expiry bounds it.
    pub ttl: String,
    /// Bound on the life of a copy that says "absent"; empty means that `ttl` bounds it.
    pub negative_ttl: String,
    /// How its values are kept small; absent means as `l2.compression` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<RawCompression>,
}

/// What the copies of a keyspace's keys are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyspaceMode {
    /// They answer reads.
    #[default]
    Serve,
    /// L3 answers every read; what a copy would have answered is counted.
    Observe,
}

/// Whether copies of a keyspace's keys are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheMode {
    /// Kept as usual.
    #[default]
    Auto,
    /// Everything is relayed.
    Off,
}

/// How the sidecar speaks to the API server, whose address Kubernetes puts into every container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawKubernetes {
    /// Directory with the sidecar's own `token` and the API server's `ca.crt`, both read anew for each request. They may
    /// come later, or never.
    pub identity_dir: String,
    /// How many sidecars the cluster has, rounded up: each of them paces its requests by it.
    pub members: u32,
}

/// Bounds on everything that a client controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawLimits {
    /// Connections of apps at one time.
    pub max_connections: u32,
    /// Bytes of one command.
    #[serde(deserialize_with = "text")]
    pub max_frame_bytes: String,
    /// Bytes of a value; larger ones are relayed and never cached.
    #[serde(deserialize_with = "text")]
    pub max_value_bytes: String,
    /// Unanswered commands of one connection; beyond it the sidecar stops reading from it.
    pub max_pipeline: u32,
    /// Bytes of replies that wait for one slow reader.
    #[serde(deserialize_with = "text")]
    pub output_buffer_bytes: String,
    /// Time a reader may make no progress with a full buffer before it is disconnected.
    pub slow_reader_timeout: String,
    /// Time after which a connection that sends nothing is closed; empty means never.
    pub idle_timeout: String,
}

/// Locks between the pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawLocks {
    /// How long a lock outlives an owner that died.
    pub lease: String,
    /// How long an acquisition waits for its turn unless it says otherwise.
    pub timeout: String,
    /// At which part of the lease it is renewed, percent.
    pub renew_at_percent: u32,
    /// Pause between two looks for deadlocks.
    pub deadlock_check: String,
    /// Bounds for one sidecar.
    pub limits: RawLockLimits,
}

/// Bounds on the locks of one sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawLockLimits {
    /// Locks held at a time.
    pub max_held: u32,
    /// Acquisitions under way at a time, waiting ones included.
    pub max_waiters: u32,
}

// === defaults ===

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            config_generation: None,
            cluster: RawCluster::default(),
            listen: RawListen::default(),
            admin: RawAdmin::default(),
            workers: 1,
            l1: RawL1::default(),
            l2: RawL2::default(),
            // A file that says nothing of L3 gets the embedded one; one that says `l3: {}` is told to choose.
            l3: RawL3 { embedded: Some(RawEmbedded {}), redis: None },
            tiering: RawTiering::default(),
            consistency: RawConsistency::default(),
            keyspaces: Vec::new(),
            kubernetes: None,
            limits: RawLimits::default(),
            locks: RawLocks::default(),
            auth: RawAuth::default(),
        }
    }
}

impl Default for RawLocks {
    fn default() -> Self {
        Self {
            lease: "30s".into(),
            timeout: "5s".into(),
            renew_at_percent: 33,
            deadlock_check: "1s".into(),
            limits: RawLockLimits::default(),
        }
    }
}

impl Default for RawLockLimits {
    fn default() -> Self {
        Self { max_held: 10_000, max_waiters: 10_000 }
    }
}

impl RawLocks {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for RawCluster {
    fn default() -> Self {
        Self { name: "local".into(), namespace: "default".into(), domain: String::new(), uid: String::new() }
    }
}

impl Default for RawListen {
    fn default() -> Self {
        Self { socket: crate::SOCKET_PATH.into(), tcp_port: 0 }
    }
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { port: crate::ADMIN_PORT, address: "127.0.0.1".into() }
    }
}

impl Default for RawL1 {
    fn default() -> Self {
        Self { max_entries: 1000, max_bytes: "8Mi".into() }
    }
}

impl Default for RawL2 {
    fn default() -> Self {
        Self { max_bytes: "64Mi".into(), policy: L2Policy::default(), compression: RawCompression::default() }
    }
}

impl Default for RawCompression {
    fn default() -> Self {
        Self { algorithm: Algorithm::Lz4, level: 1, min_bytes: "1Ki".into() }
    }
}

impl Default for RawRedis {
    fn default() -> Self {
        Self {
            mode: RedisMode::Standalone,
            endpoints: Vec::new(),
            sentinel: None,
            username: String::new(),
            username_file: String::new(),
            password_file: String::new(),
            tls: None,
            connect_timeout: "1s".into(),
            timeout: "2s".into(),
        }
    }
}

impl Default for RawTiering {
    fn default() -> Self {
        Self { promote_after_hits: 10, demote_after_idle: "5m".into(), maintenance_interval: "60s".into() }
    }
}

impl Default for RawConsistency {
    fn default() -> Self {
        Self {
            max_staleness: "1s".into(),
            on_uncertain: OnUncertain::Bypass,
            coherence: Coherence::Tracking,
            broadcast_prefixes: Vec::new(),
            allow_unmarked: false,
        }
    }
}

impl Default for RawKubernetes {
    fn default() -> Self {
        Self { identity_dir: crate::coordination::IDENTITY_DIR.into(), members: 50 }
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_frame_bytes: "64Mi".into(),
            max_value_bytes: "1Mi".into(),
            max_pipeline: 10_000,
            output_buffer_bytes: "32Mi".into(),
            slow_reader_timeout: "30s".into(),
            idle_timeout: String::new(),
        }
    }
}

impl RawLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A size as text; a bare number (`maxBytes: 1048576`) is one too.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Text;
    impl de::Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size such as 64Mi")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<String, E> {
            Ok(number.to_string())
        }
    }
    deserializer.deserialize_any(Text)
}
