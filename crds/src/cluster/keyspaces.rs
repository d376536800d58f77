//! `spec.keyspaces`: rules for keys.

use super::Compression;
use crate::quantity::{Period, Size};
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
    /// and MGET of a key that no tier has load it, once in the cluster, and keep it in Redis. `WriteThrough`: the same, and
    /// writes of whole values and deletions go to the store first, then to Redis. `WriteBehind`: the same, and writes go to
    /// Redis at once and to the store in batches. Both need a store that can be written to.
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
    /// With `strategy: WriteBehind`: how writes wait for the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_behind: Option<WriteBehind>,
    /// GET of keys that Redis does not have is answered without asking it, from a Bloom filter of the keys that it has. Never
    /// wrong about a key that is there; whatever makes it doubtful turns it off until it is built anew. Needs a `match` that
    /// is a prefix and a star, like `user:*`, no `store`, `cache: Auto`, `mode: Serve`, and
    /// `coherence` Tracking or Broadcast: Redis then tells every sidecar each write to such a key. Absent: no filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negative_filter: Option<NegativeFilter>,
    /// Tags of values that are written through a sidecar, by SET and its kin, by CACHE.SET, or by a load. `{1}` stands for
    /// what the first `*` of `match` takes of the key, `{2}` for the second: with `match: "user:*:*"`, `user:{1}`. Such
    /// values are kept in Redis as envelopes, which programs without a sidecar cannot read. Not with `strategy: WriteThrough`
    /// or `WriteBehind`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 512)))]
    pub tags: Vec<String>,
    /// Whether writing a key through a sidecar invalidates the values that depend on it (`CACHE.SET … DEPENDS`), in one step
    /// with the write. Not with `strategy: WriteThrough` or `WriteBehind`.
    #[serde(default)]
    pub parents: bool,
    /// How its values are kept small; absent means as `l2.compression` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

/// A Bloom filter of the keys that Redis has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NegativeFilter {
    /// Keys that it is made for, 1 to 10,000,000: a byte and a half of the sidecar's memory each, twice. With more keys in
    /// Redis it is off.
    #[serde(default = "max_keys")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_keys: i32,
}

/// What the cache of a keyspace has to do with the store behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Strategy {
    /// Nothing.
    #[default]
    CacheAside,
    /// What no tier has is loaded.
    ReadThrough,
    /// Writes go to the store before they go to Redis.
    WriteThrough,
    /// Writes go to Redis at once, and to the store in batches.
    WriteBehind,
}

/// How writes wait for the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WriteBehind {
    /// What a write survives that was acknowledged and that the store does not have yet. `Memory`: outages of the store; it
    /// is lost with the sidecar's process. `Pod`: also the end of that process, however it comes: it is written to a log,
    /// on a volume of the pod's, before it is acknowledged. `Replicated`: also the end of the pod and of its node: Redis keeps
    /// it in a stream, in the same step as the write, and has copied it to `replicas` before it is acknowledged; another pod
    /// stores it should this one not come back. A change takes effect in new pods.
    #[serde(default)]
    pub durability: Durability,
    /// Records of one call to the store, 1 to 5000.
    #[serde(default = "batch_size")]
    #[schemars(range(min = 1, max = 5000))]
    pub batch_size: i32,
    /// How long a record waits for others to share its batch, 1ms to 24h.
    #[serde(default = "flush_interval")]
    pub flush_interval: Period,
    /// Records that may wait in a pod; then writes are slowed down to what the store takes, and refused after `maxWait`.
    #[serde(default = "max_records")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub max_records: i32,
    /// The same in bytes of keys and values. Adds to the sidecar's memory, and for `Pod` sizes its volume (three times as
    /// much and 64Mi).
    #[serde(default = "max_bytes")]
    pub max_bytes: Size,
    /// How long a write waits for room, 1ms to 24h.
    #[serde(default = "max_wait")]
    pub max_wait: Period,
    /// How often a record that the store refuses is offered to it before it is put aside as a dead letter.
    #[serde(default = "max_attempts")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: i32,
    /// With `Replicated`: how many replicas of Redis have a write before it is acknowledged, 0 to 10. 0: it is lost if Redis
    /// fails over before it was copied.
    #[serde(default = "replicas")]
    #[schemars(range(min = 0, max = 10))]
    pub replicas: i32,
    /// With `Replicated`: how long nothing may be heard of a sidecar before another one stores what waits in its stream, 1s to
    /// 24h. One that is started again in the same pod goes on by itself at once.
    #[serde(default = "adopt_after")]
    pub adopt_after: Period,
}

impl Default for WriteBehind {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            batch_size: batch_size(),
            flush_interval: flush_interval(),
            max_records: max_records(),
            max_bytes: max_bytes(),
            max_wait: max_wait(),
            max_attempts: max_attempts(),
            replicas: replicas(),
            adopt_after: adopt_after(),
        }
    }
}

/// What a write survives that was acknowledged and is not stored yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Durability {
    /// Outages of the store.
    #[default]
    Memory,
    /// Also the end of the sidecar's process.
    Pod,
    /// Also the end of the pod and of its node.
    Replicated,
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

fn max_keys() -> i32 {
    100_000
}

fn batch_size() -> i32 {
    500
}

fn flush_interval() -> Period {
    "100ms".into()
}

fn max_records() -> i32 {
    100_000
}

fn max_bytes() -> Size {
    "64Mi".into()
}

fn max_wait() -> Period {
    "1s".into()
}

fn replicas() -> i32 {
    1
}

fn adopt_after() -> Period {
    "30s".into()
}

fn max_attempts() -> i32 {
    5
}

fn hard_timeout() -> Period {
    "5s".into()
}

fn jitter_percent() -> i32 {
    10
}
