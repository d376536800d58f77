//! What the sidecar does with what its Redis connections see: the coherence rules of relays, probes and barriers.
//!
//! Every reply that reaches an app over another connection than the tracked one kills the local copies of the keys it
//! read or wrote *before* it is handed on. Fills (`fills.rs`) and proofs travel on the tracked connection only; its pushes are
//! applied inline, and its loss kills all copies before any waiter is told.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use caddy_engine::{Counter, Held, Incarnation, SourceId};
use caddy_remote::{ConnectError, Handler, Loss, Request, ServerInfo, Target, cluster::Redirect};
use caddy_resp::Protocol;
use parking_lot::Mutex;

use crate::{
    absence::Absences,
    answers::{error_reply, integer, nil},
    barrier::{HeldBack, HeldReply},
    behind::{Round, Storing, Taking, Via},
    cache::{Cached, Waiter},
    effect::Effect,
    errands::Errand,
    fills::{self, Fill, FillMany},
    generations::Learn,
    guards::{Guard, hold},
    mailbox::{Delivery, Mailbox, Redirected, ReplyTo},
    nodes::{Node, NodeId},
    probe::{Probe, Prover},
    pushes::{announced, invalidate, invalidate_later},
    ranges::Look,
    server_commands, session,
    shared::{L3, Shared},
    shown::{Lives, RelayedStrings},
};

/// A relayed reply as long as this counts against the budget of L2 until it is in its session's output. Shorter ones count only
/// if they are still in its queue when the session has done what it could.
pub(crate) const COUNTED: usize = 16 << 10;

/// What a request is to the sidecar.
#[derive(Debug)]
pub(crate) enum Tag {
    /// An app's own command, passed on as bytes.
    Relay(Relay),
    /// A read that fills the tiers: GET or another read of one key, and its PTTL, for all who wait for it.
    Fill(Fill),
    /// MGET and a PTTL for each key, for one session.
    FillMany(Box<FillMany>),
    /// Asks the tracked connection whether it is current.
    Probe(Box<Probe>),
    /// A PING whose PONG proves that all earlier pushes have been applied.
    Barrier(#[expect(dead_code, reason = "its drop releases what is held")] HeldBack),
    /// Answered by pushes only, or by a reply that nobody waits for.
    Forward,
    /// A look at generations.
    Learn(Box<Learn>),
    /// A write that goes to a store, too.
    Store(Box<Storing>),
    /// Waits until replicas have writes that are recorded in streams.
    Round(Box<Round>),
    /// Takes records of a stream.
    Taking(Box<Taking>),
    /// A look at how long the keys of a relayed reply have left to live.
    Lives(Box<Lives>),
    /// A look at the index of invalidations by pattern.
    Look(Box<Look>),
    /// A request of one of the sidecar's own tasks.
    Errand(Box<Errand>),
    /// `COMMAND`: what the server has beyond the built-in table; and what else it is asked after a connect.
    AboutServer,
    /// What our user may do there.
    AboutUser,
    /// How many keys the server remembers the readers of.
    AboutTable,
}

/// See [`Tag::Relay`].
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) to: ReplyTo,
    pub(crate) effect: Effect,
    pub(crate) reply: Option<Bytes>,
    /// Which of the replies is the app's, if not the last.
    pub(crate) answer: Option<u16>,
    pub(crate) database: u32,
    pub(crate) protocol: Protocol,
    /// In a cluster: what to send elsewhere, and how often that was done.
    pub(crate) request: Option<(Bytes, u8)>,
}

/// Which of the sidecar's connections a handler serves.
pub(crate) enum Purpose {
    /// Fills and proofs of one database.
    Tracked { source: SourceId, database: u32, incarnation: Option<Incarnation>, prover: Prover },
    /// What negative filters learn from.
    Announcing { source: SourceId, incarnation: Option<Incarnation>, prover: Prover },
    /// Everything else, of many sessions.
    Relay,
    /// One session's own connection, or in a pool: what it pushes is its owner's.
    Pinned(Arc<Mutex<Option<Arc<Mailbox>>>>),
}

impl Purpose {
    pub(crate) fn tracked(source: SourceId, database: u32) -> Self {
        Self::Tracked { source, database, incarnation: None, prover: Prover::default() }
    }

    pub(crate) fn announcing(source: SourceId) -> Self {
        Self::Announcing { source, incarnation: None, prover: Prover::default() }
    }
}

/// A pinned connection in the pool has nobody to tell.
fn tell(owner: &Mutex<Option<Arc<Mailbox>>>, delivery: Delivery) {
    if let Some(mailbox) = &*owner.lock() {
        mailbox.deliver(delivery);
    }
}

/// The [`Handler`] of all Redis lanes.
pub(crate) struct Upstream {
    shared: Arc<Shared>,
    /// The server at the other end; without it, nothing is left that a barrier could be for.
    node: Weak<Node>,
    id: NodeId,
    target: Arc<Target>,
    purpose: Purpose,
    /// Connections so far.
    connection: u64,
    /// The part of a reply that has come so far, where copies may come of it.
    buffered: Option<Held>,
}

impl Upstream {
    pub(crate) fn new(shared: &Arc<Shared>, node: &Arc<Node>, purpose: Purpose) -> Self {
        let (id, target) = (node.id, node.target.clone());
        let (shared, node) = (shared.clone(), Arc::downgrade(node));
        Self { shared, node, id, target, purpose, connection: 0, buffered: None }
    }
}

impl Handler for Upstream {
    type Tag = Tag;

    fn reply(&mut self, tag: &mut Tag, index: u16, frame: Bytes) {
        match tag {
            Tag::Relay(relay) if relay.answer.is_some_and(|answer| answer != index) => {}
            // An error of what had to go before it is more than the reply to the last.
            Tag::Relay(relay) if relay.reply.as_ref().is_some_and(|reply| reply.starts_with(b"-")) => {}
            Tag::Relay(relay) if frame.len() < COUNTED => relay.reply = Some(frame),
            Tag::Relay(relay) => relay.reply = Some(self.shared.in_flight(frame)),
            Tag::Fill(fill) if index == 0 => {
                let held = self.shared.cache.hold(frame.len());
                fill.reply = Some((frame, held));
            }
            Tag::Fill(fill) => fill.pttl = integer(&frame),
            Tag::FillMany(many) if index == 0 => many.reply = Some(self.shared.in_flight(frame)),
            Tag::FillMany(many) => many.pttls.push(integer(&frame)),
            Tag::Probe(probe) => probe.replies.push(frame),
            Tag::Learn(learn) => learn.replies.push(frame),
            Tag::Store(storing) => storing.take(index, frame),
            Tag::Round(round) => round.reply = Some(frame),
            Tag::Taking(taking) => taking.reply = Some(frame),
            Tag::Look(look) => look.reply = Some(frame),
            Tag::Lives(lives) => lives.replies.push(frame),
            Tag::Errand(errand) => errand.replies.push(frame),
            Tag::AboutServer if index == 0 => self.shared.commands.take(&frame),
            Tag::AboutServer if index == 1 => self.shared.status.facts.memory_is(&frame),
            Tag::AboutServer => {
                self.shared.status.facts.user_is(&frame);
                if let Some(node) = self.node.upgrade() {
                    server_commands::ask_about_user(&node, &frame);
                }
            }
            Tag::AboutUser if index == 0 => self.shared.status.facts.swapdb_is(&frame, self.is_cluster()),
            Tag::AboutUser => {
                if let Some(node) = self.node.upgrade().filter(|_| frame.starts_with(b"+OK")) {
                    server_commands::ask_about_table(&node);
                }
            }
            Tag::AboutTable => self.shared.status.facts.tracking_table_is(&frame),
            Tag::Barrier(_) | Tag::Forward => {}
        }
    }

    fn finish(&mut self, tag: Tag, outcome: Result<(), Loss>) {
        let shared = &self.shared;
        match (tag, outcome) {
            (Tag::Relay(relay), outcome) => self.finish_relay(relay, outcome),
            (Tag::Fill(fill), Ok(())) => fills::finish_fill(shared, fill),
            (Tag::Fill(fill), Err(_)) => {
                shared.cache.count(Counter::FlightFailed);
                for waiter in shared.flights.abandon(fill.flight) {
                    waiter.to.bypass();
                }
            }
            (Tag::FillMany(many), Ok(())) => fills::finish_fill_many(shared, *many),
            (Tag::FillMany(many), Err(_)) => many.waiter.to.bypass(),
            (Tag::Probe(probe), Ok(())) => {
                if let Purpose::Tracked { prover, .. } | Purpose::Announcing { prover, .. } = &mut self.purpose {
                    prover.judge(&self.shared, self.id, self.node.upgrade().as_deref(), &probe);
                }
            }
            (Tag::Look(look), Ok(())) => self.shared.ranges.answered(&self.shared, *look),
            (Tag::Look(look), Err(loss)) => self.shared.ranges.failed(*look, &loss.to_string()),
            (Tag::Lives(lives), outcome) => lives.finish(shared, outcome.map_err(|loss| loss.to_string())),
            (Tag::Errand(errand), outcome) => errand.finish(outcome),
            (Tag::Learn(learn), Ok(())) => learn.finish(),
            (Tag::Learn(learn), Err(loss)) => learn.lost(&loss.to_string()),
            (Tag::Store(storing), outcome) => self.finish_store(storing, outcome),
            (Tag::Round(round), outcome) => {
                if let Some(node) = self.node.upgrade() {
                    let via = Via { node: &node, connection: self.connection };
                    round.finish(&self.shared, &via, &outcome);
                }
            }
            (Tag::Taking(taking), outcome) => taking.finish(outcome),
            (
                Tag::Probe(_) | Tag::Barrier(_) | Tag::Forward | Tag::AboutServer | Tag::AboutUser | Tag::AboutTable,
                _,
            ) => {}
        }
    }

    fn push(&mut self, frame: Bytes) {
        match &self.purpose {
            Purpose::Tracked { source, database, .. } if hold(Guard::PushInline) => {
                invalidate(&self.shared, *source, *database, &frame);
            }
            Purpose::Tracked { source, database, .. } => {
                invalidate_later(self.shared.clone(), *source, *database, frame);
            }
            Purpose::Announcing { source, .. } => announced(&self.shared, *source, &frame),
            Purpose::Pinned(owner) => tell(owner, Delivery::Push(frame)),
            // RESP3 relays get none: nothing on them subscribes or tracks.
            Purpose::Relay => tracing::debug!("a relay connection got an unexpected push"),
        }
    }

    fn buffers(&mut self, bytes: usize) {
        if bytes > 0 || self.buffered.is_some() {
            self.buffered = None;
            self.buffered = (bytes > 0).then(|| self.shared.cache.hold(bytes));
        }
    }

    fn connected(&mut self, server: Option<&ServerInfo>) {
        self.connection += 1;
        match &mut self.purpose {
            Purpose::Tracked { source, incarnation, prover, .. } => {
                *prover = Prover::default();
                *incarnation = Some(self.shared.kernel().connected(*source));
                self.shared.status.tracked_up(self.id, server);
                self.shared.commands.want();
            }
            Purpose::Announcing { source, incarnation, prover } => {
                *prover = Prover::default();
                *incarnation = Some(self.shared.kernel().connected(*source));
            }
            Purpose::Relay | Purpose::Pinned(_) => self.shared.status.reachable(),
        }
    }

    fn first(&mut self) -> Option<Request<Tag>> {
        let Purpose::Tracked { source, database, .. } = self.purpose else { return None };
        self.shared.first_on_tracked(self.node.upgrade()?.as_ref(), source, database)
    }

    fn lost(&mut self, reason: &str) {
        self.buffered = None;
        self.shared.metrics.lost_connections.inc();
        match &mut self.purpose {
            Purpose::Tracked { source, incarnation, .. } => {
                if let Some(incarnation) = incarnation.take() {
                    self.shared.kernel().lost(*source, incarnation);
                }
                self.shared.ranges.lost(*source);
                self.tracked_down(&format!("the tracked connection was lost: {reason}"));
            }
            Purpose::Announcing { source, incarnation, .. } => {
                if let Some(incarnation) = incarnation.take() {
                    self.shared.kernel().lost(*source, incarnation);
                }
                Absences::trouble(&self.shared, reason);
            }
            Purpose::Relay => {}
            Purpose::Pinned(owner) => tell(owner, Delivery::PinnedLost(reason.to_owned())),
        }
        self.shared.doubt_slots();
    }

    fn refused(&mut self, error: &Arc<ConnectError>) {
        match &self.purpose {
            Purpose::Tracked { .. } => self.tracked_down(&error.to_string()),
            Purpose::Announcing { .. } => Absences::trouble(&self.shared, &error.to_string()),
            // Redis answered: there is no such database.
            Purpose::Relay if matches!(**error, ConnectError::Select { .. }) => {}
            Purpose::Relay => self.shared.status.unreachable(&error.to_string()),
            Purpose::Pinned(owner) => tell(owner, Delivery::PinnedLost(error.to_string())),
        }
        self.shared.doubt_slots();
    }
}

impl Drop for Upstream {
    /// A lane ends when its node has left the cluster, or with the sidecar.
    fn drop(&mut self) {
        if let Purpose::Tracked { source, .. } | Purpose::Announcing { source, .. } = self.purpose {
            self.shared.kernel().release(source);
        }
    }
}

impl Upstream {
    fn is_cluster(&self) -> bool {
        matches!(&self.shared.l3, L3::Redis(redis) if redis.cluster().is_some())
    }

    fn tracked_down(&self, reason: &str) {
        // A node that has left the cluster is missed by nobody.
        if self.node.strong_count() > 0 {
            self.shared.status.tracked_down(self.id, reason);
        }
    }

    fn finish_store(&self, storing: Box<Storing>, outcome: Result<(), Loss>) {
        let Some(node) = self.node.upgrade() else {
            return storing.to.reply(&b"-NOTREADY the node has left the cluster; repeat it\r\n"[..]);
        };
        let via = Via { node: &node, connection: self.connection };
        let redirect =
            outcome.is_ok().then(|| storing.redirection().and_then(|error| self.redirection(error))).flatten();
        match redirect {
            Some(redirect) => storing.follow(&self.shared, &redirect),
            None => storing.finish(&self.shared, &via, outcome),
        }
    }

    fn finish_relay(&self, relay: Relay, outcome: Result<(), Loss>) {
        let Relay { to, mut effect, reply, answer: _, database, protocol, request } = relay;
        // Whatever the answer is, also a loss: the command may have been executed. A read that showed nothing leaves copies as
        // good as they were.
        if outcome.is_ok() || !effect.is_read {
            effect.apply(&self.shared);
        }
        let bytes = match (outcome, reply) {
            (Ok(()), Some(reply)) if effect.has_more() => session::load::unwrapped(&reply, effect.along),
            (Ok(()), Some(reply)) => reply,
            (Err(loss), _) => error_reply(&loss),
            (Ok(()), None) => Bytes::from_static(b"-ERR the relay ended without a reply\r\n"),
        };
        if let Some((request, hops)) = request
            && bytes.first() == Some(&b'-')
            && let Some(redirect) = self.redirection(&bytes)
        {
            let place = to.place;
            let redirected = Redirected { place, request, effect, redirect, reply: bytes, hops };
            to.mailbox.deliver(Delivery::Redirected(Box::new(redirected)));
            return;
        }
        let shows = std::mem::take(&mut effect.shows);
        let behind = effect.barrier.then(|| self.node.clone());
        let relayed =
            RelayedStrings { held: HeldReply { to, bytes }, shows, database, protocol, behind, lives: Vec::new() };
        relayed.hand_on(&self.shared, Ok(Vec::new()));
    }

    /// Where an error of this node in a cluster sends the request; what it says of the slot map is noted.
    fn redirection(&self, error: &[u8]) -> Option<Redirect> {
        let L3::Redis(redis) = &self.shared.l3 else { return None };
        let cluster = redis.cluster()?;
        let redirect = Redirect::parse(error, &self.target.endpoint);
        let contradicts = match &redirect {
            Some(Redirect::Moved { slot, to }) => {
                self.shared.metrics.moved.inc();
                let map = cluster.map();
                map.is_none_or(|map| map.owner(*slot).is_none_or(|owner| owner.target.endpoint != *to))
            }
            Some(Redirect::Ask { .. }) => {
                self.shared.metrics.asked.inc();
                false
            }
            None => error.starts_with(b"-CLUSTERDOWN"),
        };
        if contradicts {
            cluster.refresh();
        }
        redirect
    }
}

impl Waiter {
    pub(crate) fn answer(&self, value: &Cached) {
        match value {
            Cached::Bulk(bytes) | Cached::Same(bytes) => self.to.reply(bytes.clone()),
            Cached::Nil => self.to.reply(Bytes::from_static(nil(self.protocol))),
            other @ Cached::Resp3(_) => {
                let mut out = Vec::new();
                other.encode(self.protocol, &mut out);
                self.to.reply(out);
            }
        }
    }
}
