//! An established connection of a lane: what is read, in which order it is applied and answered, and what is sent.
//!
//! It never connects and never comes back: it ends with the reason, and the lane decides what follows.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use caddy_resp::{FrameKind, ReplyScanner};
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    runtime::Handle,
    sync::mpsc,
    time::{Instant, Sleep, sleep_until},
};

use super::{Handler, Request};
use crate::{Target, breaker::Breaker, handshake::Link, stream::Stream};

/// What is read from the socket at once.
const READ_CHUNK: usize = 16 << 10;
/// The largest buffer of what was sent that is kept.
const MOST_KEPT: usize = 512 << 10;
/// The longest frame that is copied out of what was read: what is handed on is an allocation of its own, or static.
pub const COPIED: usize = 512;
/// Replies that most requests have; nothing is allocated for them.
const USUAL: [&[u8]; 6] = [b"+OK\r\n", b":-1\r\n", b":1\r\n", b":0\r\n", b":-2\r\n", b"_\r\n"];

/// The state of an established connection.
pub(super) struct Connection<T> {
    stream: Stream,
    scanner: ReplyScanner,
    input: BytesMut,
    /// Frames that were handed on are part of the input's buffer.
    is_lent: bool,
    /// An attribute whose reply has not come yet; it is handed over in front of it.
    attribute: BytesMut,
    output: BytesMut,
    pub(super) waiting: VecDeque<Waiting<T>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Under which version of the Sentinels' opinion it was made.
    pub(super) version: u64,
}

pub(super) struct Waiting<T> {
    pub(super) tag: T,
    replies: u16,
    seen: u16,
    sent_at: Instant,
}

/// How a connection ended.
pub(super) enum Over {
    /// Nobody can submit any more, and everything is answered or nobody waits for it.
    Unused,
    Lost(Arc<str>),
}

impl<T> Connection<T> {
    pub(super) fn new(link: Link) -> Self {
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

    pub(super) fn take<H: Handler<Tag = T>>(&mut self, request: Request<T>, handler: &mut H) {
        let Request { bytes, replies, tag } = request;
        self.output.extend_from_slice(&bytes);
        if replies == 0 {
            handler.finish(tag, Ok(()));
        } else {
            self.waiting.push_back(Waiting { tag, replies, seen: 0, sent_at: Instant::now() });
        }
    }

    /// Reads, applies, takes what was submitted and writes. Ready when the connection is over.
    pub(super) fn poll<H: Handler<Tag = T>>(
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
