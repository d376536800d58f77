//! A run: plain writes of one session that were read together, and go to L3 as one request.
//!
//! What each of them would cost alone (a request, its place in a lane, the end of a lease, a turn of the queue and of its
//! log, a delivery to the session) is paid once. Only in front of one Redis, where they all travel on one connection anyway:
//! in a cluster each follows its slot. A write that finds no room, a deletion, which takes its leases *before* L3 has it, and
//! what shows old values end the run and go alone. What looks back is a script of its own within it. It is sent before the session does anything else, at the latest with
//! the last request of what was read.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{crash, strategy::behind::Room};
use caddy_remote::{
    Request,
    writes::{self, Needs},
};
use caddy_resp::encode;
use smallvec::{SmallVec, smallvec};

use super::{StoreWrite, behind::Again};
use crate::{
    behind::{Behind, Command, Form, Size, Storing},
    commands::Row,
    effect::Effect,
    mailbox::{Place, ReplyTo},
    session::{
        args::Args,
        conversation::{Conversation, Pending, Stream},
        relaying::effect,
    },
    shared::L3,
    upstream::Tag,
};

/// What is made room for at the beginning.
const USUAL: usize = 16;
const USUAL_BYTES: usize = 4 << 10;
/// Commands of a run.
const MOST: usize = 1_000;
/// Bytes after which one is sent.
const LONG: usize = 64 << 10;

/// See the module.
pub(in crate::session) struct Run {
    behind: Arc<Behind>,
    /// Where the first of the answers goes.
    first: u64,
    commands: SmallVec<[Command; 1]>,
    /// As they are sent.
    bytes: Vec<u8>,
    effect: Effect,
    room: Room<Bytes, Bytes>,
    /// What they take of it.
    taken: Size,
    /// What is left of it.
    free: Size,
}

impl Conversation {
    /// Takes a write into the run, if it can be part of one; else gives it back.
    pub(super) fn join_run(
        &mut self,
        row: &'static Row,
        args: Args<'_>,
        behind: &Arc<Behind>,
        write: StoreWrite,
        needs: Needs,
    ) -> Result<(), StoreWrite> {
        let is_alone = matches!(&self.worker.shared.l3, L3::Redis(redis) if redis.only().is_some());
        let stream = Stream::Stored(self.client.database);
        if !is_alone || behind.streams.is_some() || write.deletes() || self.is_under_way_elsewhere(stream) {
            return Err(write);
        }
        let effect = effect(row, args);
        if !effect.shows.is_empty() {
            return Err(write);
        }
        let (size, seq) = (Size::of(&write.writes), self.replies.next_seq());
        if self.run.as_mut().is_none_or(|run| !run.takes(behind, seq, size)) {
            self.end_run();
            let Some(room) = behind.reserve(size) else { return Err(write) };
            self.run = Some(Box::new(Run {
                behind: behind.clone(),
                first: seq,
                commands: SmallVec::with_capacity(USUAL),
                bytes: Vec::with_capacity(USUAL_BYTES),
                effect: Effect { keys: SmallVec::with_capacity(USUAL), ..Effect::default() },
                room,
                taken: size,
                free: Size::default(),
            }));
        }
        let Some(run) = &mut self.run else { return Err(write) };
        run.effect.keys.extend_from_slice(&effect.keys);
        self.stream = stream;
        if needs.is_nothing() {
            args.append_to(&mut run.bytes);
            run.commands.push(Command { write, again: None });
            self.expect(Pending::Relayed);
            return Ok(());
        }
        let leases: SmallVec<[Vec<u8>; 1]> = write.keys().iter().map(|key| self.worker.shared.lease_of(key)).collect();
        let words: Vec<&[u8]> = args.iter().collect();
        writes::guarded(&mut run.bytes, needs, &write.keys(), &leases, None, &words);
        let command = args.iter().map(Bytes::copy_from_slice).collect();
        let supervisor = self.worker.supervisor.clone();
        let again = Again { supervisor, name: row.name, command, needs, looks: 0 };
        run.commands.push(Command { write, again: Some(Box::new(again)) });
        self.expect(Pending::Storing);
        Ok(())
    }

    /// Sends the run, if there is one.
    pub(in crate::session) fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let Run { behind, first, commands, mut bytes, effect, room, .. } = *run;
        let shared = &self.worker.shared;
        // What is there for all who would load: whoever began to load before finds his lease gone, or the key changed.
        let mut name = shared.lease_of(b"");
        let prefix = name.len();
        let plain = || commands.iter().filter(|command| command.again.is_none());
        let keys = || plain().flat_map(|command| &command.write.writes).map(|(key, _)| key);
        let ended = keys().count();
        if ended > 0 {
            encode::array_header(&mut bytes, 1 + ended);
            encode::bulk(&mut bytes, b"DEL");
        }
        for key in keys() {
            name.truncate(prefix);
            name.extend_from_slice(key);
            encode::bulk(&mut bytes, &name);
        }
        let to = ReplyTo { mailbox: self.mailbox.clone(), place: Place { seq: first, part: 0 } };
        let (count, from) = (commands.len(), to.clone());
        let replies = smallvec![None; count + usize::from(ended > 0)];
        let storing = Storing {
            to,
            protocol: self.client.protocol,
            effect,
            form: Form::Plain { own: 0 },
            replies,
            commands,
            behind,
            room,
            sending: None,
        };
        let request = Request {
            bytes: bytes.into(),
            replies: count as u16 + u16::from(ended > 0),
            tag: Tag::Store(Box::new(storing)),
        };
        crash::point("before-redis");
        let L3::Redis(redis) = &shared.l3 else { return };
        let lane = redis.only().and_then(|node| redis.writer(shared, node, self.client.database));
        if lane.is_none_or(|lane| lane.submit(request).is_err()) {
            from.reply_each((0..count).map(|_| Bytes::from_static(b"-NOTREADY the sidecar is shutting down\r\n")));
        }
    }

    /// The answers to a run.
    pub(in crate::session) fn complete_run(&mut self, first: u64, all: Vec<Bytes>) {
        for (seq, bytes) in (first..).zip(all) {
            self.replies.complete(seq, bytes);
        }
    }
}

impl Run {
    /// Whether the next write is part of it; room for it is there then.
    fn takes(&mut self, behind: &Arc<Behind>, seq: u64, size: Size) -> bool {
        Arc::ptr_eq(&self.behind, behind)
            && self.first + self.commands.len() as u64 == seq
            && self.commands.len() < MOST
            && self.bytes.len() < LONG
            && self.make_room(size)
    }

    /// Makes room for one more, and where there is enough for as many again as there are: to ask for each costs a lock. What is
    /// not used is given back with the writes.
    fn make_room(&mut self, size: Size) -> bool {
        let mut grow = |more: Size| self.room.grow(more.records, more.bytes).then_some(more);
        let free = self.free.less(size).or_else(|| {
            let ahead = size.and(self.taken);
            let more = grow(ahead).or_else(|| grow(size))?;
            self.free.and(more).less(size)
        });
        let Some(free) = free else { return false };
        (self.taken, self.free) = (self.taken.and(size), free);
        true
    }
}
