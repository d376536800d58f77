//! Why a lock was not had, or is not one's own any more.

use std::time::Duration;

use super::{BackendError, FencingToken};

/// What went wrong, named after the step that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Its turn did not come in time.
    #[error("the lock was not free within {} ms; wait longer, or see who holds it (LOCK.INFO)", .0.as_millis())]
    TimedOut(Duration),
    /// Owners waited for each other in a circle, and this acquisition was the youngest of them.
    #[error("{0}; let go of what you hold, then try again")]
    Deadlock(String),
    /// The lock is not held under this token by this owner: never was, was let go, or was lost since.
    #[error("the lock is not held under this token: its lease ended or it was let go; do not go on as if it were held")]
    NotHeld,
    /// Shared is held, exclusive was asked for. Two that did so would wait for each other for ever.
    #[error(
        "held SHARED under token {0}; SHARED cannot become EXCLUSIVE (two owners doing so would wait for each other): release it first"
    )]
    Upgrade(FencingToken),
    /// A bound was reached.
    #[error("{what} reached its limit of {limit}; let go of some")]
    Limit {
        /// Which bound.
        what: &'static str,
        /// Its value.
        limit: usize,
    },
    /// The backend cannot be asked, or its answer did not come. What was under way is cancelled or ends with its lease.
    #[error("{0}")]
    Unavailable(String),
    /// What the backend has of this lock was written by somebody else; other locks go on.
    #[error("{0}")]
    Unreadable(String),
    /// The owner went away while it waited.
    #[error("the owner is gone")]
    Abandoned,
}

impl From<BackendError> for LockError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Unavailable(reason) => Self::Unavailable(reason.to_string()),
            BackendError::Unreadable(reason) => Self::Unreadable(reason.to_string()),
        }
    }
}
