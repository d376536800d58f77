//! The pod's annotations: the mark of injection, and what other tools would otherwise read differently.

use super::Patcher;
use caddy_crds::names;
use serde_json::{Value, json};

/// Volumes that do not keep the cluster autoscaler from removing a node; a comma-separated list.
const SAFE_VOLUMES: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";
/// Container that kubectl's logs and exec mean.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

const PATH: &[&str] = &["metadata", "annotations"];

/// Notes the generation and the template at injection.
pub(super) fn mark(patcher: &mut Patcher, generation: i64, template: &str) {
    set(patcher, names::INJECTED_ANNOTATION, &generation.to_string());
    set(patcher, names::TEMPLATE_ANNOTATION, template);
}

/// Some releases of the autoscaler take the socket's volume for data that an eviction would lose.
pub(super) fn keep_autoscaler(patcher: &mut Patcher) {
    let listed = value(patcher.document(), SAFE_VOLUMES).unwrap_or_default().to_owned();
    let mut volumes: Vec<&str> = listed.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if !volumes.contains(&names::SOCKET_VOLUME) {
        volumes.push(names::SOCKET_VOLUME);
        set(patcher, SAFE_VOLUMES, &volumes.join(","));
    }
}

/// The plain sidecar stands first; kubectl would take it for the pod's main container.
pub(super) fn keep_default_container(patcher: &mut Patcher) {
    if value(patcher.document(), DEFAULT_CONTAINER).is_some() {
        return;
    }
    let containers = patcher.document()["spec"]["containers"].as_array();
    let names = containers.into_iter().flatten().filter_map(|container| container["name"].as_str());
    if let Some(app) = names.into_iter().find(|name| *name != names::SIDECAR_CONTAINER).map(str::to_owned) {
        set(patcher, DEFAULT_CONTAINER, &app);
    }
}

/// An annotation of the pod.
pub(super) fn value<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod["metadata"]["annotations"][name].as_str()
}

fn set(patcher: &mut Patcher, name: &str, value: &str) {
    patcher.set(PATH, name, json!(value));
}
