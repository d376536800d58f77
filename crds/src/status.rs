//! What the operator reports of a CacheCluster.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Greatest epoch: JSON numbers are exact up to here. An epoch is about a second of some clock.
pub const EPOCH_MAX: i64 = (1 << 53) - 1;

/// What the operator last saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CacheClusterStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready: the spec is valid and the configuration written. Progressing: the operator is still at work on it.
    /// Degraded: something needs a person. Coherent and L3Reachable: what sidecars can prove; Unknown where nobody
    /// has told the operator. InjectionSynced: every pod that asks for a sidecar has the one of today.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,

    /// Pods that ask for this CacheCluster.
    #[serde(default)]
    pub pods: PodCounts,

    /// Sidecars that report to the operator.
    #[serde(default)]
    pub members: MemberCounts,

    /// The epoch of the locks: the first half of their fencing tokens, one incarnation of L3's data. The greatest that a
    /// sidecar has reported; absent before a lock was asked for, and with an embedded L3. It never goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = EPOCH_MAX))]
    pub epoch: Option<i64>,
}

/// Running sidecars, as they report themselves through their Leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberCounts {
    /// Sidecars that were heard of lately. Those without an identity, or without a way to the API server, serve and are
    /// not counted.
    #[schemars(range(min = 0, max = i32::MAX))]
    pub ready: i32,
    /// Those of them that learn of every write, so that they cache.
    #[schemars(range(min = 0, max = i32::MAX))]
    pub coherent: i32,
}

/// Pods that carry the label of a CacheCluster and have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodCounts {
    /// Pods with the label, without those that cannot have a sidecar (their owners were told why).
    #[schemars(range(min = 0, max = i32::MAX))]
    pub selected: i32,
    /// Those of them that have a sidecar. The others were created while no operator answered, or could not get one.
    #[schemars(range(min = 0, max = i32::MAX))]
    pub injected: i32,
    /// Injected pods whose sidecar differs from what a new pod would get today (image, resources, volumes), or reports
    /// an older configuration. They are never restarted unasked.
    #[schemars(range(min = 0, max = i32::MAX))]
    pub stale: i32,
}
