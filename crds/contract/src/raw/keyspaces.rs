//! The section `keyspaces`.

use super::{RawCompression, text};
use serde::{Deserialize, Serialize};

/// A rule for the keys that match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What the cache has to do with the store.
    pub strategy: Strategy,
    /// Name of one of `stores`; empty: none.
    pub store: String,
    /// Time after which a read that waits for the store is answered with the value that was there before, if one is; empty:
    /// never.
    pub soft_timeout: String,
    /// Time after which a load is given up.
    pub hard_timeout: String,
    /// For how long beyond its `ttl` a value may be answered, marked stale, while the store gives none; empty: not at all.
    pub stale_if_error: String,
    /// At which part of its life a value that is read is loaded anew, percent; 0: never.
    pub refresh_at_percent: u32,
    /// By how much the life of what is loaded is shortened at random, percent at most.
    pub jitter_percent: u32,
    /// With strategy `WriteBehind`: how writes wait for the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_behind: Option<RawWriteBehind>,
    /// Which of its keys Redis does not have is known without asking; absent: is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_filter: Option<RawNegativeFilter>,
    /// Tags of values that are written through a sidecar; `{1}` is what the first `*` of `match` takes of the key.
    pub tags: Vec<String>,
    /// A write through a sidecar invalidates what depends on the key.
    pub parents: bool,
    /// How its values are kept small; absent means as `l2.compression` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<RawCompression>,
}

/// What is known of keys that Redis does not have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawNegativeFilter {
    /// Keys that it is made for.
    pub max_keys: u32,
}

impl Default for RawNegativeFilter {
    fn default() -> Self {
        Self { max_keys: 100_000 }
    }
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

/// What the cache of a keyspace has to do with the store behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Nothing: the app reads its database itself.
    #[default]
    CacheAside,
    /// What no tier has is loaded from the store.
    ReadThrough,
    /// The same, and writes go to the store before they go to Redis.
    WriteThrough,
    /// The same, and writes go to Redis at once and to the store in batches.
    WriteBehind,
}

/// How writes wait for the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawWriteBehind {
    /// What a write survives that was acknowledged and is not stored yet.
    pub durability: Durability,
    /// Records of one call to the store.
    pub batch_size: u32,
    /// How long a record waits for others to share its batch.
    pub flush_interval: String,
    /// Records that may wait; then writes are slowed down, and refused after `maxWait`.
    pub max_records: u32,
    /// The same in bytes.
    #[serde(deserialize_with = "text")]
    pub max_bytes: String,
    /// How long a write waits for room.
    pub max_wait: String,
    /// How often a record that the store refuses is offered to it before it becomes a dead letter.
    pub max_attempts: u32,
    /// With durability `Replicated`: how many replicas of Redis have a write before it is acknowledged.
    pub replicas: u32,
    /// With durability `Replicated`: how long nothing may be heard of a sidecar before another one stores what waits in its
    /// stream.
    pub adopt_after: String,
    /// With durability `Pod`: where the logs are, each in a directory of its own.
    pub directory: String,
}

/// What a write survives that was acknowledged and is not stored yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// Nothing but the store's outages: it is lost with the sidecar's process.
    #[default]
    Memory,
    /// The end of the sidecar's process, however it comes: it is in a log on a disk of the pod's.
    Pod,
    /// The end of the pod and of its node: Redis and its replicas have it in a stream.
    Replicated,
}

impl Default for RawWriteBehind {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            batch_size: 500,
            flush_interval: "100ms".into(),
            max_records: 100_000,
            max_bytes: "64Mi".into(),
            max_wait: "1s".into(),
            max_attempts: 5,
            replicas: 1,
            adopt_after: "30s".into(),
            directory: WRITE_BEHIND_DIR.into(),
        }
    }
}

/// Where the logs of keyspaces that write behind are.
pub const WRITE_BEHIND_DIR: &str = "/var/lib/caddy/write-behind";

impl Default for RawKeyspace {
    fn default() -> Self {
        Self {
            name: String::new(),
            pattern: String::new(),
            cache: CacheMode::default(),
            mode: KeyspaceMode::default(),
            ttl: String::new(),
            negative_ttl: String::new(),
            strategy: Strategy::default(),
            store: String::new(),
            soft_timeout: String::new(),
            hard_timeout: "5s".into(),
            stale_if_error: String::new(),
            refresh_at_percent: 0,
            jitter_percent: 10,
            write_behind: None,
            negative_filter: None,
            tags: Vec::new(),
            parents: false,
            compression: None,
        }
    }
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
