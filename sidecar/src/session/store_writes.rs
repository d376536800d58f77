//! Writes of keys whose keyspace writes to a store: through it, or behind it.
//!
//! Owns which commands can be and which are refused, and in which order the parts of a write happen. *Behind*: room is
//! reserved, the command goes to L3 on the one connection for such writes, and what L3 took is queued for the store
//! before the app is answered ([`Storing`]). *Through* ([`through`]): the store first. A session does nothing else on other
//! connections while such a write is unanswered. Fails with `-STOREERR` before anything was written, where that is how it
//! failed, and says so otherwise.

mod command;
mod through;

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::strategy::behind::Room;
use caddy_remote::{LaneHandle, Request, leases};
use caddy_resp::{Protocol, encode};

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream, effect},
};
use crate::{
    behind::{Behind, Size, Storing, error_text},
    commands::{Effect as RowEffect, Row},
    guards::{Guard, hold},
    keyspaces::Source,
    mailbox::ReplyTo,
    shared::{L3, Shared},
    upstream::{Effect, Tag},
};
pub(crate) use command::{StoreWrite, Wanted};

/// Keys of one command.
const MAX_KEYS: usize = 1_000;
/// How long others may not load a key that was deleted, if the store is never heard of.
const TOMBSTONE_MILLIS: &str = "30000";

impl Conversation {
    /// A command that writes keys of a keyspace with a store to write to; `None`: it does not.
    pub(super) fn store_write(&mut self, row: &'static Row, args: Args<'_>) -> Option<Flow> {
        // An invalidation is about copies, Redis's own included.
        let may_write =
            matches!(row.effect, RowEffect::WritesKeys | RowEffect::KeysUnknown) && !args.is(0, "CACHE.INVALIDATE");
        if !may_write || !self.worker.shared.keyspaces().writes() || !row.accepts(args.len()) {
            return None;
        }
        let shared = self.worker.shared.clone();
        let keyspaces = shared.keyspaces();
        let positions = row.keys(args.len(), |index| args.get(index));
        let written = |at: usize| keyspaces.source(args.get(at)).filter(|source| source.is_written());
        let source = positions.iter().find_map(|at| written(*at))?.clone();
        let wanted = Wanted::of(row.name, args);
        if wanted == Wanted::Nothing {
            return None;
        }
        if self.is_about_to_unpin() {
            return Some(Flow::Hold);
        }
        let is_alone = positions.iter().all(|at| written(*at).is_some_and(|other| Arc::ptr_eq(other, &source)));
        let refusal = match &wanted {
            _ if self.pinned.is_some() => {
                "it goes to a store too, and not from within MULTI, WATCH, a subscription or tracking: use a connection of its own".to_owned()
            }
            _ if self.client.database != 0 => "keys that have a store are in database 0".to_owned(),
            _ if !is_alone => "all keys of a command that writes to a store must be in one keyspace".to_owned(),
            _ if positions.len() > MAX_KEYS => format!("at most {MAX_KEYS} keys of one command are written to a store"),
            Wanted::Refused(hint) => (*hint).to_owned(),
            _ => String::new(),
        };
        if !refusal.is_empty() {
            return Some(self.refuse_store_write(&source, args, &refusal));
        }
        Some(match &source.behind {
            Some(behind) => {
                let Wanted::Writes(write) = wanted else { return None };
                self.write_behind(row, args, behind, write)
            }
            None => match wanted.before_l3() {
                Wanted::Writes(write) => self.write_through(row, args, source, write),
                Wanted::Refused(hint) => self.refuse_store_write(&source, args, hint),
                Wanted::Nothing => return None,
            },
        })
    }

    fn refuse_store_write(&mut self, source: &Source, args: Args<'_>, hint: &str) -> Flow {
        let strategy = source.settings.strategy;
        let text = format!("ERR '{}' is not available in a keyspace with strategy {strategy:?}: {hint}", args.name());
        if let Some(flow) = self.refuse_in_transaction(error_text(&text).to_vec()) {
            return flow;
        }
        self.reply_error(&text);
        Flow::Done
    }

    /// Whether the session's writes to a store are unanswered: what is read or written elsewhere comes after them.
    pub(super) fn is_behind_store_write(&self) -> bool {
        self.replies.waiting() > 0 && matches!(self.stream, Stream::Stored(_)) && hold(Guard::ReadsFollowRelay)
    }

    // === behind ===

    fn write_behind(&mut self, row: &'static Row, args: Args<'_>, behind: &Arc<Behind>, write: StoreWrite) -> Flow {
        let stream = Stream::Stored(self.client.database);
        if self.is_under_way_elsewhere(stream) {
            return Flow::Hold;
        }
        let shared = self.worker.shared.clone();
        let Some(lane) = writer(&shared, self.client.database) else {
            return self.reply_not_ready("the connection to Redis is not there yet; repeat it");
        };
        self.stream = stream;
        let size = Size::of(&write.writes);
        let (request, index) = with_leases(&shared, args, &write);
        let room = behind.reserve(size);
        // Without room nothing of this session may overtake it while it waits.
        let place = self.expect(if room.is_some() { Pending::Relayed } else { Pending::Storing });
        let outgoing = Outgoing {
            lane,
            request,
            index,
            to: ReplyTo { mailbox: self.mailbox.clone(), place },
            protocol: self.client.protocol,
            effect: effect(row, args),
            write,
            behind: behind.clone(),
        };
        match room {
            Some(room) => outgoing.send(room),
            None => self.worker.supervisor.spawn_local("write for a store", outgoing.send_in_turn(size)),
        }
        Flow::Done
    }
}

/// A write behind, before it is sent.
struct Outgoing {
    lane: LaneHandle<Tag>,
    request: Bytes,
    index: u16,
    to: ReplyTo,
    protocol: Protocol,
    effect: Effect,
    write: StoreWrite,
    behind: Arc<Behind>,
}

impl Outgoing {
    async fn send_in_turn(self, size: Size) {
        match self.behind.writer.room(size.records, size.bytes).await {
            Ok(room) => self.send(room),
            Err(error) => {
                let store = &self.behind.store;
                self.to.reply(error_text(&format!("STOREERR store '{store}': {error}; nothing was written")));
            }
        }
    }

    fn send(self, room: Room<Bytes, Bytes>) {
        let Self { lane, request, index, to, protocol, effect, write, behind } = self;
        let from = to.clone();
        let storing = Storing { to, protocol, effect, index, reply: None, write, behind, room };
        if lane.submit(Request { bytes: request, replies: 2, tag: Tag::Store(Box::new(storing)) }).is_err() {
            from.reply(&b"-NOTREADY the sidecar is shutting down\r\n"[..]);
        }
    }
}

/// The connection for writes that go to a store too.
fn writer(shared: &Arc<Shared>, database: u32) -> Option<LaneHandle<Tag>> {
    let L3::Redis(redis) = &shared.l3 else { return None };
    redis.writer(shared, redis.only()?, database)
}

/// A command together with what it means for the fill leases of its keys, and which of the two replies is its own.
///
/// A value that was written is there for all who would load; whoever began to load before finds his lease gone, or the key
/// changed, in whichever order the two happen. What was deleted is absent, and the store still has it: the deletion takes
/// the lease itself, first.
fn with_leases(shared: &Shared, args: Args<'_>, write: &StoreWrite) -> (Bytes, u16) {
    let domain = &shared.config().cluster.domain;
    let names = write.writes.iter().map(|(key, _)| leases::name(domain, key, false));
    let mut out = Vec::new();
    if write.deletes() {
        let id = format!("d{}", leases::hex(leases::unique()));
        let names: Vec<Vec<u8>> = names.collect();
        let count = names.len().to_string();
        let mut command: Vec<&[u8]> = vec![b"EVAL", TAKE_LEASES.as_bytes(), count.as_bytes()];
        command.extend(names.iter().map(Vec::as_slice));
        command.extend([id.as_bytes(), TOMBSTONE_MILLIS.as_bytes()]);
        encode::command(&mut out, command);
        out.extend_from_slice(&args.to_bytes());
        return (out.into(), 1);
    }
    out.extend_from_slice(&args.to_bytes());
    encode::array_header(&mut out, write.writes.len() + 1);
    encode::bulk(&mut out, b"DEL");
    names.for_each(|name| encode::bulk(&mut out, &name));
    (out.into(), 0)
}

/// `KEYS`: leases. `ARGV`: an id, milliseconds.
const TAKE_LEASES: &str = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2]) end return #KEYS";
