//! One task that owns a worker's shared Redis connections and decides the order in which they are read.
//!
//! In each wake-up the tracked connections come before the relays: the push of an app's own write then takes effect
//! before the reply to that write lets the app ask again, instead of killing the fill that answers it.

use std::task::{Context, Poll};

use caddy_remote::{Lane, SentinelWatch};
use tokio::sync::mpsc;

use crate::upstream::Upstream;

/// A lane for the hub to poll.
pub(crate) enum Addition {
    /// Polled first: what they say ends connections.
    Sentinels(SentinelWatch),
    /// Polled next.
    Tracked(Lane<Upstream>),
    /// Polled after all tracked ones.
    Relay(Lane<Upstream>),
}

/// See the module.
pub(crate) struct Hub {
    additions: mpsc::UnboundedReceiver<Addition>,
    sentinels: Option<SentinelWatch>,
    tracked: Vec<Lane<Upstream>>,
    relays: Vec<Lane<Upstream>>,
}

impl Hub {
    pub(crate) fn new(additions: mpsc::UnboundedReceiver<Addition>) -> Self {
        Self { additions, sentinels: None, tracked: Vec::new(), relays: Vec::new() }
    }

    /// Never ready before the sender of additions is gone.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.additions.poll_recv(cx) {
                Poll::Ready(Some(Addition::Sentinels(watch))) => self.sentinels = Some(watch),
                Poll::Ready(Some(Addition::Tracked(lane))) => self.tracked.push(lane),
                Poll::Ready(Some(Addition::Relay(lane))) => self.relays.push(lane),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        if let Some(sentinels) = &mut self.sentinels {
            let _ = sentinels.poll(cx);
        }
        self.tracked.retain_mut(|lane| lane.poll(cx).is_pending());
        self.relays.retain_mut(|lane| lane.poll(cx).is_pending());
        Poll::Pending
    }
}
