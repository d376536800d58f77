//! `spec.keyspaces`: rules for keys.

use super::Compression;
use crate::quantity::Period;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
