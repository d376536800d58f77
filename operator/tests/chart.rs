//! The chart, rendered: what it installs on the oldest and on a new server, and that the operator takes its flags.
//!
//! Needs Helm: `CADDY_HELM` (as `cargo xtask test` sets it) or `helm` in the path; without it these tests say that they
//! did not look, and `cargo xtask test` looks. `UPDATE_GOLDEN=1` rewrites `golden/chart/`; read the difference.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

use caddy_operator::settings::Settings;
use clap::Parser;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const IMAGE: &str = "image.repository=registry.example/caddy-cache";

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("charts/caddy-cache")
}

/// Helm's output, or nothing where there is no Helm.
fn helm(arguments: &[&str]) -> Option<Output> {
    let program = env::var_os("CADDY_HELM").unwrap_or_else(|| "helm".into());
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if env::var_os("CADDY_HELM").is_some() => panic!("CADDY_HELM cannot be run: {error}"),
        Err(_) => {
            eprintln!("NOT LOOKED AT: no helm; set CADDY_HELM");
            None
        }
    }
}

/// The objects that the chart installs, by kind and name.
fn rendered(version: &str, values: &[&str]) -> Option<BTreeMap<String, Value>> {
    let chart = chart();
    let mut arguments =
        vec!["template", "caddy-cache", chart.to_str().unwrap(), "--namespace", "caddy", "--kube-version", version];
    for value in values {
        arguments.extend(["--set", value]);
    }
    let output = helm(&arguments)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = text.split("\n---\n").map(|document| serde_yaml::from_str::<Value>(document).unwrap());
    let named = documents.filter(Value::is_object).map(|object| {
        let name = format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        (name, object)
    });
    Some(named.collect())
}

#[test]
fn the_chart_renders_as_the_golden_file_says_on_old_and_new_servers() {
    let Some(mut old) = rendered("1.20.2", &[IMAGE]) else { return };
    let mut new = rendered("1.36.0", &[IMAGE]).unwrap();
    for definition in [caddy_crds::generate::definition(), caddy_crds::generate::invalidations()] {
        let crd = format!("CustomResourceDefinition/{}", definition["metadata"]["name"].as_str().unwrap());
        let (old_crd, new_crd) = (old.remove(&crd).unwrap(), new.remove(&crd).unwrap());
        assert!(!old_crd.to_string().contains("x-kubernetes-validations"), "1.20 would refuse CEL");
        let schema = |crd: &Value| crd["spec"]["versions"][0]["schema"].clone();
        assert_eq!(schema(&new_crd), schema(&definition));
        assert_eq!(new_crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
    let budget = "PodDisruptionBudget/caddy-cache-operator";
    assert_eq!(old[budget]["apiVersion"], "policy/v1beta1");
    old.get_mut(budget).unwrap()["apiVersion"] = json!("policy/v1");
    assert_eq!(old, new, "only the definitions and the version of policy may differ between servers");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/chart/default.yaml");
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, serde_yaml::to_string(&new).unwrap()).unwrap();
    }
    let golden: BTreeMap<String, Value> = serde_yaml::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    for (name, object) in &new {
        assert_eq!(
            golden.get(name),
            Some(object),
            "{name}; refresh with UPDATE_GOLDEN=1 cargo test -p caddy-operator --test chart"
        );
    }
    assert_eq!(golden.len(), new.len(), "the golden file has objects that the chart does not render");
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

#[test]
fn the_operator_takes_the_flags_that_the_chart_gives() {
    let choices: [&[&str]; 2] = [
        &[IMAGE],
        &[
            IMAGE,
            "image.tag=2",
            "sidecar.image=other:1",
            "sidecar.user=Platform",
            "sidecar.form=Plain",
            "webhook.failurePolicy=Fail",
            "webhook.onMissingCluster=Admit",
        ],
    ];
    for values in choices {
        let Some(objects) = rendered("1.36.0", values) else { return };
        let container = &objects["Deployment/caddy-cache-operator"]["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["command"], json!(["caddy-operator", "run"]));
        let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
        let settings = Flags::try_parse_from(std::iter::once("run").chain(arguments))
            .map_err(|error| error.to_string())
            .unwrap_or_else(|error| panic!("{error}"))
            .settings;
        let named =
            |kind: &str, name: &str| assert!(objects.contains_key(&format!("{kind}/{name}")), "no {kind} {name}");
        named("Secret", &settings.ca_secret);
        named("ClusterRole", settings.sidecar_role.as_deref().unwrap());
        named("Lease", settings.lease.as_deref().unwrap());
        named("MutatingWebhookConfiguration", &settings.webhook_configuration);
        let service = settings.webhook_hosts[0].strip_suffix(".caddy.svc").unwrap();
        named("Service", service);
        let configuration = &objects[&format!("MutatingWebhookConfiguration/{}", settings.webhook_configuration)];
        let client = &configuration["webhooks"][0]["clientConfig"];
        assert_eq!(client["service"]["name"], service);
        assert!(client.get("caBundle").is_none(), "the operator owns caBundle");
    }
}

#[test]
fn without_an_image_the_chart_says_what_to_do() {
    let Some(output) = helm(&["template", "caddy-cache", chart().to_str().unwrap()]) else { return };
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(error.contains("image.repository is needed") && error.contains("cargo xtask image"), "{error}");
}

#[test]
fn a_misspelt_value_is_refused() {
    let Some(output) =
        helm(&["template", "c", chart().to_str().unwrap(), "--set", IMAGE, "--set", "webhok.failurePolicy=Fail"])
    else {
        return;
    };
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("webhok"));
}
