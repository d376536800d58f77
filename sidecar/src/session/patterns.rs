//! Invalidations by pattern, as a session meets them: its requests wait for what patterns are in force to be known, keys
//! that one has are cleared before they are read or written, and `CACHE.INVALIDATE PATTERN|REGEX` lets one take effect.
//!
//! A key is cleared once for reading and once for writing: Redis removes what it had when the pattern took effect, and
//! notes that it was written since, so that nobody removes that. Only then is the request taken, whatever it is and
//! wherever it goes. A key that cannot be cleared fails the request that named it.

use std::sync::Arc;

use bytes::Bytes;
use caddy_engine::{
    KeyHash,
    invalidation::{InvalidationReason, KeyPattern, PatternKind},
};
use caddy_remote::ranges::{self as wire, Access};
use caddy_resp::encode;
use smallvec::SmallVec;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    routing::Home,
};
use crate::{
    commands::{Effect as RowEffect, Row},
    effect::Effect,
    events,
    guards::{Guard, hold},
    mailbox::{Place, ReplyTo},
    ranges::{self, ActiveRange, Known},
    shared::L3,
};

/// What a session knows of its next request, beside what is in force.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    /// What is in force could not be looked at: the next request is taken without, and served no copy as proven.
    pub(super) is_blind: bool,
    /// Why a key of the next request could not be cleared: its answer.
    failure: Option<Bytes>,
}

impl Patterns {
    /// Whether the next request has to be looked at whatever is in force.
    pub(super) fn is_set(&self) -> bool {
        self.is_blind || self.failure.is_some()
    }
}

/// A key that is being cleared for the request behind it.
#[derive(Debug)]
pub(crate) struct Clearing {
    range: Arc<ActiveRange>,
    key: Bytes,
    access: Access,
}

impl Conversation {
    /// What has to happen before a request is taken; `None`: nothing.
    pub(super) fn before(&mut self, row: &'static Row, args: Args<'_>) -> Option<Flow> {
        if let Some(failure) = self.patterns.failure.take() {
            self.reply(|out| out.extend_from_slice(&failure));
            return Some(Flow::Done);
        }
        let worker = self.worker.clone();
        let shared = &worker.shared;
        let keys = row.keys(args.len(), |index| args.get(index));
        if keys.is_empty() {
            return None;
        }
        let (is_read, access) = match row.effect {
            // With WITHMETA a write may follow, under a token from behind the pattern.
            RowEffect::ReadsKeys if args.is(0, "CACHE.GET") && args.len() > 2 => (true, Access::Write),
            RowEffect::Harmless | RowEffect::ReadsKeys => (true, Access::Read),
            RowEffect::WritesKeys | RowEffect::KeysUnknown | RowEffect::Flush => (false, Access::Write),
        };
        let table = match shared.ranges.known(shared, self.now) {
            Known::Active(table) => {
                self.patterns.is_blind = false;
                table
            }
            // What is written without knowing may be removed with what was there before, as if it had come first.
            Known::Stale(table) if self.patterns.is_blind || !is_read => {
                shared.ranges.look_if_nobody_does(shared);
                table
            }
            Known::Stale(_) if self.replies.waiting() > 0 => return Some(Flow::Hold),
            Known::Stale(_) => {
                let place = self.expect(Pending::Looking);
                shared.ranges.wait(shared, ReplyTo { mailbox: self.mailbox.clone(), place });
                return Some(Flow::Hold);
            }
        };
        if table.is_empty() || !hold(Guard::RangesClear) {
            return None;
        }
        let database = self.client.database;
        let mut uncleared: SmallVec<[(Arc<ActiveRange>, &[u8]); 4]> = SmallVec::new();
        for key in keys.iter().map(|position| args.get(*position)) {
            let is_uncleared = |range: &&Arc<ActiveRange>| range.has(database, key) && !range.is_cleared(key, access);
            uncleared.extend(table.iter().filter(is_uncleared).map(|range| (range.clone(), key)));
        }
        if uncleared.is_empty() {
            return None;
        }
        if self.replies.waiting() > 0 {
            return Some(Flow::Hold);
        }
        self.clear(&uncleared, access)
    }

    /// Has keys cleared, each at its node; the request is given again when all are.
    fn clear(&mut self, keys: &[(Arc<ActiveRange>, &[u8])], access: Access) -> Option<Flow> {
        let worker = self.worker.clone();
        let L3::Redis(redis) = &worker.shared.l3 else { return None };
        let (database, protocol) = (self.client.database, self.client.protocol);
        let mut homes = Vec::with_capacity(keys.len());
        for (_, key) in keys {
            match self.home(redis, Some(key)) {
                Home::Node(node) => homes.push(node),
                Home::Hold => return Some(Flow::Hold),
                Home::Unknown(reason) => return Some(self.reply_not_ready(&reason)),
            }
        }
        self.stream = Stream::Relay(database, protocol);
        for ((range, key), node) in keys.iter().zip(homes) {
            let bytes = wire::clear(&worker.shared.ranges.names, &range.record.id, key, access);
            let clearing = Clearing { range: range.clone(), key: Bytes::copy_from_slice(key), access };
            let place = self.expect(Pending::Clearing(Box::new(clearing)));
            let effect = Effect { keys: SmallVec::from_slice(&[KeyHash::of(key)]), ..Effect::default() };
            self.send_relayed(&worker.relay(&node, database, protocol), bytes.into(), place, effect);
        }
        worker.shared.metrics.cleared_keys.inc_by(keys.len() as u64);
        Some(Flow::Hold)
    }

    /// What was waited for in front of a request is over; the app gets nothing of it.
    pub(super) fn complete_silently(&mut self, seq: u64, bytes: &Bytes) {
        match self.replies.complete(seq, Bytes::new()) {
            Some(Pending::Looking) => self.patterns.is_blind = !bytes.is_empty(),
            Some(Pending::Clearing(_)) if bytes.first() == Some(&b'-') => self.patterns.failure = Some(bytes.clone()),
            Some(Pending::Clearing(clearing)) => clearing.range.note_cleared(&clearing.key, clearing.access),
            _ => {}
        }
    }

    // === CACHE.INVALIDATE PATTERN | REGEX ===

    /// Lets a pattern take effect in the session's database, and answers with its id when it has.
    pub(super) fn invalidate_matching(&mut self, kind: PatternKind, text: &[u8], note: &[u8]) -> Flow {
        let pattern = match KeyPattern::new(kind, text) {
            Ok(pattern) => pattern,
            Err(error) => {
                self.reply_error(&format!("ERR {error}"));
                return Flow::Done;
            }
        };
        // What the session wrote before is written before, what it reads behind is read behind.
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let (shared, database) = (self.worker.shared.clone(), self.client.database);
        let place = Place { seq: self.replies.expect(Pending::Locking { waits: false }), part: 0 };
        let to = ReplyTo { mailbox: self.mailbox.clone(), place };
        let note = String::from_utf8_lossy(note).into_owned();
        self.worker.supervisor.spawn_local("invalidation", async move {
            let mut out = Vec::new();
            match ranges::enter(&shared, pattern.clone(), database, note.clone()).await {
                Ok(id) => {
                    let subject = events::subject_of(&pattern);
                    events::tell(&shared, subject, InvalidationReason::Command, note, Some(&id), None);
                    encode::bulk(&mut out, id.as_bytes());
                }
                Err(error) => encode::error(&mut out, error.to_string()),
            }
            to.reply(out);
        });
        Flow::Done
    }

    /// `CACHE.INVALIDATIONS`: the patterns in force, and how far the sweep of each is.
    pub(super) fn invalidations(&mut self) -> Flow {
        if self.replies.waiting() > 0 {
            return Flow::Hold;
        }
        let (shared, protocol) = (self.worker.shared.clone(), self.client.protocol);
        let place = Place { seq: self.replies.expect(Pending::Locking { waits: false }), part: 0 };
        let to = ReplyTo { mailbox: self.mailbox.clone(), place };
        self.worker.supervisor.spawn_local("list of invalidations", async move {
            let active = shared.ranges.active();
            let mut out = Vec::new();
            encode::array_header(&mut out, active.len());
            for range in active.iter() {
                let record = &range.record;
                // What cannot be read now is not known.
                let progress = ranges::read_progress(&shared, &record.id).await.unwrap_or_default();
                encode::map_header(&mut out, protocol, 8);
                let texts: [(&str, &[u8]); 5] = [
                    ("id", record.id.as_bytes()),
                    ("kind", record.pattern.kind().word().as_bytes()),
                    ("pattern", record.pattern.text()),
                    ("origin", record.origin.as_bytes()),
                    ("reason", record.note.as_bytes()),
                ];
                for (name, text) in texts {
                    encode::bulk(&mut out, name.as_bytes());
                    encode::bulk(&mut out, text);
                }
                for (name, number) in
                    [("entered_ms", record.entered), ("keys_seen", progress.seen), ("keys_removed", progress.removed)]
                {
                    encode::bulk(&mut out, name.as_bytes());
                    encode::integer(&mut out, number.cast_signed());
                }
            }
            to.reply(out);
        });
        Flow::Done
    }
}
