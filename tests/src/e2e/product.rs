//! The product on a cluster: its images, its Helm release, and how both are removed. Keeps the CustomResourceDefinition, as
//! the chart does.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::clock::eventually;
use super::cluster::{Cluster, repository};

/// The namespace of the operator.
pub const SYSTEM: &str = "caddy-system";
/// Name of the Helm release.
const RELEASE: &str = "caddy-cache";
/// How soon the operator has a certificate after Helm says that it is ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// The chart's values for the image that was loaded: `CADDY_IMAGE`, else the name that `cargo xtask image` gives.
pub fn values() -> Result<Vec<String>> {
    let image = env::var("CADDY_IMAGE").unwrap_or_else(|_| "localhost/caddy-cache:dev".into());
    let (name, tag) = image.rsplit_once(':').with_context(|| format!("CADDY_IMAGE={image} has no tag"))?;
    let set = [("repository", name), ("tag", tag), ("pullPolicy", "IfNotPresent")];
    Ok(set.into_iter().map(|(key, value)| format!("image.{key}={value}")).collect())
}

/// Loads the images and installs the chart; returns when pods are injected.
pub fn install(cluster: &Cluster) -> Result<()> {
    for archive in [test_image("--redis")?, test_image("--client")?, product_image()?] {
        cluster.load_image(&archive)?;
    }
    cluster.install(RELEASE, SYSTEM, &repository().join("charts/caddy-cache"), &values()?)?;
    eventually("the webhook has a certificate", PATIENCE, || {
        let list = cluster.json(["get", "mutatingwebhookconfigurations"])?;
        let hooks = list["items"].as_array().into_iter().flatten().filter_map(|item| item["webhooks"].as_array());
        let ours = hooks.flatten().filter(|hook| hook["clientConfig"]["service"]["namespace"] == SYSTEM);
        let bundles: Vec<_> = ours.map(|hook| hook["clientConfig"]["caBundle"].as_str().unwrap_or_default()).collect();
        ensure!(!bundles.is_empty(), "no webhook of ours");
        ensure!(bundles.iter().all(|bundle| !bundle.is_empty()), "a webhook of ours has no caBundle");
        Ok(())
    })?;
    Ok(())
}

/// Installs the chart, and makes a namespace with the Redis and the app of `tests/manifests/shop.yaml`, without the shop.
pub fn install_beside_redis(cluster: &Cluster, namespace: &str) -> Result<()> {
    let text = std::fs::read_to_string(repository().join("tests/manifests/shop.yaml"))?;
    let wanted =
        |part: &&str| ["kind: Namespace", "kind: ConfigMap", "  name: redis\n"].iter().any(|mark| part.contains(mark));
    let parts: Vec<_> = text.split("\n---\n").filter(wanted).collect();
    ensure!(parts.len() == 4, "of shop.yaml {} parts were taken, not 4", parts.len());
    let text = parts.join("\n---\n").replace("namespace: shop", &format!("namespace: {namespace}"));
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    std::fs::write(file.path(), text.replace("name: shop", &format!("name: {namespace}")))?;
    cluster.apply(file.path())?;
    install(cluster)?;
    cluster.kubectl(["-n", namespace, "rollout", "status", "deployment/redis", "--timeout=120s"]).map(drop)
}

/// Uninstalls the release and deletes namespaces; fine when nothing is there.
pub fn remove(cluster: &Cluster, namespaces: &[&str]) -> Result<()> {
    // first, so that nothing is injected or counted while it goes
    cluster
        .kubectl(["delete", "namespace", "--ignore-not-found", "--timeout=120s"].iter().chain(namespaces).copied())?;
    if cluster.helm(["status", RELEASE, "-n", SYSTEM]).is_ok() {
        cluster.helm(["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "60s"])?;
    }
    cluster.kubectl(["delete", "namespace", SYSTEM, "--ignore-not-found", "--timeout=120s"]).map(drop)
}

/// The operator's Deployment.
pub fn operator(cluster: &Cluster) -> Result<Value> {
    let list = cluster.json(["get", "deployments", "-n", SYSTEM])?;
    let operator = list["items"].get(0).with_context(|| format!("no Deployment in {SYSTEM}"))?;
    Ok(operator.clone())
}

/// A test image of `tests/kube/image`, made when it is not there.
fn test_image(which: &str) -> Result<PathBuf> {
    let output = Command::new(repository().join("tests/kube/image")).arg(which).output()?;
    ensure!(output.status.success(), "tests/kube/image {which}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().last().context("tests/kube/image prints a path")?.into())
}

/// The product's image: `CADDY_IMAGE_ARCHIVE`, which `cargo xtask` sets, else where `cargo xtask image` writes it.
fn product_image() -> Result<PathBuf> {
    let path = env::var_os("CADDY_IMAGE_ARCHIVE").map(PathBuf::from);
    let path = path.unwrap_or_else(|| repository().join("target/image/caddy-cache.tar"));
    ensure!(path.is_file(), "no image archive {}; `cargo xtask image` makes it", path.display());
    Ok(path)
}
