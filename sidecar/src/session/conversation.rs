//! What one app and the sidecar say to each other: each request is answered, in order, from where it may be.
//!
//! The rule that keeps a session's own view in order: **one upstream stream at a time**. While requests are under way
//! on one upstream connection nothing of this session is sent on another; reads behind an unanswered relayed command
//! follow it on its relay, also those that would hit, and any other change of connection waits until all is answered
//! ([`Flow::Hold`]).

use std::{rc::Rc, sync::Arc};

use bytes::Bytes;
use caddy_engine::{KeyHash, Moment};
use caddy_remote::embedded::Listener;
use caddy_resp::{Protocol, encode};

use super::{
    args::Args,
    caching::Learning,
    client::Client,
    gather::{self, Gathering},
    guard::full_name,
    invalidate::Invalidating,
    locking::Locking,
    patterns::{Clearing, Patterns},
    pinned::Pinned,
    relaying::effect,
    replies::Replies,
    routing,
    store_writes::Run,
    transaction::Outcome,
    under_way::{OwnRead, ReadsUnderWay},
    waiting,
};
use crate::{
    cache::Cached,
    commands::{self, Class, Pin, Question, Row, Strings},
    effect::Effect,
    guards::{Guard, hold},
    mailbox::{Delivery, Mailbox, Place},
    upstream::COUNTED,
    worker::Worker,
};

/// Whether a request was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// It is answered or under way.
    Done,
    /// It has to wait until everything under way is answered; it is given again then.
    Hold,
}

/// What is remembered of a request until its reply is there.
#[derive(Debug)]
pub(crate) enum Pending {
    /// Nothing: the reply is passed on.
    Relayed,
    /// The reply may never come.
    Blocking,
    /// WAIT: as blocking. In a cluster it is [`Gathering`](Self::Gathering).
    WaitingForReplicas,
    /// The app gets this instead of the reply.
    Refused(Bytes),
    /// INFO: of a cluster it becomes that of one server, and if it is asked for, our own section goes behind it.
    Info { ours: bool },
    /// COMMAND: our own commands go into it.
    AboutCommands(Box<Question>),
    /// Which patterns are in force is looked at, in front of a request.
    Looking,
    /// A key is cleared, in front of a request.
    Clearing(Box<Clearing>),
    /// Several nodes of a cluster answer it together.
    Gathering(Box<Gathering>),
    /// SCAN of one of a cluster's nodes: which, and the next one.
    Scanning { at: usize, next: Option<usize> },
    /// SELECT: the database before it, should it fail.
    Selecting(u32),
    /// LOCK.*: nothing is taken before its answer. Whether it may wait for somebody else.
    Locking { waits: bool },
    /// A write that waits for its store, or for room on the way there, or may have to: nothing is taken before its answer, but
    /// for others of its run.
    Storing,
    /// EXEC: what its reply has to be looked at for.
    Executing(Box<Outcome>),
    /// A read that fills the tiers: the request, should it have to be asked elsewhere, the key that it reads, and the copy
    /// whose currency could not be proved.
    Filling { request: Bytes, key: KeyHash, unproven: Option<Cached> },
    /// The same of several keys at one moment.
    FillingMany { request: Bytes, effect: Box<Effect> },
}

/// Which requests get no reply, by `CLIENT REPLY`. What comes unasked goes out all the same, as in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hush {
    /// All get theirs.
    No,
    /// Not the next one.
    Next,
    /// Not the one that is being answered.
    This,
    /// None gets one.
    Always,
}

const CONNECTION_HINT: &str =
    "it is about the very connection to Redis, and connections are shared here; send it to Redis directly";

pub(super) fn refusal_text(args: Args<'_>, hint: &str) -> String {
    let row = commands::lookup_request(args.len(), |index| args.get(index));
    format!("ERR '{}' is not available through the cache: {hint}", full_name(row, args))
}

/// What is wrong with one of our own commands that is too short or too long, in Redis's words.
pub(super) fn wrong_number(row: &Row, args: Args<'_>) -> String {
    format!("ERR wrong number of arguments for '{}' command", full_name(row, args))
}

/// The connection on which requests of this session are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Tracked(u32),
    Relay(u32, Protocol),
    /// Writes of a database that go to a store, too.
    Stored(u32),
    Pinned,
}

/// See the module.
pub(crate) struct Conversation {
    pub(super) worker: Rc<Worker>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) client: Client,
    pub(super) replies: Replies<Pending>,
    /// Which keys the reads among them name that are under way on the tracked connection.
    pub(super) under_way: ReadsUnderWay,
    /// Replies that are due, not yet written to the socket.
    pub(super) out: Vec<u8>,
    /// Writes that were just read and are about to be sent together.
    pub(super) run: Option<Box<Run>>,
    /// Where the requests in `replies` are under way; meaningless while none is.
    pub(super) stream: Stream,
    /// Seldom there, so not of every session's size.
    pub(super) pinned: Option<Box<Pinned>>,
    pub(super) patterns: Patterns,
    /// The last request that may end generations.
    pub(super) ends_groups: Option<u64>,
    /// The last one whose reply shows values that may depend on some.
    pub(super) shows_groups: Option<u64>,
    /// What the next request had to know of generations.
    pub(super) learning: Option<Box<Learning>>,
    /// What it lets become invalid, until that is answered.
    pub(super) invalidating: Option<Box<Invalidating>>,
    /// Subscribed to channels of the embedded L3 at some time.
    pub(super) listener: Option<Listener>,
    /// There since the first LOCK command.
    pub(super) locking: Option<Box<Locking>>,
    /// The moment of the present batch, read after the batch was.
    pub(super) now: Moment,
    /// The state of [`Auth`](crate::auth::Auth) for the present batch.
    pub(super) auth_generation: u64,
    /// A request had to change its stream, or its node, while others were under way: until all are answered nothing else
    /// is taken.
    pub(super) mixed: bool,
    /// Connections lost before the last request that may have written; see [`waiting`].
    pub(super) losses_at_write: Option<u64>,
    /// The nodes of a cluster that got such requests.
    pub(super) written: waiting::Written,
    /// What CLIENT REPLY says of replies.
    pub(super) hush: Hush,
    /// The slot map that what is under way was sent by.
    pub(super) map_version: u64,
    /// Nothing more is read; the connection closes when everything due has been written.
    pub(super) closing: bool,
}

impl Conversation {
    pub(crate) fn new(worker: Rc<Worker>, client: Client) -> Self {
        Self {
            auth_generation: worker.shared.auth.generation(),
            worker,
            mailbox: Arc::new(Mailbox::default()),
            client,
            replies: Replies::new(),
            under_way: ReadsUnderWay::default(),
            out: Vec::new(),
            run: None,
            stream: Stream::Pinned,
            pinned: None,
            patterns: Patterns::default(),
            ends_groups: None,
            shows_groups: None,
            learning: None,
            invalidating: None,
            listener: None,
            locking: None,
            now: Moment::ZERO,
            mixed: false,
            losses_at_write: None,
            written: waiting::Written::default(),
            hush: Hush::No,
            map_version: 0,
            closing: false,
        }
    }

    /// A batch begins: its requests have been read.
    pub(crate) fn begin_batch(&mut self) {
        self.now = self.worker.shared.now();
        self.auth_generation = self.worker.shared.auth.generation();
        self.worker.lend_output(&mut self.out);
    }

    /// Answers one request, or says that it has to wait.
    pub(crate) fn request(&mut self, args: Args<'_>) -> Flow {
        if self.hush == Hush::No { self.take(args) } else { self.take_hushed(args) }
    }

    /// The same while the app wants no replies.
    fn take_hushed(&mut self, args: Args<'_>) -> Flow {
        let before = self.hush;
        let (written, seq) = (self.out.len(), self.replies.next_seq());
        if before == Hush::Next {
            self.hush = Hush::This;
        }
        let flow = self.take(args);
        match (flow, self.hush) {
            (Flow::Hold, _) => {
                self.hush = before;
                return flow;
            }
            // This very request turned replies on.
            (Flow::Done, Hush::No) => return flow,
            (Flow::Done, Hush::This) => self.hush = Hush::No,
            (Flow::Done, Hush::Next | Hush::Always) => {}
        }
        self.out.truncate(written);
        self.replies.silence_from(seq);
        flow
    }

    fn take(&mut self, args: Args<'_>) -> Flow {
        if self.replies.waiting() == 0 {
            self.mixed = false;
        } else if self.mixed
            || match self.replies.last_pending() {
                Some(Pending::Locking { .. }) => true,
                Some(Pending::Storing) => self.run.is_none(),
                _ => false,
            }
            || self.is_behind_another_nodes_invalidation()
        {
            return Flow::Hold;
        }
        let mut row = commands::lookup_request(args.len(), |index| args.get(index));
        if row.is_open()
            && let Some(learned) = self.worker.shared.commands.row(args)
        {
            row = learned;
        }
        self.worker.last.set(Some(row));
        if self.is_guarded()
            && let Some(flow) = self.guard(row, args)
        {
            return flow;
        }
        if (!self.worker.shared.ranges.is_quiet(self.now) || self.patterns.is_set())
            && let Some(flow) = self.before(row, args)
        {
            return flow;
        }
        if self.would_end_what_is_shown(row, args) {
            return Flow::Hold;
        }
        if row.strings == Strings::Other {
            return self.dispatch(row, args);
        }
        let instead = match self.instead(row, args) {
            Ok(instead) => instead,
            Err(flow) => return flow,
        };
        let flow = self.dispatch(row, args.sent_as(instead.as_ref()));
        if instead.is_some() && flow == Flow::Done {
            self.learning = None;
        }
        flow
    }

    /// Answers a request of which it is known how it is sent.
    fn dispatch(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        if self.pinned.is_some() {
            self.unpin_if_clean();
        }
        if let Some(flow) = self.store_write(row, args) {
            return flow;
        }
        if self.is_behind_store_write() {
            return Flow::Hold;
        }
        if self.pinned.is_some() {
            return self.pinned_request(row, args);
        }
        if self.listener.is_some()
            && let Some(flow) = self.is_only_subscribed(row, args)
        {
            return flow;
        }
        if !row.accepts(args.len()) {
            if row.is_ours() {
                self.reply_error(&wrong_number(row, args));
                return Flow::Done;
            }
            // Redis says what is wrong with it, in its own words; if a later one takes it, it does what the row says.
            return self.relay(row, args, effect(row, args), Pending::Relayed);
        }
        match row.class_of(args.len(), |index| args.get(index)) {
            Class::Fill if args.instead().is_some() => self.computed(row, args),
            Class::Fill => self.read(row, args),
            Class::FillFields if !self.worker.shared.status.fields_expire() => self.read(row, args),
            Class::Derived => self.derived(row, args),
            Class::Local | Class::Session => self.own_command(row, args),
            Class::Lock => self.lock_command(row, args),
            Class::Cache => self.cache_request(args),
            Class::Pinned(Pin::Connection) if routing::is_about_clusters(args) => {
                self.reply_error(routing::NO_CLUSTER);
                Flow::Done
            }
            Class::Pinned(Pin::Connection) => self.refuse(args, CONNECTION_HINT),
            Class::Pinned(_) | Class::PinnedIfBlocking => self.pin(row, args),
            Class::Refused(hint) => self.refuse(args, hint),
            Class::FillFields | Class::Relayed => self.relay(row, args, effect(row, args), Pending::Relayed),
            Class::CrossProtocol => {
                tracing::warn!(peer = %self.client.shown().peer, "a web browser spoke HTTP to the socket; closing");
                self.closing = true;
                Flow::Done
            }
        }
    }

    pub(super) fn refuse(&mut self, args: Args<'_>, hint: &str) -> Flow {
        self.reply_error(&refusal_text(args, hint));
        Flow::Done
    }

    // === answering ===

    /// A reply that is known now.
    pub(crate) fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.replies.is_empty() {
            write(&mut self.out);
        } else {
            let mut bytes = Vec::new();
            write(&mut bytes);
            self.replies.append(bytes.into());
        }
    }

    pub(crate) fn reply_error(&mut self, text: &str) {
        self.reply(|out| encode::error(out, text));
    }

    pub(super) fn reply_ok(&mut self) {
        self.reply(encode::ok);
    }

    /// Whether requests are under way on another stream than this.
    pub(super) fn is_under_way_elsewhere(&self, stream: Stream) -> bool {
        self.replies.waiting() > 0 && self.stream != stream && hold(Guard::WritesWaitForFills)
    }

    /// Whether reads have to follow an unanswered command on its relay.
    pub(super) fn is_behind_relay(&self) -> bool {
        self.replies.waiting() > 0 && matches!(self.stream, Stream::Relay(..)) && hold(Guard::ReadsFollowRelay)
    }

    /// Whether this session waits for a read of the key: what that shows may be newer than a copy, so the copy must not be
    /// served behind it.
    pub(super) fn own_read_of(&self, key: KeyHash, args: Args<'_>) -> Option<OwnRead> {
        if self.replies.waiting() == 0 || !hold(Guard::ReadsFollowOwnReads) {
            return None;
        }
        self.under_way.of(key, |request| args.is_same(request))
    }

    // === what comes back ===

    /// A place for a reply that is yet to come.
    pub(super) fn expect(&mut self, pending: Pending) -> Place {
        Place { seq: self.replies.expect(pending), part: 0 }
    }

    /// Takes what was delivered.
    pub(crate) fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Reply { place, bytes } => self.complete_part(place, bytes),
            Delivery::Replies { first, all } => self.complete_run(first, all),
            Delivery::Bypass { place } => self.bypass(place),
            Delivery::Redirected(redirected) => self.redirected(*redirected),
            Delivery::Push(bytes) => self.pushed(&bytes),
            Delivery::Learned(learned) => self.learned(learned),
            Delivery::LocksLost => self.locks_lost(),
            Delivery::PinnedLost(reason) => self.pinned_lost(&reason),
        }
    }

    pub(super) fn complete(&mut self, seq: u64, bytes: Bytes) {
        let failed = bytes.first() == Some(&b'-');
        let bytes = match self.replies.pending_mut(seq) {
            Some(Pending::Info { ours }) if !failed => self.worker.shared.info(&bytes, *ours),
            Some(Pending::AboutCommands(question)) if !failed => {
                question.answer(&bytes, self.client.protocol).map_or(bytes, Bytes::from)
            }
            Some(Pending::Refused(refusal)) => std::mem::take(refusal),
            Some(Pending::Looking | Pending::Clearing(_)) => return self.complete_silently(seq, &bytes),
            Some(Pending::Executing(outcome)) if !failed => {
                let outcome = std::mem::take(&mut **outcome);
                self.executed(&outcome, bytes)
            }
            Some(Pending::Scanning { at, next }) => {
                gather::scanned(&bytes, *at, *next, self.client.protocol).unwrap_or(bytes)
            }
            Some(Pending::WaitingForReplicas) => waiting::explained(&bytes).map_or(bytes, Bytes::from),
            _ => bytes,
        };
        self.has_invalidated(seq, !failed);
        let is_counted = match self.replies.pending_mut(seq) {
            Some(Pending::Filling { .. } | Pending::FillingMany { .. }) => true,
            // What is made here of several, or of one.
            Some(
                Pending::Gathering(_)
                | Pending::Scanning { .. }
                | Pending::Executing(_)
                | Pending::Info { .. }
                | Pending::AboutCommands(_),
            ) => false,
            _ => bytes.len() >= COUNTED,
        };
        let pending =
            if is_counted { self.replies.complete_with_counted(seq, bytes) } else { self.replies.complete(seq, bytes) };
        match pending {
            Some(Pending::Filling { key, .. }) => self.under_way.remove(&[key]),
            Some(Pending::FillingMany { effect, .. }) => self.under_way.remove(&effect.keys),
            Some(Pending::Selecting(previous)) if failed => self.client.set_database(previous),
            _ => {}
        }
        if self.pinned.is_some() {
            self.unpin_if_clean();
        }
    }

    /// Whether the next request has to wait for what is under way: it may not be known yet which database it is for, or in
    /// which protocol it is answered.
    pub(crate) fn is_selecting(&self) -> bool {
        // Nothing is taken behind such a one, so that it can only be the last.
        match self.replies.last_pending() {
            Some(Pending::Selecting(_)) => true,
            Some(Pending::Executing(outcome)) => !outcome.is_plain(),
            _ => false,
        }
    }
}
