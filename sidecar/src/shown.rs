//! String values in replies that pass the tiers by: on relays and on sessions' own connections.
//!
//! Owns which values a reply shows, and their way through the seam (`envelope.rs`): an app is never shown an envelope, nor
//! a value whose generations are not in force. A reply without anything that looks like an envelope passes as it is. What
//! depends on generations that are not known waits until they are, and what becomes stale before its key expires until it
//! is known how long the key has left; if that cannot be read, the app is told so.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use caddy_remote::Request;
use caddy_resp::{Protocol, Value, encode};
use smallvec::SmallVec;

use crate::{
    answers::integer,
    barrier::{HeldBack, HeldReply, barrier},
    cache::Cached,
    commands::Row,
    envelope::is_suspect,
    generations::{Learned, Then, Want},
    nodes::Node,
    session::args::{Args, ReplyForm},
    shared::{L3, Shared},
    strings::{self, Computing},
    upstream::Tag,
};

/// Values that one command's reply shows.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// The command's place in the transaction that executes it.
    within: Option<usize>,
    keys: SmallVec<[Bytes; 1]>,
    form: Form,
}

/// How the values stand in the reply.
#[derive(Debug, Clone)]
enum Form {
    /// It is the value, of a key that stays as it is.
    Value,
    /// It is the value that was there before.
    Former,
    /// It is an array of them, in the order of the keys.
    Many,
    /// It is what [`crate::strings::computing`] answers to this command.
    Computed(Vec<Bytes>),
}

impl Shown {
    /// What GET shows.
    pub(crate) fn value_of(key: &[u8]) -> Self {
        Self { within: None, keys: SmallVec::from_iter([Bytes::copy_from_slice(key)]), form: Form::Value }
    }

    /// The same as the `at`th command of a transaction.
    pub(crate) fn within(self, at: usize) -> Self {
        Self { within: Some(at), ..self }
    }

    /// What a command shows, if it shows whole values.
    pub(crate) fn of(row: &Row, args: Args<'_>) -> Option<Self> {
        // CONFIG GET and the like are others.
        if !args.is(0, row.name) {
            return None;
        }
        let keys = |keys: &mut dyn Iterator<Item = &[u8]>| keys.map(Bytes::copy_from_slice).collect();
        let of = |form, all: &mut dyn Iterator<Item = &[u8]>| Some(Self { within: None, keys: keys(all), form });
        let mut one = std::iter::once(args.get(1));
        match args.instead().map(|instead| instead.reply) {
            Some(ReplyForm::Computed) => {
                let positions = row.keys(args.len(), |index| args.get(index));
                let command = args.iter().map(Bytes::copy_from_slice).collect();
                return of(Form::Computed(command), &mut positions.iter().map(|at| args.get(*at)));
            }
            // What a GET in front of it would have said.
            Some(ReplyForm::Former) => {
                let get = vec![Bytes::from_static(b"GET"), Bytes::copy_from_slice(args.get(1))];
                return of(Form::Computed(get), &mut one);
            }
            _ => {}
        }
        match row.name {
            "get" => of(Form::Value, &mut one),
            "getex" | "getdel" | "getset" => of(Form::Former, &mut one),
            "set" if args.from(3).any(|option| option.eq_ignore_ascii_case(b"GET")) => of(Form::Former, &mut one),
            "mget" => of(Form::Many, &mut args.from(1)),
            _ => None,
        }
    }

    /// The same of a part of the request.
    pub(crate) fn part(&self, keys: &[&[u8]]) -> Self {
        let keys = if let Form::Many = self.form {
            keys.iter().map(|key| Bytes::copy_from_slice(key)).collect()
        } else {
            self.keys.clone()
        };
        Self { keys, form: self.form.clone(), ..*self }
    }

    /// The reply to the command within a reply.
    fn own<'a>(&self, reply: &'a Value<'a>) -> Option<&'a Value<'a>> {
        match self.within {
            Some(at) => reply.as_elements()?.get(at),
            None => Some(reply),
        }
    }

    /// The values in the command's own reply, with their keys and their places.
    fn values<'a>(&'a self, own: &'a Value<'a>) -> Vec<(Place, &'a Bytes, &'a Value<'a>)> {
        let place = |at| Place { within: self.within, at };
        if let Form::Many = self.form {
            let places = own.as_elements().unwrap_or_default().iter().zip(&self.keys).enumerate();
            return places.map(|(at, (value, key))| (place(Some(at)), key, value)).collect();
        }
        self.keys.iter().map(|key| (place(None), key, own)).collect()
    }
}

/// Where in a reply a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    within: Option<usize>,
    at: Option<usize>,
}

/// A reply on its way to an app.
#[derive(Debug)]
pub(crate) struct RelayedStrings {
    pub(crate) held: HeldReply,
    pub(crate) shows: Vec<Shown>,
    pub(crate) database: u32,
    pub(crate) protocol: Protocol,
    /// The node behind whose pushes it is to be handed on.
    pub(crate) behind: Option<Weak<Node>>,
    /// What keys have left to live, as `PTTL` says it.
    pub(crate) lives: Vec<(Bytes, i64)>,
}

/// A look at how long keys have left to live, for values that become stale before.
#[derive(Debug)]
pub(crate) struct Lives {
    relayed: RelayedStrings,
    keys: Vec<Bytes>,
    pub(crate) replies: Vec<Bytes>,
}

/// What has to be known before a reply can be handed on.
#[derive(Debug, Default)]
struct Unknown {
    generations: Vec<Want>,
    lives: Vec<Bytes>,
}

impl Lives {
    /// The replies are in, or will not come.
    pub(crate) fn finish(self, shared: &Arc<Shared>, outcome: Result<(), String>) {
        let Self { mut relayed, keys, replies } = self;
        // Of what could not be asked nobody knows that it is fresh.
        let left = |at: usize| replies.get(at).and_then(|reply| integer(reply)).unwrap_or(-2);
        relayed.lives = keys.into_iter().enumerate().map(|(at, key)| (key, left(at))).collect();
        relayed.hand_on(shared, outcome.map(|()| Vec::new()));
    }
}

impl RelayedStrings {
    /// The reply to a command that did not go over a relay; `left`: what its key had left to live, where it shows what that had.
    pub(crate) fn of_a_write(
        held: HeldReply,
        shows: Vec<Shown>,
        database: u32,
        protocol: Protocol,
        left: Option<i64>,
    ) -> Self {
        let key = shows.first().and_then(|shown| shown.keys.first()).cloned();
        let lives = key.zip(left).into_iter().collect();
        Self { held, shows, database, protocol, behind: None, lives }
    }

    /// Hands the reply on, as soon as what its values depend on is known.
    pub(crate) fn hand_on(mut self, shared: &Arc<Shared>, learned: Result<Vec<Learned>, String>) {
        let rewritten = match &learned {
            Ok(learned) => self.rewritten(shared, learned),
            Err(_) => Ok(None),
        };
        match (rewritten, learned) {
            (_, Err(reason)) => {
                let text = format!("NOTREADY the value depends on generations that cannot be read now: {reason}");
                self.held.bytes = error(&text);
            }
            (Ok(Some(reply)), _) => self.held.bytes = reply,
            (Ok(None), _) => {}
            (Err(unknown), Ok(_)) if !unknown.lives.is_empty() && self.lives.is_empty() => {
                return self.ask_lives(shared, unknown.lives);
            }
            (Err(unknown), Ok(learned)) if learned.is_empty() && !unknown.generations.is_empty() => {
                return shared.learn(self.database, unknown.generations, Then::Relayed(Box::new(self)));
            }
            (Err(_), Ok(_)) => {
                self.held.bytes = error("NOTREADY the value depends on generations that are being renewed; ask again");
            }
        }
        if let Some(node) = self.behind.and_then(|node| node.upgrade()) {
            let held: HeldBack = Arc::new(self.held);
            barrier(shared, &node, &held);
        }
    }

    /// Asks how long keys have left to live; all are at one node.
    fn ask_lives(self, shared: &Arc<Shared>, keys: Vec<Bytes>) {
        let database = self.database;
        let mut lives = Lives { relayed: self, replies: Vec::new(), keys };
        let redis = match &shared.l3 {
            L3::Redis(redis) => redis,
            L3::Embedded(store) => {
                for key in &lives.keys {
                    let mut reply = Vec::new();
                    store.execute(database, Protocol::Resp3, &[b"PTTL", key], &mut reply);
                    lives.replies.push(reply.into());
                }
                return lives.finish(shared, Ok(()));
            }
        };
        let Some(node) = lives.keys.first().and_then(|key| redis.owner(key)) else {
            return lives.finish(shared, Err("the slot map of the cluster is not known yet".to_owned()));
        };
        let mut bytes = Vec::new();
        lives.keys.iter().for_each(|key| encode::command(&mut bytes, [b"PTTL" as &[u8], key]));
        let replies = u16::try_from(lives.keys.len()).unwrap_or(u16::MAX);
        let request = Request { bytes: bytes.into(), replies, tag: Tag::Lives(Box::new(lives)) };
        if let Err(Request { tag: Tag::Lives(lives), .. }) = redis.errand_lane(shared, &node, database).submit(request)
        {
            lives.finish(shared, Err("the sidecar is shutting down".to_owned()));
        }
    }

    /// The reply with values in place of envelopes; `None`: it has none.
    fn rewritten(&self, shared: &Arc<Shared>, learned: &[Learned]) -> Result<Option<Bytes>, Unknown> {
        if self.shows.is_empty() {
            return Ok(None);
        }
        let Ok((reply, _)) = Value::decode(&self.held.bytes) else { return Ok(None) };
        let (mut opened, mut unknown) = (Vec::new(), Unknown::default());
        for (shown, own) in self.shows.iter().filter_map(|shown| Some((shown, shown.own(&reply)?))) {
            if let Form::Computed(command) = &shown.form {
                let place = Place { within: shown.within, at: None };
                let computed = self.computed(shared, shown, command, own, learned, &mut unknown);
                opened.extend(computed.map(|computed| (place, computed)));
                continue;
            }
            for (place, key, value) in shown.values(own) {
                let Some(stored) = value.as_bytes().filter(|stored| is_suspect(stored)) else { continue };
                let left = self.lives.iter().find(|(known, _)| known == key).map(|(_, left)| *left);
                let stays = !matches!(shown.form, Form::Former);
                if stays && left.is_none() && shared.envelopes.ages(key, stored) {
                    unknown.lives.push(key.clone());
                    continue;
                }
                match shared.decode(self.database, key, Cached::from_value(value), left, learned) {
                    Ok(decoded) => opened.push((place, decoded.value)),
                    Err(unread) => unknown.generations.extend(unread),
                }
            }
        }
        if !unknown.generations.is_empty() || !unknown.lives.is_empty() {
            return Err(unknown);
        }
        Ok((!opened.is_empty()).then(|| {
            let mut out = Vec::with_capacity(self.held.bytes.len());
            self.write(&reply, Place { within: None, at: None }, &opened, &mut out);
            out.into()
        }))
    }

    /// The reply to a command of which Redis computed nothing, or everything; `None`: as it is, or not known yet.
    fn computed(
        &self,
        shared: &Arc<Shared>,
        shown: &Shown,
        command: &[Bytes],
        own: &Value<'_>,
        learned: &[Learned],
        unknown: &mut Unknown,
    ) -> Option<Cached> {
        let values = match Computing::parse(own)? {
            Computing::Done(reply) => {
                let mut out = Vec::new();
                reply.encode(self.protocol, &mut out);
                return Some(Cached::Same(out.into()));
            }
            Computing::Values(values) => values,
        };
        if let Some(refusal) = strings::refusal(&values) {
            return Some(refusal);
        }
        let mut fresh = Vec::with_capacity(values.len());
        for (key, (value, left)) in shown.keys.iter().zip(&values) {
            match shared.decode(self.database, key, Cached::from_value(value), *left, learned) {
                Ok(decoded) => fresh.push((&key[..], decoded.value)),
                Err(unread) => unknown.generations.extend(unread),
            }
        }
        let command: Vec<&[u8]> = command.iter().map(|word| &word[..]).collect();
        let values = fresh.iter().map(|(key, value)| (*key, value));
        unknown.generations.is_empty().then(|| strings::compute(self.protocol, &command, values))
    }

    fn write(&self, value: &Value<'_>, place: Place, opened: &[(Place, Cached)], out: &mut Vec<u8>) {
        if let Some((_, value)) = opened.iter().find(|(other, _)| *other == place) {
            return value.encode(self.protocol, out);
        }
        let inside = |other: &Place| match place {
            Place { within: None, at: None } => true,
            Place { at, .. } => at.is_none() && other.within == place.within,
        };
        match value {
            Value::Array(elements) if opened.iter().any(|(other, _)| inside(other)) => {
                encode::array_header(out, elements.len());
                for (at, element) in elements.iter().enumerate() {
                    // Elements of the whole reply are commands of a transaction, or values; those of a command's, values.
                    let is_value =
                        |of: Option<usize>| opened.iter().any(|(other, _)| other.within == of && other.at == Some(at));
                    let own = match place.within {
                        None if is_value(None) => Place { within: None, at: Some(at) },
                        None => Place { within: Some(at), at: None },
                        Some(_) => Place { at: Some(at), ..place },
                    };
                    self.write(element, own, opened, out);
                }
            }
            other => other.encode(self.protocol, out),
        }
    }
}

fn error(text: &str) -> Bytes {
    let mut out = Vec::new();
    encode::error(&mut out, text);
    out.into()
}
