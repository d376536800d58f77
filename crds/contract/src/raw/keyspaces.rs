//! The section `keyspaces`.

use super::RawCompression;
use serde::{Deserialize, Serialize};

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
