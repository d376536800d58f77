//! Every background task has a name, sees the shutdown, and its end does not go unseen.
//!
//! The operator cannot do without any of its tasks: when one ends before the shutdown, for whatever reason, the process
//! ends with an error and Kubernetes starts it anew.

use std::{future::Future, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Time that tasks get to end after the shutdown began.
const DRAIN: Duration = Duration::from_secs(8);

/// Why the operator ended although nobody asked it to.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task returned, with or without an error.
    #[error("task {name} ended: {reason}")]
    Ended {
        /// Its name.
        name: &'static str,
        /// Its error, or that it had none.
        reason: String,
    },
    /// A task panicked; the panic's message is in the log.
    #[error("a task panicked: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Owns the tasks.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    shutdown: CancellationToken,
}

impl Supervisor {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancelled when the operator is to end.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Starts a task that runs until the shutdown.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Runs until the shutdown, then gives the tasks a little time to end.
    ///
    /// # Errors
    /// When a task ends before.
    pub async fn run(mut self) -> Result<(), TaskError> {
        let outcome = tokio::select! {
            () = self.shutdown.cancelled() => Ok(()),
            Some(ended) = self.tasks.join_next() => Err(unexpected(ended)),
        };
        self.shutdown.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("tasks did not end within {DRAIN:?} of the shutdown");
        }
        outcome
    }
}

fn unexpected(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> TaskError {
    match ended {
        Ok((name, Ok(()))) => TaskError::Ended { name, reason: "it should run until the shutdown".to_owned() },
        Ok((name, Err(error))) => TaskError::Ended { name, reason: format!("{error:#}") },
        Err(error) => TaskError::Panicked(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_ends_the_operator_with_its_name() {
        let mut supervisor = Supervisor::new();
        let shutdown = supervisor.shutdown();
        supervisor.spawn("patient", async move {
            shutdown.cancelled().await;
            Ok(())
        });
        supervisor.spawn("hasty", async { anyhow::bail!("gave up") });
        assert_eq!(supervisor.run().await.unwrap_err().to_string(), "task hasty ended: gave up");
    }

    #[tokio::test]
    async fn a_shutdown_is_no_error() {
        let mut supervisor = Supervisor::new();
        let shutdown = supervisor.shutdown();
        let seen = shutdown.clone();
        supervisor.spawn("patient", async move {
            seen.cancelled().await;
            Ok(())
        });
        shutdown.cancel();
        supervisor.run().await.unwrap();
    }
}
