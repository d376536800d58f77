//! Locks through the socket of real sidecars over a real Redis: what the commands answer, that the scripts keep the rules
//! of the in-process table, and what is left of a lock when a process, a connection or the data dies.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod agreed_epochs;
mod commands;
mod deadlocks;
mod epochs;
mod garbage;
mod histories;
mod lease_locks;
mod planted;
mod rights;
mod scripts;
mod settled_epochs;
mod stories;
mod takeover;

use caddy_resp::Value;
use caddy_tests::{redis::RedisServer, sidecar::Sidecar, wire::Wire};

/// Where the locks of a sidecar without a domain of its own lie.
pub(crate) const LOCKS: &str = "caddy:{default.local}:locks";

/// Takes exclusive locks away behind everybody's back, as an eviction would.
pub(crate) fn remove(redis: &RedisServer, names: &[&str]) {
    let fields: Vec<String> = names.iter().map(|name| format!("x:{name}")).collect();
    let mut command = vec!["HDEL", LOCKS];
    command.extend(fields.iter().map(String::as_str));
    redis.command(&command).unwrap();
}

/// What is left of locks in Redis: fields of the hash, and keys of shared holders and queues.
pub(crate) fn left_over(redis: &RedisServer, locks: &str) -> Vec<String> {
    let texts = |reply: &[u8]| -> Vec<String> {
        let elements = Value::decode(reply).unwrap().0;
        elements.as_elements().unwrap().iter().map(show).collect()
    };
    let fields = texts(&redis.command(&["HKEYS", locks]).unwrap());
    let keys = texts(&redis.command(&["KEYS", "*:locks:[hzq]:*"]).unwrap());
    fields.into_iter().filter(|field| field.contains(':')).chain(keys).collect()
}

/// A connection that takes locks.
pub(crate) struct Locker(pub(crate) Wire);

impl Locker {
    pub(crate) fn new(sidecar: &Sidecar) -> Self {
        Self(sidecar.connect().unwrap())
    }

    /// Sends a line of words.
    pub(crate) fn send(&mut self, line: &str) {
        self.0.send(&line.split(' ').collect::<Vec<_>>()).unwrap();
    }

    /// The next reply, as text: integers and strings as they are, arrays in brackets.
    pub(crate) fn reply(&mut self) -> String {
        let reply = self.0.reply().unwrap();
        show(&Value::decode(&reply).unwrap().0)
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.reply()
    }

    /// The token of an acquisition that has to succeed.
    pub(crate) fn acquire(&mut self, rest: &str) -> String {
        let reply = self.ask(&format!("LOCK.ACQUIRE {rest}"));
        granted(&reply).unwrap_or_else(|| panic!("LOCK.ACQUIRE {rest}: {reply}"))
    }
}

/// The token of `[token, ms]`.
pub(crate) fn granted(reply: &str) -> Option<String> {
    let (token, _) = reply.strip_prefix('[')?.split_once(' ')?;
    Some(token.to_owned())
}

pub(crate) fn show(value: &Value<'_>) -> String {
    if let Some(error) = value.as_error() {
        return format!("-{}", String::from_utf8_lossy(error));
    }
    if let Some(number) = value.as_integer() {
        return number.to_string();
    }
    if let Some(elements) = value.as_elements() {
        return format!("[{}]", elements.iter().map(show).collect::<Vec<_>>().join(" "));
    }
    value.as_bytes().map_or_else(|| format!("{value:?}"), |bytes| String::from_utf8_lossy(bytes).into_owned())
}
