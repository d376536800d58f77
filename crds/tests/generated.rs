//! The generated files are what the types say, and the definition keeps the rules of the API.

use caddy_crds::{CacheClusterSpec, generate};
use serde_json::Value;
use std::{fs, path::Path};

#[test]
fn generated_files_are_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for (path, text) in generate::files() {
        let found = fs::read_to_string(root.join(path)).unwrap_or_default();
        assert!(found == text, "{path} is stale; refresh it with: {}", generate::REFRESH);
    }
}

#[test]
fn nothing_in_the_definition_reads_as_a_helm_template() {
    for crd in [generate::definition(), generate::invalidations()] {
        assert!(!generate::yaml(&crd).contains("{{"));
    }
}

/// Walks the schema of spec and status; `visit` gets each node with its path.
fn walk(path: &str, node: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, node);
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), child, visit);
    }
    if node["items"].is_object() {
        walk(&format!("{path}[]"), &node["items"], visit);
    }
}

fn schema() -> Value {
    generate::definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[test]
fn every_field_is_documented_and_bounded() {
    let mut seen = 0;
    let invalidations = generate::invalidations()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    for (schema, part) in
        [(schema(), "spec"), (schema(), "status"), (invalidations.clone(), "spec"), (invalidations, "status")]
    {
        walk(part, &schema["properties"][part], &mut |path, node| {
            seen += 1;
            if path.starts_with("status.conditions[]") {
                return; // Kubernetes' own type
            }
            if !path.ends_with("[]") {
                assert!(node["description"].is_string(), "{path} has no description");
            }
            match node["type"].as_str() {
                Some("string") => assert!(node["maxLength"].is_u64() || node["enum"].is_array(), "{path} is unbounded"),
                Some("array") => assert!(node["maxItems"].is_u64(), "{path} is unbounded"),
                Some("integer") => {
                    assert!(path == "status.observedGeneration" || node["maximum"].is_number(), "{path} is unbounded");
                }
                Some("number") => panic!("{path} is a float"),
                _ => {}
            }
            let text = node.to_string();
            assert!(
                !text.contains("uint") && !text.contains("double"),
                "{path} has a format that Kubernetes does not know"
            );
        });
    }
    assert!(seen > 40, "only {seen} nodes: the walk is broken");
}

#[test]
fn defaults_are_those_of_the_contract() {
    let spec: CacheClusterSpec =
        serde_json::from_value(serde_json::json!({"l3": {"redis": {"endpoints": ["r:1"]}}})).unwrap();
    let raw = caddy_contract::RawConfig::default();
    let redis = caddy_contract::RawRedis::default();
    assert_eq!((spec.l1.max_bytes.0, spec.l2.max_bytes.0), (raw.l1.max_bytes, raw.l2.max_bytes));
    assert_eq!(format!("{:?}", spec.l2.policy), format!("{:?}", raw.l2.policy));
    assert_eq!(spec.l1.max_entries.unsigned_abs(), raw.l1.max_entries);
    assert_eq!(spec.tiering.promote_after_hits.unsigned_abs(), raw.tiering.promote_after_hits);
    assert_eq!(spec.tiering.demote_after_idle.0, raw.tiering.demote_after_idle);
    assert_eq!(spec.tiering.maintenance_interval.0, raw.tiering.maintenance_interval);
    assert_eq!(spec.consistency.max_staleness.0, raw.consistency.max_staleness);
    let limits = raw.limits;
    assert_eq!(spec.limits.max_connections.unsigned_abs(), limits.max_connections);
    assert_eq!(spec.limits.max_pipeline.unsigned_abs(), limits.max_pipeline);
    assert_eq!(spec.limits.max_frame_bytes.0, limits.max_frame_bytes);
    assert_eq!(spec.limits.max_value_bytes.0, limits.max_value_bytes);
    assert_eq!(spec.limits.output_buffer_bytes.0, limits.output_buffer_bytes);
    assert_eq!(spec.limits.slow_reader_timeout.0, limits.slow_reader_timeout);
    assert_eq!((spec.limits.idle_timeout, limits.idle_timeout.as_str()), (None, ""));
    let found = spec.l3.redis.unwrap();
    assert_eq!((found.connect_timeout.0, found.timeout.0), (redis.connect_timeout, redis.timeout));
}

#[test]
fn defaults_stand_in_the_schema_too() {
    let spec = &schema()["properties"]["spec"]["properties"];
    assert_eq!(spec["l2"]["default"]["maxBytes"], "64Mi");
    assert_eq!(spec["l2"]["properties"]["maxBytes"]["default"], "64Mi");
    assert_eq!(spec["l2"]["properties"]["policy"]["default"], "Adaptive");
    assert_eq!(spec["consistency"]["properties"]["onUncertain"]["default"], "Bypass");
    assert_eq!(spec["l3"]["properties"]["redis"]["properties"]["mode"]["default"], "Standalone");
}

#[test]
fn conditions_are_a_map_by_type() {
    let conditions = &schema()["properties"]["status"]["properties"]["conditions"];
    assert_eq!(conditions["x-kubernetes-list-type"], "map");
    assert_eq!(conditions["x-kubernetes-list-map-keys"][0], "type");
}
