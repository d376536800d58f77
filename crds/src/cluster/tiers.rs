//! `spec.l1`, `spec.l2` and `spec.tiering`: the tiers of one sidecar.

use crate::quantity::{Budget, Period, Size};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// Bytes of keys, values and metadata, at least 1Mi; or a share of `resources.limits.memory`, such as `50%` (up to 75 %).
    pub max_bytes: Budget,
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

impl Default for Tiering {
    fn default() -> Self {
        Self { promote_after_hits: 10, demote_after_idle: "5m".into(), maintenance_interval: "60s".into() }
    }
}
