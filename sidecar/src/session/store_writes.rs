//! Writes of keys whose keyspace writes to a store: through it, or behind it.
//!
//! Owns which commands can be and which are refused, and in which order the parts of a write happen. *Behind*: room is
//! reserved, the command goes to L3 on the one connection for such writes, and what L3 took is queued for the store
//! before the app is answered ([`Storing`]); what was read together goes together ([`Run`]). *Through* ([`through`]): the
//! store first. A session does nothing else on other connections while such a write is unanswered. Fails with `-STOREERR`
//! before anything was written, where that is how it failed, and says so otherwise.

mod behind;
mod command;
mod existing;
mod run;
mod through;

use std::sync::Arc;

use bytes::Bytes;
use caddy_remote::cluster::slot_of;

use super::{
    args::Args,
    conversation::{Conversation, Flow, Pending, Stream},
    gather::{self, Gathering},
};
use crate::{
    behind::error_text,
    commands::{Effect as RowEffect, Merge, Row, Spread},
    guards::{Guard, hold},
    keyspaces::Source,
    mailbox::Place,
};
pub(crate) use behind::{Again, Postponed};
pub(crate) use command::{StoreWrite, Wanted};
pub(super) use run::Run;

/// Keys of one command.
const MAX_KEYS: usize = 1_000;

/// What of a command one node of a cluster executes; of any other Redis all of it.
struct Part {
    place: Place,
    /// Its words.
    command: Vec<Bytes>,
    write: StoreWrite,
}

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
        let is_alone = positions.len() == 1
            || positions.iter().all(|at| written(*at).is_some_and(|other| Arc::ptr_eq(other, &source)));
        let refusal = match &wanted {
            _ if self.pinned.is_some() => {
                "it goes to a store too, and not from within MULTI, WATCH, a subscription or tracking: use a connection of its own".to_owned()
            }
            _ if self.client.database != 0 => "keys that have a store are in database 0".to_owned(),
            _ if !is_alone => "all keys of a command that writes to a store must be in one keyspace".to_owned(),
            _ if positions.len() > MAX_KEYS => format!("at most {MAX_KEYS} keys of one command are written to a store"),
            _ if shared.in_cluster() && row.spread == Spread::One && !in_one_slot(args, &positions) => {
                "its keys are in several slots of the cluster, which cannot be written together: use a {hash tag}".to_owned()
            }
            Wanted::Refused(hint) => (*hint).to_owned(),
            _ => String::new(),
        };
        if !refusal.is_empty() {
            return Some(self.refuse_store_write(&source, args, &refusal));
        }
        if let Wanted::Writes(write) = &wanted
            && write.longest() > source.store.max_value_bytes()
        {
            let (store, most) = (&source.store.name, source.store.max_value_bytes());
            self.reply_error(&format!(
                "STOREERR store '{store}' takes values of up to {most} bytes (maxValueBytes); nothing was written"
            ));
            return Some(Flow::Done);
        }
        Some(match &source.behind {
            Some(behind) => {
                let Wanted::Writes(write) = wanted else { return None };
                self.write_behind(row, args, &source, behind, write)
            }
            None => match wanted.before_l3() {
                Wanted::Writes(write) => self.write_through(row, args, &source, write),
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

    /// Places for the replies to a command that writes to a store: one, or in a cluster one for the keys of each slot.
    fn expect_parts(&mut self, args: Args<'_>, write: StoreWrite, pending: Pending) -> Vec<Part> {
        let keys = write.writes.iter().map(|(key, _)| &key[..]);
        let groups = if self.worker.shared.in_cluster() { gather::groups(keys) } else { Vec::new() };
        let places: Vec<_> = groups.into_iter().map(|group| group.places).collect();
        if places.len() < 2 {
            let command = args.iter().map(Bytes::copy_from_slice).collect();
            return vec![Part { place: self.expect(pending), command, write }];
        }
        // Only deletions get here, of which every key is one.
        let gathering = Gathering::new(Merge::Sum, self.client.protocol, places.clone());
        let seq = self.replies.expect(Pending::Gathering(Box::new(gathering)));
        // Some of them may wait; nothing of this session overtakes them.
        self.mixed = true;
        let name = Bytes::copy_from_slice(args.get(0));
        let part = |(part, places): (u32, &smallvec::SmallVec<[usize; 4]>)| {
            let write = write.part(places);
            let keys = write.writes.iter().map(|(key, _)| key.clone());
            let command = std::iter::once(name.clone()).chain(keys).collect();
            Part { place: Place { seq, part }, command, write }
        };
        (0..).zip(&places).map(part).collect()
    }
}

fn in_one_slot(args: Args<'_>, positions: &[usize]) -> bool {
    let mut slots = positions.iter().map(|at| slot_of(args.get(*at)));
    let first = slots.next();
    slots.all(|slot| Some(slot) == first)
}
