//! How replies get back to a session, from whichever thread they arrive on.
//!
//! A session owns one mailbox. Lanes put deliveries in and wake the session; the session takes them all at its next
//! turn. What is delivered for a session that has gone is dropped with the mailbox.

use std::{sync::Arc, task::Context};

use bytes::Bytes;
use caddy_remote::cluster::Redirect;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::{effect::Effect, generations::Learned};

/// What a session is told.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// The reply to a request.
    Reply { place: Place, bytes: Bytes },
    /// The replies to requests that follow each other.
    Replies { first: u64, all: Vec<Bytes> },
    /// A read could not be filled; the session asks over its relay instead.
    Bypass { place: Place },
    /// A node of a cluster sent a request away.
    Redirected(Box<Redirected>),
    /// A push, or a message to a subscriber: goes out at its place in the stream.
    Push(Bytes),
    /// What a request that is held back had to know of generations, or why that cannot be known.
    Learned(Result<Vec<Learned>, String>),
    /// Locks of the session were lost; which, it is told by its own list of them.
    LocksLost,
    /// The session's own upstream connection is gone, and its state with it.
    PinnedLost(String),
}

/// Where among a session's replies one belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The request's sequence number.
    pub(crate) seq: u64,
    /// Which of its parts, where nodes of a cluster answer a request together; else 0.
    pub(crate) part: u32,
}

/// Who waits for a reply.
#[derive(Debug, Clone)]
pub(crate) struct ReplyTo {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) place: Place,
}

/// A request that has to go to another node.
#[derive(Debug)]
pub(crate) struct Redirected {
    pub(crate) place: Place,
    pub(crate) request: Bytes,
    pub(crate) effect: Effect,
    pub(crate) redirect: Redirect,
    /// What the node answered, should this be one redirection too many.
    pub(crate) reply: Bytes,
    /// How many came before.
    pub(crate) hops: u8,
}

impl ReplyTo {
    pub(crate) fn reply(&self, bytes: impl Into<Bytes>) {
        self.mailbox.deliver(Delivery::Reply { place: self.place, bytes: bytes.into() });
    }

    /// The same session's request that is so many behind this one.
    pub(crate) fn behind(&self, count: usize) -> Self {
        let Place { seq, part } = self.place;
        Self { mailbox: self.mailbox.clone(), place: Place { seq: seq + count as u64, part } }
    }

    /// The same for this request and those behind it.
    pub(crate) fn reply_each(&self, mut replies: impl ExactSizeIterator<Item = Bytes>) {
        if replies.len() > 1 {
            self.mailbox.deliver(Delivery::Replies { first: self.place.seq, all: replies.collect() });
        } else if let Some(only) = replies.next() {
            self.reply(only);
        }
    }

    /// See [`Delivery::Bypass`].
    pub(crate) fn bypass(&self) {
        self.mailbox.deliver(Delivery::Bypass { place: self.place });
    }
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

    /// Lets the session look again at what it holds back.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// Who is woken by the next delivery.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// All deliveries so far, in order. What held them is not kept: an idle session has none.
    pub(crate) fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut *self.deliveries.lock())
    }
}
