//! CacheInvalidations at the API server: listed, reported, told of in Events, deleted. Never executes anything; fails with
//! what the API server said, or that it said nothing in time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use caddy_contract::coordination::MEMBER_LABEL;
use caddy_contract::invalidation::{GROUP_PATH, INVALIDATIONS, InvalidationStatus};
use caddy_lease::timestamp;
use hyper::Method;
use serde_json::{Value, json};

use super::{Object, Objects, shortened};
use crate::{
    coordination::{
        Place,
        client::{ApiClient, Refused},
    },
    ranges,
};

/// Deadline of a request to the API server.
const DEADLINE: Duration = Duration::from_secs(8);
/// Objects that one answer tells of.
const PAGE: usize = 20;

/// The objects of one cluster, as this pod sees and changes them.
pub(super) struct Kubernetes {
    client: Arc<ApiClient>,
    place: Place,
    pod: String,
}

impl Kubernetes {
    pub(super) fn new(client: Arc<ApiClient>, place: Place, pod: String) -> Self {
        Self { client, place, pod }
    }

    fn all(&self) -> String {
        format!("{GROUP_PATH}/namespaces/{}/{INVALIDATIONS}", self.place.namespace)
    }

    async fn ask(&self, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Value, Refused> {
        let late = || Refused { status: 0, reason: format!("no answer within {DEADLINE:?}") };
        tokio::time::timeout(DEADLINE, self.client.json(method, path, body)).await.map_err(|_| late())?
    }
}

impl Objects for Kubernetes {
    async fn list(&self) -> Result<Vec<Object>, Refused> {
        let (mut objects, mut next) = (Vec::new(), String::new());
        loop {
            let page = self.ask(Method::GET, &format!("{}?limit={PAGE}{next}", self.all()), None).await?;
            let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            objects.extend(items.iter().filter_map(object).filter(|object| object.spec.cluster == self.place.cluster));
            match page["metadata"]["continue"].as_str() {
                Some(token) if !token.is_empty() => next = format!("&continue={token}"),
                _ => return Ok(objects),
            }
        }
    }

    async fn members(&self) -> Result<u32, Refused> {
        let path = format!("{}?labelSelector={MEMBER_LABEL}%3D{}", self.place.leases(), self.place.cluster);
        let leases = self.ask(Method::GET, &path, None).await?;
        let now = SystemTime::now();
        let reporting = leases["items"].as_array().into_iter().flatten().filter(|lease| reports(&lease["spec"], now));
        Ok(u32::try_from(reporting.count()).unwrap_or(u32::MAX))
    }

    async fn report(&self, object: &Object, status: &InvalidationStatus) -> Result<(), Refused> {
        let mut fields = serde_json::to_value(status).unwrap_or_default();
        if status.message.is_none() {
            fields["message"] = Value::Null;
        }
        let body = json!({"metadata": {"uid": object.uid}, "status": fields});
        let path = format!("{}/{}/status?fieldManager=caddy-sidecar", self.all(), object.name);
        match self.ask(Method::PATCH, &path, Some(("application/merge-patch+json", &body))).await {
            // It was deleted, or is another one by now: nobody asks any more.
            Err(Refused { status: 404 | 409, .. }) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn delete(&self, object: &Object) -> Result<(), Refused> {
        let body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": object.uid}});
        let path = format!("{}/{}", self.all(), object.name);
        match self.ask(Method::DELETE, &path, Some(("application/json", &body))).await {
            Err(Refused { status: 404 | 409, .. }) => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    async fn tell(&self, object: &Object, is_warning: bool, reason: &str, note: &str) {
        let namespace = &self.place.namespace;
        let event = json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": format!("{}.{}", object.name, &ranges::unique()[..16]), "namespace": namespace},
            "eventTime": timestamp(SystemTime::now()),
            "reportingController": "cache.caddy.dev/sidecar",
            "reportingInstance": self.pod,
            "action": "Invalidate",
            "reason": reason,
            "note": shortened(note.to_owned()),
            "type": if is_warning { "Warning" } else { "Normal" },
            "regarding": {
                "apiVersion": "cache.caddy.dev/v1alpha1", "kind": "CacheInvalidation",
                "name": object.name, "namespace": namespace, "uid": object.uid,
            },
        });
        let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        if let Err(refused) = self.ask(Method::POST, &path, Some(("application/json", &event))).await {
            tracing::debug!(reason = refused.reason, "an Event was not taken");
        }
    }
}

/// Whether a member's Lease was renewed within its duration. Times are all written alike, so they sort as text.
fn reports(lease: &Value, now: SystemTime) -> bool {
    let duration = Duration::from_secs(lease["leaseDurationSeconds"].as_u64().unwrap_or(0));
    let earliest = now.checked_sub(duration).map(timestamp);
    lease["renewTime"].as_str().zip(earliest).is_some_and(|(renewed, earliest)| renewed >= earliest.as_str())
}

/// An object as the API server has it; one that cannot be read is none of ours.
fn object(value: &Value) -> Option<Object> {
    let metadata = &value["metadata"];
    let text = |field: &str| metadata[field].as_str().map(str::to_owned);
    Some(Object {
        name: text("name")?,
        uid: text("uid")?,
        generation: metadata["generation"].as_i64().unwrap_or(1),
        spec: serde_json::from_value(value["spec"].clone()).ok()?,
        status: serde_json::from_value(value["status"].clone()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use caddy_contract::invalidation::InvalidationPhase;

    use super::*;

    #[test]
    fn objects_are_read_as_the_api_server_writes_them() {
        let value = json!({
            "metadata": {"name": "n", "uid": "u", "generation": 1, "resourceVersion": "7"},
            "spec": {"cluster": "shop", "tags": ["t"], "ttlSecondsAfterFinished": 5},
            "status": {"phase": "Running", "members": 3},
        });
        let object = object(&value).unwrap();
        assert_eq!((object.spec.tags.len(), object.spec.ttl_seconds_after_finished), (1, Some(5)));
        assert_eq!((object.status.phase, object.status.members), (Some(InvalidationPhase::Running), Some(3)));
    }

    #[test]
    fn who_has_not_renewed_its_lease_in_time_is_not_waited_for() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let lease = |ago| json!({"leaseDurationSeconds": 42, "renewTime": timestamp(now - Duration::from_secs(ago))});
        assert!(reports(&lease(0), now) && reports(&lease(42), now) && !reports(&lease(43), now));
        assert!(!reports(&json!({}), now));
    }
}
