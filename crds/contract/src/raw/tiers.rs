//! The sections `l1`, `l2` and `tiering`.

use super::text;
use serde::{Deserialize, Serialize};

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

impl Default for RawTiering {
    fn default() -> Self {
        Self { promote_after_hits: 10, demote_after_idle: "5m".into(), maintenance_interval: "60s".into() }
    }
}
