//! The connection to the server that has the locks: calls, each of which waits for its replies, and messages, which come
//! unasked. One for both, so that who lets go and who is handed the lock here hear of it by one packet.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use caddy_engine::locks::{BackendError, FencingToken, LockListener, Ticket};
use caddy_resp::{Protocol, Value, encode};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot, watch};

use crate::{ConnectError, Handler, Lane, LaneHandle, Loss, Request, ServerInfo, Setup, Target, lane};

/// How long a call waits for the server that has the locks to be found.
const MOVE: Duration = Duration::from_secs(1);

/// How the push begins that confirms a subscription.
const SUBSCRIBED: &[u8] = b">3\r\n$9\r\nsubscribe\r\n";

/// Whether a node of a cluster says that it does not answer for the locks' slot.
pub(super) fn is_elsewhere(reply: &[u8]) -> bool {
    ["-MOVED", "-ASK", "-CLUSTERDOWN", "-TRYAGAIN"].iter().any(|error| reply.starts_with(error.as_bytes()))
}

/// A connection that whoever made the locks has to poll, as a future that ends with the locks.
pub struct LockLane(pub(super) Lane<LockHandler>);

impl Future for LockLane {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.poll(cx)
    }
}

/// What all connections that there ever are know.
#[derive(Default)]
struct Common {
    listener: Mutex<Option<Weak<dyn LockListener>>>,
    /// Something contradicts that the locks are at this server.
    doubt: Notify,
    /// The channel was refused, and that was said; until it is not refused any more.
    is_channel_refused: AtomicBool,
    /// How many servers they were at.
    servers: watch::Sender<u32>,
}

/// What the connection to one server knows.
struct Known {
    common: Arc<Common>,
    /// Which connection this is, over all servers; another one may be to another server.
    link: AtomicU64,
    subscribed: AtomicBool,
}

/// The connection to one server.
struct Line {
    known: Arc<Known>,
    lane: LaneHandle<Call>,
}

/// The sending end.
pub(super) struct Calls {
    common: Arc<Common>,
    /// None before it is known where the locks are.
    line: RwLock<Option<Arc<Line>>>,
    channel: Bytes,
}

/// Over which connection replies came, and they.
pub(super) type Answered = (u64, Vec<Bytes>);

/// One request under way.
pub(super) enum Call {
    /// Somebody waits for the replies.
    Command { replies: Vec<Bytes>, done: oneshot::Sender<Result<Answered, Loss>> },
    /// SUBSCRIBE: confirmed by a push, or refused by an error.
    Subscribe,
}

/// What is done with what the connection sees.
pub(super) struct LockHandler {
    known: Arc<Known>,
}

impl Calls {
    /// Without a connection yet.
    pub(super) fn new(channel: Bytes) -> Self {
        Self { common: Arc::default(), line: RwLock::default(), channel }
    }

    /// From now on over a new connection, which the caller polls; the one that there was ends by itself.
    pub(super) fn connect(&self, target: Arc<Target>) -> LockLane {
        let mut line = self.line.write();
        let server = *self.common.servers.borrow() + 1;
        let link = AtomicU64::new(u64::from(server) << 32);
        let known = Arc::new(Known { common: self.common.clone(), link, subscribed: AtomicBool::new(false) });
        let setup = Setup { protocol: Protocol::Resp3, database: 0, tracked: false, timed: true };
        let (handle, lane) = lane(target, setup, LockHandler { known: known.clone() });
        *line = Some(Arc::new(Line { known, lane: handle }));
        self.common.servers.send_replace(server);
        LockLane(lane)
    }

    fn line(&self) -> Option<Arc<Line>> {
        self.line.read().clone()
    }

    /// The connection; just after the start, as soon as it is known where the locks are, if that takes not too long.
    async fn found(&self) -> Option<Arc<Line>> {
        if let Some(line) = self.line() {
            return Some(line);
        }
        let mut servers = self.common.servers.subscribe();
        let _ = tokio::time::timeout(MOVE, servers.wait_for(|server| *server > 0)).await;
        self.line()
    }

    /// Which connection there is now.
    pub(super) fn link(&self) -> u64 {
        self.line.read().as_ref().map_or(0, |line| line.known.link.load(Ordering::Acquire))
    }

    pub(super) fn attach(&self, listener: Weak<dyn LockListener>) {
        *self.common.listener.lock() = Some(listener);
    }

    /// Done when something contradicts that the locks are where calls go.
    pub(super) async fn doubtful(&self) {
        self.common.doubt.notified().await;
    }

    /// Gives whoever looks after it some time to find where the locks are, if they are not where this answer came from.
    pub(super) async fn elsewhere(&self, link: u64) {
        let mut servers = self.common.servers.subscribe();
        let found = servers.wait_for(|server| u64::from(*server) != link >> 32);
        let _ = tokio::time::timeout(MOVE, found).await;
    }

    /// Asks to be told of turns, unless that was done on the connection that there is.
    pub(super) fn subscribe(&self) {
        if let Some(line) = self.line()
            && !line.known.subscribed.swap(true, Ordering::AcqRel)
        {
            let mut bytes = Vec::new();
            encode::command(&mut bytes, [b"SUBSCRIBE" as &[u8], &self.channel]);
            let _ = line.lane.submit(Request { bytes: bytes.into(), replies: 1, tag: Call::Subscribe });
        }
    }

    /// The replies to these commands, and over which connection they came.
    pub(super) async fn send(&self, commands: &[&[&[u8]]]) -> Result<Answered, BackendError> {
        let mut bytes = Vec::new();
        for command in commands {
            encode::command(&mut bytes, command.iter());
        }
        self.send_raw(bytes.into(), commands.len() as u16).await
    }

    /// As [`send`](Self::send), of commands that are encoded already.
    pub(super) async fn send_raw(&self, bytes: Bytes, replies: u16) -> Result<Answered, BackendError> {
        let ended = || BackendError::Unavailable("the sidecar is shutting down".into());
        let (done, answer) = oneshot::channel();
        let tag = Call::Command { replies: Vec::with_capacity(usize::from(replies)), done };
        let Some(line) = self.found().await else {
            return Err(BackendError::Unavailable(
                "it is not known yet which node of the cluster has the locks; try again".into(),
            ));
        };
        line.lane.submit(Request { bytes, replies, tag }).map_err(|_| ended())?;
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(loss)) => Err(BackendError::Unavailable(loss.to_string().into())),
            Err(_) => Err(ended()),
        }
    }
}

impl LockHandler {
    fn tell(&self, tell: impl FnOnce(&dyn LockListener)) {
        let listener = self.known.common.listener.lock().as_ref().and_then(Weak::upgrade);
        if let Some(listener) = listener {
            tell(&*listener);
        }
    }

    /// `g<ticket> <epoch> <counter>`: it was handed the lock. `w<ticket>`: its turn may have come. `d<ticket> <cycle>`: it
    /// was taken out of its queue. `?`: somebody asks whether anybody hears it.
    fn message(&self, message: &str) {
        if let Some(rest) = message.strip_prefix('g') {
            let mut fields = rest.split(' ');
            let ticket = fields.next().and_then(Ticket::parse);
            let mut number = || fields.next().and_then(|field| field.parse().ok());
            if let (Some(ticket), Some(epoch), Some(counter)) = (ticket, number(), number()) {
                self.tell(|listener| listener.handed_over(&ticket, FencingToken::new(epoch, counter)));
            }
        } else if let Some(ticket) = message.strip_prefix('w').and_then(Ticket::parse) {
            self.tell(|listener| listener.wake(&ticket));
        } else if let Some((ticket, cycle)) = message.strip_prefix('d').and_then(|rest| rest.split_once(' '))
            && let Some(ticket) = Ticket::parse(ticket)
        {
            self.tell(|listener| listener.deadlocked(&ticket, cycle));
        }
    }
}

impl Handler for LockHandler {
    type Tag = Call;

    fn reply(&mut self, tag: &mut Call, _: u16, frame: Bytes) {
        match tag {
            Call::Command { replies, .. } => {
                if is_elsewhere(&frame) {
                    self.known.common.doubt.notify_one();
                }
                replies.push(frame);
            }
            Call::Subscribe if frame.starts_with(b"-") => {
                self.known.subscribed.store(false, Ordering::Release);
                if !self.known.common.is_channel_refused.swap(true, Ordering::Relaxed) {
                    let error = String::from_utf8_lossy(&frame);
                    tracing::warn!(
                        error = error.trim_end(),
                        "Redis refuses the channel that wakes waiters for locks: they poll"
                    );
                }
            }
            Call::Subscribe => self.known.common.is_channel_refused.store(false, Ordering::Relaxed),
        }
    }

    fn finish(&mut self, tag: Call, outcome: Result<(), Loss>) {
        match tag {
            Call::Command { replies, done } => {
                let link = self.known.link.load(Ordering::Acquire);
                // Whoever asked may be gone; it takes back what it asked for.
                let _ = done.send(outcome.map(|()| (link, replies)));
            }
            Call::Subscribe if outcome.is_err() => self.known.subscribed.store(false, Ordering::Release),
            Call::Subscribe => {}
        }
    }

    fn is_answer(&self, tag: &Call, push: &[u8]) -> bool {
        matches!(tag, Call::Subscribe) && push.starts_with(SUBSCRIBED)
    }

    fn push(&mut self, frame: Bytes) {
        let Ok((value, _)) = Value::decode(&frame) else { return };
        if let Some([kind, _, message]) = value.as_elements()
            && kind.as_bytes() == Some(b"message")
            && let Some(message) = message.as_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
        {
            self.message(message);
        }
    }

    fn connected(&mut self, _: Option<&ServerInfo>) {
        self.known.link.fetch_add(1, Ordering::AcqRel);
    }

    fn lost(&mut self, _: &str) {
        self.known.link.fetch_add(1, Ordering::AcqRel);
        self.known.subscribed.store(false, Ordering::Release);
        self.known.common.doubt.notify_one();
    }

    fn refused(&mut self, _: &Arc<ConnectError>) {
        self.known.subscribed.store(false, Ordering::Release);
        self.known.common.doubt.notify_one();
    }
}
