//! The whole product on a real Kubernetes, under the chart's own ClusterRoles.
//!
//! Runs where `CADDY_E2E_KUBECONFIG` names a kubeconfig, else says that it was skipped: `cargo xtask test` names one. On a
//! Kubernetes of 1.29 or newer the sidecars are native, on an older one plain containers; the stories are the same. They own
//! the namespaces `shop`, `edges`, `agreed`, `stores` and `caddy-system` and leave none of them behind.

mod coordination;
mod edges;
mod shop;
mod stores;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use caddy_tests::e2e::{Cluster, Console, Namespace, Pod, Stopwatch, eventually, product};
use parking_lot::Mutex;
use serde_json::{Value, json};

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

#[test]
fn sidecars_talk_to_the_database_and_lose_nothing_with_a_process_or_a_pod() {
    if let Err(error) = on_a_cluster("stores", stores::tell) {
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

/// Applies a pod and waits until it is Ready with a sidecar.
fn start(namespace: &Namespace<'_>, pod: &Value) -> Result<Pod> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    namespace.apply(pod)?;
    let ([pod], _) = eventually("it is Ready with a sidecar", PATIENCE, || namespace.exactly_ready(name, true))?;
    Ok(pod)
}

/// A pod of the app that asks for the sidecar of a CacheCluster; `more` is merged into it.
fn app_pod(namespace: &str, name: &str, cache: &str, more: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace,
            "labels": {"app": name, "cache.caddy.dev/cluster": cache},
            "annotations": {"cache.caddy.dev/redis-url-env": "REDIS_URL"},
        },
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "volumes": [{"name": "app", "configMap": {"name": "app"}}],
            "containers": [{
                "name": "app", "image": "local/client:test", "imagePullPolicy": "IfNotPresent", "args": ["/app/app.py", "serve"],
                "env": [{"name": "REDIS_URL", "value": format!("redis://redis.{namespace}:6379")}],
                "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                "volumeMounts": [{"name": "app", "mountPath": "/app"}],
            }],
        },
    });
    merge(&mut pod, more);
    pod
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

fn reads(console: &mut Console, key: &str, value: &Value) -> Result<()> {
    let found = console.reply(&["GET", key])?;
    ensure!(found == *value, "{key} is {found}, expected {value}");
    Ok(())
}
