//! What the machine needs of an API server, and what it may hear from it.

use crate::record::{Record, Snapshot};
use std::{future::Future, time::Duration};

/// One Lease on an API server. Implementations bind name and namespace, and answer within a deadline of their own or none:
/// [`drive`](crate::drive) sets one.
pub trait LeaseApi {
    /// Reads the Lease, as it is now (no `resourceVersion=0`).
    fn get(&self) -> impl Future<Output = Reply> + Send;

    /// Replaces the Lease's spec if its version is still `version`; the server must refuse it otherwise.
    fn swap(&self, version: &str, record: &Record) -> impl Future<Output = Reply> + Send;

    /// How often a candidate should ask, if that changes; asked with each Lease that comes in.
    fn pace(&self) -> Option<Duration> {
        None
    }
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The Lease as it is, or as it was just written.
    Lease(Snapshot),
    /// There is no such Lease.
    Missing,
    /// Somebody changed the Lease since the version that was named (409).
    Conflict,
    /// The server wants to be asked later (429, or 503 with `Retry-After`).
    Busy(Option<Duration>),
    /// The server refused, and would again (401, 403, …); why.
    Denied(String),
    /// Nobody knows whether it happened: no answer, half an answer, 5xx; why.
    Unknown(String),
}
