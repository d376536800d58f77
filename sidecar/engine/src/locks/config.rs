//! What can be set about locks, with the defaults.

use std::time::Duration;

use crate::Guards;

/// How locks are taken and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockConfig {
    /// How long an acquisition waits for its turn unless it says otherwise.
    pub timeout: Duration,
    /// How long a lock outlives an owner that died; at least [`SHORTEST_LEASE`](Self::SHORTEST_LEASE).
    pub lease: Duration,
    /// At which part of the lease it is renewed, percent, 1 to 90. At 33, two more attempts fit.
    pub renew_at_percent: u32,
    /// Pause between two looks for deadlocks, a millisecond at least; one is broken within two of them.
    pub deadlock_check: Duration,
    /// Bounds on what callers control.
    pub limits: LockLimits,
    /// All, except in a test of what one of them is for.
    pub guards: Guards,
}

/// Bounds on what callers control, each for one client (one sidecar).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockLimits {
    /// Locks held at a time.
    pub max_held: usize,
    /// Acquisitions under way at a time, waiting ones included.
    pub max_waiters: usize,
}

impl Default for LockConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            lease: Duration::from_secs(30),
            renew_at_percent: 33,
            deadlock_check: Duration::from_secs(1),
            limits: LockLimits::default(),
            guards: Guards::default(),
        }
    }
}

impl Default for LockLimits {
    fn default() -> Self {
        Self { max_held: 10_000, max_waiters: 10_000 }
    }
}

impl LockConfig {
    /// A shorter lease counts as this: it would be over before anybody could renew it.
    pub const SHORTEST_LEASE: Duration = Duration::from_millis(100);

    /// How long a lock may be called one's own, counted from before the request was sent: the lease less what two clocks
    /// may differ in running (1 %).
    pub fn validity(&self, lease: Duration) -> Duration {
        lease.saturating_sub(lease / 100)
    }

    /// When to renew, counted as [`validity`](Self::validity) is.
    pub fn renew_after(&self, lease: Duration) -> Duration {
        lease / 100 * self.renew_at_percent.clamp(1, 90)
    }

    /// How long after an attempt to renew that failed the next one comes: twice at least before the lease is over.
    pub fn retry_after(&self, lease: Duration) -> Duration {
        (self.validity(lease).saturating_sub(self.renew_after(lease)) / 4)
            .clamp(Duration::from_millis(20), Duration::from_secs(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_fit_into_every_lease() {
        for percent in [1, 33, 70, 90] {
            for lease in
                [200, 1000, 30_000, 86_400_000, u64::MAX].map(Duration::from_millis).into_iter().chain([Duration::MAX])
            {
                let config = LockConfig { renew_at_percent: percent, ..LockConfig::default() };
                let attempts = config.renew_after(lease) + config.retry_after(lease) * 2;
                assert!(
                    attempts < config.validity(lease) || lease < Duration::from_secs(1),
                    "{percent} % of {lease:?}"
                );
            }
        }
    }
}
