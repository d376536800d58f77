//! One logical upstream connection: a state machine that is polled by its owner.
//!
//! Requests go out in the order of their submission and replies are handed to the [`Handler`] in that order; pushes
//! are handed over inline, at their place in the stream. A request that was taken is always finished, by its replies or
//! by a [`Loss`]; after a loss it is unknown whether the server executed it. [`Handler::lost`] runs before any waiting
//! request is finished, so that what must be forgotten is forgotten before anybody is answered.
//!
//! The queue is not bounded here: each session bounds what it has under way, and sessions are bounded.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use caddy_resp::{FrameKind, Protocol, ReplyScanner};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    runtime::Handle,
    sync::mpsc,
    time::{Instant, Sleep, sleep, sleep_until},
};

use crate::{
    ConnectError, ServerInfo, Target,
    breaker::{Breaker, jittered},
    files::{self, Version, Watch},
    handshake::{self, Link},
    stream::Stream,
};

/// The wait after the server said no: somebody has to change something first.
const PAUSE_REFUSED: Duration = Duration::from_secs(5);
/// What is read from the socket at once.
const READ_CHUNK: usize = 16 << 10;
/// The largest buffer of what was sent that is kept.
const MOST_KEPT: usize = 512 << 10;
/// The longest frame that is copied out of what was read: what is handed on is an allocation of its own, or static.
pub const COPIED: usize = 512;
/// Replies that most requests have; nothing is allocated for them.
const USUAL: [&[u8]; 6] = [b"+OK\r\n", b":-1\r\n", b":1\r\n", b":0\r\n", b":-2\r\n", b"_\r\n"];

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

/// The state of an established connection.
struct Connection<T> {
    stream: Stream,
    scanner: ReplyScanner,
    input: BytesMut,
    /// Frames that were handed on are part of the input's buffer.
    is_lent: bool,
    /// An attribute whose reply has not come yet; it is handed over in front of it.
    attribute: BytesMut,
    output: BytesMut,
    waiting: VecDeque<Waiting<T>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Under which version of the Sentinels' opinion it was made.
    version: u64,
}

struct Waiting<T> {
    tag: T,
    replies: u16,
    seen: u16,
    sent_at: Instant,
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

/// How a connection ended.
enum Over {
    /// Nobody can submit any more, and everything is answered or nobody waits for it.
    Unused,
    Lost(Arc<str>),
}

impl<T> Connection<T> {
    fn new(link: Link) -> Self {
        Self {
            stream: link.stream,
            scanner: ReplyScanner::default(),
            input: link.unread,
            is_lent: false,
            attribute: BytesMut::new(),
            output: BytesMut::new(),
            waiting: VecDeque::new(),
            timer: None,
            version: link.version,
        }
    }

    fn take<H: Handler<Tag = T>>(&mut self, request: Request<T>, handler: &mut H) {
        let Request { bytes, replies, tag } = request;
        self.output.extend_from_slice(&bytes);
        if replies == 0 {
            handler.finish(tag, Ok(()));
        } else {
            self.waiting.push_back(Waiting { tag, replies, seen: 0, sent_at: Instant::now() });
        }
    }

    fn poll<H: Handler<Tag = T>>(
        &mut self,
        cx: &mut Context<'_>,
        inbox: &mut mpsc::UnboundedReceiver<Request<T>>,
        handler: &mut H,
        timeout: Option<Duration>,
        target: &Target,
    ) -> Poll<Over> {
        // Reading comes first: what the server said is applied before anything new is asked.
        if let Err(reason) = self.poll_read(cx, handler, &target.breaker) {
            return Poll::Ready(Over::Lost(reason));
        }
        let mut closed = false;
        while let Poll::Ready(next) = inbox.poll_recv(cx) {
            let Some(request) = next else {
                closed = true;
                break;
            };
            self.take(request, handler);
        }
        if let Err(error) = self.poll_write(cx, timeout.is_some()) {
            return Poll::Ready(Over::Lost(error.to_string().into()));
        }
        // A command that may block (on a connection without a timeout) must not outlive whoever sent it: it would take
        // what another could have had.
        if closed && self.output.is_empty() && (self.waiting.is_empty() || timeout.is_none()) {
            return Poll::Ready(Over::Unused);
        }
        match timeout {
            Some(timeout) => self.poll_timer(cx, timeout, target.timers.as_ref()),
            None => Poll::Pending,
        }
    }

    fn poll_read<H: Handler<Tag = T>>(
        &mut self,
        cx: &mut Context<'_>,
        handler: &mut H,
        breaker: &Breaker,
    ) -> Result<(), Arc<str>> {
        loop {
            while let Some(frame) = self.scanner.scan(&self.input).map_err(|error| Arc::from(error.to_string()))? {
                let mut bytes = self.split(frame.len);
                handler.buffers(0);
                if frame.kind == FrameKind::Attribute {
                    self.attribute.extend_from_slice(&bytes);
                    continue;
                }
                if !self.attribute.is_empty() {
                    let mut whole = std::mem::take(&mut self.attribute);
                    whole.extend_from_slice(&bytes);
                    bytes = whole.freeze();
                }
                match self.waiting.front_mut() {
                    Some(first) if frame.kind != FrameKind::Push || handler.is_answer(&first.tag, &bytes) => {
                        let index = first.seen;
                        first.seen += 1;
                        handler.reply(&mut first.tag, index, bytes);
                        if first.seen == first.replies
                            && let Some(done) = self.waiting.pop_front()
                        {
                            handler.finish(done.tag, Ok(()));
                        }
                    }
                    _ => handler.push(bytes),
                }
            }
            // While answers are to come the buffer is used again; an idle lane keeps none that others have parts of.
            if self.input.is_empty() && self.waiting.is_empty() && std::mem::take(&mut self.is_lent) {
                self.input = BytesMut::new();
            }
            let is_partial = !self.input.is_empty();
            self.input.reserve(READ_CHUNK);
            if is_partial {
                handler.buffers(self.input.capacity());
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Err("the server closed it".into()),
                Poll::Ready(Ok(_)) => breaker.answered(),
                Poll::Ready(Err(error)) => return Err(error.to_string().into()),
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Takes a frame out of what was read. A short one is copied, and leaves the buffer to what comes next.
    fn split(&mut self, length: usize) -> Bytes {
        if length > COPIED {
            self.is_lent = true;
            return self.input.split_to(length).freeze();
        }
        let frame = &self.input[..length];
        let usual = USUAL.iter().find(|usual| **usual == frame);
        let frame = usual.map_or_else(|| Bytes::copy_from_slice(frame), |usual| Bytes::from_static(usual));
        self.input.advance(length);
        frame
    }

    /// Reads once. After a short read the next call answers Pending without a system call (tokio clears readiness).
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // `read_buf` does all it does in one poll: dropping it unfinished loses nothing.
        pin!(self.stream.read_buf(&mut self.input)).poll(cx)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, is_shared: bool) -> io::Result<()> {
        while !self.output.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.output) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                // Not by an advance, which would give the buffer's beginning up.
                Poll::Ready(Ok(written)) if written == self.output.len() => self.output.clear(),
                Poll::Ready(Ok(written)) => self.output.advance(written),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(()),
            }
        }
        // Connections of one session each are many, and mostly idle.
        if (!is_shared && self.waiting.is_empty()) || self.output.capacity() > MOST_KEPT {
            self.output = BytesMut::new();
        }
        // TLS may still hold what the socket did not take.
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Ready(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// The timer is set when there is none and looked at again when it fires, not set for each request: an earlier end
    /// than the thread of `timers` sleeps for wakes that.
    fn poll_timer(&mut self, cx: &mut Context<'_>, timeout: Duration, timers: Option<&Handle>) -> Poll<Over> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(cx));
                self.timer = None;
            }
            let Some(oldest) = self.waiting.front() else { return Poll::Pending };
            let due = oldest.sent_at + timeout;
            if Instant::now() >= due {
                return Poll::Ready(Over::Lost(format!("no answer within {} ms", timeout.as_millis()).into()));
            }
            let _there = timers.map(Handle::enter);
            self.timer = Some(Box::pin(sleep_until(due)));
        }
    }
}
