//! Every background task is spawned here: it has a name, sees the shutdown, and its end does not go unseen.
//!
//! A task that panics is logged and counted. If the sidecar cannot do without it, the process ends with an error and is
//! started anew by whoever runs it; a session's panic ends that session only.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// See the module. Clones are the same supervisor.
#[derive(Debug, Clone, Default)]
pub(crate) struct Supervisor {
    shutdown: CancellationToken,
    failure: Arc<Mutex<Option<String>>>,
    panics: prometheus_client::metrics::counter::Counter,
}

impl Supervisor {
    /// Done when the sidecar is to end.
    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Why the sidecar ends, if it should not have.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Tasks that panicked.
    pub(crate) fn panics(&self) -> &prometheus_client::metrics::counter::Counter {
        &self.panics
    }

    /// Runs a task that others can do without.
    pub(crate) fn spawn_local(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(self.watched(name, task));
    }

    /// Runs a task that the sidecar cannot do without: when it ends, so does the sidecar.
    pub(crate) fn spawn_vital(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let supervisor = self.clone();
        tokio::task::spawn_local(self.watched(name, task).map(move |()| {
            if !supervisor.shutdown.is_cancelled() {
                supervisor.fail(format!("the task '{name}' ended unexpectedly"));
            }
        }));
    }

    /// Ends the sidecar with an error.
    pub(crate) fn fail(&self, reason: String) {
        tracing::error!(reason, "ending");
        self.failure.lock().get_or_insert(reason);
        self.shutdown.cancel();
    }

    /// Combinators, since each `async` block around a task would hold it once more: there is one for every session.
    fn watched<T: Future<Output = ()>>(&self, name: &'static str, task: T) -> impl Future<Output = ()> + use<T> {
        let panics = self.panics.clone();
        AssertUnwindSafe(task).catch_unwind().map(move |ended| {
            if ended.is_err() {
                panics.inc();
                tracing::error!(task = name, "a task panicked; please report it with the lines above");
            }
        })
    }
}
