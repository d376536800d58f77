//! Waiting with a deadline. The workspace bans `std::time::Instant` because staleness must count suspended time; a test's
//! deadline need not.

#![expect(clippy::disallowed_types, reason = "deadlines of a test, not staleness")]

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A running clock, started when made.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Asks every 100 ms until `check` succeeds and returns what it found and how long that took; after `limit` fails with its
/// last error.
pub fn eventually<T>(
    what: impl Display,
    limit: Duration,
    mut check: impl FnMut() -> Result<T>,
) -> Result<(T, Duration)> {
    let watch = Stopwatch::start();
    loop {
        match check() {
            Ok(found) => return Ok((found, watch.elapsed())),
            Err(error) if watch.elapsed() >= limit => {
                return Err(error).with_context(|| format!("{what}: not within {limit:?}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Asks every 200 ms whether `check` still succeeds, for all of `period`; returns how often it was asked.
pub fn holds(what: impl Display, period: Duration, mut check: impl FnMut() -> Result<()>) -> Result<u32> {
    let watch = Stopwatch::start();
    let mut asked = 0;
    while watch.elapsed() < period {
        if let Err(error) = check() {
            bail!("{what}: no longer so after {:?}: {error:#}", watch.elapsed());
        }
        asked += 1;
        thread::sleep(Duration::from_millis(200));
    }
    Ok(asked)
}
