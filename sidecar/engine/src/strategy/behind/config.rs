//! Sizes, times and bounds of a write-behind queue. Nothing here fails: every value has a meaning.

use std::time::Duration;

/// How a [`WriteBehind`](super::WriteBehind) batches, retries and bounds what it has not stored yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BehindConfig {
    /// Records of one call to the store, at least 1.
    pub batch_size: usize,
    /// How long a record waits for others to share its batch.
    pub flush_interval: Duration,
    /// Records that may be waiting, dead letters included; then writers wait. Where none waits one is always let in.
    pub max_records: usize,
    /// The same in bytes of keys and values.
    pub max_bytes: usize,
    /// Batches under way at a time; none of them share a key. At least 1.
    pub max_in_flight: usize,
    /// How long a write waits for room, or for the store where the journal cannot keep it.
    pub max_wait: Duration,
    /// How often a record that the store refuses is offered to it, at least 1, before it becomes a dead letter. A store that
    /// does not answer is asked for ever.
    pub max_attempts: u32,
    /// Pause before the first retry, a millisecond at least; each further one is twice as long.
    pub first_retry: Duration,
    /// The longest of these pauses: so late a store that answers again is found at most.
    pub last_retry: Duration,
}

/// Without a pause a store that fails at once would be all that its thread does.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

impl Default for BehindConfig {
    fn default() -> Self {
        Self {
            batch_size: 500,
            flush_interval: Duration::from_millis(100),
            max_records: 100_000,
            max_bytes: 64 << 20,
            max_in_flight: 2,
            max_wait: Duration::from_secs(1),
            max_attempts: 5,
            first_retry: Duration::from_millis(100),
            last_retry: Duration::from_secs(5),
        }
    }
}

impl BehindConfig {
    /// The pause after so many failures in a row.
    pub(super) fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        self.first_retry.saturating_mul(1 << doublings).min(self.last_retry).max(SHORTEST_PAUSE)
    }
}
