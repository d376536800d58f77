//! The section `warming`.

use serde::{Deserialize, Serialize};

/// What a sidecar that starts reads before it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawWarming {
    /// Whether sidecars tell each other what they are asked for most, and read that when they start.
    pub enabled: bool,
    /// Reads that a sidecar tells of, and that one which starts makes.
    pub keys: u32,
    /// How many of them it makes in a second.
    pub rate_per_second: u32,
    /// Which share of them the startup probe waits for, percent; 0: it does not.
    pub startup_share: u32,
    /// How long it waits at most.
    pub startup_deadline: String,
}

impl Default for RawWarming {
    fn default() -> Self {
        Self { enabled: false, keys: 1000, rate_per_second: 200, startup_share: 0, startup_deadline: "10s".into() }
    }
}

impl RawWarming {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
