//! Telling others of invalidations: a bounded stream in L3 and a channel of the same name, `caddy:<domain>:events`.
//!
//! An event is one JSON object (`docs/invalidation.md`), added to the stream, from which anybody can go on reading
//! where they were, and published on the channel. It is told behind the invalidation, by a task of its own over a queue
//! that is bounded: nobody who invalidates waits for it, and nobody who reads it slowly holds anything up; Redis ends
//! subscribers that fall behind, and trims the stream. What L3 does not take is counted and dropped.

use std::{sync::Arc, time::UNIX_EPOCH};

use bytes::Bytes;
use caddy_engine::invalidation::{
    InvalidationEvent, InvalidationMetadata, InvalidationReason, InvalidationSubject, KeyPattern, PatternKind,
};
use caddy_remote::ranges::{Record, command};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    errands,
    shared::{L3, Shared},
};

/// Events that wait to be told.
const QUEUE: usize = 1024;
/// How many the stream keeps, about.
const KEPT: &[u8] = b"10000";
/// Subjects that one event names; the rest is counted only.
const MAX_SUBJECTS: usize = 100;

/// See the module.
pub(crate) struct Events {
    queue: mpsc::Sender<String>,
    told: Mutex<Option<mpsc::Receiver<String>>>,
}

impl Default for Events {
    fn default() -> Self {
        let (queue, told) = mpsc::channel(QUEUE);
        Self { queue, told: Mutex::new(Some(told)) }
    }
}

/// Tells of an invalidation that took effect. `id` is a pattern's, `removed` how many entries left L3 where that is known.
pub(crate) fn tell(
    shared: &Shared,
    subject: InvalidationSubject<Bytes>,
    reason: InvalidationReason,
    note: String,
    id: Option<&str>,
    removed: Option<u64>,
) {
    let metadata =
        InvalidationMetadata { note, removed, ..InvalidationMetadata::now(reason, shared.ranges.origin.clone()) };
    let event = InvalidationEvent { subject, metadata };
    queue(shared, &as_json(&event, "invalidated", id));
}

/// A pattern, as events name it.
pub(crate) fn subject_of(pattern: &KeyPattern) -> InvalidationSubject<Bytes> {
    let text = Bytes::copy_from_slice(pattern.text());
    match pattern.kind() {
        PatternKind::Glob => InvalidationSubject::Pattern(text),
        PatternKind::Regex => InvalidationSubject::Regex(text),
    }
}

/// Tells that what a pattern had is gone from L3.
pub(crate) fn swept(shared: &Shared, record: &Record, removed: u64) {
    let subject = subject_of(&record.pattern);
    let metadata = InvalidationMetadata {
        note: record.note.clone(),
        removed: Some(removed),
        ..InvalidationMetadata::now(InvalidationReason::Command, shared.ranges.origin.clone())
    };
    queue(shared, &as_json(&InvalidationEvent { subject, metadata }, "swept", Some(&record.id)));
}

fn queue(shared: &Shared, event: &Value) {
    if let L3::Redis(_) = &shared.l3
        && shared.events.queue.try_send(event.to_string()).is_err()
    {
        shared.metrics.lost_events.inc();
    }
}

/// Tells what is queued, until the sidecar ends.
pub(crate) async fn run(shared: Arc<Shared>) {
    let queue = shared.events.told.lock().take();
    let Some(mut queue) = queue else { return std::future::pending().await };
    let name = shared.ranges.names.events.clone();
    while let Some(event) = queue.recv().await {
        let add = command(&[b"XADD", &name, b"MAXLEN", b"~", KEPT, b"*", b"event", event.as_bytes()]);
        let publish = command(&[b"PUBLISH", &name, event.as_bytes()]);
        let both = [add, publish].concat();
        let told = match &shared.l3 {
            L3::Redis(redis) => match redis.owner(&name) {
                Some(node) => errands::ask(&shared, &node, 0, both, 2).await.is_ok(),
                None => false,
            },
            L3::Embedded(_) => true,
        };
        if !told {
            shared.metrics.lost_events.inc();
        }
    }
}

/// The form that is documented: version 1 of it.
fn as_json(event: &InvalidationEvent<Bytes>, what: &str, id: Option<&str>) -> Value {
    let InvalidationEvent { subject, metadata } = event;
    let subjects: Vec<String> = match subject {
        InvalidationSubject::Keys(keys) | InvalidationSubject::Cascade(keys) => keys.iter().map(text).collect(),
        InvalidationSubject::Pattern(one) | InvalidationSubject::Regex(one) => vec![text(one)],
        InvalidationSubject::Tags(names) | InvalidationSubject::Keyspaces(names) => names.clone(),
        InvalidationSubject::All => Vec::new(),
    };
    let millis = metadata.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let count = subjects.len();
    let mut all = json!({
        "v": 1,
        "event": what,
        "kind": subject.kind(),
        "subjects": subjects.into_iter().take(MAX_SUBJECTS).collect::<Vec<_>>(),
        "subjectCount": count,
        "reason": metadata.reason.word(),
        "note": metadata.note,
        "time": u64::try_from(millis).unwrap_or(u64::MAX),
        "origin": metadata.origin,
    });
    if let Some(removed) = metadata.removed {
        all["removed"] = removed.into();
    }
    if let Some(id) = id {
        all["id"] = id.into();
    }
    all
}

/// Keys are bytes; what is not UTF-8 is shown escaped.
fn text(key: &Bytes) -> String {
    std::str::from_utf8(key).map_or_else(|_| key.escape_ascii().to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_a_bounded_number_of_subjects_and_counts_all() {
        let keys = (0..250).map(|n| Bytes::from(format!("k{n}"))).collect();
        let metadata = InvalidationMetadata {
            at: UNIX_EPOCH + std::time::Duration::from_millis(17),
            ..InvalidationMetadata::now(InvalidationReason::Command, "pod")
        };
        let event = InvalidationEvent { subject: InvalidationSubject::Keys(keys), metadata };
        let told = as_json(&event, "invalidated", None);
        assert_eq!((told["subjects"].as_array().unwrap().len(), &told["subjectCount"]), (100, &json!(250)));
        assert_eq!((&told["kind"], &told["time"], told.get("removed")), (&json!("key"), &json!(17), None));
        assert_eq!(text(&Bytes::from_static(b"a\xff")), "a\\xff");
    }
}
