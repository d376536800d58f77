//! `spec.warming`: what a sidecar that starts reads before it is asked.

use crate::quantity::Period;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a sidecar that starts reads before it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Warming {
    /// Whether sidecars write down in Redis what they are asked for most (names and sizes, never values), and read that when
    /// they start. Off by default: each new pod adds `ratePerSecond` reads to what Redis does.
    pub enabled: bool,
    /// Reads that a sidecar writes down, and that one which starts makes at most.
    #[schemars(range(min = 1, max = 1000))]
    pub keys: i32,
    /// How many of them it makes in a second.
    #[schemars(range(min = 1, max = 100_000))]
    pub rate_per_second: i32,
    /// Which share of them, percent, the startup probe waits for, so that a rollout goes on only when the new pod's cache is
    /// warm. 0: it does not wait. The socket is open all the while.
    #[schemars(range(min = 0, max = 100))]
    pub startup_share: i32,
    /// How long it waits at most, 1s to 10m.
    pub startup_deadline: Period,
}

impl Default for Warming {
    fn default() -> Self {
        Self { enabled: false, keys: 1000, rate_per_second: 200, startup_share: 0, startup_deadline: "10s".into() }
    }
}
