//! A flag that one task waits for: what is set before the task looks is not lost.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::Timer;
use crate::Moment;

/// See the module.
#[derive(Debug)]
pub(crate) struct Signal<T>(Mutex<(Option<T>, Option<Waker>)>);

impl<T> Default for Signal<T> {
    fn default() -> Self {
        Self(Mutex::new((None, None)))
    }
}

impl<T> Signal<T> {
    /// Sets the flag, over what it was, and wakes whoever waits.
    pub(crate) fn set(&self, value: T) {
        let mut state = self.0.lock();
        state.0 = Some(value);
        let waker = state.1.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// As [`set`](Self::set), unless the flag says something already.
    pub(crate) fn set_if_none(&self, value: T) {
        if self.0.lock().0.is_none() {
            self.set(value);
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<T> {
        let mut state = self.0.lock();
        if let Some(value) = state.0.take() {
            return Poll::Ready(value);
        }
        state.1 = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The flag, which is then unset; `None`: the deadline passed first.
    pub(crate) async fn until(&self, timer: &dyn Timer, deadline: Moment) -> Option<T> {
        let mut sleep = (deadline != Moment::NEVER).then(|| timer.sleep_until(deadline));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(value) = self.poll(cx) {
                return Poll::Ready(Some(value));
            }
            match &mut sleep {
                Some(sleep) => sleep.as_mut().poll(cx).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await
    }
}
