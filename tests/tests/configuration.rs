//! `docs/configuration.md` against the code: every field of the file and of the CacheCluster has a row, with its real default,
//! and no row is about a field that is not there.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;

use caddy_contract::{
    RawAuth, RawCompression, RawConfig, RawEmbedded, RawHeader, RawHttpStore, RawKeyspace, RawKubernetes, RawL3,
    RawLimits, RawLocks, RawNegativeFilter, RawPostgresStore, RawRedis, RawSentinel, RawStore, RawTls, RawUser,
    RawWarming, RawWriteBehind,
};
use serde_json::{Value, json};

const DOC: &str = include_str!("../../docs/configuration.md");
const CRD: &str = include_str!("../../crds/generated/cacheclusters.yaml");

/// The rows of a section's table: field and default, empty where there is none.
fn documented(section: &str) -> BTreeMap<String, String> {
    let start = DOC.find(&format!("\n## {section}\n")).unwrap() + 4;
    let text = &DOC[start..];
    let text = &text[..text.find("\n## ").unwrap_or(text.len())];
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let mut cells = row.split('|');
        let field = cells.next().unwrap().trim().trim_end_matches('`').to_owned();
        (field, cells.next().unwrap().trim().trim_matches('`').to_owned())
    })
    .collect()
}

/// The leaves of a tree, by path; an empty object or string is a leaf without a value.
fn leaves(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, value)| leaves(&below(name), value, found));
        }
        Value::Array(items) if !items.is_empty() => leaves(&format!("{path}[]"), &items[0], found),
        Value::Object(_) | Value::Array(_) | Value::Null => drop(found.insert(path.to_owned(), String::new())),
        Value::String(text) => drop(found.insert(path.to_owned(), text.clone())),
        other => drop(found.insert(path.to_owned(), other.to_string())),
    }
}

#[test]
fn every_field_of_the_file_is_documented_with_its_default() {
    let redis =
        RawRedis { tls: Some(RawTls::default()), sentinel: Some(RawSentinel::default()), ..RawRedis::default() };
    let tls = || Some(RawTls::default());
    let store = RawStore {
        http: Some(RawHttpStore { headers: vec![RawHeader::default()], tls: tls(), ..RawHttpStore::default() }),
        postgres: Some(RawPostgresStore { tls: tls(), ..RawPostgresStore::default() }),
        ..RawStore::default()
    };
    let everything = RawConfig {
        stores: vec![store],
        l3: RawL3 { embedded: Some(RawEmbedded {}), redis: Some(redis) },
        keyspaces: vec![RawKeyspace {
            compression: Some(RawCompression::default()),
            write_behind: Some(RawWriteBehind::default()),
            negative_filter: Some(RawNegativeFilter::default()),
            ..RawKeyspace::default()
        }],
        kubernetes: Some(RawKubernetes::default()),
        auth: RawAuth { users: vec![RawUser::default()], ..RawAuth::default() },
        ..RawConfig::default()
    };
    let mut tree = serde_json::to_value(everything).unwrap();
    tree["limits"] = serde_json::to_value(RawLimits::default()).unwrap();
    tree["locks"] = serde_json::to_value(RawLocks::default()).unwrap();
    tree["warming"] = serde_json::to_value(RawWarming::default()).unwrap();
    tree["configGeneration"] = json!("");
    tree["cluster"]["uid"] = json!("");
    let mut real = BTreeMap::new();
    leaves("", &tree, &mut real);
    assert_eq!(documented("The configuration file"), real);
}

/// The fields of a schema with their defaults, by path; a default of an enclosing object counts for its fields.
fn schema_fields(path: &str, schema: &serde_yaml::Value, found: &mut BTreeMap<String, String>) {
    let properties = schema.get("properties").and_then(serde_yaml::Value::as_mapping).filter(|map| !map.is_empty());
    if let Some(properties) = properties {
        for (name, schema) in properties {
            let name = name.as_str().unwrap();
            schema_fields(&if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }, schema, found);
        }
    } else if let Some(items) = schema.get("items").filter(|items| items.get("properties").is_some()) {
        schema_fields(&format!("{path}[]"), items, found);
    } else {
        let default = schema.get("default").map_or(Value::Null, |value| serde_json::to_value(value).unwrap());
        leaves(path, &default, found);
    }
}

#[test]
fn every_field_of_the_cachecluster_is_documented_with_its_default() {
    let crd: serde_yaml::Value = serde_yaml::from_str(CRD).unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let mut real = BTreeMap::new();
    schema_fields("", spec, &mut real);
    assert!(real.len() > 20, "the schema was not found: {real:?}");
    assert_eq!(documented("CacheCluster"), real);
}
