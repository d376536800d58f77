//! Fixtures of unit tests.

use caddy_crds::CacheCluster;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// A valid CacheCluster `shop/web`, generation 3.
pub(crate) fn cluster() -> CacheCluster {
    cluster_with(&json!({"l3": {"redis": {"endpoints": ["redis.shop:6379"]}}}))
}

/// The same with another spec.
pub(crate) fn cluster_with(spec: &Value) -> CacheCluster {
    serde_json::from_value(json!({
        "apiVersion": "cache.caddy.dev/v1alpha1",
        "kind": "CacheCluster",
        "metadata": {"name": "web", "namespace": "shop", "uid": "uid-1", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

/// A typed pod from its JSON.
pub(crate) fn pod(object: &Value) -> Pod {
    serde_json::from_value(object.clone()).unwrap()
}
