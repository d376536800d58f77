//! Pub/sub of the embedded L3: channels, patterns and shard channels, and who listens.
//!
//! Messages go to the listeners of this process and nowhere else. A publisher hands a message to each of them, looking at all
//! there are: that is meant for development. A [`Listener`] that is dropped listens no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use caddy_engine::glob::Glob;
use caddy_resp::{Protocol, encode};
use parking_lot::Mutex;

use super::{
    Call,
    arguments::{Fault, count, is},
};

/// See the module.
#[derive(Default)]
pub(super) struct Channels {
    listeners: Arc<Mutex<BTreeMap<u64, Listening>>>,
    next: AtomicU64,
}

/// What one listener has asked for.
struct Listening {
    protocol: Protocol,
    channels: BTreeSet<Vec<u8>>,
    shards: BTreeSet<Vec<u8>>,
    patterns: BTreeMap<Vec<u8>, Glob>,
    deliver: Box<dyn Fn(Bytes) + Send + Sync>,
}

/// One connection's subscriptions.
pub struct Listener {
    id: u64,
    listeners: Arc<Mutex<BTreeMap<u64, Listening>>>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.listeners.lock().remove(&self.id);
    }
}

impl Channels {
    /// Somebody who listens to nothing yet.
    pub(super) fn listener(&self, protocol: Protocol, deliver: Box<dyn Fn(Bytes) + Send + Sync>) -> Listener {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let listening = Listening {
            protocol,
            channels: BTreeSet::new(),
            shards: BTreeSet::new(),
            patterns: BTreeMap::new(),
            deliver,
        };
        self.listeners.lock().insert(id, listening);
        Listener { id, listeners: self.listeners.clone() }
    }

    /// Hands a message out; how many got it, one that several of its patterns match so many times.
    fn publish(&self, channel: &[u8], message: &[u8]) -> usize {
        let mut receivers = 0;
        for listening in self.listeners.lock().values() {
            if listening.channels.contains(channel) {
                listening.send(&[b"message", channel, message]);
                receivers += 1;
            }
            for (pattern, _) in listening.patterns.iter().filter(|(_, glob)| glob.matches(channel)) {
                listening.send(&[b"pmessage", pattern, channel, message]);
                receivers += 1;
            }
        }
        receivers
    }

    fn publish_in_shard(&self, channel: &[u8], message: &[u8]) -> usize {
        let listeners = self.listeners.lock();
        let those = listeners.values().filter(|listening| listening.shards.contains(channel));
        those.map(|listening| listening.send(&[b"smessage", channel, message])).count()
    }

    /// The names that somebody listens to, of channels or shard channels, and how many do.
    fn names(&self, of: fn(&Listening) -> &BTreeSet<Vec<u8>>) -> BTreeMap<Vec<u8>, usize> {
        let mut names = BTreeMap::new();
        for listening in self.listeners.lock().values() {
            for name in of(listening) {
                *names.entry(name.clone()).or_default() += 1;
            }
        }
        names
    }
}

impl Listening {
    fn send(&self, parts: &[&[u8]]) {
        let mut out = Vec::new();
        encode::push_header(&mut out, self.protocol, parts.len());
        for part in parts {
            encode::bulk(&mut out, part);
        }
        (self.deliver)(out.into());
    }

    fn channels(&self) -> &BTreeSet<Vec<u8>> {
        &self.channels
    }

    fn shards(&self) -> &BTreeSet<Vec<u8>> {
        &self.shards
    }

    /// How many subscriptions of a kind's count there are.
    fn count(&self, kind: Kind) -> i64 {
        count(match kind {
            Kind::Shard => self.shards.len(),
            Kind::Channel | Kind::Pattern => self.channels.len() + self.patterns.len(),
        })
    }
}

/// What can be subscribed to.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Channel,
    Pattern,
    Shard,
}

impl Listener {
    /// Speaks this protocol from now on.
    pub fn set_protocol(&self, protocol: Protocol) {
        if let Some(listening) = self.listeners.lock().get_mut(&self.id) {
            listening.protocol = protocol;
        }
    }

    /// Whether it listens to anything.
    pub fn is_subscribed(&self) -> bool {
        let listeners = self.listeners.lock();
        listeners.get(&self.id).is_some_and(|own| own.count(Kind::Channel) + own.count(Kind::Shard) > 0)
    }

    /// SUBSCRIBE and its kin, with at least one argument where they need one: appends the confirmations.
    pub fn execute(&self, args: &[&[u8]], out: &mut Vec<u8>) {
        let Some((name, names)) = args.split_first() else { return };
        let name = name.to_ascii_lowercase();
        let (kind, subscribes) = match name.as_slice() {
            b"subscribe" => (Kind::Channel, true),
            b"unsubscribe" => (Kind::Channel, false),
            b"psubscribe" => (Kind::Pattern, true),
            b"punsubscribe" => (Kind::Pattern, false),
            b"ssubscribe" => (Kind::Shard, true),
            _ => (Kind::Shard, false),
        };
        let mut listeners = self.listeners.lock();
        let Some(own) = listeners.get_mut(&self.id) else { return };
        let all: Vec<Vec<u8>> = match kind {
            _ if subscribes || !names.is_empty() => names.iter().map(|name| name.to_vec()).collect(),
            Kind::Channel => own.channels.iter().cloned().collect(),
            Kind::Pattern => own.patterns.keys().cloned().collect(),
            Kind::Shard => own.shards.iter().cloned().collect(),
        };
        let mut confirm = |own: &Listening, subject: Option<&[u8]>| {
            encode::push_header(out, own.protocol, 3);
            encode::bulk(out, &name);
            match subject {
                Some(subject) => encode::bulk(out, subject),
                None => encode::null(out, own.protocol),
            }
            encode::integer(out, own.count(kind));
        };
        for subject in &all {
            match (kind, subscribes) {
                (Kind::Channel, true) => drop(own.channels.insert(subject.clone())),
                (Kind::Channel, false) => drop(own.channels.remove(subject)),
                (Kind::Pattern, true) => drop(own.patterns.insert(subject.clone(), Glob::new(subject))),
                (Kind::Pattern, false) => drop(own.patterns.remove(subject)),
                (Kind::Shard, true) => drop(own.shards.insert(subject.clone())),
                (Kind::Shard, false) => drop(own.shards.remove(subject)),
            }
            confirm(own, Some(subject));
        }
        if all.is_empty() {
            confirm(own, None);
        }
    }
}

// === commands ===

pub(super) fn publish(call: &mut Call<'_>) -> Result<(), Fault> {
    let receivers = call.channels.publish(call.args[1], call.args[2]);
    encode::integer(call.out, count(receivers));
    Ok(())
}

pub(super) fn spublish(call: &mut Call<'_>) -> Result<(), Fault> {
    let receivers = call.channels.publish_in_shard(call.args[1], call.args[2]);
    encode::integer(call.out, count(receivers));
    Ok(())
}

/// SUBSCRIBE and its kin are a connection's: [`Listener::execute`].
pub(super) fn subscription(_: &mut Call<'_>) -> Result<(), Fault> {
    Err(Fault::NeedsConnection)
}

pub(super) fn pubsub(call: &mut Call<'_>) -> Result<(), Fault> {
    let name = call.args[1];
    let rest = &call.args[2..];
    let of_shards = name.len() > 5 && is(&name[..5], "SHARD");
    let names = if of_shards { Listening::shards } else { Listening::channels };
    let word = if of_shards { &name[5..] } else { name };
    if is(word, "CHANNELS") && rest.len() < 2 {
        let glob = rest.first().map(|pattern| Glob::new(pattern));
        let names = call.channels.names(names).into_keys();
        let names: Vec<_> = names.filter(|name| glob.as_ref().is_none_or(|glob| glob.matches(name))).collect();
        encode::array_header(call.out, names.len());
        for name in names {
            encode::bulk(call.out, &name);
        }
    } else if is(word, "NUMSUB") {
        let names = call.channels.names(names);
        encode::array_header(call.out, rest.len() * 2);
        for name in rest {
            encode::bulk(call.out, name);
            encode::integer(call.out, count(names.get(*name).copied().unwrap_or(0)));
        }
    } else if is(name, "NUMPAT") && rest.is_empty() {
        let listeners = call.channels.listeners.lock();
        let patterns: BTreeSet<_> = listeners.values().flat_map(|own| own.patterns.keys()).collect();
        encode::integer(call.out, count(patterns.len()));
    } else {
        return Err(Fault::UnknownSubcommand("PUBSUB", String::from_utf8_lossy(name).into_owned()));
    }
    Ok(())
}
