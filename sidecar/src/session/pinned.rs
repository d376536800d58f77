//! Sessions with an upstream connection of their own: transactions, blocking commands, subscriptions, own tracking.
//!
//! Such a command changes the state of the connection that it is sent on, or holds it up; on a shared relay it would do
//! so to others. While a session is pinned everything but its own commands goes over that connection as bytes, and
//! every reply kills the copies of the keys it named, as on a relay; what a transaction queued counts when EXEC is
//! answered. A connection that is clean again goes back to its worker's pool. If it is lost, its state is lost, and the
//! app's connection closes, as it would have without us.

use std::sync::Arc;

use bytes::Bytes;
use caddy_remote::{LaneHandle, Request};
use caddy_resp::{Protocol, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow, Hush, Pending, Stream, wrong_number},
    guard::full_name,
    relaying::effect,
    routing::Home,
    transaction::Transaction,
};
use crate::{
    commands::{Class, Pin, Row},
    effect::Effect,
    guards::{Guard, hold},
    mailbox::Mailbox,
    nodes::{Node, RedisL3},
    shared::L3,
    upstream::Tag,
    worker::PinnedLane,
};

/// What becomes of a session's own connection when no transaction, watch or wait needs it any more; it only gets worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fate {
    /// Another session may have it.
    Pooled,
    /// It may no longer be what it was made as, or was subscribed: nobody else gets it.
    Closed,
    /// Tracking at some time: the session keeps it until it ends.
    Kept,
}

/// A session's own connection, and what keeps it.
#[derive(Debug)]
pub(crate) struct Pinned {
    /// `None`: MULTI was answered, and the first command behind it tells which node of the cluster the transaction is for.
    pub(super) lane: Option<PinnedLane>,
    /// To further nodes of a cluster, while what all of them are asked is unanswered there.
    pub(super) beside: Vec<PinnedLane>,
    /// What was answered `QUEUED` before a node was chosen: commands without keys.
    pub(super) early: Vec<Bytes>,
    /// How many requests went over it.
    sent: usize,
    /// Between MULTI and EXEC or DISCARD.
    pub(super) transaction: Option<Transaction>,
    pub(super) watching: bool,
    pub(super) fate: Fate,
    /// RESP2 and subscribed, or about to be or to end it: every frame is a message, nothing is counted.
    pub(super) subscribed_resp2: bool,
    /// Confirmations still to come, or a pong; until then nothing else is taken: UNSUBSCRIBE may end that mode, our own answers must not
    /// overtake them, and an error in their place must not be taken for the reply to another request.
    confirming: usize,
    pub(super) subscriptions: Subscriptions,
    /// It is there for a [`Pin::Interrupt`], and not in the session's database.
    interrupts: bool,
}

impl Pinned {
    /// Nothing keeps the session on it but what is under way.
    fn is_clean(&self) -> bool {
        self.transaction.is_none() && !self.watching && !self.is_kept()
    }

    /// It has to be this very connection.
    fn is_kept(&self) -> bool {
        self.fate == Fate::Kept || self.confirming > 0 || self.subscriptions.any()
    }
}

/// How many there are, by the last confirmations; Redis counts those to shard channels apart.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    channels: i64,
    shards: i64,
}

impl Subscriptions {
    /// Takes a frame; `false`: it confirms no subscription, and no end of one.
    pub(super) fn take(&mut self, frame: &[u8]) -> bool {
        // Messages have as many elements; their kinds are told apart before anything is decoded.
        let Some(kind) = frame.strip_prefix(b"*3\r\n$").or_else(|| frame.strip_prefix(b">3\r\n$")) else {
            return false;
        };
        let is_one_of = |kinds: &[&str]| kinds.iter().any(|begins| kind.starts_with(begins.as_bytes()));
        let count = if is_one_of(&["9\r\nsub", "10\r\npsub", "11\r\nunsub", "12\r\npunsub"]) {
            &mut self.channels
        } else if is_one_of(&["10\r\nssub", "12\r\nsunsub"]) {
            &mut self.shards
        } else {
            return false;
        };
        let value = caddy_resp::Value::decode(frame).map(|(value, _)| value);
        let told = value.ok().and_then(|value| value.as_elements()?.last()?.as_integer());
        *count = told.unwrap_or(*count);
        told.is_some()
    }

    pub(super) fn any(&self) -> bool {
        self.channels > 0 || self.shards > 0
    }
}

impl Conversation {
    /// Gives the session a connection of its own and sends the command there.
    pub(super) fn pin(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let worker = self.worker.clone();
        let redis = match &worker.shared.l3 {
            L3::Redis(redis) => redis,
            L3::Embedded(store) if row.class == Class::Pinned(Pin::PubSub) => {
                return self.subscribe_embedded(store, args);
            }
            L3::Embedded(_) => {
                let name = args.name();
                self.reply_error(&format!(
                    "ERR '{name}' needs a Redis L3: start with --redis URL, or set spec.l3.redis"
                ));
                return Flow::Done;
            }
        };
        if row.class == Class::Pinned(Pin::Tracking) && redis.cluster().is_some() {
            return self.refuse(args, CLUSTER_TRACKING);
        }
        let opens = redis.cluster().is_some() && row.name == "multi" && row.accepts(args.len());
        let lane = if opens {
            None
        } else {
            match self.own_lane(redis, row, args) {
                Ok(lane) => Some(lane),
                Err(flow) => return flow,
            }
        };
        self.pinned = Some(Box::new(Pinned {
            lane,
            beside: Vec::new(),
            early: Vec::new(),
            sent: 0,
            transaction: None,
            watching: false,
            fate: Fate::Pooled,
            subscribed_resp2: false,
            confirming: 0,
            subscriptions: Subscriptions::default(),
            interrupts: row.class == Class::Pinned(Pin::Interrupt),
        }));
        if opens {
            if let Some(pinned) = &mut self.pinned {
                pinned.transaction = Some(Transaction::default());
            }
            self.reply_ok();
            return Flow::Done;
        }
        self.pinned_request(row, args)
    }

    /// A connection of the session's own to the node that a request is for.
    pub(super) fn own_lane(&mut self, redis: &RedisL3, row: &Row, args: Args<'_>) -> Result<PinnedLane, Flow> {
        let node = match self.home(redis, Self::routing_key(row, args)) {
            Home::Node(node) => node,
            Home::Hold => return Err(Flow::Hold),
            Home::Unknown(reason) => return Err(self.reply_not_ready(&reason)),
        };
        let lane = match row.class {
            Class::Pinned(Pin::Interrupt) => self.stateless_lane(&node),
            _ => self.worker.pin(&node, self.client.database, self.client.protocol, &self.mailbox),
        };
        lane.map_err(|message| {
            self.reply_error(&message);
            Flow::Done
        })
    }

    /// One in no database, since a server that runs a script takes no SELECT, and that nothing is lost with but an answer.
    pub(super) fn stateless_lane(&self, node: &Arc<Node>) -> Result<PinnedLane, String> {
        self.worker.pin(node, 0, self.client.protocol, &Arc::new(Mailbox::default()))
    }

    /// A connection to one of a cluster's nodes: the session's own, or another while this request is unanswered.
    pub(super) fn lane_beside(&mut self, node: &Arc<Node>) -> Result<LaneHandle<Tag>, String> {
        if let Some(lane) = self.pinned.as_ref().and_then(|pinned| pinned.lane.as_ref())
            && lane.node() == node.id
        {
            return Ok(lane.handle().clone());
        }
        let lane = self.stateless_lane(node)?;
        let handle = lane.handle().clone();
        if let Some(pinned) = &mut self.pinned {
            pinned.beside.push(lane);
        }
        Ok(handle)
    }

    /// Whether the session's own connection is kept by nothing but what is unanswered.
    pub(super) fn is_about_to_unpin(&self) -> bool {
        self.pinned.as_deref().is_some_and(Pinned::is_clean) && self.replies.waiting() > 0
    }

    /// Whether a command may be for another node than what is under way on the session's own connection, which nothing else
    /// keeps.
    fn leaves_its_node(&self, row: &Row) -> bool {
        matches!(row.class, Class::Pinned(_))
            && self.pinned.as_deref().is_some_and(Pinned::is_clean)
            && self.replies.waiting() > 0
            && matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.cluster().is_some())
    }

    /// Whether a command has nothing to do with what this session's connection watches or subscribed: in a cluster it may
    /// be another node's.
    fn goes_by_slot(&self, row: &Row, args: Args<'_>) -> bool {
        let Some(pinned) = &self.pinned else { return false };
        let is_relayed = matches!(
            row.class_of(args.len(), |index| args.get(index)),
            Class::Fill | Class::FillFields | Class::Derived | Class::Relayed
        );
        is_relayed
            && pinned.transaction.is_none()
            && !pinned.subscribed_resp2
            && row.accepts(args.len())
            && matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.cluster().is_some())
    }

    /// The only request under way on the session's own connection has to go to another node: the session moves there, if
    /// nothing keeps it.
    pub(super) fn move_own_lane(&mut self, node: &Arc<Node>) -> Option<LaneHandle<Tag>> {
        let is_free = |pinned: &&mut Box<Pinned>| pinned.is_clean() || (pinned.sent == 1 && !pinned.is_kept());
        let pinned = self.pinned.as_mut().filter(is_free).filter(|_| self.replies.waiting() == 1)?;
        let lane = self.worker.pin(node, self.client.database, self.client.protocol, &self.mailbox).ok()?;
        let handle = lane.handle().clone();
        pinned.lane = Some(lane);
        Some(handle)
    }

    /// A request of a pinned session.
    pub(super) fn pinned_request(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        if self.pinned.as_ref().is_some_and(|pinned| pinned.lane.is_none())
            && let Some(flow) = self.open_transaction(row, args)
        {
            return flow;
        }
        if self.is_under_way_elsewhere(Stream::Pinned) && !self.goes_by_slot(row, args) || self.leaves_its_node(row) {
            return Flow::Hold;
        }
        let protocol = self.client.protocol;
        let Some(pinned) = &mut self.pinned else { return Flow::Hold };
        if pinned.confirming > 0 || (pinned.interrupts && self.replies.waiting() > 0) {
            return Flow::Hold;
        }
        match row.name {
            // Not SLOWLOG RESET and the like.
            "quit" | "reset" if args.is(0, row.name) => {
                if self.replies.waiting() > 0 {
                    return Flow::Hold;
                }
                return self.own_command(row, args);
            }
            _ if pinned.subscribed_resp2 => return self.while_subscribed(row, args),
            _ if row.class == Class::Pinned(Pin::PubSub) && row.accepts(args.len()) && pinned.transaction.is_none() => {
                // In RESP2 its confirmations look like replies, and in RESP3 a refusal does: nothing may be waiting for one.
                if self.replies.waiting() > 0 {
                    return Flow::Hold;
                }
                pinned.fate = pinned.fate.max(Fate::Closed);
                pinned.subscribed_resp2 = protocol == Protocol::Resp2;
                return self.while_subscribed(row, args);
            }
            _ if let Class::Refused(hint) = row.class
                && pinned.transaction.is_none() =>
            {
                return self.refuse(args, hint);
            }
            _ if row.is_ours() && !row.accepts(args.len()) => {
                let wrong = wrong_number(row, args);
                let mut refusal = Vec::new();
                encode::error(&mut refusal, &wrong);
                return self.refuse_in_transaction(refusal).unwrap_or_else(|| {
                    self.reply_error(&wrong);
                    Flow::Done
                });
            }
            // Redis says what is wrong with it, and the connection stays as it is; but EXEC always ends a transaction.
            _ if !row.accepts(args.len()) => {
                if row.name == "exec" {
                    pinned.transaction = None;
                    pinned.watching = false;
                }
                return self.send_with(args.to_bytes(), Effect::default(), Pending::Relayed);
            }
            _ => {}
        }
        if pinned.transaction.is_some() {
            return self.within_transaction(row, args);
        }
        match row.name {
            "multi" if args.len() == 1 => pinned.transaction = Some(Transaction::default()),
            "watch" => pinned.watching = true,
            "unwatch" => pinned.watching = false,
            "tracking" | "caching" => pinned.fate = Fate::Kept,
            _ if row.class == Class::Pinned(Pin::Connection) => pinned.fate = pinned.fate.max(Fate::Closed),
            "select" => return self.select_pinned(row, args),
            // The connection goes back once all is answered.
            "hello" if switches(args, protocol) && pinned.is_clean() && self.replies.waiting() > 0 => {
                return Flow::Hold;
            }
            "hello" if switches(args, protocol) => {
                self.reply_error(
                    "ERR HELLO cannot change a connection that watches, subscribes or tracks; send RESET first",
                );
                return Flow::Done;
            }
            _ => {}
        }
        if self.goes_by_slot(row, args) {
            return self.relay(row, args, effect(row, args), Pending::Relayed);
        }
        // Behind a transaction that is not answered yet; with that the session may be free of its connection.
        if self.replies.waiting() > 0 && self.is_loading_read(row, args) {
            return Flow::Hold;
        }
        match row.class_of(args.len(), |index| args.get(index)) {
            Class::Local | Class::Session => self.own_command(row, args),
            Class::Lock => self.lock_command(row, args),
            Class::Cache => self.cache_request(args),
            Class::Pinned(Pin::Replicas) => self.wait_for_replicas(args),
            Class::Pinned(Pin::Interrupt) => self.interrupt(row, args),
            Class::Pinned(Pin::Blocking) => self.send(row, args, Pending::Blocking),
            _ => self.send(row, args, Pending::Relayed),
        }
    }

    fn select_pinned(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let previous = self.client.database;
        if let Some(database) = database(args) {
            self.client.set_database(database);
        }
        self.send(row, args, Pending::Selecting(previous))
    }

    pub(super) fn has_own_lane(&self) -> bool {
        self.pinned.as_ref().is_some_and(|pinned| pinned.lane.is_some())
    }

    pub(super) fn send(&mut self, row: &'static Row, args: Args<'_>, pending: Pending) -> Flow {
        if let Some(node) = self.pinned.as_ref().and_then(|pinned| pinned.lane.as_ref()).map(PinnedLane::node) {
            self.note_write(row, node);
        }
        let mut effect = effect(row, args);
        // What ends in the same step takes a transaction, and that would end the watch.
        if self.pinned.as_ref().is_some_and(|pinned| !pinned.watching) {
            effect = self.ending_leases(row, args, effect);
        }
        effect.ends_groups |= self.ends_groups(row, args, &effect);
        self.send_with(args.to_bytes(), effect, pending)
    }

    pub(super) fn send_with(&mut self, bytes: Bytes, effect: Effect, pending: Pending) -> Flow {
        let place = self.expect(pending);
        self.note_groups(place.seq, &effect);
        self.stream = Stream::Pinned;
        let effect = if hold(Guard::BumpPinned) {
            effect
        } else {
            Effect { leases: effect.leases, along: effect.along, ..Effect::default() }
        };
        if let Some(pinned) = &mut self.pinned {
            pinned.sent += 1;
        }
        if let Some(lane) = self.pinned.as_ref().and_then(|pinned| pinned.lane.as_ref()) {
            self.send_relayed(lane.handle(), bytes, place, effect);
        }
        Flow::Done
    }

    /// A command whose answers are pushes.
    fn forward(&self, args: Args<'_>) -> Flow {
        self.submit_pinned(Request { bytes: args.to_bytes(), replies: 0, tag: Tag::Forward });
        Flow::Done
    }

    pub(super) fn submit_pinned(&self, request: Request<Tag>) {
        if let Some(lane) = self.pinned.as_ref().and_then(|pinned| pinned.lane.as_ref()) {
            // A lane that has ended has told the session so.
            let _ = lane.handle().submit(request);
        }
    }

    // === subscribers ===

    /// A command of the kind that RESP2 allows to them, or what it answers to others.
    fn while_subscribed(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let Some(pinned) = &mut self.pinned else { return Flow::Hold };
        match row.name {
            // Its pong is a message, too, and what we answer ourselves must not overtake it.
            "ping" => {
                pinned.confirming = 1;
                self.forward(args)
            }
            "subscribe" | "psubscribe" | "ssubscribe" => {
                pinned.confirming = args.len() - 1;
                self.forward(args)
            }
            "unsubscribe" | "punsubscribe" | "sunsubscribe" => {
                pinned.confirming = (args.len() - 1).max(1);
                self.forward(args)
            }
            _ => {
                self.reply_only_pubsub(row, args);
                Flow::Done
            }
        }
    }

    pub(super) fn reply_only_pubsub(&mut self, row: &Row, args: Args<'_>) {
        let name = full_name(row, args);
        self.reply_error(&format!(
            "ERR Can't execute '{name}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
        ));
    }

    /// A push or a message: what the server answered before it has been delivered.
    pub(super) fn pushed(&mut self, bytes: &[u8]) {
        if let Some(pinned) = &mut self.pinned {
            if pinned.subscriptions.take(bytes) {
                pinned.confirming = pinned.confirming.saturating_sub(1);
            } else if bytes.starts_with(PONG) || bytes.starts_with(b"-") {
                // Refused as a whole.
                pinned.confirming = 0;
            }
            pinned.subscribed_resp2 &= pinned.confirming > 0 || pinned.subscriptions.any();
        }
        // Not unasked: the reply to a subscriber's PING, or to a subscription that is refused.
        if self.hush == Hush::Always && (bytes.starts_with(PONG) || bytes.starts_with(b"-")) {
            return;
        }
        self.replies.interject(bytes, &mut self.out);
    }

    pub(super) fn pinned_lost(&mut self, reason: &str) {
        if self.pinned.take().is_some() {
            tracing::debug!(reason, "closing a session whose own connection was lost");
            self.closing = true;
        }
    }

    // === coming back ===

    /// Gives a connection back that holds no state any more.
    pub(super) fn unpin_if_clean(&mut self) {
        if self.replies.waiting() == 0
            && let Some(pinned) = &mut self.pinned
        {
            for lane in std::mem::take(&mut pinned.beside) {
                self.worker.unpin(lane, self.client.database);
            }
        }
        if self.replies.waiting() == 0
            && let Some(pinned) = self.pinned.take_if(|pinned| pinned.is_clean())
            && let Some(lane) = pinned.lane.filter(|_| pinned.fate == Fate::Pooled)
        {
            self.worker.clone().unpin(lane, self.client.database);
        }
    }

    /// Whether the session has state beyond itself: a connection of its own, or subscriptions.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.is_some() || self.listener.is_some()
    }

    /// Whether all is written but the answer to a command that waits for others, which may never come.
    pub(crate) fn is_blocked(&self) -> bool {
        self.out.is_empty()
            && match self.replies.pending().next() {
                Some(Pending::Blocking | Pending::WaitingForReplicas) => true,
                Some(Pending::Gathering(gathering)) => gathering.waits(),
                _ => false,
            }
    }
}

const CLUSTER_TRACKING: &str =
    "invalidations of a cluster come from all its nodes; let the cache in front of it track them";

/// The database that a SELECT names.
pub(super) fn database(args: Args<'_>) -> Option<u32> {
    caddy_resp::parse_i64(args.get(1)).and_then(|index| u32::try_from(index).ok())
}

/// How the reply to a RESP2 subscriber's PING begins.
const PONG: &[u8] = b"*2\r\n$4\r\npong\r\n";

/// Whether a HELLO asks for the other protocol.
fn switches(args: Args<'_>, protocol: Protocol) -> bool {
    let other = if protocol == Protocol::Resp2 { 3 } else { 2 };
    args.len() > 1 && caddy_resp::parse_i64(args.get(1)) == Some(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirmations_are_told_from_messages_and_those_of_shards_from_others() {
        let mut subscriptions = Subscriptions::default();
        let mut take = |frame: &[u8]| (subscriptions.take(frame), subscriptions.channels, subscriptions.shards);
        assert_eq!(take(b"*3\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n:2\r\n"), (true, 2, 0));
        assert_eq!(take(b">3\r\n$10\r\nssubscribe\r\n$2\r\nch\r\n:1\r\n"), (true, 2, 1));
        assert_eq!(take(b"*3\r\n$12\r\nsunsubscribe\r\n$2\r\nch\r\n:0\r\n"), (true, 2, 0));
        assert_eq!(take(b"*3\r\n$7\r\nmessage\r\n$2\r\nch\r\n$1\r\nx\r\n"), (false, 2, 0));
        assert_eq!(take(b"*3\r\n$12\r\npunsubscribe\r\n$2\r\nch\r\n:1\r\n"), (true, 1, 0));
        assert_eq!(take(b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n"), (true, 0, 0));
    }
}
