//! Which crate may depend on which, and what must not be linked at all. The directions are those of
//! `docs/architecture.md`; a new edge is a decision, made here.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// What each crate of ours may use of ours, tests apart. A crate that is not named here fails the test.
const ALLOWED: &[(&str, &[&str])] = &[
    ("caddy-contract", &[]),
    ("caddy-resp", &[]),
    ("caddy-engine", &[]),
    ("caddy-lease", &[]),
    ("caddy-remote", &["caddy-engine", "caddy-resp"]),
    ("caddy-sidecar", &["caddy-contract", "caddy-engine", "caddy-lease", "caddy-remote", "caddy-resp"]),
    ("caddy-crds", &["caddy-contract"]),
    ("caddy-operator", &["caddy-contract", "caddy-crds", "caddy-lease"]),
    (
        "caddy-tests",
        &[
            "caddy-contract",
            "caddy-crds",
            "caddy-engine",
            "caddy-lease",
            "caddy-operator",
            "caddy-remote",
            "caddy-resp",
            "caddy-sidecar",
        ],
    ),
    ("xtask", &[]),
];

/// What no pod should carry in its sidecar: each of these brings dozens of crates.
const NOT_IN_THE_SIDECAR: &[&str] = &["kube", "kube-client", "k8s-openapi", "schemars", "openssl-sys", "aws-lc-sys"];

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")).exec().unwrap()
}

#[test]
fn dependencies_point_only_in_the_documented_directions() {
    let metadata = metadata();
    let packages = metadata.workspace_packages();
    let ours: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    assert_eq!(ours, allowed.keys().copied().collect(), "every crate has a row in ALLOWED, and no other");
    let mut wrong = Vec::new();
    for package in &packages {
        for dependency in package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal) {
            let name = dependency.name.as_str();
            if ours.contains(name) && !allowed[package.name.as_str()].contains(&name) {
                wrong.push(format!("{} -> {name}", package.name));
            }
        }
    }
    assert!(wrong.is_empty(), "dependencies in a direction that is not allowed: {wrong:?}");
}

#[test]
fn the_sidecar_links_neither_a_kubernetes_client_nor_a_second_crypto_library() {
    let metadata = metadata();
    let linked = linked_into(&metadata, "caddy-sidecar");
    assert!(linked.contains("tokio"), "the walk over the dependencies finds nothing: {linked:?}");
    let unwanted: Vec<&&str> = NOT_IN_THE_SIDECAR.iter().filter(|name| linked.contains(**name)).collect();
    assert!(unwanted.is_empty(), "linked into caddy-sidecar: {unwanted:?}");
}

#[test]
fn no_crate_that_deny_toml_bans_is_in_the_build() {
    let rules = include_str!("../../.deny.toml");
    let banned: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("{ crate = \"")?.split('"').next()).collect();
    assert!(banned.contains(&"bincode"), "the list of bans was not found in .deny.toml: {banned:?}");
    let metadata = metadata();
    let reachable: BTreeSet<&str> = ALLOWED.iter().flat_map(|(name, _)| linked_into(&metadata, name)).collect();
    let found: Vec<&&str> = banned.iter().filter(|name| reachable.contains(**name)).collect();
    assert!(found.is_empty(), "banned crates are linked: {found:?}");
}

/// The names of all packages that end up in the named one on this platform, its build and test helpers apart.
fn linked_into<'a>(metadata: &'a Metadata, name: &str) -> BTreeSet<&'a str> {
    let resolve = metadata.resolve.as_ref().unwrap();
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let root = metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == name).unwrap();
    let mut open = vec![&root.id];
    let mut seen: BTreeSet<&PackageId> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        for dependency in &nodes[id].deps {
            let normal = dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
            if normal && seen.insert(&dependency.pkg) {
                open.push(&dependency.pkg);
            }
        }
    }
    seen.into_iter().map(|id| metadata[id].name.as_str()).collect()
}
