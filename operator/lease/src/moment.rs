//! Time on the local monotonic clock. Never compared between machines.

use rustix::time::{ClockId, clock_gettime};
use std::{ops::Add, time::Duration};

/// A point in time, counted from an origin that only this process knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// That long after the origin.
    pub const fn after_origin(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// Time since the origin.
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Time from `earlier` until now; zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

/// Now, on a clock that no one sets and that goes on while the machine is suspended (`CLOCK_BOOTTIME`): a holder that
/// slept through its time must know.
pub fn boottime() -> Moment {
    let now = clock_gettime(ClockId::Boottime);
    Moment(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)))
}
