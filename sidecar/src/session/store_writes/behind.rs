//! Writing behind: the command goes to L3, what L3 took is queued for the store, and then the app is answered.
//!
//! Of one node of L3 all such writes of this sidecar travel on one connection, so that their replies are in the order in
//! which they were executed. A write goes as it is, with what ends the leases of its keys beside it; where it is recorded in
//! Redis, it is one script.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{KeyHash, crash, strategy::behind::Room};
use caddy_remote::{
    Request,
    cluster::slot_of,
    leases,
    writes::{Step, StreamNames},
};
use caddy_resp::{Protocol, encode};

use super::{Part, StoreWrite, opening};
use crate::{
    behind::{Behind, Form, Sending, Size, Storing, Streams, error_text},
    commands::Row,
    guards::{Guard, hold},
    keyspaces::Source,
    mailbox::ReplyTo,
    nodes::Node,
    session::{
        args::Args,
        conversation::{Conversation, Flow, Pending, Stream},
        relaying::effect,
        routing::{Home, effect_of_part},
    },
    shared::{L3, Shared},
    upstream::{Effect, Tag},
};

/// How long others may not load a key that was deleted, if the store is never heard of.
const TOMBSTONE_MILLIS: &str = "30000";

impl Conversation {
    pub(super) fn write_behind(
        &mut self,
        row: &'static Row,
        args: Args<'_>,
        source: &Source,
        behind: &Arc<Behind>,
        write: StoreWrite,
    ) -> Flow {
        let has_envelopes = || !source.settings.stale_if_error.is_zero() || self.worker.shared.envelopes.are_there();
        let opens = write.computes() && has_envelopes();
        let keys = write.writes.iter().map(|(key, _)| KeyHash::of(key));
        let is_free = self.worker.shared.behinds.turns.are_free(keys) || !hold(Guard::OlderWritesComeFirst);
        let write = if opens || !is_free { Err(write) } else { self.join_run(row, args, behind, write) };
        let Err(write) = write else { return Flow::Done };
        self.end_run();
        let stream = Stream::Stored(self.client.database);
        if self.is_under_way_elsewhere(stream) {
            return Flow::Hold;
        }
        let shared = self.worker.shared.clone();
        let L3::Redis(redis) = &shared.l3 else { return self.reply_not_ready("there is no Redis") };
        if let Some(refusal) = behind.refusal(&shared) {
            self.reply_error(&refusal);
            return Flow::Done;
        }
        let mut homes = Vec::new();
        for (key, _) in &write.writes {
            match self.home(redis, Some(key)) {
                Home::Node(node) => homes.push((slot_of(key), node)),
                Home::Hold => return Flow::Hold,
                Home::Unknown(reason) => return self.reply_not_ready(&reason),
            }
        }
        self.stream = stream;
        let effect = effect(row, args);
        // Without room, nothing of this session may overtake it while it waits.
        let may_go = !opens && is_free && homes.iter().all(|(slot, _)| behind.takes(*slot));
        let room = may_go.then(|| behind.reserve(Size::of(&write.writes))).flatten();
        let is_waiting = room.is_none();
        let mut room = room;
        let parts = self.expect_parts(args, write, if is_waiting { Pending::Storing } else { Pending::Relayed });
        for part in parts {
            let Part { place, command, write } = part;
            let keys: Vec<&[u8]> = write.writes.iter().map(|(key, _)| &key[..]).collect();
            let Some((_, home)) = keys.first().and_then(|key| homes.iter().find(|(slot, _)| *slot == slot_of(key)))
            else {
                continue;
            };
            let (effect, size) = (effect_of_part(&effect, &keys), Size::of(&write.writes));
            let outgoing = Outgoing {
                shared: shared.clone(),
                home: home.clone(),
                slot: keys.first().map_or(0, |key| slot_of(key)),
                name: row.name,
                command,
                to: ReplyTo { mailbox: self.mailbox.clone(), place },
                protocol: self.client.protocol,
                database: self.client.database,
                effect,
                write,
                opens,
                behind: behind.clone(),
            };
            match room.as_mut().map(|room| room.split(size.records, size.bytes)) {
                Some(room) => outgoing.send(room),
                None => self.worker.supervisor.spawn_local("write for a store", outgoing.send_in_turn(size)),
            }
        }
        Flow::Done
    }
}

/// A write behind, before it is sent.
struct Outgoing {
    shared: Arc<Shared>,
    /// The node of its keys, by the session's slot map.
    home: Arc<Node>,
    slot: u16,
    /// Of the command, as in the table.
    name: &'static str,
    command: Vec<Bytes>,
    to: ReplyTo,
    protocol: Protocol,
    database: u32,
    effect: Effect,
    write: StoreWrite,
    /// What its key has may be in an envelope.
    opens: bool,
    behind: Arc<Behind>,
}

impl Outgoing {
    async fn send_in_turn(self, size: Size) {
        if let Err(reason) = self.behind.prepare(&self.shared, self.slot).await {
            return self.to.reply(error_text(&format!("NOTREADY {reason}; nothing was written")));
        }
        // Behind what is written through to these keys still, from before their keyspace wrote behind.
        let keys: Vec<KeyHash> = self.write.writes.iter().map(|(key, _)| KeyHash::of(key)).collect();
        drop(self.shared.behinds.turns.of(&keys).await);
        if self.opens
            && let Some((key, _)) = self.write.writes.first()
            && let Err(text) = opening::open(&self.shared, self.database, key).await
        {
            return self.to.reply(error_text(&text));
        }
        match self.behind.writer.room(size.records, size.bytes).await {
            Ok(room) => self.send(room),
            Err(error) => {
                let store = &self.behind.store;
                self.to.reply(error_text(&format!("STOREERR store '{store}': {error}; nothing was written")));
            }
        }
    }

    fn send(self, room: Room<Bytes, Bytes>) {
        let shared = self.shared.clone();
        let L3::Redis(redis) = &shared.l3 else { return };
        let names: Vec<Vec<u8>> = self.write.writes.iter().map(|(key, _)| self.shared.lease_of(key)).collect();
        let way = redis.cluster().is_some().then(|| self.shared.behinds.ways.enter(self.slot, &self.home));
        let node = way.as_ref().map_or(&self.home, |way| way.node()).clone();
        let (parts, form) = match &self.behind.streams {
            Some(streams) => {
                let (script, names) = self.as_script(streams, &names);
                (vec![script], Form::Script { is_number: is_number(self.name), names })
            }
            None => with_leases(&self.command, &self.write, &names),
        };
        let bytes = if parts.len() == 1 { parts[0].clone() } else { parts.concat().into() };
        let count = parts.len();
        let Self { to, protocol, database, effect, write, behind, .. } = self;
        let sending =
            way.map(|way| Sending { parts, open: (0..count).collect(), is_asking: false, database, way, hops: 0 });
        let from = to.clone();
        let replies = smallvec::smallvec![None; count];
        let commands = smallvec::smallvec![write];
        let storing = Storing { to, protocol, effect, form, replies, commands, behind, room, sending };
        let request = Request { bytes, replies: count as u16, tag: Tag::Store(Box::new(storing)) };
        crash::point("before-redis");
        if redis.writer(&shared, &node, database).is_none_or(|lane| lane.submit(request).is_err()) {
            from.reply(&b"-NOTREADY the sidecar is shutting down\r\n"[..]);
        }
    }

    /// All of it in one step, with a record of it.
    fn as_script(&self, streams: &Streams, leases: &[Vec<u8>]) -> (Bytes, Arc<StreamNames>) {
        let id = format!("d{}", leases::hex(leases::unique()));
        let names = streams.names(self.shared.in_cluster().then_some(self.slot));
        let step = Step {
            keys: self.write.writes.iter().map(|(key, _)| &key[..]).collect(),
            leases,
            tombstone: self.write.deletes().then_some((id.as_str(), TOMBSTONE_MILLIS)),
            record: Some((&names, streams.member())),
            when: self.write.condition(),
            values: self.write.values(self.name),
            command: self.command.iter().map(|word| &word[..]).collect(),
        };
        let mut out = Vec::new();
        step.write(&mut out);
        (out.into(), names)
    }
}

/// Whether a command answers the number that it leaves.
fn is_number(name: &str) -> bool {
    matches!(name, "incr" | "decr" | "incrby" | "decrby")
}

/// A command together with what it means for the fill leases of its keys.
///
/// A value that was written is there for all who would load; whoever began to load before finds his lease gone, or the key
/// changed, in whichever order the two happen. What was deleted is absent, and the store still has it: the deletion takes
/// the lease itself, first.
fn with_leases(command: &[Bytes], write: &StoreWrite, names: &[Vec<u8>]) -> (Vec<Bytes>, Form) {
    let encoded = |words: Vec<&[u8]>| {
        let mut out = Vec::new();
        encode::command(&mut out, words);
        Bytes::from(out)
    };
    let command = encoded(command.iter().map(|word| &word[..]).collect());
    if !write.deletes() || !hold(Guard::DeletionsHoldLeases) {
        let end = encoded(std::iter::once(&b"DEL"[..]).chain(names.iter().map(Vec::as_slice)).collect());
        return (vec![command, end], Form::Plain { own: 0 });
    }
    let id = format!("d{}", leases::hex(leases::unique()));
    let count = names.len().to_string();
    let take = match names {
        // Of one key, so that a cluster can send it on while its slot moves.
        [name] => vec![b"SET", &name[..], id.as_bytes(), b"PX", TOMBSTONE_MILLIS.as_bytes()],
        names => {
            let mut take: Vec<&[u8]> = vec![b"EVAL", TAKE_LEASES.as_bytes(), count.as_bytes()];
            take.extend(names.iter().map(Vec::as_slice));
            take.extend([id.as_bytes(), TOMBSTONE_MILLIS.as_bytes()]);
            take
        }
    };
    (vec![encoded(take), command], Form::Plain { own: 1 })
}

/// `KEYS`: leases. `ARGV`: an id, milliseconds.
const TAKE_LEASES: &str = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2]) end return #KEYS";
