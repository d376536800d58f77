//! The kind `CacheCluster`: what a platform team writes.
//!
//! Every doc comment here is what `kubectl explain` prints. Defaults are the contract's; a test compares them.

use crate::{
    quantity::{Amount, Period, Size},
    status::CacheClusterStatus,
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A coherent near cache for the pods of a namespace. A pod labelled `cache.caddy.dev/cluster: <name>` gets a sidecar
/// that answers its Redis client on `/run/caddy/cache.sock`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "cache.caddy.dev",
    version = "v1alpha1",
    kind = "CacheCluster",
    plural = "cacheclusters",
    shortname = "cc",
    namespaced,
    status = "CacheClusterStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "A coherent near cache for the pods of a namespace. A pod labelled cache.caddy.dev/cluster: <name> gets a sidecar that answers its Redis client on /run/caddy/cache.sock. The name has at most 52 characters.",
    printcolumn = r#"{"name": "Ready", "type": "string", "description": "Whether the spec is valid and the configuration written", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "description": "Why it is or is not ready", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name": "Pods", "type": "integer", "description": "Pods that ask for a sidecar", "jsonPath": ".status.pods.selected"}"#,
    printcolumn = r#"{"name": "Injected", "type": "integer", "description": "Pods that have one", "jsonPath": ".status.pods.injected"}"#,
    printcolumn = r#"{"name": "Stale", "type": "integer", "description": "Pods whose sidecar is not the one of today", "jsonPath": ".status.pods.stale"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct CacheClusterSpec {
    /// Where the cache runs.
    #[serde(default)]
    pub placement: Placement,

    /// Where apps connect, beside the Unix socket that is always there.
    #[serde(default)]
    pub listen: Listen,

    /// The tier that each worker thread of a sidecar has for itself.
    #[serde(default)]
    pub l1: L1,

    /// The tier that a sidecar's workers share.
    #[serde(default)]
    pub l2: L2,

    /// The tier that all sidecars share; exactly one of `redis` and `embedded`.
    pub l3: L3,

    /// When entries move between L1 and L2.
    #[serde(default)]
    pub tiering: Tiering,

    /// What a reader is promised.
    #[serde(default)]
    pub consistency: Consistency,

    /// Rules for keys; the first whose `match` fits decides. Keys that fit none are cached as usual.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub keyspaces: Vec<Keyspace>,

    /// Locks that apps of this CacheCluster take on the socket (LOCK.ACQUIRE).
    #[serde(default)]
    pub locks: Locks,

    /// Who may use the socket (and the TCP port): Redis's AUTH for apps. Absent: every container of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,

    /// Bounds on everything that an app controls.
    #[serde(default)]
    pub limits: Limits,

    /// Requests and limits of the sidecar. Memory defaults to (L1 + L2 + 40Mi) / 0.85 for both, CPU to a request of
    /// 50m without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Image of the sidecar; the operator's default when absent. Running pods keep the one they have and count as
    /// stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
}

/// Where the cache runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// `Sidecar`: one in every labelled pod.
    pub mode: PlacementMode,
}

/// Where the cache runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlacementMode {
    /// One in every labelled pod.
    #[default]
    Sidecar,
}

/// Where apps connect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Listen {
    /// Port on 127.0.0.1 inside the pod, for clients that cannot use a Unix socket; 0 means none. Pods that
    /// run already count as stale until they are replaced.
    #[schemars(range(min = 0, max = 65535))]
    pub tcp_port: i32,
}

/// The tier of each worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct L1 {
    /// Entries of a sidecar, all its workers together; 0 turns L1 off.
    #[schemars(range(min = 0, max = 10_000_000))]
    pub max_entries: i64,
    /// Bytes of a sidecar, all its workers together.
    pub max_bytes: Size,
}

/// The tier that a sidecar's workers share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct L2 {
    /// Bytes of keys, values and metadata; at least 1Mi.
    pub max_bytes: Size,
    /// Which entries leave when it is full. `Adaptive`: follows the load, by simulating the others on a sample of the keys.
    /// `S3Fifo`: what is read once leaves soon. `Lru`: what was not read for longest leaves.
    pub policy: L2Policy,
    /// How values are kept small, where their keyspace does not say otherwise.
    pub compression: Compression,
}

/// Which entries leave L2 when it is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Compression {
    /// `Lz4`; `Zstd`, with a dictionary that is trained for each keyspace; or `None`. Whatever does not shrink stays as
    /// it is.
    pub algorithm: Algorithm,
    /// For `Zstd`: -7 (quickest) to 19. What more than 1 gains is little.
    #[schemars(range(min = -7, max = 19))]
    pub level: i32,
    /// Smaller values stay as they are; where a dictionary is at hand, those below 64 bytes.
    pub min_bytes: Size,
}

/// How values are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// LZ4.
    #[default]
    Lz4,
    /// ZSTD.
    Zstd,
    /// Not at all.
    None,
}

/// The tier that all sidecars share; exactly one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L3 {
    /// A Redis (7 or newer) or Valkey that all sidecars reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// No server: each pod has its own data. For development and tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<Embedded>,
}

/// The embedded L3 has nothing to set; write `embedded: {}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Embedded {}

/// A Redis or Valkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Redis {
    /// How its nodes form one store. `Standalone`: one server. `Sentinel`: the primary that Sentinels name, followed through
    /// failovers. `Cluster`: a Redis Cluster.
    #[serde(default)]
    pub mode: Mode,
    /// Addresses as `host:port`, seen from the pods: exactly one in mode `Standalone`, those of all Sentinels in mode
    /// `Sentinel`, in mode `Cluster` some nodes (or a Service in front of them) that are asked for the others, in this order.
    #[schemars(length(min = 1, max = 16))]
    #[schemars(inner(
        length(min = 3, max = 270),
        regex(pattern = r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$")
    ))]
    pub endpoints: Vec<String>,
    /// How to ask the Sentinels; needed in mode `Sentinel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinel: Option<Sentinel>,
    /// User for AUTH; absent means Redis's default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub username: Option<String>,
    /// Secret of this namespace that holds the password. It is mounted into the sidecar only, and read again before each
    /// connect: it may rotate while the server takes both the old and the new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<SecretKey>,
    /// TLS; absent means plain text. There is no fallback from one to the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<RedisTls>,
    /// Deadline of a connect with its handshake.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Period,
    /// Deadline of a command.
    #[serde(default = "timeout")]
    pub timeout: Period,
}

/// How to ask the Sentinels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sentinel {
    /// What they call the primary.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub master_name: String,
    /// User for AUTH at the Sentinels; absent means their default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub username: Option<String>,
    /// Secret of this namespace that holds the Sentinels' password. It is mounted into the sidecar only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_secret_ref: Option<SecretKey>,
    /// Whether TLS, where it is set for Redis, is used towards the Sentinels too: `Same` or `"Off"`.
    #[serde(default)]
    pub tls: SentinelTls,
}

/// TLS towards Sentinels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SentinelTls {
    /// As towards Redis.
    #[default]
    Same,
    /// Plain text.
    Off,
}

/// TLS towards a Redis; `tls: {}` trusts the authorities of the sidecar's image. Certificates are read again before each
/// connect, so that they may rotate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RedisTls {
    /// Secret of this namespace with the authorities' certificates to trust, in PEM form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<CaKey>,
    /// ConfigMap of this namespace with them, instead of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map_ref: Option<CaKey>,
    /// Secret of this namespace, of type kubernetes.io/tls, with the certificate that sidecars show to the server. It is
    /// mounted into the sidecar only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<SecretName>,
    /// Name that the server's certificate must be for, and that is sent as SNI; absent means the endpoint's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[A-Za-z0-9._:-]+$"))]
    pub server_name: Option<String>,
}

/// One key of a Secret or ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaKey {
    /// Name of the Secret or ConfigMap.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key whose value are certificates in PEM form.
    #[serde(default = "ca_crt")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretName {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// How the nodes of a Redis form one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// One server.
    #[default]
    Standalone,
    /// A Redis Cluster: its nodes are found, and followed when slots or roles change. Apps see one Redis.
    Cluster,
    /// The primary that Sentinels name.
    Sentinel,
}

/// Login data in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key whose value is the password.
    #[serde(default = "password")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
    /// Key whose value is the user, instead of `username`; for users that rotate with their passwords.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub username_key: Option<String>,
}

/// When entries move between L1 and L2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Tiering {
    /// L2 hits after which an entry is copied into L1.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub promote_after_hits: i32,
    /// Idle time after which it leaves L1; 1s to 24h.
    pub demote_after_idle: Period,
    /// Pause between two maintenance runs; 100ms to 24h.
    pub maintenance_interval: Period,
}

/// What a reader is promised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Consistency {
    /// Bound on how long an overwritten state may still be read; 10ms to 24h. A sidecar that cannot prove that it
    /// keeps it stops serving its copies.
    pub max_staleness: Period,
    /// What a read gets then. `Bypass`: L3's answer. `ServeStale`: the copy, marked stale. `Fail`: an error.
    pub on_uncertain: OnUncertain,
    /// How sidecars learn of writes. `Tracking`: the server tells the readers of a key (CLIENT TRACKING). `Broadcast`: it
    /// tells every write, for few sidecars and rare writes. `Ttl`: it tells nothing, and copies live at most
    /// `maxStaleness`; for servers without CLIENT TRACKING. Running sidecars keep what they started with.
    pub coherence: Coherence,
    /// With `Broadcast`: only keys that begin with one of these are announced and cached; none: all keys.
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)))]
    pub broadcast_prefixes: Vec<String>,
    /// With `ServeStale`: stale copies also to RESP2 clients, which cannot be told that they are stale.
    pub allow_unmarked: bool,
}

/// What a read gets while a sidecar cannot prove its copies current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnUncertain {
    /// L3's answer.
    #[default]
    Bypass,
    /// The copy, marked stale.
    ServeStale,
    /// An error.
    Fail,
}

/// How sidecars learn of writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Coherence {
    /// The server tells the readers of a key.
    #[default]
    Tracking,
    /// The server tells every write.
    Broadcast,
    /// The server tells nothing; copies live at most `maxStaleness`.
    Ttl,
}

/// A rule for the keys that match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Keyspace {
    /// Name in metrics and messages; unique.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub name: String,
    /// Redis glob over whole keys, e.g. `user:*`.
    #[serde(rename = "match")]
    #[schemars(length(min = 1, max = 512))]
    pub pattern: String,
    /// `Auto`: cached as usual. `"Off"` (with quotes, since YAML reads a bare Off as false): everything is relayed.
    #[serde(default)]
    pub cache: Cache,
    /// `Serve`: copies answer reads. `Observe`: Redis answers every read, and what a copy would have answered is counted,
    /// so that a cache can be judged before it is trusted.
    #[serde(default)]
    pub mode: KeyspaceMode,
    /// Bound on the life of a copy in a pod, 10ms to 24h; absent means that only the key's own expiry in Redis bounds it.
    /// What TTL answers, and when the key expires in Redis, stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Period>,
    /// The same for copies that say that there is no such key; absent means as `ttl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<Period>,
    /// How its values are kept small; absent means as `l2.compression` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

/// What the copies of a keyspace's keys are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyspaceMode {
    /// They answer reads.
    #[default]
    Serve,
    /// Redis answers every read; what a copy would have answered is counted.
    Observe,
}

/// Whether copies of a keyspace's keys are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Cache {
    /// Kept as usual.
    #[default]
    Auto,
    /// Everything is relayed.
    Off,
}

/// Locks that apps take on the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Locks {
    /// How long a lock outlives an owner that died; 100ms to 24h. While the owner lives it is renewed.
    pub lease: Period,
    /// How long LOCK.ACQUIRE waits unless it says otherwise; at most 24h.
    pub timeout: Period,
    /// At which part of the lease it is renewed, percent. At 33, two more attempts fit.
    #[schemars(range(min = 1, max = 70))]
    pub renew_at_percent: i32,
    /// Pause between two looks for deadlocks, each of which is broken within two of them; 100ms to 24h.
    pub deadlock_check: Period,
    /// Bounds for one sidecar.
    pub limits: LockLimits,
}

/// Bounds on the locks of one sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LockLimits {
    /// Locks held at a time.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_held: i32,
    /// Acquisitions under way at a time, waiting ones included.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_waiters: i32,
}

/// Who may use the socket. At least one of `secretRef` and `users`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Auth {
    /// Secret with the password of the default user, who may do everything. Absent while there are users: nobody gets
    /// in without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<PasswordKey>,
    /// Users with a name, a password and limits of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub users: Vec<AuthUser>,
}

/// A user of the socket. Scripts are for users without limits only: what a script does is not checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthUser {
    /// Name for AUTH; unique, and not `default`.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub name: String,
    /// Secret of this namespace that holds the password, one in each line, so that two can hold while one is replaced.
    /// It is mounted into the sidecar only.
    pub secret_ref: PasswordKey,
    /// Redis globs; the keys of a command must each match one.
    #[serde(default = "any_key")]
    #[schemars(length(max = 64))]
    #[schemars(inner(length(min = 1, max = 512)))]
    pub keys: Vec<String>,
    /// Rules as in Redis's ACL, the last one about a command decides: `+@read`, `-keys`, `+config|get`, `+@all`.
    #[serde(default = "any_command")]
    #[schemars(length(max = 64))]
    #[schemars(inner(length(min = 2, max = 128), regex(pattern = r"^[-+]@?[-._a-zA-Z0-9:]+(\|[-._a-zA-Z0-9:]+)?$")))]
    pub commands: Vec<String>,
}

/// A password in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PasswordKey {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key whose value is the password.
    #[serde(default = "password")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// Bounds on everything that an app controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Connections of apps at one time; further ones are refused.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: i32,
    /// Bytes of one command, 16Ki to 4095Mi; a larger one ends its connection.
    pub max_frame_bytes: Size,
    /// Bytes of a value; larger ones are relayed and never cached.
    pub max_value_bytes: Size,
    /// Unanswered commands of one connection; beyond it the sidecar stops reading from it.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pipeline: i32,
    /// Bytes of replies that wait for one slow reader, at least 16Ki.
    pub output_buffer_bytes: Size,
    /// Time a reader may make no progress with a full buffer before it is disconnected; 100ms to 24h.
    pub slow_reader_timeout: Period,
    /// Time after which a connection that sends nothing is closed, 100ms to 24h; absent means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Period>,
}

/// Requests and limits of the sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What the scheduler reserves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Amounts>,
    /// What the sidecar may use at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Amounts>,
}

/// Amounts of CPU and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Amounts {
    /// CPU, e.g. `100m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Amount>,
    /// Memory, e.g. `128Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Amount>,
}

// === defaults ===

impl Default for L1 {
    fn default() -> Self {
        Self { max_entries: 1000, max_bytes: "8Mi".into() }
    }
}

impl Default for L2 {
    fn default() -> Self {
        Self { max_bytes: "64Mi".into(), policy: L2Policy::default(), compression: Compression::default() }
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self { algorithm: Algorithm::Lz4, level: 1, min_bytes: "1Ki".into() }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            endpoints: Vec::new(),
            sentinel: None,
            username: None,
            auth_secret_ref: None,
            tls: None,
            connect_timeout: connect_timeout(),
            timeout: timeout(),
        }
    }
}

impl Default for Tiering {
    fn default() -> Self {
        Self { promote_after_hits: 10, demote_after_idle: "5m".into(), maintenance_interval: "60s".into() }
    }
}

impl Default for Consistency {
    fn default() -> Self {
        Self {
            max_staleness: "1s".into(),
            on_uncertain: OnUncertain::default(),
            coherence: Coherence::default(),
            broadcast_prefixes: Vec::new(),
            allow_unmarked: false,
        }
    }
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            lease: "30s".into(),
            timeout: "5s".into(),
            renew_at_percent: 33,
            deadlock_check: "1s".into(),
            limits: LockLimits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_frame_bytes: "64Mi".into(),
            max_value_bytes: "1Mi".into(),
            max_pipeline: 10_000,
            output_buffer_bytes: "32Mi".into(),
            slow_reader_timeout: "30s".into(),
            idle_timeout: None,
        }
    }
}

impl Default for LockLimits {
    fn default() -> Self {
        Self { max_held: 10_000, max_waiters: 10_000 }
    }
}

fn any_key() -> Vec<String> {
    vec!["*".into()]
}

fn any_command() -> Vec<String> {
    vec!["+@all".into()]
}

fn connect_timeout() -> Period {
    "1s".into()
}

fn timeout() -> Period {
    "2s".into()
}

fn ca_crt() -> String {
    "ca.crt".into()
}

fn password() -> String {
    "password".into()
}
