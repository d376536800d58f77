//! String values in replies that pass the tiers by: on relays and on sessions' own connections.
//!
//! Owns which values a reply shows, and their way through the seam (`envelope.rs`): an app is never shown an envelope, nor
//! a value whose generations are not in force. A reply without anything that looks like an envelope passes as it is. What
//! depends on generations that are not known waits until they are; if they cannot be read, the app is told so.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use caddy_resp::{Protocol, Value, encode};
use smallvec::SmallVec;

use crate::{
    cache::Cached,
    commands::Row,
    envelope::is_suspect,
    generations::{Learned, Then, Want},
    nodes::Node,
    session::args::Args,
    shared::Shared,
    upstream::{HeldReply, barrier},
};

/// Values that one command's reply shows.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    /// The command's place in the transaction that executes it.
    within: Option<usize>,
    keys: SmallVec<[Bytes; 1]>,
    /// The reply is an array of them, in the order of the keys.
    many: bool,
}

impl Shown {
    /// What GET shows.
    pub(crate) fn value_of(key: &[u8]) -> Self {
        Self { within: None, keys: SmallVec::from_iter([Bytes::copy_from_slice(key)]), many: false }
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
        match row.name {
            "get" | "getex" | "getdel" | "getset" => Some(Self::value_of(args.get(1))),
            "set" if args.from(3).any(|option| option.eq_ignore_ascii_case(b"GET")) => {
                Some(Self::value_of(args.get(1)))
            }
            "mget" => Some(Self { within: None, keys: args.from(1).map(Bytes::copy_from_slice).collect(), many: true }),
            _ => None,
        }
    }

    /// The same of a part of the request.
    pub(crate) fn part(&self, keys: &[&[u8]]) -> Self {
        let keys =
            if self.many { keys.iter().map(|key| Bytes::copy_from_slice(key)).collect() } else { self.keys.clone() };
        Self { keys, ..*self }
    }

    /// The values in a reply, with their keys and their places.
    fn values<'a>(&'a self, reply: &'a Value<'a>) -> Vec<(Place, &'a Bytes, &'a Value<'a>)> {
        let own = match self.within {
            Some(at) => reply.as_elements().and_then(|elements| elements.get(at)),
            None => Some(reply),
        };
        let Some(own) = own else { return Vec::new() };
        if self.many {
            let elements = own.as_elements().unwrap_or_default().iter();
            let places = elements.zip(&self.keys).enumerate();
            places.map(|(at, (value, key))| (Place { within: self.within, at: Some(at) }, key, value)).collect()
        } else {
            let place = Place { within: self.within, at: None };
            self.keys.iter().map(|key| (place, key, own)).collect()
        }
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
    pub(crate) shows: SmallVec<[Shown; 1]>,
    pub(crate) database: u32,
    pub(crate) protocol: Protocol,
    /// The node behind whose pushes it is to be handed on.
    pub(crate) behind: Option<Weak<Node>>,
}

impl RelayedStrings {
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
            (Err(wants), Ok(learned)) if learned.is_empty() => {
                return shared.learn(self.database, wants, Then::Relayed(Box::new(self)));
            }
            (Err(_), Ok(_)) => {
                self.held.bytes = error("NOTREADY the value depends on generations that are being renewed; ask again");
            }
        }
        if let Some(node) = self.behind.and_then(|node| node.upgrade()) {
            barrier(shared, &node, self.held);
        }
    }

    /// The reply with values in place of envelopes; `None`: it has none.
    fn rewritten(&self, shared: &Arc<Shared>, learned: &[Learned]) -> Result<Option<Bytes>, Vec<Want>> {
        if self.shows.is_empty() {
            return Ok(None);
        }
        let Ok((reply, _)) = Value::decode(&self.held.bytes) else { return Ok(None) };
        let (mut opened, mut wants) = (Vec::new(), Vec::new());
        for (place, key, value) in self.shows.iter().flat_map(|shown| shown.values(&reply)) {
            if value.as_bytes().is_some_and(is_suspect) {
                match shared.decode(self.database, key, Cached::from_value(value), None, learned) {
                    Ok(decoded) => opened.push((place, decoded.value)),
                    Err(unknown) => wants.extend(unknown),
                }
            }
        }
        if !wants.is_empty() {
            return Err(wants);
        }
        Ok((!opened.is_empty()).then(|| {
            let mut out = Vec::with_capacity(self.held.bytes.len());
            self.write(&reply, Place { within: None, at: None }, &opened, &mut out);
            out.into()
        }))
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
