//! What is sent to L3 in place of a command about strings, where values may be envelopes.
//!
//! A value written whole is sealed where its keyspace's rule has tags, or where it begins as an envelope does; what its tags
//! were before is learned first, and the request held back meanwhile. Commands about the bytes of strings go as scripts
//! (`strings.rs`), once the domain is known to have envelopes, and cost nothing before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use caddy_engine::{
    KeyHash,
    codec::envelope::{Generation, GenerationList, GenerationName, Header, needs_envelope},
};
use caddy_resp::{Value, encode};
use smallvec::SmallVec;

use super::{
    args::{Args, Instead, ReplyForm},
    caching::{MAX_TAG, too_long},
    conversation::{Conversation, Flow, Pending},
    lookup::Found,
    relaying::effect,
};
use crate::{
    cache::Cached,
    commands::{self, Class, Row, Strings},
    effect::Effect,
    generations::{ALL, How, Learned, Want, generation_life, of_keyspace, of_tag},
    guards::{Guard, hold},
    shared::L3,
    strings::{self, WRONG_TYPE},
};

/// Commands with more words are beyond what a script can pass on, and are sent as they are.
const MAX_WORDS: usize = 4096;

impl Conversation {
    /// What is sent in place of a request; `None`: itself. `Err`: it is held back, or answered.
    pub(super) fn instead(&mut self, row: &Row, args: Args<'_>) -> Result<Option<Instead>, Flow> {
        if !row.accepts(args.len()) {
            return Ok(None);
        }
        match row.strings {
            Strings::Other => Ok(None),
            Strings::Writes(behind) => {
                let sealed = self.sealed(row, args, behind)?;
                // SET … IFEQ looks at what is stored.
                if args.len() > 4 && row.name == "set" && args.from(3).any(compares) {
                    return self.handled(row, args, 0, 1, sealed);
                }
                if row.name == "getset"
                    || row.name == "set" && args.from(3).any(|word| word.eq_ignore_ascii_case(b"GET"))
                {
                    return Ok(self.former(args, sealed));
                }
                Ok(sealed)
            }
            Strings::Takes => Ok(self.former(args, None)),
            Strings::Computes => self.computed_here(row, args),
            // Without a condition it is a DEL.
            Strings::Handles(..) if row.name == "delex" && args.len() == 2 => Ok(None),
            Strings::Handles(from, to) => self.handled(row, args, from, to, None),
        }
    }

    // === whole values ===

    /// The same request with envelopes in place of the values that need one.
    fn sealed(&mut self, row: &Row, args: Args<'_>, behind: usize) -> Result<Option<Instead>, Flow> {
        let shared = self.worker.shared.clone();
        let keyspaces = shared.keyspaces();
        let positions = row.keys(args.len(), |index| args.get(index));
        // Of what goes to a store too, the store has the value.
        let is_stored = |at: &usize| keyspaces.source(args.get(*at)).is_some_and(|source| source.is_written());
        let is_like_one = |at: &usize| needs_envelope(args.get(at + behind)) && !is_stored(at);
        if !hold(Guard::WritesAreSealed) || !keyspaces.tags() && !positions.iter().any(is_like_one) {
            return Ok(None);
        }
        let life = life(row, args);
        let create = How::Create(generation_life(life));
        let mut wants: Vec<Want> = Vec::new();
        let mut values: SmallVec<[(usize, SmallVec<[usize; 6]>); 4]> = SmallVec::new();
        for at in positions.iter().copied().filter(|at| at + behind < args.len()) {
            let tags = keyspaces.tags_of(args.get(at));
            if let Some(tag) = tags.iter().find(|tag| tag.len() > MAX_TAG) {
                return Err(self.answer_error(&too_long("tag of the keyspace's rule", tag, MAX_TAG)));
            }
            if tags.is_empty() && !is_like_one(&at) {
                continue;
            }
            let names = tags.iter().map(|tag| of_tag(tag));
            let groups = (!tags.is_empty()).then(|| [ALL.to_vec(), of_keyspace(&self.keyspace_of(args.get(at)))]);
            let places = groups.into_iter().flatten().chain(names).map(|name| {
                let name = shared.domain.key(&name);
                wants.iter().position(|want| want.name == name).unwrap_or_else(|| {
                    wants.push(Want { name, how: create.clone() });
                    wants.len() - 1
                })
            });
            values.push((at, places.collect()));
        }
        if values.is_empty() {
            return Ok(None);
        }
        if !wants.is_empty() && self.is_behind_invalidation() {
            return Err(Flow::Hold);
        }
        let learned = self.generations(&wants)?;
        let mut words: Vec<Bytes> = args.iter().map(Bytes::copy_from_slice).collect();
        for (at, places) in &values {
            let mut generations = GenerationList::default();
            for Learned { cell, reading } in places.iter().map(|place| &learned[*place]) {
                let (Some(name), Some(value)) = (shared.domain.name(cell.name()), reading.value) else { continue };
                // At most eighteen short names.
                let _ = generations.push(Generation { name: GenerationName::Name(name), value });
            }
            let header = Header { generations: generations.generations(), ..Header::default() };
            words[at + behind] = shared.envelopes.seal(args.get(*at), &header, args.get(at + behind)).into();
        }
        shared.extend(self.client.database, learned.iter().map(|learned| &learned.cell), life);
        Ok(Some(Instead { words, reply: ReplyForm::Same }))
    }

    /// Whether a request may end generations.
    pub(super) fn ends_groups(&self, row: &Row, args: Args<'_>, effect: &Effect) -> bool {
        let shared = &self.worker.shared;
        let names_any = || {
            let positions = row.keys(args.len(), |index| args.get(index));
            positions.iter().any(|at| shared.domain.name(args.get(*at)).is_some())
        };
        effect.flush
            || effect.renews.is_some()
            || effect.barrier && shared.envelopes.are_there()
            || effect.leases.iter().any(|(_, name)| shared.domain.name(name).is_some())
            || row.effect == commands::Effect::WritesKeys && names_any()
    }

    /// A request is under way; what it has to do with generations is remembered until it is answered.
    pub(super) fn note_groups(&mut self, seq: u64, effect: &Effect) {
        if effect.ends_groups {
            self.ends_groups = Some(seq);
        }
        if !effect.shows.is_empty() {
            self.shows_groups = Some(seq);
        }
    }

    /// Whether a request may end generations that what this session waits for depends on. They may have to be read again
    /// before that can be answered, and that is to find them as they are now.
    pub(super) fn would_end_what_is_shown(&mut self, row: &Row, args: Args<'_>) -> bool {
        let is_shown = self.shows_groups.is_some_and(|seq| self.replies.pending_mut(seq).is_some());
        if !is_shown || !self.worker.shared.envelopes.are_there() {
            return false;
        }
        let effect = self.ending_leases(row, args, effect(row, args));
        row.class == Class::Cache || row.name == "exec" || self.ends_groups(row, args, &effect)
    }

    /// Whether a request in front of this one may end generations: what is written now is to be bound to those that it leaves.
    pub(super) fn is_behind_invalidation(&mut self) -> bool {
        self.ends_groups.is_some_and(|seq| self.replies.pending_mut(seq).is_some())
    }

    /// The same in front of a cluster, where what comes behind it may be another node's, and so be executed before it.
    pub(super) fn is_behind_another_nodes_invalidation(&mut self) -> bool {
        self.is_behind_invalidation() && self.worker.shared.in_cluster()
    }

    // === parts of values, and bytes ===

    /// A command that is not to touch an envelope's bytes; `sealed`: what is sent in its place anyway.
    fn handled(
        &mut self,
        row: &Row,
        args: Args<'_>,
        from: usize,
        to: usize,
        sealed: Option<Instead>,
    ) -> Result<Option<Instead>, Flow> {
        let shared = self.worker.shared.clone();
        if !shared.envelopes.are_there() || args.len() > MAX_WORDS || !hold(Guard::EnvelopesStayWhole) {
            return Ok(sealed);
        }
        let keys = keys(row, args);
        if let L3::Embedded(_) = &shared.l3 {
            let handled = keys.iter().take(to).skip(from);
            if handled.map(|key| self.embedded_value(key)).any(|(value, _)| value.bytes().is_some_and(needs_envelope)) {
                return Err(self.answer_error(WRONG_TYPE));
            }
            return Ok(sealed);
        }
        let words = match sealed {
            Some(sealed) => sealed.words,
            None => args.iter().map(Bytes::copy_from_slice).collect(),
        };
        Ok(Some(Instead { words: strings::handling(&keys, from, to, words.into_iter()), reply: ReplyForm::Same }))
    }

    /// A command that shows the value it found under its key, and changes that or how long it lives; `sealed`: what is sent in
    /// its place anyway.
    fn former(&self, args: Args<'_>, sealed: Option<Instead>) -> Option<Instead> {
        let shared = &self.worker.shared;
        let is_stored = || shared.keyspaces().source(args.get(1)).is_some_and(|source| source.is_written());
        if matches!(shared.l3, L3::Embedded(_)) || !shared.envelopes.are_there() || is_stored() {
            return sealed;
        }
        let words = sealed.map_or_else(|| args.iter().map(Bytes::copy_from_slice).collect(), |sealed| sealed.words);
        Some(Instead { words: strings::taking(args.get(1), words.into_iter()), reply: ReplyForm::Former })
    }

    /// A command whose reply is computed from opened values, where one of its keys may have an envelope.
    fn computed_here(&mut self, row: &Row, args: Args<'_>) -> Result<Option<Instead>, Flow> {
        let shared = self.worker.shared.clone();
        if !shared.envelopes.are_there() || !hold(Guard::EnvelopesStayWhole) {
            return Ok(None);
        }
        let (keys, protocol) = (keys(row, args), self.client.protocol);
        if let L3::Embedded(_) = &shared.l3 {
            let values = keys.iter().map(|key| {
                let (value, pttl) = self.embedded_value(key);
                shared.decode_embedded(self.client.database, key, value, pttl).value
            });
            let values: Vec<Cached> = values.collect();
            let command: Vec<&[u8]> = args.iter().collect();
            let computed = strings::compute(protocol, &command, keys.iter().copied().zip(&values));
            self.reply(|out| computed.encode(protocol, out));
            return Err(Flow::Done);
        }
        let words = args.iter().map(Bytes::copy_from_slice);
        Ok(Some(Instead { words: strings::computing(&keys, protocol, words), reply: ReplyForm::Computed }))
    }

    fn embedded_value(&self, key: &[u8]) -> (Cached, Option<i64>) {
        let L3::Embedded(store) = &self.worker.shared.l3 else { return (Cached::Nil, None) };
        let ask = |command: &[u8]| {
            let mut reply = Vec::new();
            store.execute(self.client.database, self.client.protocol, &[command, key], &mut reply);
            reply
        };
        let (value, pttl) = (ask(b"GET"), ask(b"PTTL"));
        let value = Value::decode(&value).map_or(Cached::Nil, |(value, _)| Cached::from_value(&value));
        (value, crate::answers::integer(&pttl))
    }

    /// A read that the tiers answer elsewhere, where the domain has envelopes: a part of a value from the copy that a GET
    /// left, all else by L3, leaving no copy.
    pub(super) fn computed(&mut self, row: &'static Row, args: Args<'_>) -> Flow {
        let is_part = args.instead().is_some_and(|instead| instead.reply == ReplyForm::Computed);
        if is_part && !self.is_behind_relay() {
            let key = args.get(1);
            if self.own_read_of(KeyHash::of(key), args).is_some() || self.would_hold_observed(args) {
                return Flow::Hold;
            }
            let command: Vec<&[u8]> = args.iter().collect();
            let found = self.look_up_value(key, |value, protocol| {
                strings::compute(protocol, &command, std::iter::once((key, value)))
            });
            match found {
                Found::Answered(computed) => {
                    let protocol = self.client.protocol;
                    self.reply(|out| computed.encode(protocol, out));
                    return Flow::Done;
                }
                Found::Observed => return self.relay_observed(row, args),
                Found::Unproven(_) | Found::Absent => {}
            }
        }
        self.relay(row, args, effect(row, args), Pending::Relayed)
    }

    /// Answers by an error that a transaction remembers.
    pub(super) fn answer_error(&mut self, text: &str) -> Flow {
        let mut error = Vec::new();
        encode::error(&mut error, text);
        if let Some(flow) = self.refuse_in_transaction(error) {
            return flow;
        }
        self.reply_error(text);
        Flow::Done
    }
}

fn keys<'a>(row: &Row, args: Args<'a>) -> SmallVec<[&'a [u8]; 4]> {
    row.keys(args.len(), |index| args.get(index)).iter().map(|at| args.get(*at)).collect()
}

fn compares(option: &[u8]) -> bool {
    [&b"IFEQ"[..], b"IFNE", b"IFDEQ", b"IFDNE"].iter().any(|word| option.eq_ignore_ascii_case(word))
}

/// Longer lives are as good as endless.
const ENDLESS: Duration = Duration::from_hours(24 * 365 * 100);

/// How long a value that a request writes is to live; `None`: for ever, or nobody can tell.
fn life(row: &Row, args: Args<'_>) -> Option<Duration> {
    let number = |at: usize| caddy_resp::parse_i64(args.get(at)).and_then(|number| u64::try_from(number).ok());
    let life = match row.name {
        "setex" => number(2).map(Duration::from_secs),
        "psetex" => number(2).map(Duration::from_millis),
        "set" => (3..args.len()).find_map(|at| {
            let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            match args.get(at).to_ascii_uppercase().as_slice() {
                b"EX" => number(at + 1).map(Duration::from_secs),
                b"PX" => number(at + 1).map(Duration::from_millis),
                b"EXAT" => number(at + 1).map(|time| Duration::from_secs(time).saturating_sub(now())),
                b"PXAT" => number(at + 1).map(|time| Duration::from_millis(time).saturating_sub(now())),
                _ => None,
            }
        }),
        _ => None,
    };
    life.filter(|life| *life < ENDLESS)
}
