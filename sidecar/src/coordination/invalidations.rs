//! Executing CacheInvalidations: the objects of this cluster are looked at by the sidecar that has its duties, executed
//! once, reported, and deleted when their time is over.
//!
//! Execution repeats harmlessly: ids of patterns come from the object's uid, so that another holder of the duties goes on
//! where this one stopped. Beside its patterns each object enters a *marker* into their index, which no key can match:
//! sidecars that have read it acknowledge the object, and by the order of their connections have applied all that came
//! before it. It fails by reporting why and trying again in the next round; what cannot succeed is `Failed`.
//!
//! Where the objects are is [`objects`], what is done for them [`target`]: here neither is known but by what it can do.

mod objects;
mod target;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use caddy_contract::invalidation::{InvalidationPhase, InvalidationSpec, InvalidationStatus};
use caddy_engine::invalidation::{KeyPattern, PatternKind};
use caddy_lease::timestamp;
use caddy_remote::ranges::{self as wire, MARKER};
use tokio_util::sync::CancellationToken;

use self::{objects::Kubernetes, target::Cache};
use super::{
    Place,
    client::{ApiClient, Refused},
};
use crate::{ranges::EnterError, shared::Shared};

/// Pause between two looks at the objects.
const LOOK: Duration = Duration::from_secs(3);
/// For how long acknowledgements are waited for.
const PATIENCE: Duration = Duration::from_secs(30);

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
    let objects = Kubernetes::new(client.clone(), place, pod.clone());
    let target = Cache::new(shared.clone());
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

#[cfg(test)]
mod tests;
