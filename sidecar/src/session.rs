//! One app connection: bytes in, bytes out. What is said is [`conversation`]'s.
//!
//! A session is a hand-written state machine that is polled once per wake-up: deliveries first, then one read (until
//! short), then every whole request in it, then one write. An idle session owns no buffer: reads go into the worker's,
//! and only an incomplete request or an unwritten reply is copied into the session's own.
//!
//! Bounds: requests under way, bytes of one request, bytes of unwritten replies (beyond which nothing more is read),
//! and the time that a reader may make no progress. Breaking the protocol gets Redis's own error and ends the session.

pub(crate) mod args;
mod caching;
mod catalogue;
pub(crate) mod client;
mod conditional;
mod conversation;
mod dead_letters;
mod derived;
mod embedded_channels;
mod gather;
mod guard;
mod inspect;
mod interrupting;
mod invalidate;
pub(crate) mod load;
pub(crate) mod locking;
mod lookup;
mod own;
mod pace;
mod patterns;
mod pinned;
mod reads;
mod relaying;
mod replies;
pub(crate) mod routing;
mod several;
pub(crate) mod store_writes;
mod strings;
mod transaction;
mod under_way;
mod unpack;
mod waiting;
mod warm;
mod with_meta;

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use caddy_engine::Held;
use caddy_remote::Socket;
use caddy_resp::{Limits, ProtocolError, RequestParser, encode};
use tokio::time::{Instant, Sleep, sleep};

use self::{
    args::Args,
    client::{Client, Shown},
    conversation::{Conversation, Flow},
    pace::Pace,
};
use crate::{mailbox::Delivery, shared::Shared, upstream::COUNTED, worker::Worker};

/// Bytes of requests that are read while the session waits for what may never come.
const READ_AHEAD: usize = 64 << 10;

/// Room for a read behind what is already there.
const LEAST_READ: usize = 4 << 10;
const MOST_READ: usize = 1 << 20;

/// See the module.
pub(crate) struct Session {
    worker: Rc<Worker>,
    stream: Socket,
    parser: RequestParser,
    /// Bytes that were read and not yet understood, or held back.
    input: BytesMut,
    /// How much of the conversation's output has been written.
    written: usize,
    conversation: Conversation,
    /// Bytes that came unasked since everything was last written.
    pushed: usize,
    /// The next request waits until everything under way is answered.
    held: bool,
    /// The app closed its end.
    at_end: bool,
    pace: Pace,
    /// Replies behind one that is not there yet, or that the app has no room for: they count against the budget of L2.
    queued: Option<Box<Held>>,
    /// While the app does not read.
    stuck: Option<Box<Stuck>>,
    /// Looked at while the app sends nothing, if there is a bound on that.
    idle: Option<Box<Idle>>,
    /// Runs while the app has closed its end and its own connection to Redis owes it something.
    ending: Option<Pin<Box<Sleep>>>,
    bounds: Bounds,
    _place: Place,
}

#[derive(Clone, Copy)]
struct Bounds {
    pipeline: usize,
    output: usize,
    patience: Duration,
}

/// What a turn found on the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Nothing was read.
    Untouched,
    /// All that was there was read.
    Drained,
    /// Something was read, and there may be more.
    More,
}

/// Replies that the app does not read.
struct Stuck {
    patience: Pin<Box<Sleep>>,
    /// Their buffer, which counts against the budget of L2.
    unread: Option<Held>,
}

/// How long an app has sent nothing.
struct Idle {
    timer: Pin<Box<Sleep>>,
    /// How long it may.
    time: Duration,
    /// Nothing has happened since the timer was set.
    runs: bool,
}

/// A session's place in the list, given back however it ends: a panic must not use up `limits.maxConnections`.
struct Place {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.leave(self.id);
    }
}

/// Runs the session to its end.
impl Future for Session {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Err(error) = ready!(this.turn(cx)) {
            let shown = this.conversation.client.shown();
            tracing::debug!(id = shown.id, peer = %shown.peer, %error, "a session ended");
        }
        Poll::Ready(())
    }
}

impl Session {
    pub(crate) fn new(worker: Rc<Worker>, stream: Socket, shown: Arc<Shown>) -> Self {
        let limits = worker.shared.config().limits;
        // Redis 7 takes any number of arguments; the frame bounds them here.
        let max_args = i32::MAX as usize;
        let max_frame = limits.max_frame_bytes.as_usize();
        let parser = RequestParser::new(Limits { max_args, max_frame, ..Limits::default() });
        let place = Place { shared: worker.shared.clone(), id: shown.id };
        Self {
            conversation: Conversation::new(worker.clone(), Client::new(shown)),
            worker,
            stream,
            parser,
            input: BytesMut::new(),
            written: 0,
            pushed: 0,
            held: false,
            at_end: false,
            pace: Pace::default(),
            queued: None,
            stuck: None,
            idle: limits.idle_timeout.map(|time| Box::new(Idle { timer: Box::pin(sleep(time)), time, runs: false })),
            ending: None,
            bounds: Bounds {
                pipeline: limits.max_pipeline,
                output: limits.output_buffer_bytes.as_usize(),
                patience: limits.slow_reader_timeout,
            },
            _place: place,
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.conversation.mailbox.register(cx);
        let mut received = self.receive(cx);
        loop {
            let mut progress = received;
            progress |= self.answer_buffered();
            let input = self.poll_input(cx)?;
            progress |= input != Input::Untouched;
            // What the requests just read made ready (an embedded L3 answers at once) goes out in the same write.
            received = self.receive(cx);
            progress |= received;
            self.conversation.replies.drain_into(&mut self.conversation.out, self.written + self.bounds.output);
            progress |= self.poll_output(cx)?;
            let all_written = self.conversation.out.is_empty();
            let nothing_due = all_written && self.conversation.replies.is_empty();
            if self.conversation.closing && nothing_due {
                return Poll::Ready(Ok(()));
            }
            if self.at_end && self.is_over(nothing_due, cx) {
                return Poll::Ready(Ok(()));
            }
            if progress && let Some(idle) = &mut self.idle {
                idle.runs = false;
            }
            // The way of a hit: whatever was there is read and answered, so another round would find nothing.
            let settled = input == Input::Drained && !received && self.conversation.replies.is_empty();
            if settled || !progress {
                self.count_queued();
                self.poll_patience(cx)?;
                return self.poll_idle(nothing_due, cx);
            }
        }
    }

    /// Whether an app that closed its end has been answered, or waits for what need not come.
    fn is_over(&mut self, nothing_due: bool, cx: &mut Context<'_>) -> bool {
        if nothing_due {
            return self.input.is_empty() || !self.held;
        }
        // The app's end is its locks' end: nobody is left to tell that its turn has come.
        if self.conversation.is_locking() {
            return true;
        }
        // Over a connection of many, Redis's timeout sees to it.
        if !self.conversation.is_pinned() {
            return false;
        }
        let ending = self.ending.get_or_insert_with(|| Box::pin(sleep(self.bounds.patience)));
        self.conversation.is_blocked() || ending.as_mut().poll(cx).is_ready()
    }

    // === replies from upstream ===

    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        let deliveries = self.conversation.mailbox.take();
        let mut any = !deliveries.is_empty();
        for delivery in deliveries {
            if let Delivery::Push(bytes) = &delivery {
                self.pushed += bytes.len();
            }
            self.conversation.deliver(delivery);
        }
        any |= self.conversation.poll_locking(cx);
        if self.conversation.replies.waiting() == 0 {
            self.held = false;
        }
        any
    }

    // === requests ===

    /// Whether another request may be taken now.
    fn may_answer(&self) -> bool {
        !self.held
            && !self.conversation.closing
            && self.conversation.replies.len() < self.bounds.pipeline
            && self.conversation.replies.bytes() + self.conversation.out.len() - self.written < self.bounds.output
    }

    /// Whether to read what is not taken yet: while the app waits for a lock or an element, its end has to be noticed. Who is
    /// gone must not be handed what others wait for.
    fn may_read_ahead(&self) -> bool {
        self.input.len() < READ_AHEAD && (self.conversation.is_locking() || self.conversation.is_blocked())
    }

    fn answer_buffered(&mut self) -> bool {
        if self.input.is_empty() || !self.may_answer() {
            return false;
        }
        self.conversation.begin_batch();
        let mut input = std::mem::take(&mut self.input);
        let taken = self.answer(&input);
        input.advance(taken);
        if !input.is_empty() {
            self.input = input;
        }
        taken > 0
    }

    /// Reads while there is something to read and room for it.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> io::Result<Input> {
        let mut input = Input::Untouched;
        while !self.at_end && (self.may_answer() || self.may_read_ahead()) {
            let read = if self.input.is_empty() { self.poll_shared_read(cx) } else { self.poll_own_read(cx) };
            match read {
                Poll::Pending if input == Input::Untouched => break,
                Poll::Pending => return Ok(Input::Drained),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(0)) => self.at_end = true,
                Poll::Ready(Ok(_)) => {}
            }
            input = Input::More;
        }
        Ok(input)
    }

    /// Into the worker's buffer; what is left of it is copied into the session's own.
    fn poll_shared_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let worker = self.worker.clone();
        let mut buffer = worker.read_buffer.borrow_mut();
        let read = ready!(self.stream.poll_read(cx, &mut buffer))?;
        let input = &buffer[..read];
        let before = self.conversation.now;
        self.conversation.begin_batch();
        if let Some(is_prompt) = self.pace.note(self.conversation.now.since(before)) {
            self.stream.set_eager(is_prompt);
        }
        let taken = self.answer(input);
        self.input.extend_from_slice(&input[taken..]);
        Poll::Ready(Ok(input.len()))
    }

    /// Behind what is already there, in steps that grow with what has come: what an app announces costs nothing yet.
    fn poll_own_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let before = self.input.len();
        let missing = self.parser.bytes_needed().saturating_sub(before);
        let room = missing.clamp(LEAST_READ, before.clamp(LEAST_READ, MOST_READ));
        let mut input = std::mem::take(&mut self.input);
        input.resize(before + room, 0);
        let polled = self.stream.poll_read(cx, &mut input[before..]);
        let read = match polled {
            Poll::Ready(Ok(read)) => read,
            _ => 0,
        };
        input.truncate(before + read);
        self.input = input;
        ready!(polled)?;
        self.answer_buffered();
        Poll::Ready(Ok(read))
    }

    /// Answers the whole requests at the front of `input`; tells how many bytes they were.
    fn answer(&mut self, input: &[u8]) -> usize {
        let taken = self.answer_each(input);
        if let Some(row) = self.worker.last.take() {
            self.conversation.client.note(self.conversation.now, row);
        }
        self.conversation.end_run();
        taken
    }

    fn answer_each(&mut self, input: &[u8]) -> usize {
        let mut at = 0;
        while at < input.len() && self.may_answer() {
            self.parser.set_stage(self.conversation.stage());
            match self.parser.parse(&input[at..]) {
                Ok(Some(0) | None) => break,
                Ok(Some(length)) => {
                    let frame = &input[at..at + length];
                    if !self.parser.is_empty()
                        && self.conversation.request(Args::new(&self.parser, frame)) == Flow::Hold
                    {
                        self.held = true;
                        break;
                    }
                    at += length;
                    self.held = self.conversation.is_selecting();
                }
                Err(error) => {
                    let hint = match error {
                        ProtocolError::TooBigRequest(_) => "; raise limits.maxFrameBytes",
                        _ => "",
                    };
                    self.conversation.reply(|out| encode::error(out, format!("ERR {error}{hint}")));
                    self.conversation.closing = true;
                    return input.len();
                }
            }
        }
        at
    }

    // === output ===

    fn poll_output(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut progress = false;
        while self.written < self.conversation.out.len() {
            match self.stream.poll_write(cx, &self.conversation.out[self.written..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(written)) => {
                    self.written += written;
                    self.stuck = None;
                    progress = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    // A reader that is always a little behind must not let it grow for ever.
                    if self.written > self.bounds.output {
                        self.conversation.out.drain(..self.written);
                        self.written = 0;
                    }
                    return Ok(progress);
                }
            }
        }
        if progress {
            self.written = 0;
            self.pushed = 0;
            self.worker.return_output(&mut self.conversation.out);
        }
        Ok(progress)
    }

    /// In whole steps: what few and short replies cost is not worth counting.
    fn count_queued(&mut self) {
        let bytes = self.conversation.replies.bytes() / COUNTED * COUNTED;
        if bytes != self.queued.as_ref().map_or(0, |held| held.bytes()) {
            self.queued = None;
            self.queued = (bytes > 0).then(|| Box::new(self.worker.shared.cache.hold(bytes)));
        }
    }

    /// An app that sends nothing for longer than it may is closed, as by Redis's `timeout`: not while it waits for an
    /// answer, and not while it has state on a connection of its own.
    fn poll_idle(&mut self, nothing_due: bool, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(idle) = &mut self.idle else { return Poll::Pending };
        if !idle.runs {
            idle.runs = true;
            idle.timer.as_mut().reset(Instant::now() + idle.time);
        }
        while idle.timer.as_mut().poll(cx).is_ready() {
            if nothing_due && !self.conversation.is_pinned() {
                self.worker.shared.metrics.idle_closed.inc();
                let error = format!("the app sent nothing for {:?} (limits.idleTimeout)", idle.time);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, error)));
            }
            idle.timer.as_mut().reset(Instant::now() + idle.time);
        }
        Poll::Pending
    }

    /// An app that does not read what it asked for is closed after a while; one that is sent more unasked (subscribers
    /// are) than it may leave unread, at once.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let unread = self.conversation.out.len() - self.written;
        if unread == 0 {
            return Ok(());
        }
        let patience = self.bounds.patience;
        let stuck =
            self.stuck.get_or_insert_with(|| Box::new(Stuck { patience: Box::pin(sleep(patience)), unread: None }));
        let buffer = self.conversation.out.capacity();
        if stuck.unread.as_ref().map(Held::bytes) != Some(buffer) {
            stuck.unread = None;
            stuck.unread = Some(self.worker.shared.cache.hold(buffer));
        }
        let flooded = unread.min(self.pushed) > self.bounds.output;
        if stuck.patience.as_mut().poll(cx).is_ready() || flooded {
            self.worker.shared.metrics.slow_readers.inc();
            let shared = &self.worker.shared;
            if let Some(before) = shared.slow_readers.due(shared.now()) {
                let peer = self.conversation.client.shown().peer;
                tracing::warn!(
                    %peer,
                    unread,
                    before,
                    "closing a connection whose app does not read its replies (limits.outputBufferBytes, \
                     limits.slowReaderTimeout); more of them are counted only"
                );
            }
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the app does not read its replies"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is one for every connection of an app, and most are idle.
    #[test]
    fn an_idle_session_is_small() {
        let size = size_of::<Session>();
        assert!(size <= 712, "{size} bytes: what is seldom there belongs in a box");
    }
}
