//! The sidecar container and its volumes.

use super::{Defaults, Patcher, SidecarUser, files};
use crate::{capabilities::SidecarForm, plan::needed_memory};
use caddy_contract::{ByteSize, coordination};
use caddy_crds::{CacheCluster, cluster::Amounts, names};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// User of the sidecar: "nonroot" of distroless images.
const USER: i64 = 65532;

/// What a change of marks pods stale: everything in the pod that the operator cannot change while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shape<'a> {
    image: &'a str,
    pull_policy: Option<&'a str>,
    user: bool,
    resources: Value,
    tcp_port: i32,
    /// The volumes of what is mounted from Secrets and ConfigMaps of the user's.
    files: Vec<Value>,
    /// Counts what all pods get since some release; a higher number marks the pods of before stale.
    edition: u32,
}

/// 1: the sidecar's own identity.
const EDITION: u32 = 1;

impl<'a> Shape<'a> {
    /// The shape that a pod injected now would get.
    pub fn of(cluster: &'a CacheCluster, defaults: &'a Defaults) -> Self {
        Self {
            image: image(cluster, defaults),
            pull_policy: defaults.pull_policy.as_deref(),
            user: defaults.user == SidecarUser::Fixed,
            resources: resources(cluster),
            tcp_port: cluster.spec.listen.tcp_port,
            files: files::of(cluster).into_iter().map(|files| files.volume).collect(),
            edition: EDITION,
        }
    }
}

/// Short hash of a shape, for the annotation that tells stale pods.
pub fn template_hash(shape: &Shape<'_>) -> String {
    let text = serde_json::to_vec(shape).unwrap_or_default();
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&text))
}

/// Adds the volumes that are not there.
pub(super) fn volumes(patcher: &mut Patcher, cluster: &CacheCluster) {
    let mut wanted = vec![
        json!({"name": names::SOCKET_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
        // Not optional: were the ConfigMap deleted with its CacheCluster, kubelet would empty an optional volume under
        // a sidecar that still serves.
        json!({"name": names::CONFIG_VOLUME, "configMap": {"name": names::config_map(name(cluster))}}),
    ];
    // Optional: a pod starts before its namespace has a token, and kubelet brings it later.
    wanted.push(json!({
        "name": names::IDENTITY_VOLUME,
        "secret": {"secretName": names::TOKEN_SECRET, "optional": true, "defaultMode": 0o444},
    }));
    wanted.extend(files::of(cluster).into_iter().map(|files| files.volume));
    for volume in wanted {
        let known = patcher.document()["spec"]["volumes"].as_array().into_iter().flatten();
        if !known.into_iter().any(|other| other["name"] == volume["name"]) {
            patcher.append(&["spec", "volumes"], volume);
        }
    }
}

/// The sidecar container.
pub(super) fn container(pod: &Value, cluster: &CacheCluster, form: SidecarForm, defaults: &Defaults) -> Value {
    let mut mounts = vec![
        json!({"name": names::SOCKET_VOLUME, "mountPath": names::SOCKET_DIR}),
        json!({"name": names::CONFIG_VOLUME, "mountPath": names::CONFIG_DIR, "readOnly": true}),
        json!({"name": names::IDENTITY_VOLUME, "mountPath": coordination::IDENTITY_DIR, "readOnly": true}),
    ];
    mounts.extend(files::of(cluster).into_iter().map(|files| files.mount));
    let mut container = json!({
        "name": names::SIDECAR_CONTAINER,
        "image": image(cluster, defaults),
        "command": [
            "caddy-sidecar",
            "--config",
            format!("{}/{}", names::CONFIG_DIR, names::CONFIG_KEY),
            "--grace",
            format!("{}s", grace(pod)),
        ],
        "env": [
            {"name": names::SOCKET_ENV, "value": caddy_contract::SOCKET_PATH},
            {"name": coordination::POD_NAME_ENV, "valueFrom": field("metadata.name")},
            {"name": coordination::POD_UID_ENV, "valueFrom": field("metadata.uid")},
        ],
        "ports": [{"name": "caddy-metrics", "containerPort": caddy_contract::ADMIN_PORT, "protocol": "TCP"}],
        "resources": resources(cluster),
        "securityContext": security(defaults.user),
        // Both ask the socket, never Redis: an outage of L3 must not restart or unready an app's pod. For the same
        // reason there is no readiness probe.
        "startupProbe": startup_probe(cluster),
        "livenessProbe": {"exec": {"command": ["caddy-sidecar", "ping"]}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        "volumeMounts": mounts,
    });
    if let Some(policy) = &defaults.pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    match form {
        SidecarForm::Native => container["restartPolicy"] = json!("Always"),
        // Kubelet starts the next container when this hook has returned.
        SidecarForm::Plain => {
            container["lifecycle"] =
                json!({"postStart": {"exec": {"command": ["caddy-sidecar", "ping", "--wait", "30s"]}}});
        }
    }
    container
}

/// Spelt out as the API server would complete it, so that a second look finds nothing to change.
/// Waits for the socket, and with `warming.startupShare` until the cache is warm or the deadline for that is over.
fn startup_probe(cluster: &CacheCluster) -> Value {
    let warming = &cluster.spec.warming;
    let (mut command, mut threshold) = (vec!["caddy-sidecar", "ping"], 60);
    if warming.startup_share > 0 {
        command.push("--startup");
        threshold += caddy_contract::parse_duration(&warming.startup_deadline.0).unwrap_or_default().as_secs();
    }
    json!({"exec": {"command": command}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": threshold})
}

fn field(path: &str) -> Value {
    json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}})
}

/// How long a terminating sidecar waits for the app: the pod's grace less what its own end takes.
fn grace(pod: &Value) -> u64 {
    pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30).saturating_sub(3)
}

fn security(user: SidecarUser) -> Value {
    let mut context = json!({
        "runAsNonRoot": true,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if user == SidecarUser::Fixed {
        context["runAsUser"] = json!(USER);
        context["runAsGroup"] = json!(USER);
    }
    context
}

/// What the spec says, completed: memory and CPU each by default when the spec names neither a request nor a limit.
fn resources(cluster: &CacheCluster) -> Value {
    let said = cluster.spec.resources.clone().unwrap_or_default();
    let (mut requests, mut limits) = (amounts(said.requests.as_ref()), amounts(said.limits.as_ref()));
    let silent = |name: &str, requests: &Map<String, Value>, limits: &Map<String, Value>| {
        !requests.contains_key(name) && !limits.contains_key(name)
    };
    if silent("memory", &requests, &limits) {
        let memory = json!(default_memory(cluster).to_string());
        requests.insert("memory".to_owned(), memory.clone());
        limits.insert("memory".to_owned(), memory);
    }
    if silent("cpu", &requests, &limits) {
        requests.insert("cpu".to_owned(), json!("50m"));
    }
    json!({"requests": requests, "limits": limits})
}

fn amounts(said: Option<&Amounts>) -> Map<String, Value> {
    let Some(amounts) = said else { return Map::new() };
    let named = [("cpu", &amounts.cpu), ("memory", &amounts.memory)];
    named.into_iter().filter_map(|(name, amount)| Some((name.to_owned(), json!(amount.as_ref()?.0)))).collect()
}

/// (L1 + L2 + 40Mi) / 0.85, in whole mebibytes: tiers and base fill 85 % of the limit, the rest is the allocator's.
fn default_memory(cluster: &CacheCluster) -> ByteSize {
    let needed = needed_memory(cluster).bytes().div_ceil(85).saturating_mul(100);
    ByteSize::mebi(needed.div_ceil(1 << 20))
}

fn image<'a>(cluster: &'a CacheCluster, defaults: &'a Defaults) -> &'a str {
    cluster.spec.image.as_deref().unwrap_or(&defaults.image)
}

fn name(cluster: &CacheCluster) -> &str {
    cluster.metadata.name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, cluster_with};

    fn defaults() -> Defaults {
        Defaults { image: "caddy:1".into(), pull_policy: None, user: SidecarUser::Fixed }
    }

    #[test]
    fn default_memory_holds_the_tiers_and_the_process() {
        assert_eq!(default_memory(&cluster()), ByteSize::mebi(132)); // (8 + 64 + 40) / 0.85 = 131.8
    }

    #[test]
    fn what_the_spec_says_of_resources_is_not_completed_against_its_sense() {
        let cluster = cluster_with(&json!({
            "l3": {"embedded": {}},
            "resources": {"limits": {"memory": "200Mi"}, "requests": {"cpu": 1}},
        }));
        assert_eq!(resources(&cluster), json!({"requests": {"cpu": "1"}, "limits": {"memory": "200Mi"}}));
    }

    #[test]
    fn the_hash_follows_what_only_a_new_pod_can_get() {
        let hash = |spec: &Value| template_hash(&Shape::of(&cluster_with(spec), &defaults()));
        let base = hash(&json!({"l3": {"redis": {"endpoints": ["r:1"]}}}));
        assert_eq!(
            base,
            hash(&json!({"l3": {"redis": {"endpoints": ["other:1"]}}, "consistency": {"onUncertain": "Fail"}}))
        );
        assert_ne!(base, hash(&json!({"l3": {"redis": {"endpoints": ["r:1"]}}, "image": "caddy:2"})));
        assert_ne!(base, hash(&json!({"l3": {"redis": {"endpoints": ["r:1"]}}, "l2": {"maxBytes": "1Gi"}})));
        assert_ne!(base, hash(&json!({"l3": {"redis": {"endpoints": ["r:1"], "authSecretRef": {"name": "s"}}}})));
        let secret =
            |name: &str| json!({"l3": {"redis": {"endpoints": ["r:1"]}}, "auth": {"secretRef": {"name": name}}});
        assert_ne!(base, hash(&secret("s")));
        assert_ne!(hash(&secret("t")), hash(&secret("s")));
        assert_ne!(
            base,
            hash(&json!({"l3": {"redis": {"endpoints": ["r:1"], "tls": {"caSecretRef": {"name": "s"}}}}}))
        );
        assert_eq!(base, hash(&json!({"l3": {"redis": {"endpoints": ["r:1"], "tls": {"serverName": "other"}}}})));
    }
}
