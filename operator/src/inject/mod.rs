//! Injection: a pure function from a pod and its CacheCluster to a JSON patch.
//!
//! It adds the sidecar, its volumes and, in the app's containers, the socket and its address. It is idempotent: what is
//! there already is left alone, so that the API server may call it again after other webhooks changed the pod, and
//! another webhook's changes to the sidecar stay. It never restarts or reorders anything, reads no clock and asks nobody.
//! A pod in which a sidecar could not work is left as it is, with the reason told; a pod that asks for something
//! impossible is denied with what to change.

mod annotations;
mod containers;
mod files;
mod patcher;
mod sidecar;

use crate::capabilities::SidecarForm;
use caddy_crds::{CacheCluster, names};
use json_patch::Patch;
use patcher::Patcher;
use serde_json::{Value, json};

pub use sidecar::{Shape, template_hash};

/// What the operator was told about sidecars by its installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Image of sidecars whose CacheCluster names none.
    pub image: String,
    /// Pull policy; the cluster's default when absent.
    pub pull_policy: Option<String>,
    /// Whether the sidecar gets a user id. OpenShift chooses one itself and refuses ours.
    pub user: SidecarUser,
}

/// Who the sidecar runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SidecarUser {
    /// 65532, the customary "nonroot".
    Fixed,
    /// Whoever the platform chooses.
    Platform,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It gets this patch; empty when everything is there.
    Patch(Patch),
    /// It is admitted as it is; why.
    Skip(String),
    /// It is refused; why and what to change.
    Deny(String),
}

/// Decides about one pod.
pub fn inject(pod: &Value, cluster: &CacheCluster, form: SidecarForm, defaults: &Defaults) -> Verdict {
    if let Some(reason) = unfit(pod, form) {
        return Verdict::Skip(reason);
    }
    match build(pod, cluster, form, defaults) {
        Ok(patch) => Verdict::Patch(patch),
        Err(message) => Verdict::Deny(message),
    }
}

/// Why a sidecar could not work in this pod, whatever its CacheCluster says.
pub fn unfit(pod: &Value, form: SidecarForm) -> Option<String> {
    let spec = &pod["spec"];
    let restart = spec["restartPolicy"].as_str().unwrap_or("Always");
    if form == SidecarForm::Plain && restart != "Always" {
        return Some(format!(
            "no sidecar: a pod with restartPolicy {restart} would never end beside a plain sidecar container; \
             Kubernetes 1.29 and newer have native sidecars. The app talks to Redis directly"
        ));
    }
    if spec["hostNetwork"].as_bool() == Some(true) {
        return Some(
            "no sidecar: with hostNetwork its ports would be the node's. The app talks to Redis directly".to_owned(),
        );
    }
    if spec["os"]["name"].as_str() == Some("windows") {
        return Some("no sidecar: it runs on Linux only. The app talks to Redis directly".to_owned());
    }
    None
}

fn build(pod: &Value, cluster: &CacheCluster, form: SidecarForm, defaults: &Defaults) -> Result<Patch, String> {
    let mut patcher = Patcher::new(pod.clone());
    let address = containers::address(pod, cluster, form)?;
    let known = sidecar_of(pod).is_some();
    sidecar::volumes(&mut patcher, cluster);
    if !known {
        let list = match form {
            SidecarForm::Native => "initContainers",
            SidecarForm::Plain => "containers",
        };
        patcher.insert_first(&["spec", list], sidecar::container(pod, cluster, form, defaults));
    }
    containers::connect(&mut patcher, form, address.as_ref())?;
    if !known {
        let shape = Shape::of(cluster, defaults);
        annotations::mark(&mut patcher, cluster.metadata.generation.unwrap_or(0), &template_hash(&shape));
    }
    annotations::keep_autoscaler(&mut patcher);
    if form == SidecarForm::Plain {
        annotations::keep_default_container(&mut patcher);
    }
    Ok(patcher.finish())
}

/// The sidecar that is in the pod already, in either list.
fn sidecar_of(pod: &Value) -> Option<&Value> {
    let list = |name: &str| pod["spec"][name].as_array().into_iter().flatten();
    list("initContainers")
        .chain(list("containers"))
        .find(|container| container["name"] == json!(names::SIDECAR_CONTAINER))
}
