//! The whole product on a real Kubernetes, under the chart's own ClusterRoles.
//!
//! Runs where `CADDY_E2E_KUBECONFIG` names a kubeconfig, else says that it was skipped: `cargo xtask test` names one. On a
//! Kubernetes of 1.29 or newer the sidecars are native, on an older one plain containers; the stories are the same. They own
//! the namespaces `shop`, `edges`, `agreed` and `caddy-system` and leave none of them behind.

mod coordination;
mod edges;
mod shop;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddy_tests::e2e::{Cluster, Console, Stopwatch, product};
use parking_lot::Mutex;
use serde_json::Value;

/// The CacheClusters' `maxStaleness`.
const MAX_STALENESS: Duration = Duration::from_secs(1);
/// For what a kubelet does: starting pods on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// A cluster has one installation, so one story is told at a time.
static CLUSTER: Mutex<()> = Mutex::new(());

#[test]
fn an_app_pod_reads_through_its_sidecar_and_the_way_back_is_one_label() {
    if let Err(error) = on_a_cluster("shop", shop::tell) {
        panic!("{error:#}");
    }
}

#[test]
fn whatever_goes_wrong_is_told_and_the_app_pod_lives() {
    if let Err(error) = on_a_cluster("edges", edges::tell) {
        panic!("{error:#}");
    }
}

#[test]
fn replicas_and_sidecars_agree_through_leases_with_no_more_rights_than_that_needs() {
    if let Err(error) = on_a_cluster("agreed", coordination::tell) {
        panic!("{error:#}");
    }
}

/// Tells one story in `namespace`, with a fresh installation that is removed afterwards, and shows what a person would look
/// at when it fails.
fn on_a_cluster(namespace: &str, tell: impl FnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let Some(cluster) = Cluster::from_env()? else {
        println!("SKIPPED: CADDY_E2E_KUBECONFIG names no cluster; `cargo xtask test` starts one");
        return Ok(());
    };
    let _alone = CLUSTER.lock();
    let form = if cluster.has_native_sidecars() { "native" } else { "plain" };
    println!("Kubernetes 1.{}: sidecars in their {form} form", cluster.minor());
    let result = product::remove(&cluster, &[namespace]).and_then(|()| tell(&cluster));
    if let Err(error) = &result {
        println!("{}\nFAILED: {error:#}", cluster.diagnosis(&[namespace, product::SYSTEM]));
    }
    let removed = product::remove(&cluster, &[namespace]);
    result.and(removed)
}

fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("- {name}");
    let watch = Stopwatch::start();
    let result = work().with_context(|| name.to_owned())?;
    println!("  ok, {:.1?}", watch.elapsed());
    Ok(result)
}

fn note(text: impl AsRef<str>) {
    println!("  {}", text.as_ref());
}

fn reads(console: &mut Console, key: &str, value: &Value) -> Result<()> {
    let found = console.reply(&["GET", key])?;
    ensure!(found == *value, "{key} is {found}, expected {value}");
    Ok(())
}
