//! Requests that are passed on as they are, over the worker's relays, and what that does to local copies.
//!
//! Owns the way to the right server: which node, behind what is under way, and the way back from a fill that failed. Looks
//! at no copies.

use bytes::Bytes;
use caddy_engine::KeyHash;
use caddy_remote::{LaneHandle, Request};
use caddy_resp::Value;
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    load::{self, Wrapped},
    routing::{self, Home},
};
use crate::{
    barrier::HeldReply,
    commands::{self, Row},
    effect::Effect,
    guards::{Guard, hold},
    mailbox::{Delivery, Place, ReplyTo},
    shared::L3,
    shown::{RelayedStrings, Shown},
    upstream::{Relay, Tag},
};

/// Whether a node of a cluster has to be told that it was named by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    Yes,
    No,
}

/// What a command means for local copies once it is answered over another connection than the tracked one.
pub(super) fn effect(row: &Row, args: Args<'_>) -> Effect {
    let mut effect = Effect { shows: Shown::of(row, args).into_iter().collect(), ..Effect::default() };
    match row.effect {
        commands::Effect::Harmless => return effect,
        commands::Effect::ReadsKeys if !hold(Guard::BumpRelayedReads) => return effect,
        commands::Effect::WritesKeys if !hold(Guard::BumpBeforeAnswer) => return effect,
        commands::Effect::ReadsKeys => effect.is_read = true,
        commands::Effect::WritesKeys => {}
        commands::Effect::KeysUnknown => effect.barrier = hold(Guard::Barrier),
        commands::Effect::Flush => effect.flush = hold(Guard::FlushOnFlush),
    }
    let positions = row.keys(args.len(), |index| args.get(index));
    effect.keys.extend(positions.iter().map(|position| KeyHash::of(args.get(*position))));
    effect
}

/// The same for a read of one key that was to be a fill.
fn effect_of_read(request: &[u8], key: KeyHash) -> Effect {
    let mut effect = Effect { keys: SmallVec::from_slice(&[key]), is_read: true, ..Effect::default() };
    if let Ok((request, _)) = Value::decode(request)
        && let Some([name, key]) = request.as_elements()
        && name.as_bytes().is_some_and(|name| name.eq_ignore_ascii_case(b"GET"))
    {
        effect.shows.extend(key.as_bytes().map(Shown::value_of));
    }
    effect
}

impl Conversation {
    /// Passes a request on as bytes, behind whatever of this session is under way there.
    pub(super) fn relay(&mut self, row: &'static Row, args: Args<'_>, effect: Effect, pending: Pending) -> Flow {
        let mut effect = self.ending_leases(row, args, effect);
        effect.ends_groups |= self.ends_groups(row, args, &effect);
        let worker = self.worker.clone();
        let redis = match &worker.shared.l3 {
            L3::Redis(redis) => redis,
            L3::Embedded(store) => {
                let (database, protocol) = (self.client.database, self.client.protocol);
                let words: Vec<&[u8]> = match args.instead() {
                    Some(instead) => instead.words.iter().map(|word| &word[..]).collect(),
                    None => args.iter().collect(),
                };
                let mut reply = Vec::new();
                store.execute(database, protocol, &words, &mut reply);
                for (_, name) in &effect.leases {
                    store.execute(database, protocol, &[b"DEL", name], &mut Vec::new());
                }
                if let Some(renewal) = &effect.renews {
                    let life = renewal.life.as_millis().max(1).to_string();
                    let words: [&[u8]; 5] = [b"SET", &renewal.key, &renewal.value, b"PX", life.as_bytes()];
                    store.execute(database, protocol, &words, &mut Vec::new());
                }
                let to = ReplyTo { mailbox: self.mailbox.clone(), place: self.expect(pending) };
                effect.apply(&worker.shared);
                let seq = to.place.seq;
                if effect.shows.is_empty() {
                    self.complete(seq, reply.into());
                } else {
                    let held = HeldReply { to, bytes: reply.into() };
                    let relayed = RelayedStrings {
                        held,
                        shows: effect.shows,
                        database,
                        protocol,
                        behind: None,
                        lives: Vec::new(),
                    };
                    relayed.hand_on(&worker.shared, Ok(Vec::new()));
                }
                return Flow::Done;
            }
        };
        if redis.cluster().is_some() {
            if routing::is_about_clusters(args) {
                self.reply_error(routing::NO_CLUSTER);
                return Flow::Done;
            }
            if let Some(flow) = self.scatter(redis, row, args, &effect) {
                return flow;
            }
        }
        let node = match self.home(redis, Self::routing_key(row, args)) {
            Home::Node(node) => node,
            Home::Hold => return Flow::Hold,
            Home::Unknown(reason) => return self.reply_not_ready(&reason),
        };
        let (database, protocol) = (self.client.database, self.client.protocol);
        let stream = Stream::Relay(database, protocol);
        if self.is_under_way_elsewhere(stream) {
            return Flow::Hold;
        }
        self.stream = stream;
        self.note_write(row, node.id);
        let place = self.expect(pending);
        self.note_groups(place.seq, &effect);
        self.send_relayed(&worker.relay(&node, database, protocol), args.to_bytes(), place, effect);
        Flow::Done
    }

    pub(super) fn send_relayed(&self, lane: &LaneHandle<Tag>, bytes: Bytes, place: Place, effect: Effect) {
        self.send_on(lane, bytes, Asking::No, place, effect, 0);
    }

    /// As [`send_relayed`](Self::send_relayed), where redirections have led before.
    pub(super) fn send_on(
        &self,
        lane: &LaneHandle<Tag>,
        bytes: Bytes,
        asking: Asking,
        place: Place,
        effect: Effect,
        hops: u8,
    ) {
        let is_cluster = matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.cluster().is_some());
        let to = ReplyTo { mailbox: self.mailbox.clone(), place };
        let request = is_cluster.then(|| (bytes.clone(), hops));
        let Wrapped { bytes, replies, answer } = load::with_ended_leases(&effect, bytes, asking);
        let (database, protocol) = (self.client.database, self.client.protocol);
        let tag = Tag::Relay(Relay { to, effect, reply: None, answer, database, protocol, request });
        if lane.submit(Request { bytes, replies, tag }).is_err() {
            let reply = Bytes::from_static(b"-NOTREADY the sidecar is shutting down\r\n");
            self.mailbox.deliver(Delivery::Reply { place, bytes: reply });
        }
    }

    /// A fill failed: the read goes over the relay, unless the rules for unproven copies say otherwise.
    pub(super) fn bypass(&mut self, place: Place) {
        let (request, effect, unproven) = match self.replies.pending_mut(place.seq) {
            Some(Pending::Filling { request, key, unproven }) => {
                let request = std::mem::take(request);
                let effect = effect_of_read(&request, *key);
                (request, effect, unproven.take())
            }
            Some(Pending::FillingMany { request, effect }) => {
                (std::mem::take(request), std::mem::take(&mut **effect), None)
            }
            Some(Pending::Gathering(gathering)) => {
                let Some((request, effect)) = gathering.fallback(place.part) else { return };
                (request, effect, None)
            }
            _ => return,
        };
        self.under_way.remove(&effect.keys);
        if let Some(answer) = unproven.and_then(|copy| self.answer_unproven(&copy)) {
            self.complete(place.seq, answer);
            return;
        }
        match self.replies.pending_mut(place.seq) {
            Some(Pending::Gathering(_)) | None => self.mixed = true,
            Some(pending) => {
                *pending = Pending::Relayed;
                self.mixed = self.replies.waiting() > 1;
            }
        }
        if self.load_instead(place, &request) {
            return;
        }
        let worker = self.worker.clone();
        let L3::Redis(redis) = &worker.shared.l3 else { return };
        let (database, protocol) = (self.client.database, self.client.protocol);
        self.stream = Stream::Relay(database, protocol);
        let key = routing::key_of(&request);
        // Also by a newer map than the other requests: `mixed` holds back what comes now.
        match key.and_then(|key| redis.owner(&key)) {
            Some(node) => self.send_relayed(&worker.relay(&node, database, protocol), request, place, effect),
            None => self.complete_part(place, Bytes::from_static(b"-NOTREADY the key's node is not known\r\n")),
        }
    }

    /// SELECT: the relay of the other database says whether there is such a database.
    pub(super) fn select(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let Some(database) = caddy_resp::parse_i64(args.get(1)) else {
            self.reply_error("ERR value is not an integer or out of range");
            return Flow::Done;
        };
        if i32::try_from(database).is_err() {
            self.reply_error("ERR value is out of range, value must between -2147483648 and 2147483647");
            return Flow::Done;
        }
        let Ok(database) = u32::try_from(database) else {
            self.reply_error("ERR DB index is out of range");
            return Flow::Done;
        };
        if database != 0 && matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.cluster().is_some()) {
            self.reply_error("ERR SELECT is not allowed in cluster mode");
            return Flow::Done;
        }
        if database == self.client.database && self.replies.waiting() == 0 {
            self.reply_ok();
            return Flow::Done;
        }
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let previous = self.client.database;
        self.client.set_database(database);
        self.relay(row, args, effect(row, args), Pending::Selecting(previous))
    }
}
