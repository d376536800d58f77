//! The kind `CacheInvalidation`: an invalidation as an object, executed once by the sidecar that has the cluster's duties.
//!
//! Every doc comment here is what `kubectl explain` prints. What it means is the contract's
//! ([`caddy_contract::invalidation`]).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The greatest count: bounds are floating-point numbers to API servers, and above it these lie apart.
const MAX_COUNT: i64 = (1 << 53) - 1;

/// An invalidation: what it names is gone from the cache of a CacheCluster, in every pod and in Redis. It is executed once;
/// to invalidate again, create another one.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "cache.caddy.dev",
    version = "v1alpha1",
    kind = "CacheInvalidation",
    plural = "cacheinvalidations",
    shortname = "ci",
    namespaced,
    status = "CacheInvalidationStatus",
    derive = "Default",
    derive = "PartialEq",
    doc = "An invalidation: what it names is gone from the cache of a CacheCluster, in every pod and in Redis. It is executed once; to invalidate again, create another one.",
    printcolumn = r#"{"name": "Cluster", "type": "string", "description": "The CacheCluster", "jsonPath": ".spec.cluster"}"#,
    printcolumn = r#"{"name": "Phase", "type": "string", "description": "How far it is", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Acknowledged", "type": "integer", "description": "Sidecars with which it is in force", "jsonPath": ".status.acknowledged"}"#,
    printcolumn = r#"{"name": "Members", "type": "integer", "description": "Sidecars that there are", "jsonPath": ".status.members"}"#,
    printcolumn = r#"{"name": "Removed", "type": "integer", "description": "Entries removed from Redis", "jsonPath": ".status.removed"}"#,
    printcolumn = r#"{"name": "Reason", "type": "string", "description": "Why", "jsonPath": ".spec.reason", "priority": 1}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct CacheInvalidationSpec {
    /// The CacheCluster, of the same namespace.
    #[schemars(length(min = 1, max = 52))]
    pub cluster: String,

    /// Keys of database 0, removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 1024)))]
    pub keys: Vec<String>,

    /// Tags: whatever carries one is invalid.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 1024)))]
    pub tags: Vec<String>,

    /// Keyspaces of the CacheCluster by name, `*` for the keys that no rule matches: what was written there with tags or by
    /// CACHE.SET is invalid. Plain values stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 63)))]
    pub keyspaces: Vec<String>,

    /// Keys of database 0 that match one of these, as KEYS in Redis matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 1024)))]
    pub patterns: Vec<String>,

    /// Keys of database 0 in which one of these regular expressions matches; ^ and $ tie it to a key's ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 1024)))]
    pub regexes: Vec<String>,

    /// Why, for people: told in events and lists.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 512))]
    pub reason: String,

    /// So many seconds after its end the object is deleted; absent: it stays until somebody deletes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2_592_000))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// What the sidecar that executes it reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheInvalidationStatus {
    /// Running: it takes effect. Succeeded: nothing of what it names is left. Failed: it did not take effect, and message
    /// says why. Absent: no sidecar has begun; there may be none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,

    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub started_at: Option<String>,

    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub finished_at: Option<String>,

    /// The pod whose sidecar executes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub executor: Option<String>,

    /// Sidecars that have said that it is in force with them; any other one serves nothing older than maxStaleness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub acknowledged: Option<i32>,

    /// Sidecars that there were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub members: Option<i32>,

    /// Entries removed from Redis. What tags invalidate is not counted: it stays there unread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_COUNT))]
    pub removed: Option<i64>,

    /// What is wrong, or was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// How far an invalidation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// It takes effect.
    Running,
    /// It took effect, and nothing of what it names is left.
    Succeeded,
    /// It did not take effect.
    Failed,
}

/// A rule of the kind, as [`RULES`](crate::rules::RULES) has them for CacheClusters.
pub struct InvalidationRule {
    /// Where in the object the CEL stands, as property names.
    pub at: &'static [&'static str],
    /// The rule for the API server.
    pub cel: &'static str,
    /// What the user is told.
    pub message: &'static str,
    /// The rule for whoever executes it; `None`: it is about changes, and the executor looks at
    /// `metadata.generation` instead.
    pub holds: Option<fn(&caddy_contract::invalidation::InvalidationSpec) -> bool>,
}

/// All rules.
pub const INVALIDATION_RULES: &[InvalidationRule] = &[
    InvalidationRule {
        at: &["spec"],
        cel: "self == oldSelf",
        message: "an invalidation is executed once and cannot be changed; create another one",
        holds: None,
    },
    InvalidationRule {
        at: &["spec"],
        cel: "(has(self.keys) && size(self.keys) > 0) || (has(self.tags) && size(self.tags) > 0) || (has(self.keyspaces) && size(self.keyspaces) > 0) || (has(self.patterns) && size(self.patterns) > 0) || (has(self.regexes) && size(self.regexes) > 0)",
        message: caddy_contract::invalidation::NOTHING,
        holds: Some(|spec| !spec.is_about_nothing()),
    },
];
