//! The kind `CacheCluster`: what a platform team writes.
//!
//! Every doc comment here is what `kubectl explain` prints. Defaults are the contract's; a test compares them.

mod auth;
mod bounds;
mod keyspaces;
mod redis;
mod stores;
mod tiers;
mod warming;

pub use auth::{Auth, AuthUser, PasswordKey};
pub use bounds::{Amounts, Limits, LockLimits, Locks, Resources};
pub use keyspaces::{Cache, Durability, Keyspace, KeyspaceMode, NegativeFilter, Strategy, WriteBehind};
pub use redis::{CaKey, Embedded, L3, Mode, Redis, RedisTls, SecretKey, SecretName, Sentinel, SentinelTls};
pub use stores::{Breaker, HttpHeader, HttpStore, PostgresStore, Store};
pub use tiers::{Algorithm, Compression, L1, L2, L2Policy, Tiering};
pub use warming::Warming;

use crate::{quantity::Period, status::CacheClusterStatus};
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

    /// Databases of the app's, which keyspaces name: what no tier has is loaded from there. They are asked from within the
    /// pods, by the sidecars.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub stores: Vec<Store>,

    /// What a sidecar that starts reads before it is asked, so that a new pod begins with a warm cache.
    #[serde(default)]
    pub warming: Warming,

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

// === defaults ===

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

fn password() -> String {
    "password".into()
}
