//! One logical upstream connection: a state machine that is polled by its owner.
//!
//! Requests go out in the order of their submission and replies are handed to the [`Handler`] in that order; pushes
//! are handed over inline, at their place in the stream. A request that was taken is always finished, by its replies or
//! by a [`Loss`]; after a loss it is unknown whether the server executed it. [`Handler::lost`] runs before any waiting
//! request is finished, so that what must be forgotten is forgotten before anybody is answered.
//!
//! The queue is not bounded here: each session bounds what it has under way, and sessions are bounded.

mod connection;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use caddy_resp::Protocol;
use tokio::{
    sync::mpsc,
    time::{Sleep, sleep},
};

pub use self::connection::COPIED;
use self::connection::{Connection, Over};
use crate::{
    ConnectError, ServerInfo, Target,
    breaker::jittered,
    files::{self, Version, Watch},
    handshake::{self, Link},
};

/// The wait after the server said no: somebody has to change something first.
const PAUSE_REFUSED: Duration = Duration::from_secs(5);
/// How a lane's connections are set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The protocol spoken on it.
    pub protocol: Protocol,
    /// The database selected on it.
    pub database: u32,
    /// `CLIENT TRACKING ON`. A tracked lane connects at once and always comes back by itself; others connect when
    /// there is something to send.
    pub tracked: bool,
    /// Whether a request unanswered for [`Target::response_timeout`] is a loss. Not so where commands may block.
    pub timed: bool,
}

impl Setup {
    pub(crate) fn client_name(self) -> &'static str {
        if self.tracked { "caddy-tracked" } else { "caddy-relay" }
    }
}

/// One request: bytes to send, and how many replies belong to it.
#[derive(Debug)]
pub struct Request<T> {
    /// One or more encoded commands, sent contiguously.
    pub bytes: Bytes,
    /// The replies to wait for; 0 where the answers are pushes.
    pub replies: u16,
    /// What the handler is given back.
    pub tag: T,
}

/// Why a request will get no (further) reply.
#[derive(Debug, Clone)]
pub enum Loss {
    /// It was not sent: there is no connection.
    NotSent(Arc<ConnectError>),
    /// It was sent, or may have been: the connection was lost for this reason before the answer was whole.
    Lost(Arc<str>),
}

impl std::fmt::Display for Loss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(error) => error.fmt(f),
            Self::Lost(reason) => write!(f, "the connection to Redis was lost before it answered ({reason})"),
        }
    }
}

/// What a lane's owner does with what the lane sees. All calls come from [`Lane::poll`], on its thread, and must not block.
pub trait Handler {
    /// What identifies a request to the handler.
    type Tag;
    /// The `index`-th reply of the request.
    fn reply(&mut self, tag: &mut Self::Tag, index: u16, frame: Bytes);
    /// The request is over: all replies were given, or will never be.
    fn finish(&mut self, tag: Self::Tag, outcome: Result<(), Loss>);
    /// A push, or a frame that no request waits for.
    fn push(&mut self, frame: Bytes);
    /// Whether this push answers the request that is the next to be answered, as one does SUBSCRIBE.
    fn is_answer(&self, tag: &Self::Tag, push: &[u8]) -> bool {
        let _ = (tag, push);
        false
    }
    /// So many bytes hold what has come of a frame whose end has not; 0 when there is none any more. Said before more of it
    /// is read.
    fn buffers(&mut self, bytes: usize) {
        let _ = bytes;
    }
    /// The handshake is done.
    fn connected(&mut self, server: Option<&ServerInfo>);
    /// What is sent on the new connection before anything that waits for it.
    fn first(&mut self) -> Option<Request<Self::Tag>> {
        None
    }
    /// The connection is gone; its waiting requests are finished next.
    fn lost(&mut self, reason: &str);
    /// A connect attempt failed.
    fn refused(&mut self, error: &Arc<ConnectError>);
}

/// Whether a lane can be expected to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LaneState {
    /// Not connected; the next request connects.
    Idle = 0,
    /// On the way.
    Connecting = 1,
    /// Connected and set up.
    Ready = 2,
    /// The last attempt failed; requests fail until the next.
    Failed = 3,
}

/// The sending end of a lane; clones share it. A lane whose handles are all gone ends.
#[derive(Debug)]
pub struct LaneHandle<T> {
    queue: mpsc::UnboundedSender<Request<T>>,
    state: Arc<AtomicU8>,
}

impl<T> Clone for LaneHandle<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), state: self.state.clone() }
    }
}

impl<T> LaneHandle<T> {
    /// Queues a request. An error gives the request back: the lane has ended.
    pub fn submit(&self, request: Request<T>) -> Result<(), Request<T>> {
        self.queue.send(request).map_err(|error| error.0)
    }

    /// The lane's state at this moment.
    pub fn state(&self) -> LaneState {
        match self.state.load(Ordering::Acquire) {
            0 => LaneState::Idle,
            1 => LaneState::Connecting,
            2 => LaneState::Ready,
            _ => LaneState::Failed,
        }
    }
}

/// Makes a lane and its handle. Nothing happens before the lane is polled.
pub fn lane<H: Handler>(target: Arc<Target>, setup: Setup, handler: H) -> (LaneHandle<H::Tag>, Lane<H>) {
    let (queue, inbox) = mpsc::unbounded_channel();
    let state = Arc::new(AtomicU8::new(LaneState::Idle as u8));
    let handle = LaneHandle { queue, state: state.clone() };
    (handle, Lane { target, setup, handler, inbox, first: None, state, phase: Phase::Idle })
}

/// The receiving end: see the module.
pub struct Lane<H: Handler> {
    target: Arc<Target>,
    setup: Setup,
    handler: H,
    inbox: mpsc::UnboundedReceiver<Request<H::Tag>>,
    /// The request that asked for the connection which is being made.
    first: Option<Request<H::Tag>>,
    state: Arc<AtomicU8>,
    phase: Phase<H::Tag>,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Link, ConnectError>> + Send>>;

enum Phase<T> {
    Idle,
    Connecting {
        connecting: Connecting,
        files: Vec<Option<Version>>,
    },
    Ready(Box<Connection<T>>),
    Failed {
        until: Pin<Box<Sleep>>,
        /// Where the server said no: another password or certificate is tried as soon as it is there.
        watch: Option<Watch>,
        error: Arc<ConnectError>,
    },
}

impl<H: Handler> Lane<H> {
    /// Makes what progress can be made. Ready when every handle is gone and nothing is under way that
    /// somebody waits for.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.phase {
                Phase::Idle => {
                    if !self.setup.tracked {
                        match ready!(self.inbox.poll_recv(cx)) {
                            Some(request) => self.first = Some(request),
                            None => return Poll::Ready(()),
                        }
                        // A tracked one tries by itself.
                        if let Err((error, wait)) = self.target.breaker.admit(self.target.connect_timeout) {
                            self.fail(error, wait, None);
                            continue;
                        }
                    } else if self.inbox.is_closed() && self.inbox.is_empty() {
                        return Poll::Ready(());
                    }
                    let files = files::versions(self.target.files());
                    let connecting = Box::pin(handshake::connect(self.target.clone(), self.setup));
                    self.enter(Phase::Connecting { connecting, files });
                }
                Phase::Connecting { connecting, files } => match connecting.as_mut().poll(cx) {
                    Poll::Pending => {
                        // Whoever tries a server that is away does so for the others, and none of them has to wait for it.
                        let Some(error) = self.target.breaker.trouble() else { return Poll::Pending };
                        if let Some(request) = self.first.take() {
                            self.handler.refused(&error);
                            self.handler.finish(request.tag, Err(Loss::NotSent(error.clone())));
                        }
                        while let Poll::Ready(Some(request)) = self.inbox.poll_recv(cx) {
                            self.handler.finish(request.tag, Err(Loss::NotSent(error.clone())));
                        }
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(link)) => {
                        self.target.breaker.answered();
                        self.handler.connected(link.server.as_ref());
                        let mut connection = Box::new(Connection::new(link));
                        if let Some(request) = self.handler.first() {
                            connection.take(request, &mut self.handler);
                        }
                        if let Some(request) = self.first.take() {
                            connection.take(request, &mut self.handler);
                        }
                        self.enter(Phase::Ready(connection));
                    }
                    Poll::Ready(Err(error)) => {
                        let error = Arc::new(error);
                        let breaker = &self.target.breaker;
                        let (wait, watch) = if error.is_refusal() {
                            breaker.answered();
                            (jittered(PAUSE_REFUSED), Some(Watch::new(std::mem::take(files))))
                        } else {
                            (breaker.failed(&error), None)
                        };
                        self.fail(error, wait, watch);
                    }
                },
                Phase::Failed { until, watch, error } => {
                    while let Poll::Ready(next) = self.inbox.poll_recv(cx) {
                        match next {
                            Some(request) => self.handler.finish(request.tag, Err(Loss::NotSent(error.clone()))),
                            None => return Poll::Ready(()),
                        }
                    }
                    let mended = match watch {
                        Some(watch) => watch.poll(cx, || files::versions(self.target.files())),
                        None => self.target.breaker.poll_closed(cx),
                    };
                    if mended.is_pending() {
                        ready!(until.as_mut().poll(cx));
                    }
                    self.enter(Phase::Idle);
                }
                Phase::Ready(connection) => {
                    let timeout = self.setup.timed.then_some(self.target.response_timeout);
                    let deposed =
                        self.target.sentinels.as_ref().is_some_and(|them| them.version() != connection.version);
                    let over = if deposed {
                        // What is known is known of another server.
                        self.target.breaker.answered();
                        Over::Lost("Sentinel names another primary".into())
                    } else {
                        ready!(connection.poll(cx, &mut self.inbox, &mut self.handler, timeout, &self.target))
                    };
                    let Phase::Ready(connection) = std::mem::replace(&mut self.phase, Phase::Idle) else { continue };
                    self.enter(Phase::Idle);
                    let (reason, ended) = match over {
                        Over::Lost(reason) => (reason, false),
                        Over::Unused => (Arc::from("whoever asked is gone"), true),
                    };
                    if !ended {
                        self.handler.lost(&reason);
                    }
                    for waiting in connection.waiting {
                        self.handler.finish(waiting.tag, Err(Loss::Lost(reason.clone())));
                    }
                    if ended {
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    /// There is no connection, and will not be for a while.
    fn fail(&mut self, error: Arc<ConnectError>, wait: Duration, watch: Option<Watch>) {
        self.handler.refused(&error);
        if let Some(request) = self.first.take() {
            self.handler.finish(request.tag, Err(Loss::NotSent(error.clone())));
        }
        self.enter(Phase::Failed { until: Box::pin(sleep(wait)), watch, error });
    }

    fn enter(&mut self, phase: Phase<H::Tag>) {
        let state = match phase {
            Phase::Idle => LaneState::Idle,
            Phase::Connecting { .. } => LaneState::Connecting,
            Phase::Ready(_) => LaneState::Ready,
            Phase::Failed { .. } => LaneState::Failed,
        };
        self.state.store(state as u8, Ordering::Release);
        self.phase = phase;
    }
}
