//! One namespace with apps, their Redis and their CacheCluster, as a test looks at it.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::cluster::{Cluster, Pod};
use super::console::Console;
use super::metrics::Metrics;

/// Name of the injected container.
pub const SIDECAR: &str = "caddy-sidecar";

/// A namespace of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// The namespace's name.
    pub name: &'a str,
}

impl<'a> Namespace<'a> {
    /// That namespace.
    pub fn new(cluster: &'a Cluster, name: &'a str) -> Self {
        Self { cluster, name }
    }

    /// Runs kubectl in it.
    pub fn kubectl<'b>(&self, arguments: impl IntoIterator<Item = &'b str>) -> Result<String>
    where
        'a: 'b,
    {
        self.cluster.kubectl(["-n", self.name].into_iter().chain(arguments))
    }

    /// `kubectl get … -o json` in it.
    pub fn get<'b>(&self, arguments: impl IntoIterator<Item = &'b str>) -> Result<Value>
    where
        'a: 'b,
    {
        self.cluster.json(["-n", self.name, "get"].into_iter().chain(arguments))
    }

    /// Applies one object, written as JSON.
    pub fn apply(&self, object: &Value) -> Result<String> {
        let file = tempfile::Builder::new().suffix(".json").tempfile()?;
        std::fs::write(file.path(), object.to_string())?;
        self.cluster.apply(file.path())
    }

    /// Deletes without waiting.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.kubectl(["delete", kind, name, "--wait=false", "--ignore-not-found"]).map(drop)
    }

    // === pods ===

    /// Pods of an app (label `app`) that are not being deleted.
    pub fn pods(&self, app: &str) -> Result<Vec<(Pod, Value)>> {
        self.cluster.pods(self.name, &format!("app={app}"))
    }

    /// Those that are Ready and have a sidecar, or have none.
    pub fn ready(&self, app: &str, injected: bool) -> Result<Vec<Pod>> {
        let pods = self.pods(app)?.into_iter();
        let fit = pods.filter(|(_, object)| has_sidecar(object) == injected && is_ready(object));
        Ok(fit.map(|(pod, _)| pod).collect())
    }

    /// The same, when they are exactly `N`.
    pub fn exactly_ready<const N: usize>(&self, app: &str, injected: bool) -> Result<[Pod; N]> {
        if let Ok(pods) = <[Pod; N]>::try_from(self.ready(app, injected)?) {
            return Ok(pods);
        }
        let pods = self.pods(app)?;
        let shown: Vec<_> =
            pods.iter().map(|(pod, object)| (&pod.name, has_sidecar(object), is_ready(object))).collect();
        bail!("pods of {app} (name, sidecar, Ready): {shown:?}, expected {N} with sidecar {injected}, Ready");
    }

    /// How often each container of an app's pods was restarted.
    pub fn restarts(&self, app: &str) -> Result<Vec<(String, u64)>> {
        let pods = self.pods(app)?;
        let statuses = pods.iter().flat_map(|(_, object)| {
            ["initContainerStatuses", "containerStatuses"]
                .into_iter()
                .filter_map(|list| object["status"][list].as_array())
        });
        let count = |status: &Value| status["restartCount"].as_u64().unwrap_or_default();
        Ok(statuses.flatten().map(|status| (text(&status["name"]).to_owned(), count(status))).collect())
    }

    /// A client in the pod's app container.
    pub fn console(&self, pod: &Pod) -> Result<Console> {
        Console::open(self.cluster, pod, "app")
    }

    /// The metrics of the pod's sidecar.
    pub fn metrics(&self, pod: &Pod) -> Result<Metrics> {
        Metrics::of(self.cluster, pod)
    }

    /// Reads answered by L1 and by L2 of the pod's sidecar.
    pub fn tier_hits(&self, pod: &Pod) -> Result<[u64; 2]> {
        let metrics = self.metrics(pod)?;
        ensure!(metrics.text().contains("caddy_hits_total"), "no caddy_hits_total in:\n{}", metrics.text());
        Ok(["l1", "l2"].map(|tier| metrics.sum("caddy_hits_total", &[&format!("tier=\"{tier}\"")])))
    }

    // === Redis ===

    /// `redis-cli` in the pod of Redis itself.
    pub fn redis(&self, command: &[&str]) -> Result<String> {
        let (pod, _) = self.pods("redis")?.into_iter().next().context("Redis has no pod")?;
        Ok(pod.exec(self.cluster, "redis", &[&["redis-cli"], command].concat())?.trim().to_owned())
    }

    // === the CacheCluster ===

    /// Status of a CacheCluster.
    pub fn status(&self, cluster: &str) -> Result<Value> {
        Ok(self.get(["cachecluster", cluster])?["status"].clone())
    }

    /// A condition of a CacheCluster.
    pub fn condition(&self, cluster: &str, kind: &str) -> Result<Value> {
        let status = self.status(cluster)?;
        let condition = status["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == kind);
        condition.cloned().with_context(|| format!("no condition {kind} in {status}"))
    }
}

/// Whether a pod has a sidecar, in either form.
pub fn has_sidecar(pod: &Value) -> bool {
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    lists.flatten().any(|container| container["name"] == SIDECAR)
}

/// Whether a pod is Ready.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// A container of a pod's spec.
pub fn container<'a>(spec: &'a Value, name: &str) -> Result<&'a Value> {
    let found = spec["containers"].as_array().into_iter().flatten().find(|container| container["name"] == name);
    found.with_context(|| format!("no container {name}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
