//! A circuit breaker: what the connections to one server know together of whether it answers.
//!
//! Lanes share it by their target. A failed attempt to connect opens it: from then on requests fail at once with what is
//! known, instead of each waiting out a timeout of its own, and few connections try: the tracked ones by themselves, others
//! one at a time, with a pause that doubles. (A request without an answer does not: its link may be the only one that is
//! broken, and the next attempt tells.) Whatever the server says, on whichever
//! connection, closes it, and wakes all who were waiting out their pause. It holds back attempts to connect only: what is
//! connected may be used.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::ConnectError;

/// The first pause; each further one is twice as long, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Whether `state` has a trouble: read wherever something arrives.
    open: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    trouble: Option<Trouble>,
    waiting: Vec<Waker>,
}

/// Why the server does not answer, and when to try again.
#[derive(Debug)]
struct Trouble {
    error: Arc<ConnectError>,
    pause: Duration,
    until: Instant,
    /// Somebody has leave to try, until then.
    trying: bool,
}

impl Breaker {
    /// Whether to connect now; else why not, and how long to wait before asking again. While it is open one caller gets leave,
    /// for as long as its attempt may take.
    pub(crate) fn admit(&self, attempt: Duration) -> Result<(), (Arc<ConnectError>, Duration)> {
        if !self.is_open() {
            return Ok(());
        }
        let mut state = self.state.lock();
        let Some(trouble) = &mut state.trouble else { return Ok(()) };
        let now = Instant::now();
        if now < trouble.until {
            return Err((trouble.error.clone(), (trouble.until - now).min(PAUSE_MAX)));
        }
        (trouble.until, trouble.trying) = (now + attempt, true);
        Ok(())
    }

    /// Why the server is thought not to answer.
    pub(crate) fn trouble(&self) -> Option<Arc<ConnectError>> {
        if !self.is_open() {
            return None;
        }
        self.state.lock().trouble.as_ref().map(|trouble| trouble.error.clone())
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// An attempt failed; how long to wait before the next one. What fails during one pause is one failure.
    pub(crate) fn failed(&self, error: &Arc<ConnectError>) -> Duration {
        let now = Instant::now();
        let mut state = self.state.lock();
        let (pause, until) = match &state.trouble {
            Some(trouble) if now < trouble.until && !trouble.trying => (trouble.pause, trouble.until),
            before => {
                let pause = before.as_ref().map_or(PAUSE_MIN, |trouble| (trouble.pause * 2).min(PAUSE_MAX));
                (pause, now + jittered(pause))
            }
        };
        state.trouble = Some(Trouble { error: error.clone(), pause, until, trying: false });
        self.open.store(true, Ordering::Relaxed);
        until - now
    }

    /// The server said something.
    pub(crate) fn answered(&self) {
        if self.is_open() {
            let waiting = {
                let mut state = self.state.lock();
                state.trouble = None;
                self.open.store(false, Ordering::Relaxed);
                std::mem::take(&mut state.waiting)
            };
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// Ready when the server is not thought to be away.
    pub(crate) fn poll_closed(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.trouble.is_none() {
            return Poll::Ready(());
        }
        if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Between half and the whole of `wait`, so that sidecars do not come back in step.
pub(crate) fn jittered(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let draw = RandomState::new().hash_one(0u8) % 1024;
    wait / 2 + wait / 2 * u32::try_from(draw).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error() -> Arc<ConnectError> {
        Arc::new(ConnectError::TimedOut { endpoint: "redis:6379".into(), timeout_ms: 5, hint: "" })
    }

    const ATTEMPT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_tries_a_server_that_is_away() {
        let breaker = Breaker::default();
        assert!(breaker.admit(ATTEMPT).is_ok() && breaker.admit(ATTEMPT).is_ok());
        let pause = breaker.failed(&error());
        assert!(breaker.admit(ATTEMPT).is_err(), "nobody tries during the pause");
        tokio::time::advance(pause).await;
        assert!(breaker.admit(ATTEMPT).is_ok());
        assert!(breaker.admit(ATTEMPT).is_err(), "one has leave");
        tokio::time::advance(ATTEMPT).await;
        assert!(breaker.admit(ATTEMPT).is_ok(), "whoever had it is gone");
        breaker.answered();
        assert!(breaker.admit(ATTEMPT).is_ok() && breaker.admit(ATTEMPT).is_ok() && breaker.trouble().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_and_what_fails_together_is_one_failure() {
        let breaker = Breaker::default();
        for _ in 0..20 {
            assert!(breaker.failed(&error()) <= PAUSE_MIN);
        }
        let mut longest = PAUSE_MIN;
        for _ in 0..10 {
            tokio::time::advance(longest).await;
            longest = (longest * 2).min(PAUSE_MAX);
            let pause = breaker.failed(&error());
            assert!(pause >= longest / 2 && pause <= longest, "{pause:?} of {longest:?}");
        }
        breaker.answered();
        assert!(breaker.failed(&error()) <= PAUSE_MIN, "from the start again");
    }
}
