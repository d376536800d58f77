//! Waiting for a point in time, beside [`Clock`]'s telling it: one trait, so that tests own both.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::clock::{BootClock, Clock, ManualClock, Moment};
use crate::sync::Mutex;

/// After which a sleeper looks at the clock again.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// A wait under way.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A clock that can wake a task. Only who waits for others needs it; hits do not.
pub trait Timer: Clock {
    /// Done at `deadline`, or somewhat later; never, if that is [`Moment::NEVER`].
    fn sleep_until(&self, deadline: Moment) -> Sleep;

    /// Done when `span` has passed, or somewhat later.
    fn sleep(&self, span: Duration) -> Sleep {
        self.sleep_until(self.now() + span)
    }
}

/// [`BootClock`], waited for with Tokio's timer: for use within a Tokio runtime whose time is enabled.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioTimer;

impl Clock for TokioTimer {
    fn now(&self) -> Moment {
        BootClock.now()
    }
}

impl Timer for TokioTimer {
    fn sleep_until(&self, deadline: Moment) -> Sleep {
        Box::pin(async move {
            // Tokio's clock does not count time that the machine was suspended, and takes no span of centuries.
            while BootClock.now() < deadline {
                tokio::time::sleep(deadline.since(BootClock.now()).min(LONGEST_NAP)).await;
            }
        })
    }
}

/// [`BootClock`], and a thread for each wait: for programs without a runtime of their own, and few waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdTimer;

impl Clock for StdTimer {
    fn now(&self) -> Moment {
        BootClock.now()
    }
}

impl Timer for StdTimer {
    fn sleep_until(&self, deadline: Moment) -> Sleep {
        let mut sleeping = false;
        Box::pin(std::future::poll_fn(move |cx| {
            if BootClock.now() >= deadline {
                return Poll::Ready(());
            }
            if !sleeping {
                sleeping = true;
                let waker = cx.waker().clone();
                std::thread::spawn(move || {
                    // A nap does not count time that the machine was suspended; the clock does.
                    while BootClock.now() < deadline {
                        std::thread::sleep(deadline.since(BootClock.now()).min(LONGEST_NAP));
                    }
                    waker.wake();
                });
            }
            Poll::Pending
        }))
    }
}

/// Time that moves only when told to, and wakes whoever waits for it; for tests. Starts one hour after the origin, so that
/// "before" exists.
///
/// ```
/// use caddy_engine::{Clock, ManualTimer};
/// use std::time::Duration;
///
/// let timer = ManualTimer::default();
/// let before = timer.now();
/// timer.advance(Duration::from_secs(5));
/// assert_eq!(timer.now().since(before), Duration::from_secs(5));
/// ```
#[derive(Debug, Default)]
pub struct ManualTimer {
    clock: ManualClock,
    waiting: Mutex<Vec<Waker>>,
}

impl ManualTimer {
    /// Moves time forward.
    pub fn advance(&self, span: Duration) {
        self.clock.advance(span);
        self.wake();
    }

    /// Sets time, also backward, as a broken clock might.
    pub fn jump_to(&self, moment: Moment) {
        self.clock.jump_to(moment);
        self.wake();
    }

    fn wake(&self) {
        let wakers = std::mem::take(&mut *self.waiting.lock());
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Clock for ManualTimer {
    fn now(&self) -> Moment {
        self.clock.now()
    }
}

impl Timer for Arc<ManualTimer> {
    fn sleep_until(&self, deadline: Moment) -> Sleep {
        let timer = self.clone();
        Box::pin(std::future::poll_fn(move |cx| {
            // Enrolled before the look at the clock: an advance in between wakes.
            timer.waiting.lock().push(cx.waker().clone());
            if timer.now() >= deadline { Poll::Ready(()) } else { Poll::Pending }
        }))
    }
}
