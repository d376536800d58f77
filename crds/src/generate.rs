//! From the types to YAML: the CustomResourceDefinition with its CEL rules, plain and as a Helm template.
//!
//! Pure. `cargo run -p caddy-crds --bin crdgen` writes the files; a test compares them.

use crate::{CacheCluster, CacheInvalidation, invalidation::INVALIDATION_RULES, rules::RULES};
use kube::CustomResourceExt as _;
use serde_json::{Value, json};

/// Command that refreshes the generated files; failing tests name it.
pub const REFRESH: &str = "cargo run -p caddy-crds --bin crdgen";

/// Words that YAML 1.1 reads as booleans and YAML 1.2 as text.
const YAML_1_1_BOOLEANS: [&str; 12] = ["Off", "off", "OFF", "On", "on", "ON", "Yes", "yes", "YES", "No", "no", "NO"];

const HEADER: &str = "# Generated from crds/src by `cargo run -p caddy-crds --bin crdgen`. Do not edit.\n";

/// Generated files by their path from the root of the repository.
pub fn files() -> Vec<(&'static str, String)> {
    vec![
        ("crds/generated/cacheclusters.yaml", yaml(&definition())),
        ("charts/caddy-cache/templates/crds/cacheclusters.yaml", chart_template(&definition())),
        ("crds/generated/cacheinvalidations.yaml", yaml(&invalidations())),
        ("charts/caddy-cache/templates/crds/cacheinvalidations.yaml", chart_template(&invalidations())),
    ]
}

/// The definition of CacheCluster, with the rules of [`RULES`] as CEL.
pub fn definition() -> Value {
    let mut crd = serde_json::to_value(CacheCluster::crd()).unwrap_or_default();
    tidy(&mut crd);
    for rule in RULES {
        add_rule(&mut crd, rule.at, rule.cel, rule.message);
    }
    crd
}

/// The definition of CacheInvalidation, likewise.
pub fn invalidations() -> Value {
    let mut crd = serde_json::to_value(CacheInvalidation::crd()).unwrap_or_default();
    tidy(&mut crd);
    for rule in INVALIDATION_RULES {
        add_rule(&mut crd, rule.at, rule.cel, rule.message);
    }
    crd
}

/// Puts a rule where it belongs.
fn add_rule(crd: &mut Value, at: &[&str], cel: &str, message: &str) {
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let place = at.iter().fold(schema, |at, step| match *step {
        "[]" => &mut at["items"],
        property => &mut at["properties"][property],
    });
    let entry = json!({"rule": cel, "message": message});
    match &mut place["x-kubernetes-validations"] {
        Value::Array(rules) => rules.push(entry),
        absent => *absent = json!([entry]),
    }
}

/// A definition as YAML, readable by YAML 1.1 parsers too (kubectl's and Helm's), which take a bare Off for false.
pub fn yaml(crd: &Value) -> String {
    let text = serde_yaml::to_string(crd).unwrap_or_default();
    let quoted = text.lines().map(|line| match line.rsplit_once(' ') {
        Some((start, word)) if YAML_1_1_BOOLEANS.contains(&word) => format!("{start} \"{word}\"\n"),
        _ => format!("{line}\n"),
    });
    HEADER.chars().chain(quoted.collect::<String>().chars()).collect()
}

/// Takes out what the schema generator adds and Kubernetes has no use for: `nullable` (a null is then dropped like an
/// absent field), the hollowed `anyOf` of int-or-string, and fractions of whole bounds.
fn tidy(node: &mut Value) {
    match node {
        Value::Object(fields) => {
            fields.remove("nullable");
            if fields.contains_key("x-kubernetes-int-or-string") {
                fields.remove("anyOf");
            }
            for bound in ["minimum", "maximum"] {
                if let Some(whole) = fields.get(bound).and_then(Value::as_f64) {
                    fields.insert(bound.to_owned(), json!(whole as i64));
                }
            }
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// A definition as a template of the chart: installed unless `crds.install` is false, kept on uninstall while
/// `crds.keep` is true, without CEL where the API server does not know it (before 1.25 Helm would refuse the field).
pub fn chart_template(crd: &Value) -> String {
    let mut lines = vec![
        HEADER.trim_end().to_owned(),
        "{{- if .Values.crds.install }}".to_owned(),
        "{{- $cel := semverCompare \">=1.25.0-0\" .Capabilities.KubeVersion.Version }}".to_owned(),
    ];
    let mut cel_indent = None;
    for line in yaml(crd).lines().skip(1) {
        let indent = line.len() - line.trim_start().len();
        let continues =
            cel_indent.is_some_and(|cel| indent > cel || (indent == cel && line.trim_start().starts_with("- ")));
        if cel_indent.is_some() && !continues {
            lines.push("{{- end }}".to_owned());
            cel_indent = None;
        }
        if line.trim_start().starts_with("x-kubernetes-validations:") {
            lines.push("{{- if $cel }}".to_owned());
            cel_indent = Some(indent);
        }
        lines.push(line.to_owned());
        if line == "metadata:" {
            lines.push("  {{- if .Values.crds.keep }}".to_owned());
            lines.push("  annotations:".to_owned());
            lines.push("    helm.sh/resource-policy: keep".to_owned());
            lines.push("  {{- end }}".to_owned());
            lines.push("  labels: {{- include \"caddy-cache.labels\" . | nindent 4 }}".to_owned());
        }
    }
    if cel_indent.is_some() {
        lines.push("{{- end }}".to_owned());
    }
    lines.push("{{- end }}\n".to_owned());
    lines.join("\n")
}
