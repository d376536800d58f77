//! `docs/operator.md` speaks of everything that the operator says: reasons, metrics, values of the chart.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use caddy_crds::{CacheCluster, MemberCounts, PodCounts};
use caddy_operator::{
    members::MemberTally,
    metrics::Metrics,
    plan::{InvalidSpec, Outcome, PodTally, World, notes, status},
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path};

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)).unwrap()
}

fn cluster(l3: &Value) -> CacheCluster {
    let object = json!({
        "apiVersion": "cache.caddy.dev/v1alpha1",
        "kind": "CacheCluster",
        "metadata": {"name": "shop", "namespace": "shop"},
        "spec": {"l3": l3},
    });
    serde_json::from_value(object).unwrap()
}

#[test]
fn every_reason_is_documented() {
    let doc = file("docs/operator.md");
    let outcomes = [Outcome::Applied, Outcome::Invalid(InvalidSpec(vec!["x".into()])), Outcome::Failed("x".into())];
    let pods = [(2, 2, 0, 0), (2, 2, 1, 0), (2, 2, 1, 1), (2, 1, 0, 0)];
    let members = [(0, 0, 0), (2, 2, 2), (2, 1, 1)];
    let faults = [None, Some("refused".to_owned())];
    let worlds: Vec<World> = pods
        .iter()
        .flat_map(|pods| members.iter().flat_map(move |members| [(pods, members, 0), (pods, members, 1)]))
        .map(|(&(selected, injected, stale, behind), &(ready, coherent, reaching), fault)| World {
            pods: PodTally { counts: PodCounts { selected, injected, stale }, missed: Vec::new(), behind },
            members: MemberTally { counts: MemberCounts { ready, coherent }, reaching, ..MemberTally::default() },
            identity_fault: faults[fault].clone(),
        })
        .collect();
    let mut reasons = BTreeSet::new();
    for l3 in [json!({"embedded": {}}), json!({"redis": {"endpoints": ["r:1"]}})] {
        for (outcome, world) in outcomes.iter().flat_map(|outcome| worlds.iter().map(move |world| (outcome, world))) {
            let status = status(&cluster(&l3), outcome, world, Timestamp::UNIX_EPOCH);
            reasons.extend(notes(None, &status).into_iter().map(|note| note.reason.to_owned()));
            reasons.extend(status.conditions.into_iter().flat_map(|condition| [condition.type_, condition.reason]));
        }
    }
    // Events of the webhook, as its source has them.
    let source = file("operator/src/webhook/review.rs");
    let quoted = source.split('"').skip(1).step_by(2);
    reasons.extend(
        quoted
            .filter(|text| text.starts_with("CacheCluster") || text.starts_with("Injection"))
            .filter(|text| text.chars().all(char::is_alphanumeric))
            .map(str::to_owned),
    );
    assert!(reasons.len() > 20, "only {reasons:?}");
    let silent: Vec<_> = reasons.iter().filter(|reason| !doc.contains(&format!("`{reason}`"))).collect();
    assert!(silent.is_empty(), "docs/operator.md does not speak of {silent:?}");
}

#[test]
fn every_metric_is_documented() {
    let doc = file("docs/operator.md");
    let text = Metrics::new().text();
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() >= 5);
    let silent: Vec<_> = names.into_iter().filter(|name| !doc.contains(*name)).collect();
    assert!(silent.is_empty(), "docs/operator.md does not speak of {silent:?}");
}

#[test]
fn every_value_of_the_chart_is_documented() {
    let doc = file("docs/operator.md");
    let values: Value = serde_yaml::from_str(&file("charts/caddy-cache/values.yaml")).unwrap();
    let mut names = Vec::new();
    for (section, value) in values.as_object().unwrap() {
        match value.as_object() {
            Some(fields) if ["image", "sidecar", "webhook", "crds"].contains(&section.as_str()) => {
                names.extend(fields.keys().map(|field| format!("{section}.{field}")));
            }
            _ => names.push(section.clone()),
        }
    }
    let silent: Vec<_> = names.iter().filter(|name| !doc.contains(&format!("`{name}`"))).collect();
    assert!(silent.is_empty(), "docs/operator.md does not speak of {silent:?}");
}
