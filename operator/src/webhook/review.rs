//! One admission review: pure from the request's bytes to the answer's.
//!
//! The operator's own failures are answers too: an HTTP error would be silent under `failurePolicy: Ignore`, a warning
//! is seen by whoever creates the pod.

use crate::{
    capabilities::SidecarForm,
    inject::{Defaults, Verdict, inject},
    plan::{self, Note, NoteKind, status::bounded},
    settings::{FailurePolicy, OnMissing},
};
use caddy_crds::{CacheCluster, names};
use json_patch::Patch;
use k8s_openapi::{ByteString, api::core::v1::ObjectReference};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Kubernetes cuts longer warnings.
const WARNING_MAX: usize = 240;

/// Why bytes are not an admission review.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// No JSON, or not of that shape.
    #[error("not an AdmissionReview of admission.k8s.io/v1: {0}")]
    Parse(#[from] serde_json::Error),
    /// A response instead of a request, for instance.
    #[error("the AdmissionReview has no request")]
    NoRequest,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Review {
    /// To be repeated in the answer.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Whether nothing may be changed elsewhere.
    pub dry_run: bool,
    /// The pod.
    pub pod: Value,
}

/// What was found under the name that the pod's label gives.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The CacheCluster.
    Found(Arc<CacheCluster>),
    /// There is none.
    Missing,
    /// Nobody could tell; why.
    Failed(String),
}

/// How the installation wants it.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How the sidecar stands in the pod.
    pub form: SidecarForm,
    /// Image and the like.
    pub defaults: Defaults,
    /// For pods whose CacheCluster is missing or cannot be used.
    pub on_missing: OnMissing,
    /// For the operator's own failures.
    pub failure: FailurePolicy,
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// For the metric: injected, unchanged, skipped, denied, failed.
    pub outcome: &'static str,
    denial: Option<String>,
    warning: Option<String>,
    patch: Option<Patch>,
    /// Event for the pod's owner.
    pub note: Option<Note>,
}

impl Review {
    /// Reads a request.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(body: &[u8]) -> Result<Self, ReviewError> {
        #[derive(Deserialize)]
        struct Body {
            request: Option<Request>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Request {
            uid: String,
            #[serde(default)]
            namespace: String,
            #[serde(default)]
            dry_run: Option<bool>,
            #[serde(default)]
            object: Value,
        }
        let request = serde_json::from_slice::<Body>(body)?.request.ok_or(ReviewError::NoRequest)?;
        Ok(Self {
            uid: request.uid,
            namespace: request.namespace,
            dry_run: request.dry_run.unwrap_or(false),
            pod: request.object,
        })
    }

    /// Name of the CacheCluster that the pod asks for. Mirror pods of the kubelet must not be changed.
    pub fn cluster(&self) -> Option<&str> {
        let metadata = &self.pod["metadata"];
        if metadata["annotations"].get("kubernetes.io/config.mirror").is_some() {
            return None;
        }
        metadata["labels"][names::CLUSTER_LABEL].as_str()
    }

    /// The pod's controller, to which Events are tied.
    pub fn owner(&self) -> Option<ObjectReference> {
        let owners = self.pod["metadata"]["ownerReferences"].as_array()?;
        let owner = owners.iter().find(|owner| owner["controller"] == json!(true))?;
        let field = |name: &str| owner[name].as_str().map(str::to_owned);
        Some(ObjectReference {
            api_version: field("apiVersion"),
            kind: field("kind"),
            name: field("name"),
            uid: field("uid"),
            namespace: Some(self.namespace.clone()),
            ..ObjectReference::default()
        })
    }
}

/// The answer for a pod that asks for nothing.
pub fn unchanged() -> Answer {
    Answer { outcome: "unchanged", ..Answer::default() }
}

/// Decides about a pod that asks for a sidecar.
pub fn decide(review: &Review, lookup: Lookup, policy: &Policy) -> Answer {
    let name = review.cluster().unwrap_or_default();
    let cluster = match lookup {
        Lookup::Found(cluster) => cluster,
        Lookup::Missing => {
            return missing(
                policy,
                "CacheClusterMissing",
                format!(
                    "there is no CacheCluster {name:?} in namespace {:?}, which the pod's label {} asks for. Apply it (pods of \
                 Deployments, Jobs and the like are then created by themselves), or remove the label",
                    review.namespace,
                    names::CLUSTER_LABEL,
                ),
            );
        }
        Lookup::Failed(error) => return failed(policy, &error),
    };
    if let Err(invalid) = plan::config_map(&cluster, plan::members_hint(None)) {
        let text =
            format!("the spec of CacheCluster {name:?} cannot be used: {invalid}. Mend it, or remove the pod's label");
        return missing(policy, "CacheClusterInvalid", text);
    }
    match inject(&review.pod, &cluster, policy.form, &policy.defaults) {
        Verdict::Patch(patch) if patch.0.is_empty() => unchanged(),
        Verdict::Patch(patch) => Answer { outcome: "injected", patch: Some(patch), ..Answer::default() },
        Verdict::Skip(reason) => skip("InjectionSkipped", reason),
        Verdict::Deny(reason) => deny("InjectionDenied", reason),
    }
}

fn missing(policy: &Policy, reason: &'static str, text: String) -> Answer {
    match policy.on_missing {
        OnMissing::Deny => deny(reason, text),
        OnMissing::Admit => skip(reason, format!("no sidecar: {text}")),
    }
}

fn failed(policy: &Policy, error: &str) -> Answer {
    let text = format!("the CADDY operator could not find out about the pod's CacheCluster: {error}");
    let answer = match policy.failure {
        FailurePolicy::Ignore => skip("InjectionFailed", format!("no sidecar: {text}")),
        FailurePolicy::Fail => deny("InjectionFailed", text),
    };
    Answer { outcome: "failed", ..answer }
}

fn deny(reason: &'static str, text: String) -> Answer {
    let note = Some(Note { kind: NoteKind::Warning, reason, text: bounded(&text) });
    Answer { outcome: "denied", denial: Some(text), note, ..Answer::default() }
}

fn skip(reason: &'static str, text: String) -> Answer {
    let note = Some(Note { kind: NoteKind::Warning, reason, text: bounded(&text) });
    Answer { outcome: "skipped", warning: Some(text), note, ..Answer::default() }
}

impl Answer {
    /// Whether the pod is admitted.
    pub fn allowed(&self) -> bool {
        self.denial.is_none()
    }

    /// The AdmissionReview that answers request `uid`.
    pub fn body(&self, uid: &str) -> String {
        let mut response = json!({"uid": uid, "allowed": self.allowed()});
        if let Some(message) = &self.denial {
            // 422, so that clients do not take it for a failure of the server.
            response["status"] = json!({"code": 422, "reason": "Invalid", "message": message});
        }
        if let Some(warning) = &self.warning {
            response["warnings"] = json!([&warning[..warning.floor_char_boundary(WARNING_MAX)]]);
        }
        if let Some(patch) = &self.patch {
            let text = serde_json::to_vec(patch).unwrap_or_default();
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(ByteString(text));
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inject::SidecarUser, testing};

    fn policy() -> Policy {
        Policy {
            form: SidecarForm::Plain,
            defaults: Defaults { image: "caddy:1".into(), pull_policy: None, user: SidecarUser::Fixed },
            on_missing: OnMissing::Deny,
            failure: FailurePolicy::Ignore,
        }
    }

    fn review(pod: &Value) -> Review {
        let body = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {"uid": "u", "namespace": "shop", "operation": "CREATE", "object": pod},
        });
        Review::read(body.to_string().as_bytes()).unwrap()
    }

    fn labelled() -> Review {
        review(&json!({
            "metadata": {
                "labels": {"cache.caddy.dev/cluster": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "r", "controller": true}],
            },
            "spec": {"containers": [{"name": "app"}]},
        }))
    }

    fn response(answer: &Answer) -> Value {
        serde_json::from_str::<Value>(&answer.body("u")).unwrap()["response"].clone()
    }

    #[test]
    fn a_pod_with_the_label_is_patched() {
        let answer = decide(&labelled(), Lookup::Found(Arc::new(testing::cluster())), &policy());
        let response = response(&answer);
        assert_eq!(
            (response["allowed"].clone(), response["uid"].clone(), answer.outcome),
            (json!(true), json!("u"), "injected")
        );
        let ByteString(patch) = serde_json::from_value(response["patch"].clone()).unwrap();
        let patch: Patch = serde_json::from_slice(&patch).unwrap();
        let mut pod = labelled().pod;
        json_patch::patch(&mut pod, &patch).unwrap();
        assert_eq!(pod["spec"]["containers"][0]["name"], "caddy-sidecar");
        assert_eq!(answer.note, None);
    }

    #[test]
    fn a_missing_cluster_is_named_in_the_denial_and_told_to_the_owner() {
        let answer = decide(&labelled(), Lookup::Missing, &policy());
        let response = response(&answer);
        assert_eq!(response["allowed"], false);
        let message = response["status"]["message"].as_str().unwrap();
        assert!(message.contains("\"web\" in namespace \"shop\""), "{message}");
        assert_eq!(answer.note.unwrap().reason, "CacheClusterMissing");
        let owner = labelled().owner().unwrap();
        assert_eq!(
            (owner.kind.as_deref(), owner.namespace.as_deref(), owner.uid.as_deref()),
            (Some("ReplicaSet"), Some("shop"), Some("r"))
        );
    }

    #[test]
    fn a_missing_cluster_can_be_admitted_by_choice() {
        let policy = Policy { on_missing: OnMissing::Admit, ..policy() };
        let response = response(&decide(&labelled(), Lookup::Missing, &policy));
        assert_eq!(response["allowed"], true);
        assert!(response["warnings"][0].as_str().unwrap().starts_with("no sidecar: there is no CacheCluster"));
    }

    #[test]
    fn our_own_failure_admits_with_a_warning_unless_the_policy_is_fail() {
        let failed = || Lookup::Failed("timeout".into());
        let answer = decide(&labelled(), failed(), &policy());
        assert!(answer.allowed() && response(&answer)["warnings"][0].as_str().unwrap().contains("timeout"));
        assert_eq!(answer.outcome, "failed");
        let policy = Policy { failure: FailurePolicy::Fail, ..policy() };
        assert!(!decide(&labelled(), failed(), &policy).allowed());
    }

    #[test]
    fn an_unusable_spec_is_told_with_its_reasons() {
        let cluster = testing::cluster_with(&json!({"l3": {}}));
        let answer = decide(&labelled(), Lookup::Found(Arc::new(cluster)), &policy());
        let message = response(&answer)["status"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("spec.l3: exactly one of redis and embedded"), "{message}");
    }

    #[test]
    fn pods_that_ask_for_nothing_and_mirror_pods_are_left_alone() {
        assert_eq!(review(&json!({"metadata": {}})).cluster(), None);
        let mirror = json!({"metadata": {
            "labels": {"cache.caddy.dev/cluster": "web"},
            "annotations": {"kubernetes.io/config.mirror": "x"},
        }});
        assert_eq!(review(&mirror).cluster(), None);
    }

    #[test]
    fn what_is_no_review_is_refused() {
        for body in ["", "{}", "[]", "{\"request\": {}}"] {
            assert!(Review::read(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn warnings_are_short_and_whole_characters() {
        let answer = skip("x", "ü".repeat(500));
        assert!(response(&answer)["warnings"][0].as_str().unwrap().len() <= WARNING_MAX);
    }
}
