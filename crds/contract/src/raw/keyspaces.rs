//! The section `keyspaces`.

use super::RawCompression;
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

/// What the cache of a keyspace has to do with the store behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Nothing: the app reads its database itself.
    #[default]
    CacheAside,
    /// What no tier has is loaded from the store.
    ReadThrough,
}

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
