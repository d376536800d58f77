//! `spec.limits`, `spec.locks` and `spec.resources`: what apps and sidecars may use.

use crate::quantity::{Amount, Period, Size};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Locks that apps take on the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Locks {
    /// How long a lock outlives an owner that died; 100ms to 24h. While the owner lives it is renewed.
    pub lease: Period,
    /// How long LOCK.ACQUIRE waits unless it says otherwise; at most 24h.
    pub timeout: Period,
    /// At which part of the lease it is renewed, percent. At 33, two more attempts fit.
    #[schemars(range(min = 1, max = 70))]
    pub renew_at_percent: i32,
    /// Pause between two looks for deadlocks, each of which is broken within two of them; 100ms to 24h.
    pub deadlock_check: Period,
    /// Bounds for one sidecar.
    pub limits: LockLimits,
}

/// Bounds on the locks of one sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LockLimits {
    /// Locks held at a time.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_held: i32,
    /// Acquisitions under way at a time, waiting ones included.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_waiters: i32,
}

/// Bounds on everything that an app controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Connections of apps at one time; further ones are refused.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: i32,
    /// Bytes of one command, 16Ki to 4095Mi; a larger one ends its connection.
    pub max_frame_bytes: Size,
    /// Bytes of a value; larger ones are relayed and never cached.
    pub max_value_bytes: Size,
    /// Unanswered commands of one connection; beyond it the sidecar stops reading from it.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_pipeline: i32,
    /// Bytes of replies that wait for one slow reader, at least 16Ki.
    pub output_buffer_bytes: Size,
    /// Time a reader may make no progress with a full buffer before it is disconnected; 100ms to 24h.
    pub slow_reader_timeout: Period,
    /// Time after which a connection that sends nothing is closed, 100ms to 24h; absent means never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Period>,
}

/// Requests and limits of the sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What the scheduler reserves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Amounts>,
    /// What the sidecar may use at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Amounts>,
}

/// Amounts of CPU and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Amounts {
    /// CPU, e.g. `100m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Amount>,
    /// Memory, e.g. `128Mi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Amount>,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            lease: "30s".into(),
            timeout: "5s".into(),
            renew_at_percent: 33,
            deadlock_check: "1s".into(),
            limits: LockLimits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_frame_bytes: "64Mi".into(),
            max_value_bytes: "1Mi".into(),
            max_pipeline: 10_000,
            output_buffer_bytes: "32Mi".into(),
            slow_reader_timeout: "30s".into(),
            idle_timeout: None,
        }
    }
}

impl Default for LockLimits {
    fn default() -> Self {
        Self { max_held: 10_000, max_waiters: 10_000 }
    }
}
