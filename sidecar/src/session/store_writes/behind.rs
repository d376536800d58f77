//! Writing behind: the command goes to L3, what L3 took is queued for the store, and then the app is answered.
//!
//! Of one node of L3 all such writes of this sidecar travel on one connection, so that their replies are in the order in
//! which they were executed. A write goes as it is, with what ends the leases of its keys beside it; where it is recorded in
//! Redis, it is one script. What depends on what was there is executed by a script that looks first: what L3 lacks is
//! [loaded](existing), and the command sent once more.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{KeyHash, codec::envelope::MAGIC, crash, strategy::behind::Room};
use caddy_remote::{
    Request,
    cluster::slot_of,
    leases,
    writes::{self, Needs, Step, StreamNames},
};
use caddy_resp::{Protocol, encode};

use super::{
    Part, StoreWrite,
    existing::{self, Existing},
};
use crate::{
    behind::{Behind, Command, Form, Sending, Size, Storing, Streams, error_text},
    commands::Row,
    effect::Effect,
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
    supervisor::Supervisor,
    upstream::Tag,
};

/// How long others may not load a key that was deleted, if the store is never heard of.
const TOMBSTONE_MILLIS: &str = "30000";
/// How often what a command needs is loaded, and gone again when it is executed.
const MOST_LOOKS: u8 = 3;

impl Conversation {
    pub(super) fn write_behind(
        &mut self,
        row: &'static Row,
        args: Args<'_>,
        source: &Source,
        behind: &Arc<Behind>,
        write: StoreWrite,
    ) -> Flow {
        // What looks back may have to be sent once more, behind a load: only others of its run are sent before its answer.
        let is_behind_looks = matches!(self.replies.last_pending(), Some(Pending::Storing));
        if is_behind_looks && (self.run.is_none() || !write.looks_back()) {
            return Flow::Hold;
        }
        let keys = write.writes.iter().map(|(key, _)| KeyHash::of(key));
        let is_free = self.worker.shared.behinds.turns.are_free(keys) || !hold(Guard::OlderWritesComeFirst);
        let needs = self.needs(source, &write);
        let write = if is_free { self.join_run(row, args, behind, write, needs) } else { Err(write) };
        let Err(write) = write else { return Flow::Done };
        self.end_run();
        let stream = Stream::Stored(self.client.database);
        if is_behind_looks || self.is_under_way_elsewhere(stream) {
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
        let looks_first = !needs.is_nothing() && !Outgoing::is_guarded_whole(&shared, behind);
        // Without room, nothing of this session may overtake it while it waits.
        let may_go = !looks_first && is_free && homes.iter().all(|(slot, _)| behind.takes(*slot));
        let room = may_go.then(|| behind.reserve(Size::of(&write.writes))).flatten();
        let may_wait = room.is_none() || !needs.is_nothing();
        let mut room = room;
        let parts = self.expect_parts(args, write, if may_wait { Pending::Storing } else { Pending::Relayed });
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
                supervisor: self.worker.supervisor.clone(),
                home: home.clone(),
                slot: keys.first().map_or(0, |key| slot_of(key)),
                name: row.name,
                command,
                to: ReplyTo { mailbox: self.mailbox.clone(), place },
                protocol: self.client.protocol,
                database: self.client.database,
                effect,
                write,
                needs,
                looks: u8::from(looks_first),
                behind: behind.clone(),
            };
            match room.as_mut().map(|room| room.split(size.records, size.bytes)) {
                Some(room) => outgoing.send(room),
                None => self.worker.supervisor.spawn_local("write for a store", outgoing.send_in_turn()),
            }
        }
        Flow::Done
    }

    /// What a write needs of what L3 has.
    fn needs(&self, source: &Source, write: &StoreWrite) -> Needs {
        if !hold(Guard::OldValuesAreLoaded) {
            return Needs::default();
        }
        let has_envelopes = || !source.settings.stale_if_error.is_zero() || self.worker.shared.envelopes.are_there();
        write.needs((write.computes() && has_envelopes()).then_some(MAGIC))
    }
}

/// A write behind, before it is sent.
pub(crate) struct Outgoing {
    pub(super) shared: Arc<Shared>,
    supervisor: Supervisor,
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
    /// What L3 has to have, so that it may be executed.
    needs: Needs,
    /// How often that was, or is to be, seen to in front of it.
    looks: u8,
    behind: Arc<Behind>,
}

impl Outgoing {
    /// Whether what a write needs is looked at in the very step in which it is executed, with all that belongs to it. In a
    /// cluster that would concern several keys, which a slot on its way does not take, without need.
    fn is_guarded_whole(shared: &Shared, behind: &Behind) -> bool {
        behind.streams.is_some() || !shared.in_cluster()
    }

    /// Once L3 has what it needs, behind whatever else it has to wait for.
    pub(super) async fn send_in_turn(mut self) {
        if let Err(reason) = self.behind.prepare(&self.shared, self.slot).await {
            return self.to.reply(error_text(&format!("NOTREADY {reason}; nothing was written")));
        }
        // Behind what is written through to these keys still, from before their keyspace wrote behind.
        let keys: Vec<KeyHash> = self.write.writes.iter().map(|(key, _)| KeyHash::of(key)).collect();
        drop(self.shared.behinds.turns.of(&keys).await);
        if self.looks > 0 {
            let keys = self.write.writes.iter().map(|(key, _)| key);
            let seen = existing::see_to(&self.shared, self.database, keys, self.needs.no_magic.is_some()).await;
            match seen {
                Ok(Existing::All) => {}
                Ok(Existing::Some) => self.needs.presence = false,
                Err(text) => return self.to.reply(error_text(&text)),
            }
        }
        let size = Size::of(&self.write.writes);
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
            None => self.with_leases(&names),
        };
        let bytes = if parts.len() == 1 { parts[0].clone() } else { parts.concat().into() };
        let count = parts.len();
        let again = (!self.needs.is_nothing()).then(|| {
            let (supervisor, looks) = (self.supervisor.clone(), self.looks);
            Box::new(Again { supervisor, name: self.name, command: self.command, needs: self.needs, looks })
        });
        let Self { to, protocol, database, effect, write, behind, .. } = self;
        let sending =
            way.map(|way| Sending { parts, open: (0..count).collect(), is_asking: false, database, way, hops: 0 });
        let from = to.clone();
        let replies = smallvec::smallvec![None; count];
        let commands = smallvec::smallvec![Command { write, again }];
        let storing = Storing { to, protocol, effect, form, replies, commands, behind, room, sending };
        let request = Request { bytes, replies: count as u16, tag: Tag::Store(Box::new(storing)) };
        crash::point("before-redis");
        if redis.writer(&shared, &node, database).is_none_or(|lane| lane.submit(request).is_err()) {
            from.reply(&b"-NOTREADY the sidecar is shutting down\r\n"[..]);
        }
    }

    /// All of it in one step, with a record of it.
    fn as_script(&self, streams: &Streams, leases: &[Vec<u8>]) -> (Bytes, Arc<StreamNames>) {
        let id = tombstone();
        let names = streams.names(self.shared.in_cluster().then_some(self.slot));
        let step = Step {
            keys: self.write.writes.iter().map(|(key, _)| &key[..]).collect(),
            leases,
            tombstone: self.write.deletes().then_some((id.as_str(), TOMBSTONE_MILLIS)),
            record: Some((&names, streams.member())),
            when: self.write.condition(),
            needs: self.needs,
            values: self.write.values(self.name),
            command: self.command.iter().map(|word| &word[..]).collect(),
        };
        let mut out = Vec::new();
        step.write(&mut out);
        (out.into(), names)
    }

    /// A command together with what it means for the fill leases of its keys.
    ///
    /// A value that was written is there for all who would load; whoever began to load before finds his lease gone, or the key
    /// changed, in whichever order the two happen. What was deleted is absent, and the store still has it: the deletion takes
    /// the lease itself, first.
    fn with_leases(&self, names: &[Vec<u8>]) -> (Vec<Bytes>, Form) {
        let encoded = |words: &[&[u8]]| {
            let mut out = Vec::new();
            encode::command(&mut out, words.to_vec());
            Bytes::from(out)
        };
        let words: Vec<&[u8]> = self.command.iter().map(|word| &word[..]).collect();
        let keys = self.write.keys();
        let is_deletion = self.write.deletes() && hold(Guard::DeletionsHoldLeases);
        let id = tombstone();
        let mut guarded = Vec::new();
        if !self.needs.is_nothing() && Self::is_guarded_whole(&self.shared, &self.behind) {
            let tombstone = is_deletion.then_some((id.as_str(), TOMBSTONE_MILLIS));
            writes::guarded(&mut guarded, self.needs, &keys, names, tombstone, &words);
            return (vec![guarded.into()], Form::Plain { own: 0 });
        }
        if !is_deletion {
            let command = if self.needs.is_nothing() || keys.len() > 1 {
                encoded(&words)
            } else {
                writes::guarded(&mut guarded, self.needs, &keys, &[], None, &words);
                guarded.into()
            };
            let end: Vec<&[u8]> = std::iter::once(&b"DEL"[..]).chain(names.iter().map(Vec::as_slice)).collect();
            return (vec![command, encoded(&end)], Form::Plain { own: 0 });
        }
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
        (vec![encoded(&take), encoded(&words)], Form::Plain { own: 1 })
    }
}

/// What it takes to send a command once more, behind what it did not find in L3.
#[derive(Debug)]
pub(crate) struct Again {
    pub(super) supervisor: Supervisor,
    /// As in the table.
    pub(super) name: &'static str,
    pub(super) command: Vec<Bytes>,
    pub(super) needs: Needs,
    /// How often that was seen to before.
    pub(super) looks: u8,
}

/// Commands that were not executed, in their order, each with what is left of it.
pub(crate) struct Postponed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) home: Arc<Node>,
    pub(crate) protocol: Protocol,
    pub(crate) behind: Arc<Behind>,
    pub(crate) commands: Vec<(ReplyTo, Effect, StoreWrite, Again)>,
}

impl Postponed {
    /// Loads what they need, and sends them.
    pub(crate) fn send(self) {
        let Some(supervisor) = self.commands.first().map(|(.., again)| again.supervisor.clone()) else { return };
        let task = async move {
            for (to, effect, write, again) in self.commands {
                let Again { supervisor, name, command, needs, looks } = again;
                if looks == MOST_LOOKS {
                    to.reply(error_text(existing::DOES_NOT_STAY));
                    continue;
                }
                let outgoing = Outgoing {
                    shared: self.shared.clone(),
                    supervisor,
                    home: self.home.clone(),
                    slot: write.writes.first().map_or(0, |(key, _)| slot_of(key)),
                    name,
                    command,
                    to,
                    protocol: self.protocol,
                    database: 0,
                    effect,
                    write,
                    needs,
                    looks: looks + 1,
                    behind: self.behind.clone(),
                };
                outgoing.send_in_turn().await;
            }
        };
        supervisor.spawn_local("writes that wait for a load", task);
    }
}

/// An id for the leases that a deletion takes.
fn tombstone() -> String {
    format!("d{}", leases::hex(leases::unique()))
}

/// Whether a command answers the number that it leaves.
fn is_number(name: &str) -> bool {
    matches!(name, "incr" | "decr" | "incrby" | "decrby")
}

/// `KEYS`: leases. `ARGV`: an id, milliseconds.
const TAKE_LEASES: &str = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2]) end return #KEYS";
