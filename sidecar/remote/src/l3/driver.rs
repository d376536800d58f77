//! The connections of a [`RedisRemote`](super::RedisRemote), and what their pushes, losses and replies mean for copies.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use caddy_engine::remote::{Coherence, Sending};
use caddy_engine::{FlushCause, Incarnation};
use caddy_resp::{Protocol, Value};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{ConnectError, Handler, Lane, LaneHandle, Loss, Role, ServerInfo, Setup, Target, lane};

pub(super) type Outcome<T> = Result<T, Loss>;

/// What a request is for.
#[derive(Debug)]
pub(super) enum Tag {
    /// GET and PTTL, on the tracked connection.
    Read { value: Option<Bytes>, pttl: Option<i64>, answer: oneshot::Sender<Outcome<(Bytes, i64)>> },
    /// HELLO, on the tracked connection.
    Probe(Sending),
    /// Whose last reply somebody waits for.
    Ask(Asked),
    /// Whose reply nobody waits for.
    Forget,
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) last: Option<Bytes>,
    pub(super) answer: oneshot::Sender<Outcome<Bytes>>,
}

impl Tag {
    pub(super) fn read(answer: oneshot::Sender<Outcome<(Bytes, i64)>>) -> Self {
        Self::Read { value: None, pttl: None, answer }
    }
}

/// The caches over a remote, and in which incarnation of the tracked connection each is.
#[derive(Debug)]
pub(super) struct Readers {
    prefix: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    up: bool,
    readers: Vec<(Coherence, Option<Incarnation>)>,
}

impl Readers {
    pub(super) fn new(prefix: String) -> Self {
        Self { prefix, state: Mutex::default() }
    }

    pub(super) fn attach(&self, coherence: Coherence) {
        let mut state = self.state.lock();
        let incarnation = if state.up { coherence.connected() } else { None };
        state.readers.push((coherence, incarnation));
    }

    fn connected(&self) {
        let mut state = self.state.lock();
        state.up = true;
        state.readers.retain(|(reader, _)| !reader.is_gone());
        for (reader, incarnation) in &mut state.readers {
            *incarnation = reader.connected();
        }
    }

    fn lost(&self) {
        let mut state = self.state.lock();
        state.up = false;
        for (reader, incarnation) in &mut state.readers {
            if let Some(incarnation) = incarnation.take() {
                reader.lost(incarnation);
            }
        }
    }

    fn each(&self, tell: impl Fn(&Coherence)) {
        self.state.lock().readers.iter().for_each(|(reader, _)| tell(reader));
    }

    /// An invalidation push: named keys, or null for all.
    fn invalidate(&self, frame: &[u8]) {
        let Ok((Value::Push(elements), _)) = Value::decode(frame) else { return };
        let [kind, keys] = elements.as_slice() else { return };
        if kind.as_bytes() != Some(b"invalidate") {
            return;
        }
        match keys.as_elements() {
            Some(keys) => {
                let names = keys.iter().filter_map(Value::as_bytes);
                for name in names.filter_map(|name| name.strip_prefix(self.prefix.as_bytes())) {
                    self.each(|reader| reader.bump(name));
                }
            }
            None => self.each(|reader| reader.flush(FlushCause::Overwritten)),
        }
    }
}

/// One connection's [`Handler`].
struct Connection {
    readers: Arc<Readers>,
    tracked: bool,
}

impl Handler for Connection {
    type Tag = Tag;

    fn reply(&mut self, tag: &mut Tag, index: u16, frame: Bytes) {
        match tag {
            Tag::Read { value, .. } if index == 0 => *value = Some(frame),
            Tag::Read { pttl, .. } => {
                *pttl = Value::decode(&frame).ok().and_then(|(value, _)| match value {
                    Value::Integer(pttl) => Some(pttl),
                    _ => None,
                });
            }
            Tag::Probe(sending) => {
                let info = Value::decode(&frame).ok().and_then(|(value, _)| ServerInfo::from_hello(&value));
                // Replicas answer too, and push nothing of what they miss.
                if info.is_some_and(|info| info.role != Role::Replica) {
                    sending.proved();
                } else {
                    self.readers.each(Coherence::lapse);
                }
            }
            Tag::Ask(asked) => asked.last = Some(frame),
            Tag::Forget => {}
        }
    }

    fn finish(&mut self, tag: Tag, outcome: Result<(), Loss>) {
        // Who does not wait any more is not told.
        match tag {
            Tag::Read { value, pttl, answer } => {
                // Without PTTL's reply nothing is known to live on.
                let _ = answer.send(outcome.map(|()| (value.unwrap_or_default(), pttl.unwrap_or(-2))));
            }
            Tag::Ask(Asked { last, answer }) => {
                let _ = answer.send(outcome.map(|()| last.unwrap_or_default()));
            }
            Tag::Probe(_) | Tag::Forget => {}
        }
    }

    fn push(&mut self, frame: Bytes) {
        if self.tracked {
            self.readers.invalidate(&frame);
        }
    }

    fn connected(&mut self, _: Option<&ServerInfo>) {
        if self.tracked {
            self.readers.connected();
        }
    }

    fn lost(&mut self, _: &str) {
        if self.tracked {
            self.readers.lost();
        }
    }

    fn refused(&mut self, _: &Arc<ConnectError>) {}
}

/// Keeps the connections of one [`RedisRemote`](super::RedisRemote) while it is polled; ends when the remote is dropped.
#[must_use = "without it nothing is sent or received"]
pub struct Driver {
    tracked: Option<Lane<Connection>>,
    relay: Option<Lane<Connection>>,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Driver {
    pub(super) fn new(
        target: &Arc<Target>,
        database: u32,
        readers: &Arc<Readers>,
    ) -> (Self, LaneHandle<Tag>, LaneHandle<Tag>) {
        let new = |tracked| {
            let setup = Setup { protocol: Protocol::Resp3, database, tracked, timed: true };
            lane(target.clone(), setup, Connection { readers: readers.clone(), tracked })
        };
        let ((tracked_handle, tracked), (relay_handle, relay)) = (new(true), new(false));
        (Self { tracked: Some(tracked), relay: Some(relay) }, tracked_handle, relay_handle)
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        // Tracked first: what it says is applied before a reply of the other is handed on.
        for lane in [&mut this.tracked, &mut this.relay] {
            if lane.as_mut().is_some_and(|polled| polled.poll(cx).is_ready()) {
                *lane = None;
            }
        }
        if this.tracked.is_none() && this.relay.is_none() { Poll::Ready(()) } else { Poll::Pending }
    }
}
