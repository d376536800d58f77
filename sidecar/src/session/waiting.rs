//! WAIT and WAITAOF: have the replicas, and the disks, what this session wrote?
//!
//! Redis answers for the connection that asks, up to the last write on it. The session's writes went over connections that
//! it shares, and those must not be held up; so it asks on one of its own, behind a write of no consequence, which Redis
//! has logged after all that was answered before. What was written before a connection was lost may be lost with it:
//! then the answer is an error, as it would be an end of the connection without us.
//!
//! In a cluster every node that the session wrote to is asked so, and the least of their answers is the answer. A node that
//! has left took along what it had.

use caddy_engine::KeyHash;
use caddy_remote::{LaneHandle, Request, cluster::tag_of};
use caddy_resp::encode;
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    gather::Gathering,
};
use crate::{
    commands::{self, Merge, Row},
    effect::Effect,
    mailbox::{Place, ReplyTo},
    nodes::{NodeId, RedisL3},
    shared::L3,
    upstream::{Relay, Tag},
};

/// The key of the write of no consequence; in a cluster with a hash tag behind it, for a slot of the node. It is deleted at
/// once; should that fail, it expires.
const KEY: &str = "caddy:wait";
const LOST: &str = "NOTREADY a connection to Redis was lost since this session last wrote: what it wrote may be lost too, \
                    so no replica can be waited for; see whether it is there, and write again";

/// The nodes of a cluster that a session wrote to; of a server alone nothing is kept.
#[derive(Debug, Default)]
pub(super) struct Written(Option<Box<SmallVec<[NodeId; 6]>>>);

impl Written {
    fn add(&mut self, node: NodeId) {
        let nodes = self.0.get_or_insert_default();
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }

    fn nodes(&self) -> &[NodeId] {
        self.0.as_ref().map_or(&[], |nodes| nodes.as_slice())
    }
}

impl Conversation {
    /// Remembers, of a request that may write, which node gets it, and how many connections had been lost before it.
    pub(super) fn note_write(&mut self, row: &Row, node: NodeId) {
        if matches!(row.effect, commands::Effect::Harmless | commands::Effect::ReadsKeys) {
            return;
        }
        self.losses_at_write = Some(self.losses());
        if matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.cluster().is_some()) {
            self.written.add(node);
        }
    }

    /// A request was sent on to this node; if the session has written, that may have been a write.
    pub(super) fn note_redirected(&mut self, node: NodeId) {
        if !self.written.nodes().is_empty() {
            self.written.add(node);
        }
    }

    fn losses(&self) -> u64 {
        self.worker.shared.metrics.lost_connections.get()
    }

    /// On the session's own connection, outside of a transaction.
    pub(super) fn wait_for_replicas(&mut self, args: Args<'_>) -> Flow {
        if self.losses_at_write.take().is_some_and(|losses| losses != self.losses()) {
            self.written = Written::default();
            self.reply_error(LOST);
            return Flow::Done;
        }
        let worker = self.worker.clone();
        match &worker.shared.l3 {
            L3::Redis(redis) if redis.cluster().is_some() => self.wait_in_cluster(redis, args),
            _ => {
                let lane =
                    self.pinned.as_ref().and_then(|pinned| pinned.lane.as_ref()).map(|lane| lane.handle().clone());
                let place = self.expect(Pending::WaitingForReplicas);
                if let Some(lane) = lane {
                    self.ask_replicas(&lane, KEY, &args.to_bytes(), place);
                }
                Flow::Done
            }
        }
    }

    /// Asks every node that the session wrote to; if it wrote to none, the one that its connection leads to.
    fn wait_in_cluster(&mut self, redis: &RedisL3, args: Args<'_>) -> Flow {
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let Some(map) = redis.cluster().and_then(crate::cluster::Cluster::map) else { return Flow::Hold };
        let own = self.pinned.as_ref().and_then(|pinned| pinned.lane.as_ref()).map(crate::worker::PinnedLane::node);
        let asked: SmallVec<[NodeId; 6]> = match self.written.nodes() {
            [] => own.into_iter().collect(),
            nodes => nodes.iter().copied().collect(),
        };
        let mut targets: SmallVec<[(LaneHandle<Tag>, u16); 6]> = SmallVec::new();
        for id in asked {
            let node = map.nodes().iter().find(|node| node.id == id);
            let (Some(node), Some(slot)) = (node, map.first_slot(id)) else {
                self.written = Written::default();
                self.reply_error(LOST);
                return Flow::Done;
            };
            match self.lane_beside(node) {
                Ok(lane) => targets.push((lane, slot)),
                Err(message) => {
                    self.reply_error(&message);
                    return Flow::Done;
                }
            }
        }
        let parts = vec![SmallVec::new(); targets.len()];
        let gathering = Gathering::new(Merge::Least, self.client.protocol, parts);
        let seq = self.replies.expect(Pending::Gathering(Box::new(gathering)));
        for (part, (lane, slot)) in (0..).zip(targets) {
            let key = format!("{KEY}:{{{}}}", tag_of(slot));
            self.ask_replicas(&lane, &key, &args.to_bytes(), Place { seq, part });
        }
        Flow::Done
    }

    fn ask_replicas(&mut self, lane: &LaneHandle<Tag>, key: &str, request: &[u8], place: Place) {
        let mut bytes = Vec::with_capacity(160);
        encode::command(&mut bytes, ["SET", key, "", "PX", "1000"]);
        encode::command(&mut bytes, ["DEL", key]);
        bytes.extend_from_slice(request);
        let effect = Effect { keys: [KeyHash::of(key.as_bytes())].into_iter().collect(), ..Effect::default() };
        let to = ReplyTo { mailbox: self.mailbox.clone(), place };
        self.stream = Stream::Pinned;
        let (database, protocol) = (self.client.database, self.client.protocol);
        let tag = Tag::Relay(Relay { to, effect, reply: None, answer: None, request: None, database, protocol });
        // A lane that has ended has told the session so.
        let _ = lane.submit(Request { bytes: bytes.into(), replies: 3, tag });
    }
}

/// An answer to WAIT; where the write in front of it was not taken, that is said.
pub(super) fn explained(reply: &[u8]) -> Option<Vec<u8>> {
    let refusal = reply.strip_prefix(b"-")?.trim_ascii_end();
    let text = String::from_utf8_lossy(refusal);
    let mut out = Vec::new();
    match text.split(' ').next()? {
        "NOPERM" => {
            encode::error(
                &mut out,
                format!("{text}; WAIT writes the key caddy:wait first: allow that to the sidecar's user"),
            );
        }
        "MOVED" | "ASK" | "CLUSTERDOWN" => {
            encode::error(&mut out, "TRYAGAIN slots of a node that this session wrote to are on the move; repeat it");
        }
        _ => return None,
    }
    Some(out)
}
