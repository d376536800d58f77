//! How replies get back to a session, from whichever thread they arrive on.
//!
//! A session owns one mailbox. Lanes put deliveries in and wake the session; the session takes them all at its next
//! turn. What is delivered for a session that has gone is dropped with the mailbox.

use std::task::Context;

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

/// What a session is told.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// The reply to the request with this sequence number.
    Reply { seq: u64, bytes: Bytes },
    /// The read behind this sequence number could not be filled; the session asks over its relay instead.
    Bypass { seq: u64 },
    /// A push, or a message to a subscriber: goes out at its place in the stream.
    Push(Bytes),
    /// The session's own upstream connection is gone, and its state with it.
    PinnedLost(String),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    deliveries: Mutex<Vec<Delivery>>,
    waker: AtomicWaker,
}

impl Mailbox {
    pub(crate) fn deliver(&self, delivery: Delivery) {
        self.deliveries.lock().push(delivery);
        self.waker.wake();
    }

    pub(crate) fn reply(&self, seq: u64, bytes: impl Into<Bytes>) {
        self.deliver(Delivery::Reply { seq, bytes: bytes.into() });
    }

    /// Who is woken by the next delivery.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// All deliveries so far, in order, swapped into `into` (which keeps its capacity for the next time).
    pub(crate) fn take(&self, into: &mut Vec<Delivery>) {
        debug_assert!(into.is_empty());
        let mut deliveries = self.deliveries.lock();
        if !deliveries.is_empty() {
            std::mem::swap(&mut *deliveries, into);
        }
    }
}
