//! Locks in virtual time: the in-process backend against a model, random programs for the deadlock detector, and what a
//! client does when its backend, its owner or its clock misbehaves.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod client;
mod deadlocks;
mod looks;
mod table;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use caddy_engine::{Clock, ManualClock, Moment, locks::Timer};

/// A clock that moves only when told to, for backends, which never wait.
pub(crate) struct Still(pub(crate) Arc<ManualClock>);

impl Clock for Still {
    fn now(&self) -> Moment {
        self.0.now()
    }
}

impl Timer for Still {
    fn sleep_until(&self, _: Moment) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::pending())
    }
}

/// The outcome of a future that is ready at once, as all of the in-process backend are.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}
