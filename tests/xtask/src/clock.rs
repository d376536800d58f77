//! Elapsed time for tables and deadlines. The workspace bans `std::time::Instant` because staleness must count suspended
//! time; a progress table need not, and this is the one place that says so.

#![expect(clippy::disallowed_types, reason = "progress and deadlines of a command-line tool, not staleness")]

use std::fmt;
use std::time::{Duration, Instant};

/// A running clock, started when made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub(crate) fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Prints a duration as `4.2 s` below a minute, else as `3 min 07 s`.
pub(crate) struct Shown(pub(crate) Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.0.as_secs() < 60 {
            format!("{:.1} s", self.0.as_secs_f64())
        } else {
            format!("{} min {:02} s", self.0.as_secs() / 60, self.0.as_secs() % 60)
        };
        f.pad(&text)
    }
}

/// Asks every 20 ms until `ready` says yes; false when `limit` is over.
pub(crate) fn wait_until(limit: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let watch = Stopwatch::start();
    loop {
        if ready() {
            return true;
        }
        if watch.elapsed() >= limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_naturally() {
        assert_eq!(Shown(Duration::from_millis(4210)).to_string(), "4.2 s");
        assert_eq!(Shown(Duration::from_secs(187)).to_string(), "3 min 07 s");
    }
}
