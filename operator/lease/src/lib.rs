//! At most one holder at a time, agreed on through a Kubernetes Lease (`coordination.k8s.io/v1`).
//!
//! [`Machine`] decides: a pure state machine, replies in, requests out, every moment handed in. [`drive`] runs it over a
//! [`LeaseApi`] and shows its outcome as a [`Tenure`]. The operator's leadership and the sidecars' duties use both; this
//! crate knows neither, and speaks to no server itself.
//!
//! # What is promised
//!
//! A holder holds until `duration - margin` after the *sending* of its last renewal that succeeded; another one takes over
//! no earlier than `duration` after it *received* the last change of the Lease. Sending comes before writing, writing
//! before receiving. So two never hold at once as long as their clocks' rates differ by less than `margin / duration`
//! (a fifth, by default): both sides count on their own monotonic clock and no wall clock is ever compared. Each write
//! names the version it replaces, so that of two candidates one wins. `model.rs` checks this with lost and late requests,
//! lost replies, refusals, clocks of different rates and Leases that are deleted.
//!
//! What it cannot promise: a request that a holder sent while it held may arrive later (what it changes must bear that),
//! and somebody who deletes a held Lease may bring two holders about, for at most `duration - margin`, if a candidate that
//! starts in that time has never seen the old one.
//!
//! # How it fails
//!
//! Without an answer from the API server a holder holds for the rest of its time and then no longer; nobody takes over.
//! A Lease that does not exist is waited for: whoever declares it (the chart, the operator) makes it.

mod api;
mod drive;
mod machine;
#[cfg(test)]
mod model;
mod moment;
mod record;

pub use api::{LeaseApi, Reply};
pub use drive::{Standing, Tenure, drive};
pub use machine::{Machine, Request, Step, Terms};
pub use moment::{Moment, boottime};
pub use record::{Record, Snapshot, patch, seconds, snapshot, timestamp, unique};
