//! The sections `limits` and `locks`.

use super::text;
use serde::{Deserialize, Serialize};

/// Bounds on everything that a client controls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawLimits {
    /// Connections of apps at one time.
    pub max_connections: u32,
    /// Bytes of one command.
    #[serde(deserialize_with = "text")]
    pub max_frame_bytes: String,
    /// Bytes of a value; larger ones are relayed and never cached.
    #[serde(deserialize_with = "text")]
    pub max_value_bytes: String,
    /// Unanswered commands of one connection; beyond it the sidecar stops reading from it.
    pub max_pipeline: u32,
    /// Bytes of replies that wait for one slow reader.
    #[serde(deserialize_with = "text")]
    pub output_buffer_bytes: String,
    /// Time a reader may make no progress with a full buffer before it is disconnected.
    pub slow_reader_timeout: String,
    /// Time after which a connection that sends nothing is closed; empty means never.
    pub idle_timeout: String,
}

/// Locks between the pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawLocks {
    /// How long a lock outlives an owner that died.
    pub lease: String,
    /// How long an acquisition waits for its turn unless it says otherwise.
    pub timeout: String,
    /// At which part of the lease it is renewed, percent.
    pub renew_at_percent: u32,
    /// Pause between two looks for deadlocks.
    pub deadlock_check: String,
    /// Bounds for one sidecar.
    pub limits: RawLockLimits,
}

/// Bounds on the locks of one sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawLockLimits {
    /// Locks held at a time.
    pub max_held: u32,
    /// Acquisitions under way at a time, waiting ones included.
    pub max_waiters: u32,
}

impl Default for RawLocks {
    fn default() -> Self {
        Self {
            lease: "30s".into(),
            timeout: "5s".into(),
            renew_at_percent: 33,
            deadlock_check: "1s".into(),
            limits: RawLockLimits::default(),
        }
    }
}

impl Default for RawLockLimits {
    fn default() -> Self {
        Self { max_held: 10_000, max_waiters: 10_000 }
    }
}

impl RawLocks {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_frame_bytes: "64Mi".into(),
            max_value_bytes: "1Mi".into(),
            max_pipeline: 10_000,
            output_buffer_bytes: "32Mi".into(),
            slow_reader_timeout: "30s".into(),
            idle_timeout: String::new(),
        }
    }
}

impl RawLimits {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
