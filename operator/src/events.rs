//! Events: sent by one task from a bounded queue, so that nothing waits for them.
//!
//! Best effort: when the queue is full or the server refuses, the Event is lost, counted and logged.

use crate::{
    metrics::Metrics,
    plan::{Note, NoteKind},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that may wait.
const QUEUE: usize = 256;
/// Deadline of one.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where Events are handed in.
#[derive(Clone, Debug)]
pub struct EventSink {
    queue: mpsc::Sender<(Note, ObjectReference)>,
    metrics: Arc<Metrics>,
}

/// The other end, for [`send`].
pub type EventQueue = mpsc::Receiver<(Note, ObjectReference)>;

impl EventSink {
    /// A sink and its queue.
    pub fn new(metrics: Arc<Metrics>) -> (Self, EventQueue) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue, metrics }, receiver)
    }

    /// Hands in an Event about an object.
    pub fn publish(&self, note: Note, regarding: ObjectReference) {
        if let Err(error) = self.queue.try_send((note, regarding)) {
            self.metrics.events_lost.inc();
            tracing::warn!(%error, "an Event is lost");
        }
    }
}

/// Sends Events until the shutdown.
pub async fn send(client: Client, mut queue: EventQueue, metrics: Arc<Metrics>, shutdown: CancellationToken) {
    let reporter = Reporter { controller: "cache.caddy.dev/operator".to_owned(), instance: None };
    let recorder = Recorder::new(client, reporter);
    loop {
        let next = tokio::select! {
            () = shutdown.cancelled() => return,
            next = queue.recv() => next,
        };
        let Some((note, regarding)) = next else { return };
        let event = Event {
            type_: match note.kind {
                NoteKind::Normal => EventType::Normal,
                NoteKind::Warning => EventType::Warning,
            },
            reason: note.reason.to_owned(),
            note: Some(note.text),
            action: note.reason.to_owned(),
            secondary: None,
        };
        match tokio::time::timeout(TIMEOUT, recorder.publish(&event, &regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                metrics.events_lost.inc();
                tracing::warn!(%error, reason = event.reason, "failed to send an Event");
            }
            Err(_) => {
                metrics.events_lost.inc();
                tracing::warn!(reason = event.reason, "sending an Event took too long");
            }
        }
    }
}
