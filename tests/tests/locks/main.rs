//! Locks through the socket of real sidecars over a real Redis: what the commands answer, that the scripts keep the rules
//! of the in-process table, and what is left of a lock when a process, a connection or the data dies.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

mod commands;
mod epochs;
mod histories;
mod scripts;

use caddy_resp::Value;
use caddy_tests::{sidecar::Sidecar, wire::Wire};

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
