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
    /// What TTL answers, and when the key expires in Redis, stay as they are. With `strategy: ReadThrough` also the life in
    /// Redis of what is loaded; the store may say less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Period>,
    /// The same for copies that say that there is no such key; absent means as `ttl`, and with `strategy: ReadThrough` 5s at
    /// most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_ttl: Option<Period>,
    /// What the cache has to do with the store. `CacheAside`: nothing, the app reads its database itself. `ReadThrough`: GET
    /// and MGET of a key that no tier has load it, once in the cluster, and keep it in Redis.
    #[serde(default)]
    pub strategy: Strategy,
    /// Name of one of `stores`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub store: Option<String>,
    /// Time after which a read that waits for the store is answered with the value that was there before, 1ms to 24h; the load
    /// goes on. Absent: never. Needs `staleIfError`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft_timeout: Option<Period>,
    /// Time after which a load is given up, 10ms to 24h.
    #[serde(default = "hard_timeout")]
    pub hard_timeout: Period,
    /// For how long beyond its `ttl` a value may be answered while the store gives none, 10ms to 24h: marked in RESP3, also
    /// to RESP2 clients, which cannot be told. Absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_if_error: Option<Period>,
    /// At which part of its life, percent, a value that is read is loaded anew, 10 to 95; nobody waits for it. 0: never.
    #[serde(default)]
    #[schemars(range(min = 0, max = 95))]
    pub refresh_at_percent: i32,
    /// By how much the life of what is loaded is shortened at random, percent at most, so that values which were loaded
    /// together do not end together.
    #[serde(default = "jitter_percent")]
    #[schemars(range(min = 0, max = 50))]
    pub jitter_percent: i32,
    /// How its values are kept small; absent means as `l2.compression` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

/// What the cache of a keyspace has to do with the store behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// Nothing.
    #[default]
    CacheAside,
    /// What no tier has is loaded.
    ReadThrough,
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

fn hard_timeout() -> Period {
    "5s".into()
}

fn jitter_percent() -> i32 {
    10
}
