//! The file's shape, field by field, with the defaults. Quantities are still text; nothing is judged here.

mod bounds;
mod keyspaces;
mod l3;
mod stores;
mod tiers;
mod warming;

pub use bounds::{RawLimits, RawLockLimits, RawLocks};
pub use keyspaces::{
    CacheMode, Durability, KeyspaceMode, RawKeyspace, RawNegativeFilter, RawWriteBehind, Strategy, WRITE_BEHIND_DIR,
};
pub use l3::{RawEmbedded, RawL3, RawRedis, RawSentinel, RawTls, RedisMode, SentinelTls};
pub use stores::{RawBreaker, RawHeader, RawHttpStore, RawPostgresStore, RawStore};
pub use tiers::{Algorithm, L2Policy, RawCompression, RawL1, RawL2, RawTiering};
pub use warming::RawWarming;

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
    /// The app's databases, which keyspaces name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stores: Vec<RawStore>,
    /// What is read before it is asked for.
    #[serde(skip_serializing_if = "RawWarming::is_default")]
    pub warming: RawWarming,
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
            stores: Vec::new(),
            warming: RawWarming::default(),
            kubernetes: None,
            limits: RawLimits::default(),
            locks: RawLocks::default(),
            auth: RawAuth::default(),
        }
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
