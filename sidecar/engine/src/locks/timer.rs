//! Where waiting comes from: a clock that can also wake. Injected, so that tests run in virtual time.

use std::{future::Future, pin::Pin, task::Poll, time::Duration};

use crate::{BootClock, Clock, Moment};

/// After which a sleeping thread looks at the clock again.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// A clock that can wake a task.
pub trait Timer: Clock {
    /// Done at `deadline`, or somewhat later.
    fn sleep_until(&self, deadline: Moment) -> Pin<Box<dyn Future<Output = ()> + Send>>;
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
    fn sleep_until(&self, deadline: Moment) -> Pin<Box<dyn Future<Output = ()> + Send>> {
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
