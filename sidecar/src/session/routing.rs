//! Which server a request goes to.
//!
//! A standalone Redis is the answer to all of it. In a cluster the node of the request's first key is, by the slot map in
//! force; Redis itself refuses keys of several slots. A key's requests of one session stay in order because they all go
//! to one node: while something is under way, a session does not change to a newer map ([`Home::Hold`]), and behind a
//! redirection nothing else is taken until all is answered.

use std::sync::Arc;

use bytes::Bytes;
use caddy_remote::cluster::{Redirect, slot_of};
use caddy_resp::{Value, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    relaying::Asking,
    waiting,
};
use crate::{
    commands::Row,
    effect::Effect,
    guards::{Guard, hold},
    mailbox::{Place, Redirected},
    nodes::{Node, RedisL3},
    shared::L3,
};

/// So many redirections one request may get; a cluster that sends it on for longer has not settled.
const MAX_HOPS: u8 = 16;

/// Where a request goes.
pub(super) enum Home {
    /// There.
    Node(Arc<Node>),
    /// That is known once what is under way is answered, or the first slot map is there.
    Hold,
    /// Nobody can tell.
    Unknown(String),
}

impl Conversation {
    /// Where requests about a key go; without one, where those go that any node may answer: for a session the same one.
    pub(super) fn home(&mut self, redis: &RedisL3, key: Option<&[u8]>) -> Home {
        let Some(cluster) = redis.cluster() else {
            let unknown = || Home::Unknown("there is no server".to_owned());
            return redis.only().map_or_else(unknown, |node| Home::Node(node.clone()));
        };
        let Some(map) = cluster.map() else {
            return match cluster.wait(&self.mailbox) {
                Ok(()) => Home::Hold,
                Err(reason) => Home::Unknown(reason),
            };
        };
        if self.map_version != map.version {
            if self.replies.waiting() > 0 && hold(Guard::OneMapAtATime) {
                return Home::Hold;
            }
            self.map_version = map.version;
        }
        let any = || map.nodes().get(self.client.shown().id as usize % map.nodes().len().max(1));
        // A slot that nobody has: any node says so in Redis's words.
        match key.and_then(|key| map.owner(slot_of(key))).or_else(any) {
            Some(node) => Home::Node(node.clone()),
            None => Home::Unknown("the slot map is empty".to_owned()),
        }
    }

    /// The first key of a request, or what stands where most commands have it if the table does not know the command.
    pub(super) fn routing_key<'a>(row: &Row, args: Args<'a>) -> Option<&'a [u8]> {
        if row.name.is_empty() && args.len() > 1 {
            return Some(args.get(1));
        }
        row.keys(args.len(), |index| args.get(index)).first().map(|position| args.get(*position))
    }

    pub(super) fn reply_not_ready(&mut self, reason: &str) -> Flow {
        self.reply_error(&format!("NOTREADY {reason}"));
        Flow::Done
    }

    /// A node does not have, or no longer, what a request is about: it goes to the one that the node names.
    pub(super) fn redirected(&mut self, redirected: Redirected) {
        let Redirected { place, request, effect, redirect, reply, hops } = redirected;
        if self.is_in_transaction() {
            return self.complete_part(place, elsewhere(&redirect));
        }
        let worker = self.worker.clone();
        let L3::Redis(redis) = &worker.shared.l3 else { return };
        let node = redis.cluster().and_then(|cluster| cluster.node_at(redirect.to()));
        let Some(node) = node.filter(|_| hops < MAX_HOPS) else {
            return self.complete_part(place, reply);
        };
        let (database, protocol) = (self.client.database, self.client.protocol);
        self.mixed = true;
        self.note_redirected(node.id);
        let lane = if self.stream == Stream::Pinned {
            match self.move_own_lane(&node) {
                Some(lane) => lane,
                None => return self.complete_part(place, elsewhere(&redirect)),
            }
        } else {
            worker.relay(&node, database, protocol)
        };
        let asking = if matches!(redirect, Redirect::Ask { .. }) { Asking::Yes } else { Asking::No };
        self.send_on(&lane, request, asking, place, effect, hops + 1);
    }

    /// The reply to a request, or to one of its parts.
    pub(super) fn complete_part(&mut self, place: Place, bytes: Bytes) {
        let Some(Pending::Gathering(gathering)) = self.replies.pending_mut(place.seq) else {
            return self.complete(place.seq, bytes);
        };
        let explained = if gathering.waits() { waiting::explained(&bytes) } else { None };
        let bytes = explained.map_or(bytes, Bytes::from);
        if let Some(whole) = gathering.give(place.part, bytes) {
            let keys = gathering.take_keys();
            self.under_way.remove(&keys);
            self.complete(place.seq, whole);
        }
    }
}

/// What a server without a cluster answers to CLUSTER: clients that an app did not tell of a cluster must not find one.
pub(super) const NO_CLUSTER: &str = "ERR This instance has cluster support disabled";

/// The (first) key that a fill's request is about.
pub(super) fn key_of(request: &[u8]) -> Option<Bytes> {
    let (value, _) = Value::decode(request).ok()?;
    value.as_elements()?.get(1)?.as_bytes().map(Bytes::copy_from_slice)
}

/// What is answered where a session's own connection is to another node than a key: in a transaction Redis has noted that
/// it fails.
fn elsewhere(redirect: &Redirect) -> Bytes {
    let mut out = Vec::new();
    encode::error(
        &mut out,
        match redirect {
            Redirect::Moved { .. } => {
                "CROSSSLOT Keys of what is watched, or done in one transaction, must be in one slot of the cluster: use a {hash tag}; if they are, the slot has moved, and repeating helps"
            }
            Redirect::Ask { .. } => "TRYAGAIN the slot is on its way to another node; repeat it",
        },
    );
    out.into()
}

/// Whether a request asks about, or changes, the cluster that apps do not see.
pub(super) fn is_about_clusters(args: Args<'_>) -> bool {
    ["CLUSTER", "READONLY", "READWRITE", "ASKING"].iter().any(|name| args.is(0, name))
}

/// How a request's effect is split over parts of it.
pub(crate) fn effect_of_part(effect: &Effect, keys: &[&[u8]]) -> Effect {
    let shows = effect.shows.iter().map(|shown| shown.part(keys)).collect();
    let leases: Vec<_> = effect.leases.iter().filter(|(key, _)| keys.contains(&&key[..])).cloned().collect();
    // What ends with the keys is as little known as they are.
    let ended = leases.iter().map(|(_, name)| &name[..]);
    let hashes = keys.iter().copied().chain(ended).map(caddy_engine::KeyHash::of).collect();
    Effect { keys: hashes, barrier: effect.barrier, flush: effect.flush, shows, leases, ..Effect::default() }
}
