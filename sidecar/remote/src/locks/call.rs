//! The two connections to the server that has the locks: one for calls, each of which waits for its replies; one for messages, which come unasked.

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
    /// How many servers they were at.
    servers: watch::Sender<u32>,
}

/// What both connections to one server know.
struct Known {
    common: Arc<Common>,
    /// Which connection for calls this is, over all servers; another one may be to another server.
    link: AtomicU64,
    subscribed: AtomicBool,
}

/// Both connections to one server.
struct Pair {
    known: Arc<Known>,
    commands: LaneHandle<Call>,
    messages: LaneHandle<Call>,
}

/// The sending ends.
pub(super) struct Calls {
    common: Arc<Common>,
    /// None before it is known where the locks are.
    pair: RwLock<Option<Arc<Pair>>>,
    channel: Bytes,
}

/// Over which connection replies came, and they.
pub(super) type Answered = (u64, Vec<Bytes>);

/// One request under way.
pub(super) struct Call {
    replies: Vec<Bytes>,
    done: Option<oneshot::Sender<Result<Answered, Loss>>>,
}

/// Which of the two connections a handler serves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Calls,
    Messages,
}

/// What is done with what a connection sees.
pub(super) struct LockHandler {
    known: Arc<Known>,
    purpose: Purpose,
}

impl Calls {
    /// Without connections yet.
    pub(super) fn new(channel: Bytes) -> Self {
        Self { common: Arc::default(), pair: RwLock::default(), channel }
    }

    /// From now on over new connections, which the caller polls; those that there were end by themselves.
    pub(super) fn connect(&self, target: Arc<Target>) -> [LockLane; 2] {
        let mut pair = self.pair.write();
        let server = *self.common.servers.borrow() + 1;
        let link = AtomicU64::new(u64::from(server) << 32);
        let known = Arc::new(Known { common: self.common.clone(), link, subscribed: AtomicBool::new(false) });
        let handler = |purpose| LockHandler { known: known.clone(), purpose };
        let setup = Setup { protocol: Protocol::Resp3, database: 0, tracked: false, timed: true };
        let (commands, command_lane) = lane(target.clone(), setup, handler(Purpose::Calls));
        // Messages come when they come: silence is no loss.
        let (messages, message_lane) = lane(target, Setup { timed: false, ..setup }, handler(Purpose::Messages));
        *pair = Some(Arc::new(Pair { known, commands, messages }));
        self.common.servers.send_replace(server);
        [LockLane(command_lane), LockLane(message_lane)]
    }

    fn pair(&self) -> Option<Arc<Pair>> {
        self.pair.read().clone()
    }

    /// The connections; just after the start, as soon as it is known where the locks are, if that takes not too long.
    async fn found(&self) -> Option<Arc<Pair>> {
        if let Some(pair) = self.pair() {
            return Some(pair);
        }
        let mut servers = self.common.servers.subscribe();
        let _ = tokio::time::timeout(MOVE, servers.wait_for(|server| *server > 0)).await;
        self.pair()
    }

    /// Which connection there is now.
    pub(super) fn link(&self) -> u64 {
        self.pair().map_or(0, |pair| pair.known.link.load(Ordering::Acquire))
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
        if let Some(pair) = self.pair()
            && !pair.known.subscribed.swap(true, Ordering::AcqRel)
        {
            let mut bytes = Vec::new();
            encode::command(&mut bytes, [b"SUBSCRIBE" as &[u8], &self.channel]);
            // Confirmed by a push, refused by an error that no request waits for: neither may be taken for a reply.
            let tag = Call { replies: Vec::new(), done: None };
            let _ = pair.messages.submit(Request { bytes: bytes.into(), replies: 0, tag });
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
        let ended = || BackendError("the sidecar is shutting down".into());
        let (done, answer) = oneshot::channel();
        let tag = Call { replies: Vec::with_capacity(usize::from(replies)), done: Some(done) };
        let Some(pair) = self.found().await else {
            return Err(BackendError("it is not known yet which node of the cluster has the locks; try again".into()));
        };
        pair.commands.submit(Request { bytes, replies, tag }).map_err(|_| ended())?;
        match answer.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(loss)) => Err(BackendError(loss.to_string().into())),
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
    /// was taken out of its queue.
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
        if is_elsewhere(&frame) {
            self.known.common.doubt.notify_one();
        }
        tag.replies.push(frame);
    }

    fn finish(&mut self, tag: Call, outcome: Result<(), Loss>) {
        let Call { replies, done } = tag;
        if outcome.is_err() && self.purpose == Purpose::Messages {
            self.known.subscribed.store(false, Ordering::Release);
        }
        if let Some(done) = done {
            let link = self.known.link.load(Ordering::Acquire);
            // Whoever asked may be gone; it takes back what it asked for.
            let _ = done.send(outcome.map(|()| (link, replies)));
        }
    }

    fn push(&mut self, frame: Bytes) {
        let Ok((value, _)) = Value::decode(&frame) else { return };
        match value.as_elements() {
            Some([kind, _, message]) if kind.as_bytes() == Some(b"message") => {
                if let Some(message) = message.as_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok()) {
                    self.message(message);
                }
            }
            Some(_) => {}
            None => {
                let error = String::from_utf8_lossy(&frame);
                self.known.subscribed.store(false, Ordering::Release);
                tracing::warn!(
                    error = error.trim_end(),
                    "Redis refuses the channel that wakes waiters for locks: they poll"
                );
            }
        }
    }

    fn connected(&mut self, _: Option<&ServerInfo>) {
        if self.purpose == Purpose::Calls {
            self.known.link.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn lost(&mut self, _: &str) {
        match self.purpose {
            Purpose::Calls => {
                self.known.link.fetch_add(1, Ordering::AcqRel);
                self.known.common.doubt.notify_one();
            }
            Purpose::Messages => self.known.subscribed.store(false, Ordering::Release),
        }
    }

    fn refused(&mut self, _: &Arc<ConnectError>) {
        self.known.common.doubt.notify_one();
        if self.purpose == Purpose::Messages {
            self.known.subscribed.store(false, Ordering::Release);
        }
    }
}
