//! Waiting with an end: for a future, or for a flight that somebody else leads.

use std::future::Future;
use std::pin::pin;

use futures::future::{Either, select};

use crate::clock::Moment;
use crate::flights::{FlightId, Flights, Landed};
use crate::timer::Timer;

/// What `future` gives, or `None` when `deadline` comes first; then it is dropped.
pub(super) async fn within<T>(timer: &dyn Timer, deadline: Moment, future: impl Future<Output = T>) -> Option<T> {
    if deadline <= timer.now() {
        return None;
    }
    match select(pin!(future), timer.sleep_until(deadline)).await {
        Either::Left((answer, _)) => Some(answer),
        Either::Right(((), _)) => None,
    }
}

/// A flight led by this call. Dropped before it lands (an error path, a caller that went away), it is abandoned: whoever
/// waits finds its sender gone and takes over.
pub(super) struct Lead<'a, K: Eq, W> {
    flights: &'a Flights<K, W>,
    id: Option<FlightId>,
}

impl<'a, K: Eq, W> Lead<'a, K, W> {
    pub(super) fn new(flights: &'a Flights<K, W>, id: FlightId) -> Self {
        Self { flights, id: Some(id) }
    }

    /// Whether nobody has taken the key's slot since.
    pub(super) fn is_newest(&self) -> bool {
        self.id.is_some_and(|id| self.flights.is_newest(id))
    }

    /// Everybody who is to be told how it ended.
    pub(super) fn land(mut self) -> Option<Landed<K, W>> {
        self.id.take().and_then(|id| self.flights.land(id))
    }
}

impl<K: Eq, W> Drop for Lead<'_, K, W> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            drop(self.flights.abandon(id));
        }
    }
}
