//! Executing CacheInvalidations: the objects of this cluster are looked at by the sidecar that has its duties, executed
//! once, reported, and deleted when their time is over.
//!
//! Execution repeats harmlessly: ids of patterns come from the object's uid, so that another holder of the duties goes on
//! where this one stopped. Beside its patterns each object enters a *marker* into their index, which no key can match:
//! sidecars that have read it acknowledge the object, and by the order of their connections have applied all that came
//! before it. It fails by reporting why and trying again in the next round; what cannot succeed is `Failed`.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use caddy_contract::coordination::MEMBER_LABEL;
use caddy_contract::invalidation::{
    GROUP_PATH, INVALIDATIONS, InvalidationPhase, InvalidationSpec, InvalidationStatus,
};
use caddy_engine::invalidation::{InvalidationReason, InvalidationSubject, KeyPattern, PatternKind};
use caddy_lease::timestamp;
use caddy_remote::ranges::{self as wire, MARKER};
use hyper::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    Place,
    client::{ApiClient, Refused},
};
use crate::{
    errands::{self, ErrandError},
    events,
    generations::{Mode, of_keyspace, of_tag},
    ranges::{self, EnterError},
    shared::{L3, Shared},
};

/// Pause between two looks at the objects.
const LOOK: Duration = Duration::from_secs(3);
/// For how long acknowledgements are waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Deadline of a request to the API server.
const DEADLINE: Duration = Duration::from_secs(8);
/// Objects that one answer tells of.
const PAGE: usize = 20;

/// One object, as far as it matters here.
#[derive(Debug, Clone, PartialEq)]
struct Object {
    name: String,
    uid: String,
    /// Changes of the spec, with its creation.
    generation: i64,
    spec: InvalidationSpec,
    status: InvalidationStatus,
}

/// The API server, as far as it is asked here.
trait Objects {
    async fn list(&self) -> Result<Vec<Object>, Refused>;
    /// How many sidecars have reported lately.
    async fn members(&self) -> Result<u32, Refused>;
    async fn report(&self, object: &Object, status: &InvalidationStatus) -> Result<(), Refused>;
    async fn delete(&self, object: &Object) -> Result<(), Refused>;
    /// Tells people; what comes of it does not matter.
    async fn tell(&self, object: &Object, is_warning: bool, reason: &str, note: &str);
}

/// The cache, as far as it is asked here.
trait Target {
    /// Why nothing can be invalidated for all; `None`: it can.
    fn refusal(&self) -> Option<&'static str>;
    /// Removes keys; tells how many there were.
    async fn remove(&self, keys: &[String], note: &str) -> Result<u64, String>;
    /// Makes whatever carries one of the tags invalid.
    async fn untag(&self, tags: &[String], note: &str) -> Result<(), String>;
    /// Makes what was written in these keyspaces, with generations, invalid.
    async fn clear(&self, keyspaces: &[String], note: &str) -> Result<(), String>;
    /// The names of all keyspaces.
    fn keyspaces(&self) -> Vec<String>;
    /// Lets a pattern take effect under this id; again: nothing.
    async fn enter(&self, id: String, pattern: KeyPattern, note: &str) -> Result<(), EnterError>;
    /// How many sidecars have read the marker.
    async fn acknowledged(&self, marker: &str) -> Result<u32, String>;
    /// Whether the sweep of a pattern is done, and what it removed.
    async fn swept(&self, id: &str) -> Result<(bool, u64), String>;
    async fn end_marker(&self, marker: &str) -> Result<(), String>;
    /// The markers in force.
    fn markers(&self) -> Vec<String>;
}

/// Executes what there is to execute while this sidecar has the duties, until `leaving`.
pub(super) async fn execute(
    shared: Arc<Shared>,
    client: Arc<ApiClient>,
    place: Place,
    pod: String,
    leaving: CancellationToken,
) {
    let objects = Kubernetes { client: client.clone(), place, pod: pod.clone() };
    let target = Cache(shared.clone());
    let mut executor = Executor::new(pod);
    let mut trouble = None;
    loop {
        tokio::select! {
            () = leaving.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if !client.has_identity() || !shared.coordination.duties().is_holder() {
            continue;
        }
        let now = executor.round(&objects, &target, SystemTime::now()).await.err();
        if now != trouble
            && let Some(refused) = &now
        {
            let reason = &refused.reason;
            tracing::warn!(reason, "this sidecar cannot see to CacheInvalidations; with the chart's role it may");
        }
        trouble = now;
    }
}

/// What this process has done for objects under way, by uid.
struct Executor {
    pod: String,
    begun: HashMap<String, Begun>,
}

struct Begun {
    at: SystemTime,
    removed: u64,
}

impl Executor {
    fn new(pod: String) -> Self {
        Self { pod, begun: HashMap::new() }
    }

    /// Brings every object a step further.
    async fn round(&mut self, objects: &impl Objects, target: &impl Target, now: SystemTime) -> Result<(), Refused> {
        let all = objects.list().await?;
        for object in &all {
            self.step(object, objects, target, now).await?;
        }
        let is_under_way = |marker: &String| all.iter().any(|object| marker_of(object) == *marker && !is_over(object));
        for marker in target.markers().iter().filter(|marker| !is_under_way(marker)) {
            // Its object was deleted, or ended when another sidecar had the duties.
            let _ = target.end_marker(marker).await;
        }
        self.begun.retain(|uid, _| all.iter().any(|object| object.uid == *uid));
        Ok(())
    }

    async fn step(
        &mut self,
        object: &Object,
        objects: &impl Objects,
        target: &impl Target,
        now: SystemTime,
    ) -> Result<(), Refused> {
        if is_over(object) {
            return if is_due(object, now) { objects.delete(object).await } else { Ok(()) };
        }
        let mut status = object.status.clone();
        if status.phase.is_none() {
            status.started_at = Some(timestamp(now));
        }
        if let Some(reason) = refusal(object, target) {
            let phase = Some(InvalidationPhase::Failed);
            status = InvalidationStatus {
                phase,
                finished_at: Some(timestamp(now)),
                message: Some(reason.clone()),
                ..status
            };
            objects.report(object, &status).await?;
            objects.tell(object, true, "InvalidationFailed", &reason).await;
            return Ok(());
        }
        status.phase = Some(InvalidationPhase::Running);
        status.executor = Some(self.pod.clone());
        status.members = Some(objects.members().await?.max(1));
        if object.status.phase.is_none() {
            // Told before it takes effect: it never does unseen.
            objects.report(object, &status).await?;
        }
        match self.advance(object, target, &mut status, now).await {
            Ok(true) => {
                status.phase = Some(InvalidationPhase::Succeeded);
                status.finished_at = Some(timestamp(now));
            }
            Ok(false) => {}
            Err(reason) => status.message = Some(shortened(reason)),
        }
        if status != object.status {
            objects.report(object, &status).await?;
        }
        if status.phase == Some(InvalidationPhase::Succeeded) {
            let (n, of) = (status.acknowledged.unwrap_or(0), status.members.unwrap_or(0));
            let note = format!("{n} of {of} sidecars acknowledged; {} entries removed", status.removed.unwrap_or(0));
            objects.tell(object, false, "Invalidated", &note).await;
            let _ = target.end_marker(&marker_of(object)).await;
        }
        Ok(())
    }

    /// Does what is left to be done; `true`: nothing is.
    async fn advance(
        &mut self,
        object: &Object,
        target: &impl Target,
        status: &mut InvalidationStatus,
        now: SystemTime,
    ) -> Result<bool, String> {
        let patterns = patterns(&object.spec).map_err(|error| error.to_string())?;
        if !self.begun.contains_key(&object.uid) {
            let note = &object.spec.reason;
            for (n, pattern) in patterns.iter().enumerate() {
                let id = id_of(object, n);
                // Another sidecar may have come so far.
                if !target.swept(&id).await?.0 {
                    target.enter(id, pattern.clone(), note).await.map_err(|error| error.to_string())?;
                }
            }
            let removed = if object.spec.keys.is_empty() { 0 } else { target.remove(&object.spec.keys, note).await? };
            if !object.spec.tags.is_empty() {
                target.untag(&object.spec.tags, note).await?;
            }
            if !object.spec.keyspaces.is_empty() {
                target.clear(&object.spec.keyspaces, note).await?;
            }
            let marker = KeyPattern::glob(MARKER).map_err(|error| error.to_string())?;
            target.enter(marker_of(object), marker, note).await.map_err(|error| error.to_string())?;
            self.begun.insert(object.uid.clone(), Begun { at: now, removed });
        }
        let Some(begun) = self.begun.get(&object.uid) else { return Ok(false) };
        let members = status.members.unwrap_or(0);
        let acknowledged = target.acknowledged(&marker_of(object)).await?.min(members.max(1));
        let (mut is_swept, mut removed) = (true, begun.removed);
        for n in 0..patterns.len() {
            let (done, count) = target.swept(&id_of(object, n)).await?;
            is_swept &= done;
            removed += count;
        }
        status.acknowledged = Some(acknowledged);
        // Counted anew by another sidecar: what was removed before stays removed.
        status.removed = Some(removed.max(status.removed.unwrap_or(0)));
        let waited = now.duration_since(begun.at).unwrap_or_default() >= PATIENCE;
        status.message = (waited && acknowledged < members).then(|| {
            format!(
                "{} of {members} sidecars have not acknowledged; they serve nothing older than maxStaleness",
                members - acknowledged
            )
        });
        Ok(is_swept && (acknowledged >= members || waited))
    }
}

fn is_over(object: &Object) -> bool {
    object.status.phase.is_some_and(InvalidationPhase::is_final)
}

/// Whether a finished object's time is over. Times are all written alike, so they sort as text.
fn is_due(object: &Object, now: SystemTime) -> bool {
    let (Some(ttl), Some(finished)) = (object.spec.ttl_seconds_after_finished, &object.status.finished_at) else {
        return false;
    };
    now.checked_sub(Duration::from_secs(ttl)).is_some_and(|then| timestamp(then) >= *finished)
}

/// Why an object will never be executed.
fn refusal(object: &Object, target: &impl Target) -> Option<String> {
    if object.generation > 1 {
        return Some("spec was changed; an invalidation cannot be: create another one".to_owned());
    }
    let known = target.keyspaces();
    if let Some(name) = object.spec.keyspaces.iter().find(|name| !known.contains(name)) {
        let all = known.join(", ");
        return Some(format!(
            "spec.keyspaces: no keyspace is named {name:?}; there are {all} (* is what no rule matches)"
        ));
    }
    let unusable = || patterns(&object.spec).err().map(|error| format!("spec: {error}"));
    object.spec.check().err().or_else(unusable).or_else(|| target.refusal().map(str::to_owned))
}

fn patterns(spec: &InvalidationSpec) -> Result<Vec<KeyPattern>, caddy_engine::invalidation::PatternError> {
    let of = |kind: PatternKind, texts: &[String]| {
        texts.iter().map(|text| KeyPattern::new(kind, text.as_bytes())).collect::<Result<Vec<_>, _>>()
    };
    Ok([of(PatternKind::Glob, &spec.patterns)?, of(PatternKind::Regex, &spec.regexes)?].concat())
}

fn marker_of(object: &Object) -> String {
    wire::marker_id(&object.uid)
}

fn id_of(object: &Object, n: usize) -> String {
    format!("object-{}-{n}", object.uid)
}

/// As much as the schema takes.
fn shortened(mut text: String) -> String {
    let end = (0..=text.len().min(1024)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

// === the API server ===

struct Kubernetes {
    client: Arc<ApiClient>,
    place: Place,
    pod: String,
}

impl Kubernetes {
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

// === the cache ===

struct Cache(Arc<Shared>);

impl Cache {
    async fn ask(&self, key: &[u8], command: Vec<u8>) -> Result<Bytes, String> {
        errands::ask_owner(&self.0, key, 0, command).await.map_err(|error: ErrandError| error.to_string())
    }

    /// What any Redis client may do to invalidate what carries a generation.
    async fn renew(&self, name: &[u8]) -> Result<(), String> {
        let generation = self.0.domain.key(name);
        self.ask(&generation, wire::command(&[b"DEL", &generation])).await?;
        self.0.domain.remember(self.0.now(), 0, std::iter::once(generation), Mode::Remove);
        Ok(())
    }
}

impl Target for Cache {
    fn refusal(&self) -> Option<&'static str> {
        match &self.0.l3 {
            L3::Embedded(_) => Some(
                "the CacheCluster's L3 is embedded: each pod has its own data, and nobody can invalidate it for all",
            ),
            L3::Redis(_) => None,
        }
    }

    async fn remove(&self, keys: &[String], note: &str) -> Result<u64, String> {
        let mut removed = 0;
        for key in keys {
            let reply = self.ask(key.as_bytes(), wire::command(&[b"UNLINK", key.as_bytes()])).await?;
            removed += crate::upstream::integer(&reply).map_or(0, i64::unsigned_abs);
        }
        let subject = InvalidationSubject::Keys(keys.iter().cloned().map(Bytes::from).collect());
        events::tell(&self.0, subject, InvalidationReason::Object, note.to_owned(), None, Some(removed));
        Ok(removed)
    }

    async fn untag(&self, tags: &[String], note: &str) -> Result<(), String> {
        for tag in tags {
            self.renew(&of_tag(tag.as_bytes())).await?;
        }
        let subject = InvalidationSubject::Tags(tags.to_vec());
        events::tell(&self.0, subject, InvalidationReason::Object, note.to_owned(), None, None);
        Ok(())
    }

    async fn clear(&self, keyspaces: &[String], note: &str) -> Result<(), String> {
        for name in keyspaces {
            self.renew(&of_keyspace(name)).await?;
        }
        let subject = InvalidationSubject::Keyspaces(keyspaces.to_vec());
        events::tell(&self.0, subject, InvalidationReason::Object, note.to_owned(), None, None);
        Ok(())
    }

    fn keyspaces(&self) -> Vec<String> {
        self.0.names.all()
    }

    async fn enter(&self, id: String, pattern: KeyPattern, note: &str) -> Result<(), EnterError> {
        ranges::enter_as(&self.0, id.clone(), pattern.clone(), 0, note.to_owned()).await?;
        if pattern.text() != MARKER {
            let subject = events::subject_of(&pattern);
            events::tell(&self.0, subject, InvalidationReason::Object, note.to_owned(), Some(&id), None);
        }
        Ok(())
    }

    async fn acknowledged(&self, marker: &str) -> Result<u32, String> {
        let key = self.0.ranges.names.acknowledgements(marker);
        let reply = self.ask(&key, wire::command(&[b"SCARD", &key])).await?;
        Ok(crate::upstream::integer(&reply).and_then(|count| u32::try_from(count).ok()).unwrap_or(0))
    }

    async fn swept(&self, id: &str) -> Result<(bool, u64), String> {
        let progress = ranges::read_progress(&self.0, id).await.map_err(|error| error.to_string())?;
        Ok((progress.done, progress.removed))
    }

    async fn end_marker(&self, marker: &str) -> Result<(), String> {
        let names = &self.0.ranges.names;
        self.ask(&names.index, wire::finish(names, marker)).await.map(drop)
    }

    fn markers(&self) -> Vec<String> {
        let active = self.0.ranges.active();
        active.iter().map(|range| &range.record).filter(|record| record.is_marker()).map(|r| r.id.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
