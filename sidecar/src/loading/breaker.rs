//! When a store that fails is left alone: a circuit breaker, as a state machine without a clock.
//!
//! Closed until so many calls in a row have failed; then open for a pause, after which one call at a time tries. What
//! succeeds closes it. Counts only failures that may pass: a refusal says that the store is up.

use std::time::Duration;

use caddy_engine::Moment;

/// See the module.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// Failures that open it; none: it never opens.
    limit: Option<u32>,
    pause: Duration,
    failures: u32,
    /// While it is open: when the next call may try.
    retry_at: Option<Moment>,
}

impl Breaker {
    pub(crate) fn new(limit: Option<u32>, pause: Duration) -> Self {
        Self { limit, pause, failures: 0, retry_at: None }
    }

    /// Whether a call may be made now. While it is open, who is let in has until the next pause is over to come back; then
    /// somebody else tries.
    pub(crate) fn admits(&mut self, now: Moment) -> bool {
        match self.retry_at {
            Some(at) if now < at => false,
            Some(_) => {
                self.retry_at = Some(now + self.pause);
                true
            }
            None => true,
        }
    }

    /// A call succeeded.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }

    /// A call failed. Whether that opened it.
    pub(crate) fn failed(&mut self, now: Moment) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opens = self.limit.is_some_and(|limit| self.failures >= limit);
        let was_open = self.retry_at.is_some();
        if opens {
            self.retry_at = Some(now + self.pause);
        }
        opens && !was_open
    }

    pub(crate) fn is_open(&self) -> bool {
        self.retry_at.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);

    fn at(seconds: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn failures_in_a_row_open_it_for_a_pause() {
        let mut breaker = Breaker::new(Some(2), PAUSE);
        assert!(!breaker.failed(at(0)));
        breaker.succeeded();
        assert!(!breaker.failed(at(1)), "not in a row");
        assert!(breaker.failed(at(2)));
        assert!(breaker.is_open() && !breaker.admits(at(6)));
    }

    #[test]
    fn after_the_pause_one_call_tries_and_decides() {
        let mut breaker = Breaker::new(Some(1), PAUSE);
        breaker.failed(at(0));
        assert!(breaker.admits(at(5)));
        assert!(!breaker.admits(at(6)), "one at a time");
        assert!(!breaker.failed(at(7)), "it was open");
        assert!(!breaker.admits(at(11)));
        assert!(breaker.admits(at(12)));
        breaker.succeeded();
        assert!(breaker.admits(at(12)) && breaker.admits(at(12)));
    }

    #[test]
    fn one_that_tried_and_never_came_back_does_not_close_the_way_for_ever() {
        let mut breaker = Breaker::new(Some(1), PAUSE);
        breaker.failed(at(0));
        assert!(breaker.admits(at(5)));
        assert!(breaker.admits(at(10)));
    }

    #[test]
    fn without_a_limit_it_never_opens() {
        let mut breaker = Breaker::new(None, PAUSE);
        assert!((0..1000).all(|_| !breaker.failed(at(0))));
        assert!(breaker.admits(at(0)));
    }
}
